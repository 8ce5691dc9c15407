"""Tokens for machines: scoped, expiring, listed, revocable; shown once, stored as a hash.

A token speaks as the person who made it and allows at most what that person may do *now*: when
its owner is demoted or disabled it is useless.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from firmament.core.ids import product_name
from firmament.errors import ForbiddenError, MalformedError, NotFoundError, UnauthenticatedError
from firmament.server import events
from firmament.server.events import Event
from firmament.server.people.sessions import TOUCH_AFTER_S
from firmament.server.scope import ALLOWED, Action, Role, Scope
from firmament.server.tokens import OPERATOR_PREFIX, hash_token, make_token

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection

MAX_TOKEN_LIFETIME: Final = timedelta(days=366)
MAX_LISTED: Final = 500


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token, shown once."""

    token: str
    expires_at: int
    role: Role
    product: str | None


@dataclass(frozen=True, slots=True)
class FoundToken:
    """A token that holds now."""

    scope: Scope
    token_id: int
    is_due: bool
    """Whether its last use should be written (`touch_token`)."""


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


def find_token(connection: Connection, token: str, now: datetime) -> FoundToken:
    """Return who a bearer token speaks for; raises UnauthenticatedError."""
    row = connection.execute(
        "SELECT t.id, t.tenant_id, t.role, t.product, t.expires_at, t.revoked_at, p.name, p.disabled, "
        "p.role AS person_role, n.disabled AS tenant_disabled, u.used_at FROM token t "
        "JOIN person p ON p.id = t.person_id JOIN tenant n ON n.id = p.tenant_id "
        "LEFT JOIN token_use u ON u.token_id = t.id WHERE t.hash = ?",
        (hash_token(token),),
    ).fetchone()
    if row is None or row["revoked_at"] is not None or row["disabled"] or row["tenant_disabled"]:
        raise UnauthenticatedError("The token is not valid")
    if now.timestamp() >= row["expires_at"]:
        raise UnauthenticatedError("The token has expired", expired_at=row["expires_at"])
    role = Role(row["role"])
    if not ALLOWED[role] <= ALLOWED[Role(row["person_role"])]:
        raise UnauthenticatedError("The token allows more than its owner may do now")
    return FoundToken(
        Scope(row["tenant_id"], f"person:{row['name']}", role, row["product"]),
        row["id"],
        is_due=now.timestamp() - (row["used_at"] or 0) >= TOUCH_AFTER_S,
    )


def touch_token(connection: Connection, token_id: int, address: str, now: datetime) -> None:
    """Write down when and from where a token was used."""
    connection.execute(
        "INSERT INTO token_use(token_id, used_at, address) VALUES (?, ?, ?) "
        "ON CONFLICT (token_id) DO UPDATE SET used_at = excluded.used_at, address = excluded.address",
        (token_id, int(now.timestamp()), address),
    )


def list_tokens(
    connection: Connection, scope: Scope, now: datetime, *, everybody: bool = False
) -> list[dict[str, Any]]:
    """Return tokens that hold, newest first: one's own, or with MANAGE_PEOPLE everybody's."""
    name: str | None = _owner(scope)
    if everybody:
        scope.require(Action.MANAGE_PEOPLE)
        scope.require_unlimited("Managing people")
        name = None
    rows = connection.execute(
        "SELECT t.id, t.label, t.role, t.product, t.created_at, t.expires_at, p.name, u.used_at, u.address "
        "FROM token t JOIN person p ON p.id = t.person_id LEFT JOIN token_use u ON u.token_id = t.id "
        "WHERE t.tenant_id = ? AND t.revoked_at IS NULL AND t.expires_at > ? "
        "AND (CAST(? AS TEXT) IS NULL OR p.name = ?) ORDER BY t.id DESC LIMIT ?",
        (scope.tenant_id, int(now.timestamp()), name, name, MAX_LISTED),
    )
    return [
        {
            "token_id": row["id"],
            "owner": row["name"],
            "label": row["label"],
            "role": row["role"],
            "product": row["product"],
            "created_at": row["created_at"],
            "expires_at": row["expires_at"],
            "last_used_at": row["used_at"],
            "last_address": row["address"] or "",
        }
        for row in rows
    ]


def revoke_token(connection: Connection, scope: Scope, *, token_id: int, now: datetime) -> None:
    """Make a token useless: one's own, or with MANAGE_PEOPLE anybody's; raises NotFoundError."""
    name = None if scope.may(Action.MANAGE_PEOPLE) and scope.may_see_all else _owner(scope)
    changed = connection.execute(
        "UPDATE token SET revoked_at = ? WHERE id = ? AND tenant_id = ? AND revoked_at IS NULL "
        "AND (CAST(? AS TEXT) IS NULL OR person_id IN (SELECT id FROM person WHERE tenant_id = ? AND name = ?))",
        (int(now.timestamp()), token_id, scope.tenant_id, name, scope.tenant_id, name),
    )
    if changed.rowcount != 1:
        raise NotFoundError("There is no such token", token_id=token_id)
    events.append(connection, scope, Event.TOKEN_REVOKED, now, subject=scope.actor, token_id=token_id)


def _owner(scope: Scope) -> str:
    return scope.actor.partition(":")[2]
