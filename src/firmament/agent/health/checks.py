"""The three health checks: a command, an HTTP answer, a systemd unit."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import threading
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from firmament.agent.health.port import Finding, finding
from firmament.agent.health.run import run
from firmament.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_TIMEOUT_S: Final = 5
MAX_BODY_BYTES: Final = 16 * 1024
# A health answer is a few words; the first 16 KiB are enough to look for them.
UNIT_PROPERTIES: Final = "ActiveState,SubState,Result,NRestarts"
_OK: Final = range(200, 300)


class CommandCheck:
    """Healthy when the command ends with 0 within `timeout_s`."""

    def __init__(self, argv: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._argv = tuple(argv)
        self._timeout_s = timeout_s

    @property
    def name(self) -> str:  # noqa: D102 - see HealthCheck, here and below
        return f"command {self._argv[0]}"

    def check(self) -> Finding:  # noqa: D102
        try:
            code, output = run(self._argv, timeout_s=self._timeout_s)
        except OSError as error:
            return finding(self.name, is_healthy=False, detail=f"The command cannot be started: {error}")
        if code is None:
            return finding(self.name, is_healthy=False, detail=f"{output}\nIt did not end within {self._timeout_s} s")
        return finding(
            self.name, is_healthy=code == 0, detail=output if code == 0 else f"{output}\nIt ended with {code}"
        )


class HttpCheck:
    """Healthy when this machine answers a GET with a 2xx status within `timeout_s`.

    `expect` must occur in the first 16 KiB of the body if it is given. Only loopback addresses
    and plain HTTP: the image on trial is asked, and nobody else may answer for it. Redirects are
    not followed, proxies are not used.
    """

    def __init__(self, url: str, *, timeout_s: float = DEFAULT_TIMEOUT_S, expect: str = "") -> None:
        self._url = url
        self._host, self._port, self._target = split_url(url)
        self._timeout_s = timeout_s
        self._expect = expect.encode()

    @property
    def name(self) -> str:  # noqa: D102
        return f"http {self._url}"

    def check(self) -> Finding:  # noqa: D102
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        is_late = threading.Event()
        # http.client's timeout is per read. A program that drips its answer byte by byte would
        # hold the trial for ever, so the line is cut at the deadline.
        alarm = threading.Timer(self._timeout_s, _cut, (connection, is_late))
        alarm.daemon = True
        try:
            alarm.start()
            connection.request("GET", self._target, headers={"User-Agent": "firmament-agent", "Connection": "close"})
            response = connection.getresponse()
            status, body = response.status, response.read(MAX_BODY_BYTES)
            if response.length and len(body) < MAX_BODY_BYTES:
                raise http.client.IncompleteRead(body, response.length)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return finding(self.name, is_healthy=False, detail=self._why(error, is_late))
        finally:
            alarm.cancel()
            connection.close()
        if is_late.is_set():
            return finding(self.name, is_healthy=False, detail=self._why(TimeoutError(), is_late))
        text = f"{status}\n{body.decode('utf-8', 'replace')}"
        if status in _OK and self._expect not in body:
            return finding(self.name, is_healthy=False, detail=f"{text}\nIt does not contain {self._expect.decode()!r}")
        return finding(self.name, is_healthy=status in _OK, detail=text)

    def _why(self, error: Exception, is_late: threading.Event) -> str:
        if is_late.is_set() or isinstance(error, TimeoutError):
            return f"No whole answer within {self._timeout_s} s"
        return f"No answer: {error!r}"


class SystemdCheck:
    """Healthy when systemd says that the unit is active and has not restarted since the last look."""

    def __init__(self, unit: str, *, timeout_s: float = DEFAULT_TIMEOUT_S, systemctl: str = "systemctl") -> None:
        self._unit = unit
        self._timeout_s = timeout_s
        self._systemctl = systemctl
        self._restarts: int | None = None

    @property
    def name(self) -> str:  # noqa: D102
        return f"systemd {self._unit}"

    def check(self) -> Finding:  # noqa: D102
        argv = (self._systemctl, "show", f"--property={UNIT_PROPERTIES}", "--", self._unit)
        try:
            code, output = run(argv, timeout_s=self._timeout_s)
        except OSError as error:
            return finding(self.name, is_healthy=False, detail=f"systemctl cannot be started: {error}")
        facts = dict(line.partition("=")[::2] for line in output.splitlines())
        restarts = int(facts["NRestarts"]) if facts.get("NRestarts", "").isdigit() else 0
        before, self._restarts = self._restarts, restarts
        if code != 0 or facts.get("ActiveState") != "active":
            return finding(self.name, is_healthy=False, detail=output)
        if before is not None and restarts > before:
            return finding(self.name, is_healthy=False, detail=f"{output}\nIt was restarted during the trial")
        return finding(self.name, is_healthy=True, detail=output)


def _cut(connection: http.client.HTTPConnection, is_late: threading.Event) -> None:
    is_late.set()
    if connection.sock is not None:
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)


def split_url(url: str) -> tuple[str, int, str]:
    """Return host, port and request target; raises SettingError unless it is plain HTTP on this machine."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 80
        is_here = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = False
    if not is_here or parts.scheme != "http" or parts.username is not None:
        raise SettingError(
            "A health check asks this machine over plain HTTP", url=url, example="http://127.0.0.1:8080/"
        )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return host, port, target
