"""Sessions: somebody who proved who they are, for some hours; server-side, revocable, only a hash is stored.

A console session lives in a cookie and ends when it was idle, a command's session is a bearer
token in a private file and ends at its time. Both follow the person: whoever is disabled or
demoted is so at the next request. A session's secret is made anew at each sign-in.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import NotFoundError, SecondFactorError, UnauthenticatedError
from firmament.server import events
from firmament.server.events import Event
from firmament.server.people import second_factor
from firmament.server.scope import Role, Scope
from firmament.server.tokens import SESSION_PREFIX, hash_token, make_token

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection

SESSION_LIFETIME: Final = timedelta(hours=12)
"""A working day; then one signs in again."""
CONSOLE_IDLE: Final = timedelta(minutes=60)
TOUCH_AFTER_S: Final = 60
"""How exact "last used" is: a page of tables does not cost a write per request."""
COOKIE: Final = "__Host-firmament"
"""The prefix makes browsers insist on Secure, no Domain and Path=/ (RFC 6265bis)."""
MAX_LISTED: Final = 200


class Kind(StrEnum):
    """Where a session is kept."""

    CONSOLE = "console"
    COMMAND = "command"


class Proof(StrEnum):
    """What somebody signed in with."""

    PASSWORD = "password"  # noqa: S105 - a word, not a secret
    PASSWORD_AND_CODE = "password+code"  # noqa: S105 - a word, not a secret
    OUTSIDE = "outside"
    """An identity provider vouched."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A new session; the secret is shown once."""

    secret: str
    expires_at: int
    scope: Scope


@dataclass(frozen=True, slots=True)
class Found:
    """A session that holds now."""

    scope: Scope
    session_id: int
    person_id: int
    name: str
    tenant: str
    is_due: bool
    """Whether its last use should be written (`touch`)."""


def open_session(
    connection: Connection, *, person_id: int, kind: Kind, proof: Proof, address: str, client: str, now: datetime
) -> Opened:
    """Open a session for somebody whose proof was checked."""
    row = connection.execute("SELECT tenant_id, name, role FROM person WHERE id = ?", (person_id,)).fetchone()
    scope = Scope(row["tenant_id"], f"person:{row['name']}", Role(row["role"]))
    secret, hashed = make_token(SESSION_PREFIX)
    expires_at = int((now + SESSION_LIFETIME).timestamp())
    moment = int(now.timestamp())
    connection.execute(
        "INSERT INTO person_session(tenant_id, person_id, hash, kind, address, client, proofs, created_at, used_at, "
        "expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            scope.tenant_id,
            person_id,
            hashed,
            kind.value,
            address,
            client[:120],
            proof.value,
            moment,
            moment,
            expires_at,
        ),
    )
    events.append(connection, scope, Event.SESSION_OPENED, now, subject=scope.actor, kind=kind.value, proof=proof.value)
    return Opened(secret, expires_at, scope)


def open_console_session(
    connection: Connection, *, person_id: int, proof: Proof, address: str, client: str, now: datetime
) -> Opened:
    """Open a session for a browser; the secret goes into the cookie `cookie` describes."""
    return open_session(
        connection,
        person_id=person_id,
        kind=Kind.CONSOLE,
        proof=proof,
        address=address,
        client=client,
        now=now,
    )


def cookie(secret: str) -> str:
    """Return the Set-Cookie value: no script reads it, no other site's form sends it, TLS only."""
    return f"{COOKIE}={secret}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={int(SESSION_LIFETIME.total_seconds())}"


def no_cookie() -> str:
    """Return the Set-Cookie value that removes it."""
    return f"{COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0"


def scope_of_session(
    connection: Connection,
    secret: str,
    now: datetime,
    *,
    needs_factor: frozenset[Role] = frozenset(),
    is_enrolling: bool = False,
) -> Found:
    """Return who a session speaks for; raises UnauthenticatedError, or SecondFactorError.

    Roles in `needs_factor` must have a second factor; until then only its enrolment is open to
    them (`is_enrolling`).
    """
    row = connection.execute(
        "SELECT s.id, s.kind, s.proofs, s.used_at, s.expires_at, s.revoked_at, s.person_id, p.name, p.tenant_id, "
        "p.role, p.disabled, t.name AS tenant, t.disabled AS tenant_disabled "
        "FROM person_session s JOIN person p ON p.id = s.person_id JOIN tenant t ON t.id = p.tenant_id "
        "WHERE s.hash = ?",
        (hash_token(secret),),
    ).fetchone()
    if row is None or row["revoked_at"] is not None or row["disabled"] or row["tenant_disabled"]:
        raise UnauthenticatedError("The session is not valid")
    moment = int(now.timestamp())
    is_idle = row["kind"] == Kind.CONSOLE.value and moment - row["used_at"] >= CONSOLE_IDLE.total_seconds()
    if moment >= row["expires_at"] or is_idle:
        raise UnauthenticatedError("The session has expired", expired_at=row["expires_at"])
    role = Role(row["role"])
    if role in needs_factor and row["proofs"] == Proof.PASSWORD.value and not is_enrolling:
        hint = "sign in again with its code" if second_factor.is_confirmed(connection, row["person_id"]) else "add one"
        raise SecondFactorError(f"This role needs a second factor; {hint}", role=role.value)
    return Found(
        scope=Scope(row["tenant_id"], f"person:{row['name']}", role),
        session_id=row["id"],
        person_id=row["person_id"],
        name=row["name"],
        tenant=row["tenant"],
        is_due=moment - row["used_at"] >= TOUCH_AFTER_S,
    )


def touch(connection: Connection, session_id: int, now: datetime) -> None:
    """Write down that a session was used."""
    connection.execute("UPDATE person_session SET used_at = ? WHERE id = ?", (int(now.timestamp()), session_id))


def list_sessions(connection: Connection, scope: Scope, person_id: int, now: datetime) -> list[dict[str, Any]]:
    """Return the sessions of one person that hold, newest first."""
    rows = connection.execute(
        "SELECT id, kind, address, client, proofs, created_at, used_at, expires_at FROM person_session "
        "WHERE tenant_id = ? AND person_id = ? AND revoked_at IS NULL AND expires_at > ? ORDER BY id DESC LIMIT ?",
        (scope.tenant_id, person_id, int(now.timestamp()), MAX_LISTED),
    )
    return [
        {
            "session_id": row["id"],
            "kind": row["kind"],
            "address": row["address"],
            "client": row["client"],
            "proof": row["proofs"],
            "created_at": row["created_at"],
            "last_used_at": row["used_at"],
            "expires_at": row["expires_at"],
        }
        for row in rows
    ]


def revoke_session(connection: Connection, scope: Scope, *, person_id: int, session_id: int, now: datetime) -> None:
    """End one session of a person; raises NotFoundError, also for somebody else's."""
    changed = connection.execute(
        "UPDATE person_session SET revoked_at = ? WHERE id = ? AND person_id = ? AND tenant_id = ? "
        "AND revoked_at IS NULL",
        (int(now.timestamp()), session_id, person_id, scope.tenant_id),
    )
    if changed.rowcount != 1:
        raise NotFoundError("There is no such session", session_id=session_id)
    events.append(connection, scope, Event.SESSION_REVOKED, now, subject=scope.actor, sessions=1)


def revoke_sessions(
    connection: Connection, scope: Scope, *, person_id: int, subject: str, now: datetime, keep: int | None = None
) -> int:
    """End all sessions of a person but the one to keep; return how many."""
    changed = connection.execute(
        "UPDATE person_session SET revoked_at = ? WHERE person_id = ? AND tenant_id = ? AND revoked_at IS NULL "
        "AND id <> ?",
        (int(now.timestamp()), person_id, scope.tenant_id, keep if keep is not None else -1),
    )
    if changed.rowcount:
        events.append(connection, scope, Event.SESSION_REVOKED, now, subject=subject, sessions=changed.rowcount)
    return changed.rowcount
