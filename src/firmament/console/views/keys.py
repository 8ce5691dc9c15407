"""Keys and expiry: the roles of both repositories, and what happens if nobody does anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.console.formats import DAY_S
from firmament.console.views.base import chosen, get

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from starlette.responses import Response

    from firmament.console.visit import Visit

MONTHS: Final = 12
STRIP_S: Final = 365 * DAY_S
URGENT_S: Final = 14 * DAY_S
SOON_S: Final = 60 * DAY_S


@dataclass(frozen=True, slots=True)
class Mark:
    """A role's end on the strip."""

    x: float
    row: int
    tone: str
    name: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class Month:
    """The begin of a month on the strip."""

    x: float
    name: str


async def shown(visit: Visit) -> Response:
    """Show roles, keys, thresholds and ends."""
    trust = await visit.card(visit.api.get("/trust"))
    roles = trust.value["roles"] if trust.value else []
    return visit.page(
        "keys.html",
        trust=trust,
        roles=[(role, consequence(role), commands(role)) for role in roles],
        marks=marks(roles, visit.now),
        months=months(visit.now),
        tone_of=lambda at: tone(at, visit.now),
    )


def consequence(role: Mapping[str, Any]) -> str:
    """Say what happens at a role's end if nobody signs it again. Pure."""
    if role["is_online"]:
        if role["expires_at"] is None:
            return "Made anew for every poll by this server; nothing to do."
        return "This server signs it again by itself; if it stands still, devices take no update after this date."
    if role["role"] == "root":
        which = "author's repository" if role["repository"] == "image" else "director"
        return f"Devices refuse everything of the {which} until a new root is signed; what they run goes on running."
    if role["role"] == "targets":
        return "Devices refuse every product until the list of products is signed again."
    return f"Devices refuse every release of {role['role']}, also those published already, until it is signed again."


def commands(role: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what to run on the author's machine to sign a role again. Pure."""
    if role["is_online"]:
        return ()
    return (
        ("firmament release sign --again", "firmament release publish")
        if role["role"] != "root"
        else ("firmament key rotate --help",)
    )


def tone(expires_at: int | None, now: datetime) -> str:
    """Return how urgent an end is: ok, warn within 60 days, bad within 14."""
    if expires_at is None:
        return "ok"
    left_s = expires_at - now.timestamp()
    return "bad" if left_s < URGENT_S else "warn" if left_s < SOON_S else "ok"


def marks(roles: list[dict[str, Any]], now: datetime) -> list[Mark]:
    """Place the ends of offline roles on a strip of twelve months. Pure."""
    begin_s = now.timestamp()
    found = []
    offline = [role for role in roles if role["expires_at"] is not None and not role["is_online"]]
    for row, role in enumerate(sorted(offline, key=lambda role: role["expires_at"])):
        x = max(0.0, min(1.0, (role["expires_at"] - begin_s) / STRIP_S))
        name = f"{role['repository']} {role['role']}"
        found.append(Mark(round(x, 4), row, tone(role["expires_at"], now), name, role["expires_at"]))
    return found


def months(now: datetime) -> list[Month]:
    """Place the begins of the next twelve months. Pure."""
    found = []
    year, month = now.year, now.month
    for _ in range(MONTHS):
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)  # noqa: PLR2004 - December
        first = now.replace(year=year, month=month, day=1, hour=0, minute=0, second=0, microsecond=0)
        x = (first - now).total_seconds() / STRIP_S
        if x <= 1:
            found.append(Month(round(x, 4), f"{first:%b}" if month != 1 else f"{first:%b %Y}"))
    return found


REHEARSAL: Final = (
    "firmament init rehearsal --product rehearsal",
    "cd rehearsal",
    "firmament key generate next --kind ed25519",
    "firmament key ceremony start --add root=next --remove root=root-ed25519 --out root-2.ceremony",
    "firmament key ceremony show root-2.ceremony",
    "firmament key ceremony sign root-2.ceremony",
    "firmament key ceremony finish root-2.ceremony",
    "firmament key list",
)
"""With keys made for the occasion, in a folder of its own: nothing of it reaches a server or a device."""
BEGIN_BEFORE_S: Final = 60 * DAY_S
"""Custodians are many, and on holiday: a rotation begins so long before the root ends."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """What the next root of a repository takes, from what is published now."""

    version: int
    threshold: int
    keys: int
    spare: int
    """How many keys may be missing on the day."""
    expires_at: int | None
    begin_at: int | None
    commands: tuple[tuple[str, str], ...]
    """What is done, and the command."""


def rotation(role: Mapping[str, Any]) -> Rotation:
    """Return the steps that lead from this root to the next. Pure."""
    version, threshold = int(role["version"] or 0), int(role["threshold"])
    file = f"root-{version + 1}.ceremony" if role["repository"] == "image" else f"director-{version + 1}.ceremony"
    other = "" if role["repository"] == "image" else " --repository director"
    return Rotation(
        version=version,
        threshold=threshold,
        keys=len(role["keys"]),
        spare=len(role["keys"]) - threshold,
        expires_at=role["expires_at"],
        begin_at=None if role["expires_at"] is None else role["expires_at"] - BEGIN_BEFORE_S,
        commands=(
            (
                "One person drafts root {next}. Nothing is signed yet.",
                f"firmament key ceremony start{other} --add root=NEW-KEY --remove root=OLD-KEY --out {file}",
            ),
            ("Everybody looks, and says the fingerprint aloud.", f"firmament key ceremony show {file}"),
            (
                "Each custodian signs on their own machine, against their own copy of root {now}.",
                f"firmament key ceremony sign {file} --trusted-root {version}.root.json",
            ),
            (
                "When {threshold} of the old and as many of the new keys have signed: take it in and publish.",
                f"firmament key ceremony finish {file}\nfirmament release publish",
            ),
        ),
    )


async def rehearsal(visit: Visit) -> Response:
    """Show how a root is replaced, with the numbers of this server, and how to practise it with keys made for that."""
    repository = chosen(visit, ("image", "director"), "repository", "image")
    trust = await visit.card(visit.api.get("/trust"))
    roles = trust.value["roles"] if trust.value else []
    root = next((role for role in roles if role["role"] == "root" and role["repository"] == repository), None)
    return visit.page(
        "rehearsal.html",
        trust=trust,
        root=root,
        rotation=rotation(root) if root else None,
        consequence=consequence(root) if root else "",
        repository=repository,
        practice="\n".join(REHEARSAL),
    )


VIEWS: Final = (get("/keys", shown), get("/keys/rehearsal", rehearsal))
