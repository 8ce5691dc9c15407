"""Where an attempt is, as the server sees it: a table, and no other place decides.

Rule 1: the server moves an attempt only by `move`; a pair that is not in the table changes
nothing. Rule 2: the device is believed about itself, never about another attempt, and about
"confirmed" only when it speaks from the new image after a new boot (`is_credible`).

States are the protocol's words, plus two that only a server knows: ``assigned`` (the device has
not asked since) and ``cancelled`` (an operator took it back, or the release was withdrawn).
A device may be ahead of what the server heard: reports can be lost for days, so later states are
reachable from every earlier one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from firmament.protocol.status import FINAL_STATUSES, AttemptStatus

if TYPE_CHECKING:
    from firmament.protocol.v1.messages import Report


class AttemptState(StrEnum):
    """`AttemptStatus` and the two states that only the server has."""

    ASSIGNED = "assigned"
    """An operator chose the release for this device; the device has not asked since."""
    OFFERED = AttemptStatus.OFFERED.value
    WAITING = AttemptStatus.WAITING.value
    FETCHING = AttemptStatus.FETCHING.value
    VERIFIED = AttemptStatus.VERIFIED.value
    STAGED = AttemptStatus.STAGED.value
    TRIAL = AttemptStatus.TRIAL.value
    CONFIRMED = AttemptStatus.CONFIRMED.value
    REVERTED = AttemptStatus.REVERTED.value
    REFUSED = AttemptStatus.REFUSED.value
    FAILED = AttemptStatus.FAILED.value
    DECLINED = AttemptStatus.DECLINED.value
    CANCELLED = "cancelled"
    """Taken back before the device finished; what the device then reports still counts."""


_S: Final = AttemptState
_BEFORE_TRIAL: Final = (_S.OFFERED, _S.WAITING, _S.FETCHING, _S.VERIFIED, _S.STAGED)
"""A device goes back and forth here: a reboot or a damaged slot starts the fetch again."""
MAY_STILL_ASK: Final = frozenset({_S.ASSIGNED, _S.OFFERED, _S.WAITING})
"""Nothing was begun: what operators ask of the device and its owner still matters."""
_ENDS: Final = (_S.CONFIRMED, _S.REVERTED, _S.REFUSED, _S.FAILED, _S.DECLINED)

TRANSITIONS: Final[dict[AttemptState, frozenset[AttemptState]]] = {
    _S.ASSIGNED: frozenset({*_BEFORE_TRIAL, _S.TRIAL, *_ENDS, _S.CANCELLED}),
    **{state: frozenset({*_BEFORE_TRIAL, _S.TRIAL, *_ENDS, _S.CANCELLED}) - {state} for state in _BEFORE_TRIAL},
    # From the trial there are two ways out; a refusal or a failed fetch is behind it.
    _S.TRIAL: frozenset({_S.CONFIRMED, _S.REVERTED, _S.CANCELLED}),
    _S.CANCELLED: frozenset(_ENDS),
    **{state: frozenset() for state in _ENDS},
}

FINAL: Final = frozenset(AttemptState(status.value) for status in FINAL_STATUSES) | {AttemptState.CANCELLED}
"""A device with an attempt in one of these may get another one."""


def move(state: AttemptState, to: AttemptState) -> AttemptState | None:
    """Return the new state, or None when the table does not allow it (staying is not a move)."""
    return to if to in TRANSITIONS[state] else None


def is_credible(report: Report, *, version: str, sequence_number: int, boot_id_before: str) -> bool:
    """Whether a report of "confirmed" comes from the new image, started after the attempt began.

    Success reported before the new slot booted is the oldest lie of the field (mission.md).
    """
    if report.status is not AttemptStatus.CONFIRMED:
        return True
    return (
        report.version == version
        and report.sequence_number == sequence_number
        and report.boot_id not in {"", boot_id_before}
    )
