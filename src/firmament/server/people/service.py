"""People: who they are, what they prove, what they may do. Sessions and tokens have their own modules.

After five wrong passwords a name is locked for a minute, and twice as long after each further
one, up to an hour: long enough against guessing, short enough that nobody can lock an operator
out for a day.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from firmament.core.ids import check
from firmament.errors import ConflictError, NotFoundError, SecondFactorError
from firmament.server import events
from firmament.server.events import Event
from firmament.server.people import second_factor, sessions
from firmament.server.people.passwords import NO_HASH
from firmament.server.people.sessions import Proof
from firmament.server.people.tenants import FIRST_TENANT_NAME
from firmament.server.scope import Action, Role, Scope

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.people.sessions import Kind, Opened
    from firmament.server.people.vault import Vault

NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
MAX_LISTED: Final = 2000
FAILURES_BEFORE_LOCK: Final = 5
FIRST_LOCK: Final = timedelta(minutes=1)
LONGEST_LOCK: Final = timedelta(hours=1)


class Refusal(StrEnum):
    """Why nobody was signed in; returned, not raised, because the count must be committed."""

    WRONG = "wrong"
    """Unknown name, wrong password, wrong code or a locked name: which one is not told."""
    CODE_MISSING = "code-missing"
    """The password is right, and a code is asked for."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What is needed to check a password; `hashed` is empty for an unknown name."""

    person_id: int | None
    hashed: str


def add_person(
    connection: Connection, scope: Scope, *, name: str, role: Role, password_hash: str, now: datetime
) -> None:
    """Add a person; raises ConflictError when the name is taken."""
    scope.require(Action.MANAGE_PEOPLE)
    check(name, NAME, what="The name")
    scope.require_unlimited("Managing people")
    if connection.execute("SELECT 1 FROM person WHERE tenant_id = ? AND name = ?", (scope.tenant_id, name)).fetchone():
        raise ConflictError("There is a person of this name already", name=name)
    connection.execute(
        "INSERT INTO person(tenant_id, name, password_hash, role, created_at) VALUES (?, ?, ?, ?, ?)",
        (scope.tenant_id, name, password_hash, role.value, int(now.timestamp())),
    )
    events.append(connection, scope, Event.PERSON_ADDED, now, subject=name, role=role.value)


def change_person(
    connection: Connection,
    scope: Scope,
    *,
    name: str,
    now: datetime,
    role: Role | None = None,
    is_disabled: bool | None = None,
) -> None:
    """Give another role, refuse or take back; sessions and tokens follow at once.

    Raises NotFoundError, and ConflictError for oneself: nobody locks themselves out or raises
    themselves.
    """
    scope.require(Action.MANAGE_PEOPLE)
    scope.require_unlimited("Managing people")
    person_id = person_of(connection, scope, name)
    if scope.actor == f"person:{name}":
        raise ConflictError("Somebody else must change your own role or access", name=name)
    if role is not None:
        connection.execute("UPDATE person SET role = ? WHERE id = ?", (role.value, person_id))
        events.append(connection, scope, Event.PERSON_CHANGED, now, subject=name, role=role.value)
    if is_disabled is not None:
        connection.execute("UPDATE person SET disabled = ? WHERE id = ?", (int(is_disabled), person_id))
        kind = Event.PERSON_DISABLED if is_disabled else Event.PERSON_ENABLED
        events.append(connection, scope, kind, now, subject=name)
    if is_disabled:
        sessions.revoke_sessions(connection, scope, person_id=person_id, subject=name, now=now)


def disable_person(connection: Connection, scope: Scope, *, name: str, now: datetime) -> None:
    """Refuse a person and all their tokens from now on; raises NotFoundError."""
    change_person(connection, scope, name=name, is_disabled=True, now=now)


def person_of(connection: Connection, scope: Scope, name: str) -> int:
    """Return the row id of a person of this tenant; raises NotFoundError."""
    row = connection.execute(
        "SELECT id FROM person WHERE tenant_id = ? AND name = ?", (scope.tenant_id, name)
    ).fetchone()
    if row is None:
        raise NotFoundError("There is no such person", name=name[:80])
    return int(row["id"])


def managed_person(connection: Connection, scope: Scope, name: str) -> int:
    """Return the row id of a person whom this scope may manage; raises ForbiddenError, NotFoundError."""
    scope.require(Action.MANAGE_PEOPLE)
    scope.require_unlimited("Managing people")
    return person_of(connection, scope, name)


def list_people(connection: Connection, scope: Scope) -> list[dict[str, object]]:
    """Return names, roles, whether they may sign in and whether they have a second factor."""
    scope.require(Action.MANAGE_PEOPLE)
    scope.require_unlimited("Managing people")
    rows = connection.execute(
        "SELECT p.name, p.role, p.disabled, p.created_at, f.confirmed_at FROM person p "
        "LEFT JOIN second_factor f ON f.person_id = p.id WHERE p.tenant_id = ? ORDER BY p.name LIMIT ?",
        (scope.tenant_id, MAX_LISTED),
    )
    return [
        {
            "name": row["name"],
            "role": row["role"],
            "disabled": bool(row["disabled"]),
            "second_factor": row["confirmed_at"] is not None,
            "created_at": row["created_at"],
        }
        for row in rows
    ]


def credentials(connection: Connection, account: str) -> Credentials:
    """Return what `verify_password` needs for ``NAME`` or ``NAME@TENANT``; an unknown one costs the same time."""
    name, _, tenant = account.partition("@")
    row = connection.execute(
        "SELECT p.id, p.password_hash FROM person p JOIN tenant t ON t.id = p.tenant_id "
        "WHERE t.name = ? AND p.name = ? AND p.disabled = 0 AND t.disabled = 0",
        (tenant or FIRST_TENANT_NAME, name),
    ).fetchone()
    return Credentials(None, NO_HASH) if row is None else Credentials(row["id"], row["password_hash"])


def sign_in(
    connection: Connection,
    vault: Vault,
    found: Credentials,
    *,
    is_right: bool,
    code: str | None,
    kind: Kind,
    address: str,
    client: str,
    now: datetime,
) -> Opened | Refusal:
    """Count a wrong password or code, or open a session. A locked name is refused whatever is given."""
    if found.person_id is None:
        return Refusal.WRONG
    row = connection.execute(
        "SELECT name, tenant_id, role, failures, locked_until FROM person WHERE id = ? AND disabled = 0",
        (found.person_id,),
    ).fetchone()
    if row is None or now.timestamp() < row["locked_until"]:
        return Refusal.WRONG
    proof = Proof.PASSWORD
    if is_right and second_factor.is_confirmed(connection, found.person_id):
        if code is None:
            return Refusal.CODE_MISSING
        is_right = second_factor.use(connection, vault, person_id=found.person_id, code=code, now=now)
        proof = Proof.PASSWORD_AND_CODE
    if not is_right:
        person = Scope(row["tenant_id"], f"person:{row['name']}", Role(row["role"]))
        _count_failure(connection, person, found.person_id, row["failures"] + 1, now)
        return Refusal.WRONG
    connection.execute("UPDATE person SET failures = 0, locked_until = 0 WHERE id = ?", (found.person_id,))
    return sessions.open_session(
        connection, person_id=found.person_id, kind=kind, proof=proof, address=address, client=client, now=now
    )


def _count_failure(connection: Connection, person: Scope, person_id: int, failures: int, now: datetime) -> None:
    locked_until = 0
    if failures >= FAILURES_BEFORE_LOCK:
        doublings = min(failures - FAILURES_BEFORE_LOCK, 16)
        locked_until = int((now + min(FIRST_LOCK * 2**doublings, LONGEST_LOCK)).timestamp())
        subject = person.actor.partition(":")[2]
        events.append(connection, person, Event.PERSON_LOCKED, now, subject=subject, failures=failures)
    connection.execute(
        "UPDATE person SET failures = ?, locked_until = ? WHERE id = ?", (failures, locked_until, person_id)
    )


def set_password(
    connection: Connection,
    scope: Scope,
    *,
    person_id: int,
    subject: str,
    password_hash: str,
    now: datetime,
    keep_session: int | None = None,
) -> None:
    """Store another password, forget failures, and end every other session of that person."""
    connection.execute(
        "UPDATE person SET password_hash = ?, failures = 0, locked_until = 0 WHERE id = ? AND tenant_id = ?",
        (password_hash, person_id, scope.tenant_id),
    )
    events.append(connection, scope, Event.PASSWORD_CHANGED, now, subject=subject)
    sessions.revoke_sessions(connection, scope, person_id=person_id, subject=subject, now=now, keep=keep_session)


def password_hash_of(connection: Connection, person_id: int) -> str:
    """Return what `verify_password` needs for somebody who is signed in."""
    row = connection.execute("SELECT password_hash FROM person WHERE id = ?", (person_id,)).fetchone()
    return str(row["password_hash"])


def tenant_name(connection: Connection, scope: Scope) -> str:
    """Return the name of the scope's own tenant."""
    row = connection.execute("SELECT name FROM tenant WHERE id = ?", (scope.tenant_id,)).fetchone()
    return str(row["name"])


def remove_own_factor(
    connection: Connection, scope: Scope, vault: Vault, *, person_id: int, code: str, now: datetime
) -> None:
    """Remove one's second factor, proven by a code; raises SecondFactorError."""
    if not second_factor.use(connection, vault, person_id=person_id, code=code, now=now):
        raise SecondFactorError("The code is wrong or was used before")
    second_factor.remove(connection, scope, person_id=person_id, subject=scope.actor, now=now)
