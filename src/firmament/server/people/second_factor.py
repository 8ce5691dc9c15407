"""Second factors: time-based codes (RFC 6238, 30 s, SHA-1, six digits: what authenticators do) and recovery codes.

A code counts once: the step it belongs to must be above the last one that was used. One step
before and after now is taken, for clocks that are half a minute off. Recovery codes are for a lost
authenticator; each works once, and only a keyed digest of it is stored.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyotp

from firmament.errors import ConflictError, SecondFactorError
from firmament.server import events
from firmament.server.events import Event

if TYPE_CHECKING:
    from datetime import datetime

    from firmament.server.database.port import Connection
    from firmament.server.people.vault import Vault
    from firmament.server.scope import Scope

STEP_S: Final = 30
STEPS_OFF: Final = 1
RECOVERY_CODES: Final = 10
_ALPHABET: Final = "abcdefghjkmnpqrstuvwxyz23456789"
# Without letters and digits that are mistaken for one another; 10 of 31 are 49 bits.


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What an authenticator is given, shown once."""

    secret: str
    uri: str


def begin(
    connection: Connection, scope: Scope, vault: Vault, *, person_id: int, account: str, now: datetime
) -> Enrolment:
    """Make a secret that counts once it is confirmed; raises ConflictError when one counts already."""
    if is_confirmed(connection, person_id):
        raise ConflictError("There is a second factor already; remove it first")
    secret = pyotp.random_base32()
    connection.execute(
        "INSERT INTO second_factor(person_id, tenant_id, sealed_secret, created_at) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (person_id) DO UPDATE SET sealed_secret = excluded.sealed_secret, "
        "created_at = excluded.created_at, last_step = -1",
        (person_id, scope.tenant_id, _seal(vault, person_id, secret), int(now.timestamp())),
    )
    return Enrolment(secret, pyotp.TOTP(secret).provisioning_uri(name=account, issuer_name="Firmament"))


def confirm(
    connection: Connection, scope: Scope, vault: Vault, *, person_id: int, code: str, now: datetime
) -> list[str]:
    """Let the factor count from now on, proven by a code; return the recovery codes, shown once.

    Raises SecondFactorError for a wrong code, ConflictError when nothing waits to be confirmed.
    """
    row = connection.execute(
        "SELECT sealed_secret, last_step, confirmed_at FROM second_factor WHERE person_id = ?", (person_id,)
    ).fetchone()
    if row is None or row["confirmed_at"] is not None:
        raise ConflictError("No second factor waits to be confirmed")
    step = _matching_step(_open(vault, person_id, bytes(row["sealed_secret"])), code, row["last_step"], now)
    if step is None:
        raise SecondFactorError("The code is wrong; compare the clocks")
    moment = int(now.timestamp())
    connection.execute(
        "UPDATE second_factor SET confirmed_at = ?, last_step = ? WHERE person_id = ?", (moment, step, person_id)
    )
    codes = [_recovery_code() for _ in range(RECOVERY_CODES)]
    connection.execute("DELETE FROM recovery_code WHERE person_id = ?", (person_id,))
    connection.executemany(
        "INSERT INTO recovery_code(person_id, hash, tenant_id) VALUES (?, ?, ?)",
        [(person_id, vault.mac(_plain(one), purpose=f"recovery:{person_id}"), scope.tenant_id) for one in codes],
    )
    events.append(connection, scope, Event.SECOND_FACTOR_ADDED, now, subject=scope.actor)
    return codes


def use(connection: Connection, vault: Vault, *, person_id: int, code: str, now: datetime) -> bool:
    """Whether this code proves the person now; a code that does is used up."""
    row = connection.execute(
        "SELECT sealed_secret, last_step FROM second_factor WHERE person_id = ? AND confirmed_at IS NOT NULL",
        (person_id,),
    ).fetchone()
    if row is None:
        return False
    step = _matching_step(_open(vault, person_id, bytes(row["sealed_secret"])), code, row["last_step"], now)
    if step is not None:
        changed = connection.execute(
            "UPDATE second_factor SET last_step = ? WHERE person_id = ? AND last_step < ?", (step, person_id, step)
        )
        return changed.rowcount == 1
    changed = connection.execute(
        "UPDATE recovery_code SET used_at = ? WHERE person_id = ? AND hash = ? AND used_at IS NULL",
        (int(now.timestamp()), person_id, vault.mac(_plain(code), purpose=f"recovery:{person_id}")),
    )
    return changed.rowcount == 1


def remove(connection: Connection, scope: Scope, *, person_id: int, subject: str, now: datetime) -> None:
    """Forget secret and recovery codes; fine when there are none."""
    connection.execute("DELETE FROM recovery_code WHERE person_id = ?", (person_id,))
    gone = connection.execute("DELETE FROM second_factor WHERE person_id = ?", (person_id,))
    if gone.rowcount:
        events.append(connection, scope, Event.SECOND_FACTOR_REMOVED, now, subject=subject)


def is_confirmed(connection: Connection, person_id: int) -> bool:
    """Whether this person must give a code to sign in."""
    row = connection.execute(
        "SELECT 1 FROM second_factor WHERE person_id = ? AND confirmed_at IS NOT NULL", (person_id,)
    ).fetchone()
    return row is not None


def _matching_step(secret: str, code: str, last_step: int, now: datetime) -> int | None:
    digits = "".join(code.split())
    totp = pyotp.TOTP(secret, interval=STEP_S)
    current = int(now.timestamp()) // STEP_S
    for step in range(current - STEPS_OFF, current + STEPS_OFF + 1):
        if step > last_step and hmac.compare_digest(totp.generate_otp(step).encode(), digits.encode()):
            return step
    return None


def _recovery_code() -> str:
    letters = "".join(secrets.choice(_ALPHABET) for _ in range(10))
    return f"{letters[:5]}-{letters[5:]}"


def _plain(code: str) -> str:
    return "".join(code.lower().replace("-", "").split())


def _seal(vault: Vault, person_id: int, secret: str) -> bytes:
    return vault.seal(secret.encode(), purpose=f"totp:{person_id}")


def _open(vault: Vault, person_id: int, sealed: bytes) -> str:
    return vault.open(sealed, purpose=f"totp:{person_id}").decode()
