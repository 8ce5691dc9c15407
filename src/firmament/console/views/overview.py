"""The first page: what needs somebody, what is on its way, what the field runs; and the first run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.console import charts, formats
from firmament.console.live import draws
from firmament.console.views.base import get

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from starlette.responses import Response

    from firmament.console.visit import Card, Visit
    from firmament.core.clock import Clock

ACTIVE: Final = ("halted", "awaiting-approval", "reverting", "paused", "holding", "running", "scheduled")
"""In the order in which they need somebody."""
SOON_S: Final = 60 * formats.DAY_S
URGENT_S: Final = 14 * formats.DAY_S
BADGE_LIFE_S: Final = 5.0
MAX_BADGES: Final = 1000
HISTORY_DAYS: Final = 30
PARTS: Final = ("needs", "rollouts", "versions", "history", "events")
KINDS: Final = 5
"""So many versions have a colour of their own; the rest are one."""


@dataclass(frozen=True, slots=True)
class Need:
    """Something that waits for a person."""

    icon: str
    tone: str
    text: str
    detail: str
    href: str
    label: str


@dataclass(frozen=True, slots=True)
class Found:
    """What the API said for the overview; each part may have failed alone."""

    rollouts: Card
    trust: Card
    devices: Card
    products: Card
    releases: Card


async def look(visit: Visit) -> Found:
    """Ask for everything that may need somebody."""
    api = visit.api
    return Found(
        rollouts=await visit.card(active_rollouts(visit)),
        trust=await visit.card(api.get("/trust")),
        devices=await visit.card(api.get("/devices/count", query="")),
        products=await visit.card(api.get("/products")),
        releases=await visit.card(api.get("/releases")),
    )


async def active_rollouts(visit: Visit) -> list[dict[str, Any]]:
    """Return rollouts that are not over, most urgent first."""
    found = await visit.api.get("/rollouts", limit=50)
    active = [rollout for rollout in found["rollouts"] if rollout["state"] in ACTIVE]
    return sorted(active, key=lambda rollout: ACTIVE.index(rollout["state"]))


def needs(found: Found, now: datetime) -> list[Need]:
    """Return what waits for a person, most urgent first. Pure."""
    listed: list[Need] = []
    for rollout in found.rollouts.value or ():
        listed.extend(_of_rollout(rollout, now))
    roles = found.trust.value["roles"] if found.trust.value else []
    listed.extend(_of_expiry(role, now) for role in expiring(roles, now, SOON_S))
    return listed


def expiring(roles: list[dict[str, Any]], now: datetime, within_s: int) -> list[dict[str, Any]]:
    """Return roles whose file a person must sign again within a time, the soonest first."""
    limit = now.timestamp() + within_s
    found = [
        role
        for role in roles
        if role["expires_at"] is not None and not role["is_online"] and role["expires_at"] < limit
    ]
    return sorted(found, key=lambda role: role["expires_at"])


def _of_rollout(rollout: Mapping[str, Any], now: datetime) -> list[Need]:
    href = f"/rollouts/{rollout['rollout_id']}"
    silent = rollout["counts"].get("silent", 0)
    if rollout["state"] == "halted":
        halt = rollout.get("halt") or {}
        return [Need("alert", "bad", f"{rollout['name']} stopped by itself", halt.get("sentence", ""), href, "Decide")]
    if rollout["state"] == "awaiting-approval":
        return [
            Need(
                "hand", "wait", f"{rollout['name']} waits for approval",
                f"{rollout['release']} for {formats.plural(rollout['total'], 'device')}, "
                f"made by {person(rollout['created_by'])} {formats.ago(rollout['created_at'], now)}.",
                href, "Review",
            )
        ]  # fmt: skip
    if silent:
        text = f"{formats.plural(silent, 'device')} of {rollout['name']} not called back"
        return [
            Need(
                "quiet",
                "warn",
                text,
                "They count as failed until they do.",
                href + "/targets?status=silent",
                "See which",
            )
        ]
    return []


def _of_expiry(role: Mapping[str, Any], now: datetime) -> Need:
    left_s = role["expires_at"] - now.timestamp()
    name = f"{role['repository']} {role['role']}"
    when = f"expires on {formats.day(role['expires_at'])}" if left_s > 0 else "has expired"
    tone = "bad" if left_s < URGENT_S else "warn"
    return Need(
        "key",
        tone,
        f"The role {name} {when}",
        "If nobody signs it again, devices refuse what it names.",
        "/keys",
        "What to do",
    )


def person(actor: str) -> str:
    """Return ``mara`` for ``person:mara``; other actors keep their kind."""
    kind, _, name = actor.partition(":")
    return name if kind == "person" and name else actor


class Badges:
    """Counts beside the navigation, kept for some seconds: they are on every page."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[tuple[str, ...], tuple[float, dict[str, Any]]] = {}

    async def of(self, visit: Visit) -> dict[str, Any]:
        """Return counts by path, and the banner about keys that end soon."""
        key = visit.who.audience
        now_s = self._clock.monotonic_s()
        known = self._known.get(key)
        if known is not None and now_s - known[0] < BADGE_LIFE_S:
            return known[1]
        found = await look(visit)
        made = badges(found, visit.now)
        if len(self._known) >= MAX_BADGES:
            self._known.clear()
        self._known[key] = (now_s, made)
        return made


def badges(found: Found, now: datetime) -> dict[str, Any]:
    """Return what every page shows beside its own. Pure."""
    waiting = needs(found, now)
    made: dict[str, Any] = {"alarms": [], "notes": {}}
    if waiting:
        made["/"] = len(waiting)
        made["notes"]["/"] = "need you"
        if any(need.tone == "bad" for need in waiting):
            made["alarms"].append("/")
    if found.devices.value:
        made["/devices"] = (
            f"{formats.short_number(found.devices.value['count'])}{'+' * found.devices.value['is_capped']}"
        )
        made["notes"]["/devices"] = "enrolled"
    if found.rollouts.value:
        made["/rollouts"] = len(found.rollouts.value)
        made["notes"]["/rollouts"] = "active"
    if found.trust.value:
        urgent = expiring(found.trust.value["roles"], now, URGENT_S)
        if urgent:
            first = urgent[0]
            left = formats.ago(first["expires_at"], now)
            is_over = first["expires_at"] <= now.timestamp()
            made["expiring"] = {
                "tone": "bad" if is_over else "warn",
                "text": f"The role {first['repository']} {first['role']} "
                + (f"expired {left}: devices refuse what it names." if is_over else f"expires {left}."),
            }
    return made


def first_run(found: Found) -> dict[str, bool] | None:
    """Return which steps are done while the server has no device; None after that. Pure."""
    if found.devices.value is None or found.products.value is None or found.releases.value is None:
        return None
    if found.devices.value["count"]:
        return None
    return {"keys": bool(found.products.value["products"]), "release": bool(found.releases.value["releases"])}


async def overview(visit: Visit) -> Response:
    """Show everything at a glance."""
    return visit.page("overview.html", live="overview", **await _context(visit))


async def _context(visit: Visit) -> dict[str, Any]:
    found = await look(visit)
    host = visit.request.headers.get("host", "") if visit.request is not None else ""
    return {
        "found": found,
        "needs": needs(found, visit.now),
        "steps": first_run(found),
        "versions": await visit.card(visit.api.get("/devices/versions")),
        "history": await visit.card(history(visit)),
        "events": await visit.card(latest_events(visit, 10)),
        "host": host,
    }


@dataclass(frozen=True, slots=True)
class History:
    """What the field ran in the last days: a chart, and the same numbers as a table."""

    names: tuple[str, ...]
    """Of the versions with a colour of their own, the most frequent today first."""
    rows: tuple[tuple[int, tuple[int, ...]], ...]
    """Begin of a day, and the count of each name; after them, of all others."""
    chart: charts.Days | None


async def history(visit: Visit) -> History:
    """Ask for the last days."""
    found = await visit.api.get("/devices/versions/days", days=HISTORY_DAYS)
    return over_time(found["days"])


def over_time(days: list[dict[str, Any]]) -> History:
    """Put counts by version into columns. Pure."""
    newest: dict[str, int] = {}
    for day in days:  # the last one wins, and what is gone today comes last
        newest = dict.fromkeys(newest, 0) | {
            f"{one['product']} {one['version'] or 'not reported'}": one["count"] for one in day["versions"]
        }
    names = tuple(sorted(newest, key=lambda name: -newest[name])[:KINDS])
    rows = []
    for day in days:
        counts = {f"{one['product']} {one['version'] or 'not reported'}": one["count"] for one in day["versions"]}
        shown = tuple(counts.get(name, 0) for name in names)
        rows.append((int(day["at"]), (*shown, day["total"] - sum(shown))))
    keyed = [(at, [(f"v{i}", count) for i, count in enumerate(counts)]) for at, counts in rows]
    chart = charts.days(keyed, rows[-1][0], HISTORY_DAYS) if rows else None
    return History(names, tuple(rows), chart)


async def latest_events(visit: Visit, count: int) -> list[dict[str, Any]]:
    """Return the newest events, newest first."""
    found = await visit.api.get("/audit/events", newest=1, limit=count)
    return sorted(found["events"], key=lambda event: -event["id"])[:count]


@draws("overview")
async def regions(visit: Visit, _key: str) -> dict[str, str]:
    """Draw what changes by itself."""
    context = await _context(visit)
    if context["steps"] is not None:
        return {}  # the first run: the person follows steps, nothing moves under their hands
    return {
        name: visit.draw(f"overview_{name}.html", **context)
        for name in ("needs", "rollouts", "versions", "history", "events")
    }


VIEWS: Final = (get("/", overview),)
