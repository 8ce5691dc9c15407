"""The parent's side of the isolated signer: start it, ask it, start it again if it died."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from firmament.core import canonical
from firmament.errors import FirmamentError, OverloadedError, error_for_code
from firmament.log import logger
from firmament.server.signer import MAX_MESSAGE_LENGTH_BYTES, receive, send

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from firmament.server.releases.model import Published

log = logger("server.signer")

ANSWER_DEADLINE_S: Final = 30.0
# Signing takes a millisecond, a slow disk's fsync some hundred; the rest is start-up on a busy machine.


class SignerClient:
    """One signer process. Questions are asked one at a time, each in a worker thread."""

    def __init__(self, directory: Path, *, user: str = "") -> None:
        self._directory = directory
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Process id of the signer, None before `start`."""
        return self._process.pid if self._process else None

    def start(self) -> dict[str, Any]:
        """Start the process and wait until its keys are loaded; return its keyids.

        Raises the error the signer reports, e.g. KeyFileError, or SettingError for an unknown user.
        """
        ours, theirs = socket.socketpair()
        ours.settimeout(ANSWER_DEADLINE_S)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "firmament.server.signer", str(self._directory), self._user],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd="/",
                # SIGINT at a terminal goes to the whole group; the signer ends when we do.
                start_new_session=True,
            )
        self._connection = ours
        ready: dict[str, Any] = self._read(ours)["ready"]
        log.info("signer.started", pid=self._process.pid, user=self._user or "same as the server")
        return ready

    async def publish(self, served: Published, versions: Mapping[str, int]) -> dict[str, Any]:
        """Ask for the next snapshot and timestamp over `versions`; raises RollbackError."""
        return await self._ask(_question("publish", served, versions))

    async def refresh(self, served: Published) -> dict[str, Any]:
        """Ask for whatever of the served repository needs renewal; raises TornPublishError."""
        return await self._ask(_question("refresh", served, served.versions))

    async def carried(self, served: Published, *, lifetime_s: int) -> dict[str, Any]:
        """Ask for what is served with a longer life, for a parcel; raises TornPublishError, MalformedError."""
        return await self._ask({**_question("carried", served, served.versions), "lifetime_s": lifetime_s})

    async def audit(self, op: str, **question: Any) -> dict[str, Any]:
        """Ask the audit key (audit/signer.py); raises ChainBrokenError, LogProofError."""
        return await self._ask({"op": op, **question})

    async def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        async with self._turn:
            return await asyncio.to_thread(self.ask, question)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Send one question and wait; a signer that died is started once more."""
        if self._connection is None or (self._process is not None and self._process.poll() is not None):
            log.warning("signer.restarting")
            self.close()
            self.start()
        assert self._connection is not None
        try:
            send(self._connection, canonical.encode(question))
            return self._read(self._connection)
        except OSError as error:
            self.close()
            raise OverloadedError("The signer does not answer", reason=error) from error

    def _read(self, connection: socket.socket) -> dict[str, Any]:
        message = receive(connection)
        if message is None:
            self.close()
            raise OverloadedError("The signer ended before it answered")
        value = canonical.decode_object(message, limit_bytes=MAX_MESSAGE_LENGTH_BYTES, what="The signer's answer")
        if "error" in value:
            raise _error(value)
        return value

    def close(self) -> None:
        """End the process: it stops when its parent's end of the pair is closed."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._process = None


def _question(op: str, served: Published, versions: Mapping[str, int]) -> dict[str, Any]:
    return {
        "op": op,
        "versions": dict(versions),
        "snapshot": served.snapshot_version,
        "timestamp": served.timestamp_version,
    }


def _error(value: dict[str, Any]) -> FirmamentError:
    return error_for_code(str(value["error"]))(str(value.get("problem", "")), **value.get("facts", {}))
