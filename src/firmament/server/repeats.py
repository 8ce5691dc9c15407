"""Requests that are sent again: what one idempotency key asked for is done once, and answered alike.

A row belongs to one caller of one tenant and goes through four forms:

    claimed        begun_at, nonce                 somebody is doing it, or died doing it
    done           is_done, with the change        the change is durable: the mark is in its transaction
    answered       status, sealed_answer           every repetition gets this answer until it expires
    (gone)                                         refused, so that nothing happened; or expired

A claim that its maker left behind may be taken over after `CLAIM_S` as long as nothing was done.
The `nonce` fences: whoever lost the claim cannot commit any more (`mark`), so a request that is
merely slow is not done twice either. Between the commit and the kept answer a crash leaves *done*
without an answer: a repetition is told so (AnswerLostError) instead of being done again.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament.errors import AnswerLostError, KeyBusyError, KeyReusedError

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.scope import Scope

KEPT_S: Final = 24 * 3600
"""How long the first answer is given again; a pipeline that is repaired the next morning is a new request."""
CLAIM_S: Final = 15
"""After this long without an answer a claim may be taken over; no operator request takes a third of it."""
NONCE_LENGTH_BYTES: Final = 16
_WHERE: Final = "WHERE tenant_id = ? AND actor = ? AND name = ?"


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to do what a key asks for; `mark` and `keep` hold while nobody took it over."""

    tenant_id: int
    actor: str
    name: str
    nonce: bytes

    @property
    def row(self) -> tuple[int, str, str]:
        """The primary key."""
        return self.tenant_id, self.actor, self.name


@dataclass(frozen=True, slots=True)
class FirstAnswer:
    """What the first request was told, sealed by the server's vault."""

    status: int
    sealed: bytes


def claim(connection: Connection, scope: Scope, *, name: str, digest: bytes, now: datetime) -> Claim | FirstAnswer:
    """Claim a key for a request with this digest, or return its first answer.

    Raises KeyReusedError (the key asked for something else), KeyBusyError (it is being done),
    AnswerLostError (it was done, and nobody knows what was answered).
    """
    second = int(now.timestamp())
    connection.execute("DELETE FROM repeat WHERE expires_at <= ?", (second,))
    wanted = Claim(scope.tenant_id, scope.actor, name, secrets.token_bytes(NONCE_LENGTH_BYTES))
    made = connection.execute(
        "INSERT INTO repeat(tenant_id, actor, name, digest, nonce, begun_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (tenant_id, actor, name) DO NOTHING",
        (*wanted.row, digest, wanted.nonce, second, second + KEPT_S),
    )
    if made.rowcount == 1:
        return wanted
    row = connection.execute(
        f"SELECT digest, nonce, begun_at, is_done, status, sealed_answer FROM repeat {_WHERE}",  # noqa: S608 - a constant
        wanted.row,
    ).fetchone()
    if row is None:  # given back by somebody else in between
        raise KeyBusyError("A request with this key was just given up", retry_after_s=1)
    if bytes(row["digest"]) != digest:
        raise KeyReusedError("This idempotency key was used for another request", key=name)
    if row["status"] is not None:
        return FirstAnswer(row["status"], bytes(row["sealed_answer"]))
    if second < row["begun_at"] + CLAIM_S:
        raise KeyBusyError("A request with this key is being done", retry_after_s=1)
    if row["is_done"]:
        raise AnswerLostError("A request with this key was done", begun_at=row["begun_at"])
    taken = connection.execute(
        f"UPDATE repeat SET nonce = ?, begun_at = ? {_WHERE} AND nonce = ? AND is_done = 0",  # noqa: S608 - a constant
        (wanted.nonce, second, *wanted.row, bytes(row["nonce"])),
    )
    if taken.rowcount != 1:
        raise KeyBusyError("Somebody else took this request up", retry_after_s=1)
    return wanted


def mark(connection: Connection, held: Claim) -> None:
    """Write down, in the transaction of the change, that it is done; raises KeyBusyError when the claim is lost."""
    changed = connection.execute(
        f"UPDATE repeat SET is_done = 1 {_WHERE} AND nonce = ?",  # noqa: S608 - a constant
        (*held.row, held.nonce),
    )
    if changed.rowcount != 1:
        raise KeyBusyError("Somebody else took this request up", retry_after_s=1)


def keep(connection: Connection, held: Claim, *, status: int, sealed: bytes) -> None:
    """Keep the answer for repetitions; without effect when the claim is lost."""
    connection.execute(
        f"UPDATE repeat SET status = ?, sealed_answer = ?, is_done = 1 {_WHERE} AND nonce = ?",  # noqa: S608 - a constant
        (status, sealed, *held.row, held.nonce),
    )


def give_back(connection: Connection, held: Claim) -> None:
    """Free the key of a request that was refused, so that it may be asked again once it can be done."""
    connection.execute(
        f"DELETE FROM repeat {_WHERE} AND nonce = ? AND is_done = 0",  # noqa: S608 - a constant
        (*held.row, held.nonce),
    )
