"""Who is calling: signing in, and what a session's or token's secret speaks for. For the API and the console."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from firmament.errors import ForbiddenError, SecondFactorError, UnauthenticatedError
from firmament.server.people import service as people
from firmament.server.people import sessions, tokens
from firmament.server.people.passwords import verify_password
from firmament.server.people.service import Refusal
from firmament.server.scope import Role
from firmament.server.tokens import SESSION_PREFIX

if TYPE_CHECKING:
    from firmament.server.parts import Parts
    from firmament.server.people.sessions import Found, Kind, Opened
    from firmament.server.scope import Scope


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever asks, and their session if it is one."""

    scope: Scope
    session: Found | None

    def require_session(self) -> Found:
        """Return the session; raises ForbiddenError for a token: a stolen one must not change who one is."""
        if self.session is None:
            raise ForbiddenError("This needs somebody who signed in, not a token")
        return self.session


async def identify(parts: Parts, secret: str, *, address: str, is_enrolling: bool = False) -> Caller:
    """Return who a secret speaks for, and note its use; raises UnauthenticatedError, SecondFactorError."""
    now = parts.clock.now()
    if secret.startswith(SESSION_PREFIX):
        needs_factor = frozenset(Role(name) for name in parts.settings.second_factor_roles)
        found = await parts.database.read(
            lambda connection: sessions.scope_of_session(
                connection, secret, now, needs_factor=needs_factor, is_enrolling=is_enrolling
            )
        )
        if found.is_due:
            await parts.database.submit(lambda connection: sessions.touch(connection, found.session_id, now))
        return Caller(found.scope, found)
    token = await parts.database.read(lambda connection: tokens.find_token(connection, secret, now))
    if token.is_due:
        await parts.database.submit(lambda connection: tokens.touch_token(connection, token.token_id, address, now))
    return Caller(token.scope, None)


async def sign_in(
    parts: Parts, *, account: str, password: str, code: str | None, kind: Kind, address: str, client: str
) -> Opened:
    """Check a password in a thread, and a code where there is a second factor; open a session.

    Raises RateLimitedError (per address and per name), SecondFactorError when a code is missing,
    UnauthenticatedError otherwise: it does not tell which of name, password, code or lock it was.
    """
    monotonic_s = parts.clock.monotonic_s()
    parts.login_limit.require(address, monotonic_s, what="sign-in attempts")
    parts.name_limit.require(account, monotonic_s, what="sign-in attempts for this name")
    found = await parts.database.read(lambda connection: people.credentials(connection, account))
    is_right = await asyncio.to_thread(verify_password, found.hashed, password)
    now = parts.clock.now()
    answer = await parts.database.submit(
        lambda connection: people.sign_in(
            connection,
            parts.vault,
            found,
            is_right=is_right,
            code=code,
            kind=kind,
            address=address,
            client=client,
            now=now,
        )
    )
    if answer is Refusal.CODE_MISSING:
        raise SecondFactorError("This name has a second factor")
    if isinstance(answer, Refusal):
        raise UnauthenticatedError("Name, password or code is wrong, or the name is locked for a while")
    return answer
