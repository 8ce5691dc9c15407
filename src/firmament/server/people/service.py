"""People and their tokens. Passwords only open sessions; everything else uses tokens.

After five wrong passwords a name is locked for a minute, and twice as long after each further
one, up to an hour: long enough against guessing, short enough that nobody can lock an operator
out for a day.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from firmament.core.ids import check, product_name
from firmament.errors import ConflictError, ForbiddenError, MalformedError, NotFoundError, UnauthenticatedError
from firmament.server import events
from firmament.server.events import Event
from firmament.server.people.passwords import NO_HASH
from firmament.server.scope import ALLOWED, Action, Role, Scope
from firmament.server.tokens import OPERATOR_PREFIX, hash_token, make_token

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection

NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
SESSION_LIFETIME: Final = timedelta(hours=12)
MAX_TOKEN_LIFETIME: Final = timedelta(days=366)
FAILURES_BEFORE_LOCK: Final = 5
FIRST_LOCK: Final = timedelta(minutes=1)
LONGEST_LOCK: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What is needed to check a password; `hashed` is empty for an unknown name."""

    person_id: int | None
    hashed: str
    locked_until: int


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token, shown once."""

    token: str
    expires_at: int
    role: Role
    product: str | None


def add_person(
    connection: Connection, scope: Scope, *, name: str, role: Role, password_hash: str, now: datetime
) -> None:
    """Add a person; raises ConflictError when the name is taken."""
    scope.require(Action.MANAGE_PEOPLE)
    check(name, NAME, what="The name")
    if connection.execute("SELECT 1 FROM person WHERE name = ?", (name,)).fetchone():
        raise ConflictError("There is a person of this name already", name=name)
    connection.execute(
        "INSERT INTO person(tenant_id, name, password_hash, role, created_at) VALUES (?, ?, ?, ?, ?)",
        (scope.tenant_id, name, password_hash, role.value, int(now.timestamp())),
    )
    events.append(connection, scope, Event.PERSON_ADDED, now, subject=name, role=role.value)


def disable_person(connection: Connection, scope: Scope, *, name: str, now: datetime) -> None:
    """Refuse a person and all their tokens from now on; raises NotFoundError."""
    scope.require(Action.MANAGE_PEOPLE)
    changed = connection.execute(
        "UPDATE person SET disabled = 1 WHERE tenant_id = ? AND name = ?", (scope.tenant_id, name)
    )
    if changed.rowcount != 1:
        raise NotFoundError("There is no such person", name=name[:80])
    events.append(connection, scope, Event.PERSON_DISABLED, now, subject=name)


def list_people(connection: Connection, scope: Scope) -> list[dict[str, object]]:
    """Return names, roles and whether they may sign in."""
    scope.require(Action.MANAGE_PEOPLE)
    rows = connection.execute(
        "SELECT name, role, disabled, created_at FROM person WHERE tenant_id = ? ORDER BY name", (scope.tenant_id,)
    )
    return [
        {"name": row["name"], "role": row["role"], "disabled": bool(row["disabled"]), "created_at": row["created_at"]}
        for row in rows
    ]


def credentials(connection: Connection, name: str) -> Credentials:
    """Return what `verify_password` needs; an unknown or disabled name costs the same time."""
    row = connection.execute(
        "SELECT id, password_hash, locked_until FROM person WHERE name = ? AND disabled = 0", (name,)
    ).fetchone()
    if row is None:
        return Credentials(None, NO_HASH, 0)
    return Credentials(row["id"], row["password_hash"], row["locked_until"])


def open_session(
    connection: Connection, found: Credentials, *, is_right: bool, label: str, now: datetime
) -> IssuedToken | None:
    """Count a wrong password, or issue a session token; None means refused.

    Returned, not raised: the count must be committed.
    """
    if found.person_id is None:
        return None
    row = connection.execute(
        "SELECT name, tenant_id, role, failures, locked_until FROM person WHERE id = ? AND disabled = 0",
        (found.person_id,),
    ).fetchone()
    if row is None or now.timestamp() < row["locked_until"]:
        return None
    person = Scope(row["tenant_id"], f"person:{row['name']}", Role(row["role"]))
    if not is_right:
        failures = row["failures"] + 1
        locked_until = 0
        if failures >= FAILURES_BEFORE_LOCK:
            doublings = min(failures - FAILURES_BEFORE_LOCK, 16)
            locked_until = int((now + min(FIRST_LOCK * 2**doublings, LONGEST_LOCK)).timestamp())
            events.append(connection, person, Event.PERSON_LOCKED, now, subject=row["name"], failures=failures)
        connection.execute(
            "UPDATE person SET failures = ?, locked_until = ? WHERE id = ?",
            (failures, locked_until, found.person_id),
        )
        return None
    connection.execute("UPDATE person SET failures = 0, locked_until = 0 WHERE id = ?", (found.person_id,))
    return _issue(connection, person, found.person_id, Role(row["role"]), None, SESSION_LIFETIME, label, now)


def issue_token(
    connection: Connection,
    scope: Scope,
    *,
    role: Role,
    product: str | None,
    lifetime: timedelta,
    label: str,
    now: datetime,
) -> IssuedToken:
    """Issue a token that may do at most what the asking token may; raises ForbiddenError."""
    if scope.role is None or not ALLOWED[role] <= ALLOWED[scope.role]:
        raise ForbiddenError("A token cannot allow more than its maker may do", role=role.value)
    if product is not None:
        product_name(product)
    if scope.product is not None and product != scope.product:
        raise ForbiddenError("The token is for another product", token_product=scope.product, product=product)
    if not timedelta(0) < lifetime <= MAX_TOKEN_LIFETIME:
        raise MalformedError("The token's lifetime is out of range", maximum_days=MAX_TOKEN_LIFETIME.days)
    kind, _, name = scope.actor.partition(":")
    row = connection.execute(
        "SELECT id FROM person WHERE tenant_id = ? AND name = ?", (scope.tenant_id, name)
    ).fetchone()
    if kind != "person" or row is None:
        raise ForbiddenError("Only a person can make a token", actor=scope.actor)
    return _issue(connection, scope, row["id"], role, product, lifetime, label, now)


def _issue(
    connection: Connection,
    scope: Scope,
    person_id: int,
    role: Role,
    product: str | None,
    lifetime: timedelta,
    label: str,
    now: datetime,
) -> IssuedToken:
    token, hashed = make_token(OPERATOR_PREFIX)
    expires_at = int((now + lifetime).timestamp())
    connection.execute(
        "INSERT INTO token(tenant_id, hash, person_id, label, role, product, created_at, expires_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (scope.tenant_id, hashed, person_id, label[:80], role.value, product, int(now.timestamp()), expires_at),
    )
    events.append(connection, scope, Event.TOKEN_ISSUED, now, subject=scope.actor, role=role.value, product=product)
    return IssuedToken(token, expires_at, role, product)


def scope_of_token(connection: Connection, token: str, now: datetime) -> Scope:
    """Return who a bearer token speaks for; raises UnauthenticatedError."""
    row = connection.execute(
        "SELECT t.tenant_id, t.role, t.product, t.expires_at, t.revoked_at, p.name, p.disabled, p.role AS person_role "
        "FROM token t JOIN person p ON p.id = t.person_id WHERE t.hash = ?",
        (hash_token(token),),
    ).fetchone()
    if row is None or row["revoked_at"] is not None or row["disabled"]:
        raise UnauthenticatedError("The token is not valid")
    if now.timestamp() >= row["expires_at"]:
        raise UnauthenticatedError("The token has expired", expired_at=row["expires_at"])
    role = Role(row["role"])
    if not ALLOWED[role] <= ALLOWED[Role(row["person_role"])]:
        raise UnauthenticatedError("The token allows more than its owner may do now")
    return Scope(row["tenant_id"], f"person:{row['name']}", role, row["product"])


def revoke_token(connection: Connection, scope: Scope, token: str, now: datetime) -> None:
    """Make one token useless (sign out); unknown tokens are fine."""
    connection.execute(
        "UPDATE token SET revoked_at = ? WHERE hash = ? AND tenant_id = ?",
        (int(now.timestamp()), hash_token(token), scope.tenant_id),
    )
    events.append(connection, scope, Event.TOKEN_REVOKED, now, subject=scope.actor)
