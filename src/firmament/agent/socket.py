"""The local socket of the daemon: status, commands and events for whoever may use this device.

A Unix stream socket, one JSON object per line. A client sends one request and reads until the
connection closes::

    -> {"v": 1, "command": "all", "arguments": {"yes": true}}
    <- {"event": {"event": "progress", "done_bytes": 65536, "total_bytes": 1048576, ...}}
    <- {"result": {...}}        or        {"error": {"code": "...", "problem": "...", "facts": {...}}}

Who may connect is decided by the mode of the file (0600, or 0660 with a group) and, for the
former, once more by the peer's credentials (SO_PEERCRED, unix(7)). Everything has a ceiling:
connections, the length of a request, the time to send it, and events that wait for a slow reader.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import json
import os
import queue
import socket
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.core import canonical
from firmament.core.fields import Fields
from firmament.errors import (
    AddressInUseError,
    FileError,
    FirmamentError,
    ForbiddenError,
    MalformedError,
    SettingError,
    TruncatedError,
    error_for_code,
)
from firmament.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

log = logger("agent.socket")

VERSION: Final = 1
MAX_REQUEST_LENGTH_BYTES: Final = 4096
MAX_LINE_LENGTH_BYTES: Final = 1024 * 1024
"""Of an answer: a history of 64 attempts with their messages is 60 kB."""
MAX_CONNECTIONS: Final = 8
REQUEST_TIMEOUT_S: Final = 5.0
SEND_TIMEOUT_S: Final = 5.0
LAST_WORDS_S: Final = 4.0
"""How long an ending daemon waits in all for answers to be sent."""
MAX_WAITING_LINES: Final = 256
MAX_PATH_LENGTH_BYTES: Final = 107  # sun_path, unix(7)
OWNER_ONLY: Final = 0o600
WITH_GROUP: Final = 0o660
_CREDENTIALS: Final = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks."""

    command: str
    arguments: Fields
    user_id: int
    """Of the process that asks."""
    actor: str = ""
    """Who asks, for consent events."""

    def __post_init__(self) -> None:
        """Name the user when nobody else is named."""
        if not self.actor:
            object.__setattr__(self, "actor", f"uid:{self.user_id}")


class Conversation:
    """The answer to one request: any number of events, then a result or an error. Thread-safe."""

    def __init__(self) -> None:
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(MAX_WAITING_LINES)
        self.is_over = False
        """The client went away, or everything was said."""

    def event(self, value: dict[str, Any]) -> None:
        """Tell an event; one that finds the queue full is dropped, the reader is too slow."""
        with contextlib.suppress(queue.Full):
            if self._lines.qsize() < MAX_WAITING_LINES - 2:  # room for the last words
                self._lines.put_nowait({"event": value})

    def result(self, value: dict[str, Any]) -> None:
        """End with a result."""
        self._end({"result": value})

    def error(self, error: FirmamentError) -> None:
        """End with an error."""
        facts = {name: str(value) for name, value in error.facts.items()}
        self._end({"error": {"code": error.code, "problem": error.problem, "facts": facts}})

    def _end(self, line: dict[str, Any]) -> None:
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(line)
            self._lines.put_nowait(None)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield what is to be sent, until the end."""
        while True:
            with contextlib.suppress(queue.Empty):
                line = self._lines.get(timeout=1.0)
                if line is None:
                    return
                yield line
            if self.is_over:
                return


class ControlServer:
    """Accepts clients in threads of its own and passes their requests to `handle`.

    `handle` is called in a client's thread; it must see to it that the conversation ends.
    """

    def __init__(self, path: Path, *, group: str = "", handle: Callable[[Request, Conversation], None]) -> None:
        self._path = path
        self._group = group
        self._handle = handle
        self._listener: socket.socket | None = None
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._is_closing = threading.Event()
        self._clients: set[threading.Thread] = set()
        self._clients_lock = threading.Lock()

    def start(self) -> None:
        """Listen; raises AddressInUseError, SettingError or FileError."""
        if len(os.fsencode(self._path)) > MAX_PATH_LENGTH_BYTES:
            raise SettingError("The path of the socket is too long", path=self._path, limit=MAX_PATH_LENGTH_BYTES)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._remove_stale()
            os.fchmod(listener.fileno(), OWNER_ONLY)  # the mode the name gets at bind; umask is everybody's
            listener.bind(os.fspath(self._path))
            self._admit_group()
            listener.listen(MAX_CONNECTIONS)
        except OSError as error:
            listener.close()
            raise FileError("The local socket cannot be made", path=self._path, reason=error) from error
        except FirmamentError:
            listener.close()
            raise
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), name="socket", daemon=True).start()

    def close(self) -> None:
        """Stop listening, let last words reach their clients, and remove the name."""
        self._is_closing.set()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)
        with self._clients_lock:
            clients = tuple(self._clients)
        for client in clients:
            client.join(LAST_WORDS_S / MAX_CONNECTIONS)

    def _remove_stale(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(os.fspath(self._path))
            except (FileNotFoundError, ConnectionRefusedError):
                self._path.unlink(missing_ok=True)
                return
        raise AddressInUseError("Another program listens on the local socket", path=self._path)

    def _admit_group(self) -> None:
        if self._group:
            try:
                os.chown(self._path, -1, grp.getgrnam(self._group).gr_gid)
            except KeyError as error:
                raise SettingError("The group does not exist", setting="socket_group", found=self._group) from error
        self._path.chmod(WITH_GROUP if self._group else OWNER_ONLY)

    def _accept(self, listener: socket.socket) -> None:
        while not self._is_closing.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if not self._slots.acquire(blocking=False):
                connection.close()
                continue
            client = threading.Thread(target=self._serve, args=(connection,), name="client", daemon=True)
            with self._clients_lock:  # whoever closes sees started threads only
                self._clients.add(client)
                client.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.closing(connection):
            try:
                conversation = Conversation()
                try:
                    self._handle(self._request(connection), conversation)
                except FirmamentError as error:
                    conversation.error(error)
                connection.settimeout(SEND_TIMEOUT_S)
                for line in conversation.lines():
                    connection.sendall(json.dumps(line, default=str).encode() + b"\n")
            except OSError as error:
                log.debug("socket.client-left", reason=str(error))
            finally:
                conversation.is_over = True
                with self._clients_lock:
                    self._clients.discard(threading.current_thread())
                self._slots.release()

    def _request(self, connection: socket.socket) -> Request:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, user_id, _ = _CREDENTIALS.unpack(credentials)
        connection.settimeout(REQUEST_TIMEOUT_S)
        data = _read_line(connection, MAX_REQUEST_LENGTH_BYTES)
        if not self._group and user_id not in {0, os.geteuid()}:
            raise ForbiddenError("This user may not command the agent", user_id=user_id)
        value = canonical.decode_object(data, limit_bytes=MAX_REQUEST_LENGTH_BYTES, what="request")
        fields = Fields(value, what="request")
        if fields.integer("v") != VERSION:
            raise MalformedError("The request has a version this agent does not know", known=VERSION)
        return Request(fields.text("command", max_length=32), fields.object("arguments", optional=True), user_id)


class ControlClient:
    """The other end: asks one thing and yields what comes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @classmethod
    def connect(cls, path: Path) -> ControlClient | None:
        """Return a connection to the daemon, None when none listens; raises FileError if it may not be used."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(os.fspath(path))
        except OSError as error:
            connection.close()
            if error.errno in {errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR}:
                return None
            raise FileError("The daemon's socket cannot be used", path=path, reason=error.strerror) from error
        return cls(connection)

    def close(self) -> None:
        """Stop waiting for an answer, from any thread; the daemon goes on."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def ask(
        self, command: str, arguments: dict[str, Any], *, on_event: Callable[[dict[str, Any]], None] | None = None
    ) -> dict[str, Any]:
        """Return the result; raises the error that the daemon raised, or TruncatedError if it went away."""
        request = {"v": VERSION, "command": command, "arguments": arguments}
        try:
            with contextlib.closing(self._connection):
                self._connection.sendall(json.dumps(request).encode() + b"\n")
                with self._connection.makefile("rb") as lines:
                    while data := lines.readline(MAX_LINE_LENGTH_BYTES):
                        line = json.loads(data)
                        if "event" in line:
                            if on_event is not None:
                                on_event(line["event"])
                        elif "error" in line:
                            found = line["error"]
                            raise error_for_code(found["code"])(found["problem"], **found["facts"])
                        else:
                            result: dict[str, Any] = line["result"]
                            return result
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TruncatedError("The daemon's answer cannot be read", reason=error) from error
        raise TruncatedError("The daemon went away before it answered; the update itself goes on by the journal")


def _read_line(connection: socket.socket, limit_bytes: int) -> bytes:
    data = bytearray()
    try:
        while b"\n" not in data:
            chunk = connection.recv(limit_bytes)
            if not chunk:
                break
            data += chunk
            if len(data) > limit_bytes:
                raise MalformedError("The request is longer than allowed", limit_bytes=limit_bytes)
    except TimeoutError as error:
        raise MalformedError("The request did not come in time", limit_s=REQUEST_TIMEOUT_S) from error
    return bytes(data.partition(b"\n")[0])
