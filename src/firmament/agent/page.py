"""The owner's page: one local web page to read the offer, answer it, and follow the update.

Off by default (settings ``[page]``); for 127.0.0.1 or the address of a USB gadget, never for the
open network. Standard library only. There is no script on it; the policy forbids all.

Who may answer: whoever stands before the device. Each answer needs the one-time code that the
device shows (hook ``on_offer``, `firmament-agent page`); it is good for one answer and changes
after `MAX_WRONG` wrong ones. A page of another site cannot answer: the code is unknown to it, a
foreign `Origin` or `Sec-Fetch-Site` is refused, and so is a foreign `Host` (DNS rebinding).
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

from firmament.agent.http_server import BoundedServer
from firmament.agent.page_view import STYLE, render
from firmament.errors import AddressInUseError, FirmamentError, PostponeLimitError
from firmament.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmament.agent.settings import PageSettings
    from firmament.core.clock import Clock

log = logger("agent.page")

MAX_BODY_LENGTH_BYTES: Final = 1024
MAX_CONNECTIONS: Final = 8
REQUEST_TIMEOUT_S: Final = 5.0
CODE_DIGITS: Final = 6
MAX_WRONG: Final = 5
FIRST_LOCK_S: Final = 60.0
MAX_LOCK_S: Final = 3600.0
# The lock doubles with every five wrong codes: about 44 000 guesses a year at one of a million.
ACTIONS: Final = frozenset({"now", "tonight", "later", "skip", "withdraw", "opt-out", "opt-in"})
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer a browser sends `Origin: null` with our own form
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class OneTimeCode:
    """The code that the device shows now; thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._wrong = 0
        self._locked_until_s = 0.0
        self._lock_s = FIRST_LOCK_S
        self._value = self._new()

    @property
    def value(self) -> str:
        """What is to be shown."""
        return self._value

    def use(self, text: str) -> str:
        """Use the code up: empty when it was right, else why not (``wrong-code``, ``locked``)."""
        with self._lock:
            now_s = self._clock.monotonic_s()
            if now_s < self._locked_until_s:
                return "locked"
            if hmac.compare_digest(text.strip().encode(), self._value.encode()):
                self._wrong, self._value, self._lock_s = 0, self._new(), FIRST_LOCK_S
                return ""
            self._wrong += 1
            if self._wrong < MAX_WRONG:
                return "wrong-code"
            self._wrong, self._value, self._locked_until_s = 0, self._new(), now_s + self._lock_s
            self._lock_s = min(2 * self._lock_s, MAX_LOCK_S)
            log.warning("page.locked", wrong=MAX_WRONG)
            return "locked"

    @staticmethod
    def _new() -> str:
        return f"{secrets.randbelow(10**CODE_DIGITS):0{CODE_DIGITS}}"


class Page:
    """Serves the page in threads of its own.

    `look` returns status and history; `say` takes an answer and raises what the engine raises.
    """

    def __init__(
        self,
        settings: PageSettings,
        clock: Clock,
        *,
        look: Callable[[], tuple[dict[str, Any], list[dict[str, Any]]]],
        say: Callable[[str], object],
    ) -> None:
        self.code: Final = OneTimeCode(clock)
        self._settings = settings
        self._look = look
        self._say = say
        self._server: BoundedServer | None = None

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self._address()
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def start(self) -> None:
        """Listen; raises AddressInUseError."""
        page = self

        class Handler(_Handler):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                self.page = page
                super().__init__(*args, **kwargs)

        try:
            self._server = BoundedServer(self._address(), Handler, max_connections=MAX_CONNECTIONS, name="page")
        except OSError as error:
            raise AddressInUseError("The owner's page cannot be served", url=self.url, reason=error) from error
        self._server.start()
        log.info("page.serving", url=self.url)

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def hosts(self) -> frozenset[str]:
        """Return the Host headers that are meant for this page."""
        host, port = self._address()
        names = {f"[{host}]" if ":" in host else host, *(["localhost"] if host in {"127.0.0.1", "::1"} else [])}
        return frozenset(f"{name}:{port}" for name in names) | (frozenset(names) if port == HTTP_PORT else frozenset())

    def view(self, message: str) -> str:
        """Return the page as HTML."""
        status, history = self._look()
        return render(status, history, language=self._settings.language, message=message)

    def answer(self, action: str, code: str) -> str:
        """Take an answer with its code; return what to tell the owner."""
        if action not in ACTIONS:
            return "refused"
        if why := self.code.use(code):
            return why
        try:
            self._say(action)
        except PostponeLimitError:
            return "limit"
        except FirmamentError as error:
            log.info("page.refused", action=action, code=error.code)
            return "refused"
        return "said"

    def _address(self) -> tuple[str, int]:
        if self._server is not None:
            return self._server.bound
        return self._settings.host, self._settings.port


HTTP_PORT: Final = 80


class _Handler(BaseHTTPRequestHandler):
    page: Page
    timeout = REQUEST_TIMEOUT_S
    protocol_version = "HTTP/1.1"
    server_version = "firmament-agent"
    sys_version = ""

    def do_GET(self) -> None:
        """Show the page, or its style."""
        if not self._is_for_us():
            return
        path = urlsplit(self.path)
        if path.path == "/":
            said = parse_qs(path.query).get("said", [""])[0]
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.page.view(said))
        elif path.path == "/style.css":
            self._send(HTTPStatus.OK, "text/css; charset=utf-8", STYLE)
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", "There is no such page.\n")

    def do_POST(self) -> None:
        """Take an answer."""
        if not self._is_for_us():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/answer" or not length.isdigit() or int(length) > MAX_BODY_LENGTH_BYTES:
            self.close_connection = True
            self._send(HTTPStatus.BAD_REQUEST, "text/plain; charset=utf-8", "This is not an answer.\n")
            return
        body = self.rfile.read(int(length)).decode("utf-8", "replace")
        if not self._is_from_us():
            self._send(HTTPStatus.FORBIDDEN, "text/plain; charset=utf-8", "This came from another page.\n")
            return
        given = parse_qs(body, max_num_fields=8)
        said = self.page.answer(given.get("action", [""])[0], given.get("code", [""])[0])
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", f"/?said={said}")
        self.send_header("Content-Length", "0")
        self._end()

    def _is_for_us(self) -> bool:
        if self.headers.get("Host", "").lower() in self.page.hosts():
            return True
        self.close_connection = True
        self._send(HTTPStatus.MISDIRECTED_REQUEST, "text/plain; charset=utf-8", "This page has another address.\n")
        return False

    def _is_from_us(self) -> bool:
        site, origin = self.headers.get("Sec-Fetch-Site"), self.headers.get("Origin")
        if site is not None and site not in {"same-origin", "none"}:
            return False
        return origin is None or urlsplit(origin).netloc.lower() in self.page.hosts()

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self._end()
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def _end(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Log, where the library would print."""
        log.debug("page.request", line=format % args)
