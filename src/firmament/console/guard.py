"""What stands around every page: headers, who may send forms, cookies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

from firmament.errors import ForbiddenError, MalformedError, TooLargeError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types firmament"
)
HEADERS: Final = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "same-origin",
    "strict-transport-security": "max-age=31536000",
    "x-content-type-options": "nosniff",
}
SESSION_COOKIE: Final = "__Host-firmament"
"""The prefix makes browsers insist on Secure, on path / and on no domain."""
THEME_COOKIE: Final = "firmament-theme"
KEYS_COOKIE: Final = "firmament-keys"
COLUMNS_COOKIE: Final = "firmament-columns"
THEMES: Final = ("light", "dark")
YEAR_S: Final = 31_536_000
MAX_FORM_LENGTH_BYTES: Final = 256 * 1024
"""The longest field is a consent text of some pages."""
MAX_FORM_FIELDS: Final = 500


def require_same_origin(request: Request) -> None:
    """Refuse a form that another site sent; raises ForbiddenError.

    Browsers say where a request comes from in Sec-Fetch-Site; old ones only in Origin.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        if site not in {"same-origin", "none"}:
            raise ForbiddenError("The form was sent by another site", sec_fetch_site=site[:20])
        return
    origin = request.headers.get("origin")
    if origin is None or urlsplit(origin).netloc != request.headers.get("host", ""):
        raise ForbiddenError("The form does not say which site sent it", origin=(origin or "none")[:80])


async def read_form(request: Request) -> list[tuple[str, str]]:
    """Return the fields of a urlencoded form, in order; raises TooLargeError or MalformedError."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_LENGTH_BYTES:
            raise TooLargeError("The form is too long", limit_bytes=MAX_FORM_LENGTH_BYTES)
    try:
        return parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS)
    except ValueError as error:
        raise MalformedError("The form cannot be read", reason=str(error)[:80]) from error


def local_path(text: str) -> str:
    """Return a path of this console to go on to, ``/`` for anything else: no open redirect."""
    parts = urlsplit(text)
    is_local = text.startswith("/") and not text.startswith(("//", "/\\")) and not parts.netloc and not parts.scheme
    return text if is_local and text.isprintable() else "/"


def set_session(response: Response, token: str, lifetime_s: int) -> None:
    """Give the browser the session: the token of the operator API, which scripts cannot read."""
    response.set_cookie(SESSION_COOKIE, token, max_age=lifetime_s, path="/", secure=True, httponly=True, samesite="lax")


def end_session(response: Response) -> None:
    """Take the session back."""
    response.delete_cookie(SESSION_COOKIE, path="/", secure=True, httponly=True, samesite="lax")


def set_choice(response: Response, name: str, value: str) -> None:
    """Keep a choice of the browser (theme, shortcuts); an empty value forgets it."""
    if value:
        response.set_cookie(name, value, max_age=YEAR_S, path="/", secure=True, httponly=True, samesite="lax")
    else:
        response.delete_cookie(name, path="/", secure=True, httponly=True, samesite="lax")
