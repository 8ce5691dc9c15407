"""Texts and looks of states in one place: word, icon and colour always go together.

An unknown state is shown by its own name in grey: a newer server must not break a page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Look:
    """How a state is shown."""

    text: str
    tone: str
    """ok, bad, warn, wait, run or mut: a class of the style sheet."""
    icon: str


ROLLOUT: Final = {
    "draft": Look("Draft", "mut", "edit"),
    "awaiting-approval": Look("Waiting for approval", "wait", "hand"),
    "denied": Look("Denied", "bad", "cross"),
    "scheduled": Look("Scheduled", "wait", "clock"),
    "running": Look("Rolling out", "run", "play"),
    "paused": Look("Paused", "warn", "pause"),
    "holding": Look("Holding", "wait", "clock"),
    "halted": Look("Halted automatically", "bad", "alert"),
    "reverting": Look("Going back", "warn", "undo"),
    "reverted": Look("Went back", "mut", "undo"),
    "aborted": Look("Aborted", "mut", "cross"),
    "finished": Look("Finished", "ok", "check"),
}
WAVE: Final = {
    "pending": Look("Waiting", "mut", "clock"),
    "open": Look("Running", "run", "play"),
    "held": Look("Holding", "wait", "clock"),
    "halted": Look("Halted", "bad", "alert"),
    "done": Look("Passed", "ok", "check"),
}
TARGET: Final = {
    "waiting": Look("Not started", "mut", "clock"),
    "offered": Look("Offered", "run", "download"),
    "asking": Look("Waiting for user", "wait", "hand"),
    "in-flight": Look("In flight", "run", "download"),
    "updated": Look("Updated", "ok", "check"),
    "failed": Look("Failed", "bad", "cross"),
    "silent": Look("Not called back", "bad", "quiet"),
    "declined": Look("Declined", "mut", "hand"),
    "postponed": Look("Postponed", "wait", "clock"),
    "skipped": Look("Skipped", "mut", "cross"),
    "excluded-late": Look("Excluded", "mut", "cross"),
    "reverting": Look("Going back", "warn", "undo"),
    "went-back": Look("Went back", "mut", "undo"),
}
ATTEMPT: Final = {
    "assigned": Look("Assigned", "run", "clock"),
    "offered": Look("Offered", "run", "download"),
    "waiting": Look("Waiting", "wait", "hand"),
    "fetching": Look("Downloading", "run", "download"),
    "verified": Look("Verified", "run", "shield"),
    "staged": Look("Written", "run", "package"),
    "trial": Look("Trial boot", "run", "play"),
    "confirmed": Look("Updated", "ok", "check"),
    "reverted": Look("Went back", "bad", "undo"),
    "refused": Look("Refused", "bad", "shield"),
    "failed": Look("Failed", "bad", "cross"),
    "declined": Look("Declined", "mut", "hand"),
    "cancelled": Look("Taken back", "mut", "cross"),
}
FAILED_STATUSES: Final = ("failed", "silent")
CONSENT: Final = {
    "automatic": "installs by itself",
    "ask": "asks the owner",
    "window": "inside a time window",
    "manual": "only by hand on the device",
}
SAID: Final = {
    "saved": "Saved.",
    "assigned": "The release is assigned. The device gets it at its next poll.",
    "unassigned": "The assignment is taken back.",
    "disabled": "The device is refused from now on.",
    "enabled": "The device is accepted again.",
    "promoted": "The channel names this release now.",
    "person-added": "The person can sign in now.",
    "person-disabled": "The person and all their tokens are refused from now on.",
    "role-changed": "The role is changed.",
    "session-ended": "The session is ended.",
    "person-enabled": "The person may sign in again.",
    "password-changed": "The password is changed. All other sessions of yours have ended.",
    "password-set": "The password is set. All sessions of the person have ended.",
    "factor-removed": "The second factor is removed.",
    "token-revoked": "The token works no more.",
    "rule-set": "The rule is set. It holds for the next offer.",
    "rule-removed": "The rule is taken away.",
    "quarantined": "The device is in quarantine: no rollout touches it.",
    "released": "The device is out of quarantine.",
    "pinned": "The device is pinned: it stays on what it runs.",
    "unpinned": "The device is not pinned any more.",
    "muted": "The device is muted: its alarms wake nobody.",
    "unmuted": "The device's alarms are told again.",
    "failures-cleared": "Releases that failed on this device may be offered to it again.",
    "columns": "The columns are kept for this browser.",
    "outlet-removed": "Nothing is sent there any more.",
    "outlet-muted": "Nothing is sent there for a while.",
    "outlet-enabled": "News goes there again.",
    "sent": "The test message is on its way; the delivery log has the result.",
    "done": "Done.",
    "tagged": "The tags are changed.",
    "view-saved": "The view is saved.",
    "view-removed": "The view is removed.",
    "pause": "Paused: no new device starts.",
    "resume": "Resumed.",
    "abort": "Aborted: no new device starts.",
    "revert": "Going back: the updated devices return to the version each had before.",
    "next-wave": "The next wave is open.",
    "retry-failed": "The failed devices are tried again.",
    "acknowledge": "Acknowledged: repeats of this notification stop.",
    "approve": "Approved.",
    "deny": "Denied.",
    "start": "Started.",
}
ROLES: Final = {
    "viewer": "Looks",
    "operator": "Enrols devices, assigns releases, runs rollouts",
    "releaser": "Uploads and publishes what authors signed",
    "approver": "Approves rollouts, promotes releases to a channel",
    "admin": "Everything, including people",
}
_UNKNOWN_ICON: Final = "dot"


def look(table: dict[str, Look], state: str) -> Look:
    """Return how a state is shown."""
    return table.get(state) or Look(state.replace("-", " ").capitalize() or "Unknown", "mut", _UNKNOWN_ICON)


def either(names: Sequence[str]) -> str:
    """Join names: ``a``, ``a or b``, ``a, b or c``."""
    if len(names) < 2:  # noqa: PLR2004 - one name needs no joining
        return "".join(names)
    return f"{', '.join(names[:-1])} or {names[-1]}"
