"""Rollouts: the list, a new one, the live page, and what each button would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from firmament.console import formats, words
from firmament.console.api import FORBIDDEN, ApiError
from firmament.console.live import draws
from firmament.console.views.base import Field, ask, get, post
from firmament.console.views.overview import ACTIVE, person

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.responses import Response

    from firmament.console.visit import Visit

EVENTS_SHOWN: Final = 8
TARGETS_PAGE: Final = 50
RAMPS: Final = {
    "all": ({"name": "everyone", "percent": 100},),
    "few": ({"name": "canary", "count": 1}, {"name": "everyone", "percent": 100}),
    "some": ({"name": "canary", "count": 5}, {"name": "half", "percent": 50}, {"name": "everyone", "percent": 100}),
    "many": (
        {"name": "canary", "count": 50},
        {"name": "1 %", "percent": 1},
        {"name": "10 %", "percent": 10},
        {"name": "50 %", "percent": 50},
        {"name": "everyone", "percent": 100},
    ),
}
"""Proposed waves by the size of the fleet: console.md, new rollout."""
ACTIONS: Final[dict[str, tuple[str, str, str, str, str]]] = {
    # action: (permission, button, icon, kind, harmless answer)
    "start": ("start-rollout", "Start", "play", "primary", "Not yet"),
    "approve": ("approve", "Approve", "check", "primary", "Not yet"),
    "deny": ("approve", "Deny", "cross", "danger", "Keep it waiting"),
    "pause": ("stop", "Pause", "pause", "", "Let it run"),
    "resume": ("start-rollout", "Resume", "play", "", "Keep it stopped"),
    "next-wave": ("start-rollout", "Open the next wave now", "play", "", "Keep waiting"),
    "retry-failed": ("start-rollout", "Retry failed", "undo", "", "Leave them"),
    "revert": ("revert", "Go back", "undo", "danger", "Leave them updated"),
    "abort": ("stop", "Abort", "cross", "danger", "Keep it as it is"),
    "acknowledge": ("stop", "Acknowledge", "check", "", "Not yet"),
}
BUTTONS: Final[dict[str, tuple[str, ...]]] = {
    "draft": ("start", "abort"),
    "awaiting-approval": ("approve", "deny"),
    "scheduled": ("start", "abort"),
    "running": ("pause", "revert", "abort"),
    "holding": ("next-wave", "pause", "revert", "abort"),
    "paused": ("resume", "revert", "abort"),
    "halted": ("resume", "revert", "abort"),
    "reverting": ("abort",),
    "finished": ("retry-failed", "revert"),
    "aborted": ("revert",),
}
NO_PREVIEW: Final[dict[str, Any]] = {
    "is_possible": False, "sentence": "", "count": 0, "counts": {}, "needs_reason": False, "needs_second_person": False,
}  # fmt: skip
"""Where the API tells nobody of this role what would happen, the page still says why."""
GROUPS: Final = (
    ("waiting", "Not started"),
    ("asking", "Waiting for their user"),
    ("in-flight", "In flight"),
    ("updated", "Updated and healthy"),
    ("failed", "Failed"),
    ("silent", "Not called back"),
)


async def listed(visit: Visit) -> Response:
    """List rollouts: those that need somebody first."""
    state, product, cursor = visit.query("state"), visit.query("product"), visit.query("cursor")
    found = await visit.card(
        visit.api.get(
            "/rollouts", state=state or None, product=product or None, cursor=cursor or None, limit=TARGETS_PAGE
        )
    )
    rollouts = found.value["rollouts"] if found.value else []
    order = {name: index for index, name in enumerate(ACTIVE)}
    return visit.page(
        "rollouts.html",
        live="rollouts" if not (state or product or cursor) else "",
        found=found,
        rollouts=sorted(rollouts, key=lambda rollout: order.get(rollout["state"], len(order))),
        only=state,
        next=found.value["next"] if found.value else None,
        person=person,
    )


@draws("rollouts")
async def list_regions(visit: Visit, _key: str) -> dict[str, str]:
    """Draw the list."""
    found = await visit.api.get("/rollouts", limit=TARGETS_PAGE)
    order = {name: index for index, name in enumerate(ACTIVE)}
    rollouts = sorted(found["rollouts"], key=lambda rollout: order.get(rollout["state"], len(order)))
    return {"list": visit.draw("rollouts_list.html", rollouts=rollouts, next=found["next"], only="", person=person)}


# --- one rollout ---------------------------------------------------------------------------


async def shown(visit: Visit, rollout_id: str) -> Response:
    """Show one rollout, live."""
    return visit.page("rollout.html", live=f"rollout.{rollout_id}", **await _rollout(visit, rollout_id))


async def _rollout(visit: Visit, rollout_id: str) -> dict[str, Any]:
    api, path = visit.api, _path(rollout_id)
    rollout = await api.get(path)
    return {
        "rollout": rollout,
        "reasons": await visit.card(api.get(path + "/reasons")),
        "series": await visit.card(series(visit, rollout)),
        "latest": await visit.card(api.get(path + "/targets", order="updated", limit=EVENTS_SHOWN)),
        "buttons": [(name, ACTIONS[name]) for name in BUTTONS.get(rollout["state"], ())],
        "text": as_text(rollout),
        "person": person,
        "groups": four(rollout),
    }


async def series(visit: Visit, rollout: Mapping[str, Any]) -> dict[str, Any]:
    """Return the failure rate over time, up to now: samples are a minute apart."""
    found: dict[str, Any] = await visit.api.get(_path(rollout["rollout_id"]) + "/series")
    opened = [wave for wave in rollout["waves"] if wave["opened_at"] is not None]
    finished, failed = (sum(wave[name] for wave in opened) for name in ("finished", "failed"))
    if not finished:
        return found
    at = int(visit.now.timestamp()) if rollout["state"] in {"running", "holding"} else rollout["state_since"]
    if found["points"] and found["points"][-1]["at"] >= at:
        return found
    now = {
        "at": at,
        "wave": opened[-1]["number"],
        "finished": finished,
        "failed": failed,
        "failure_ratio": failed / finished,
    }
    return {**found, "points": [*found["points"], now]}


def four(rollout: Mapping[str, Any]) -> dict[str, int]:
    """Return the numbers one looks at first. Pure."""
    counts = rollout["counts"]
    asking = sum(counts.get(name, 0) for name in ("asking", "postponed", "declined"))
    return {
        "updated": counts.get("updated", 0),
        "in_flight": counts.get("in-flight", 0) + counts.get("offered", 0),
        "failed": counts.get("failed", 0) + counts.get("silent", 0),
        "asking": asking,
        "waiting": counts.get("waiting", 0),
        "silent": counts.get("silent", 0),
    }


def as_text(rollout: Mapping[str, Any]) -> str:
    """Return the stop in a few lines, for a chat. Pure."""
    halt = rollout.get("halt")
    if not halt:
        return ""
    common = halt.get("common")
    lines = [
        f"HALTED {rollout['name']} ({rollout['release']}) at {formats.absolute(halt['at'])}.",
        halt["sentence"],
        (
            f"{formats.number(halt['not_started'])} not started, {formats.number(halt['in_flight'])} in flight, "
            f"{formats.number(halt['updated'])} updated, {formats.number(halt['silent'])} not called back."
        ),
    ]
    if common:
        lines.append(f"{formats.percent(common['share'], 0)} of the failed: {common['attribute']} {common['value']}.")
    lines.append("Nothing more happens until somebody acts.")
    return "\n".join(lines)


@draws("rollout")
async def regions(visit: Visit, key: str) -> dict[str, str]:
    """Draw what changes by itself."""
    context = await _rollout(visit, key)
    return {
        name: visit.draw(f"rollout_{name}.html", **context)
        for name in ("head", "halt", "stats", "waves", "why", "chart", "latest")
    }


async def targets(visit: Visit, rollout_id: str) -> Response:
    """List the devices of a rollout."""
    status, reason, wave, cursor = (visit.query(name) for name in ("status", "reason", "wave", "cursor"))
    path = _path(rollout_id)
    rollout = await visit.api.get(path)
    found = await visit.card(
        visit.api.get(
            path + "/targets", status=status or None, reason=reason or None, wave=wave or None,
            cursor=cursor or None, limit=TARGETS_PAGE,
        )
    )  # fmt: skip
    more = found.value["next"] if found.value else None
    chosen = {"status": status, "reason": reason, "wave": wave}
    return visit.page(
        "targets.html",
        rollout=rollout,
        found=found,
        chosen=chosen,
        next_address=f"/rollouts/{rollout_id}/targets?{urlencode({**_given(chosen), 'cursor': more})}" if more else "",
        statuses=words.TARGET,
    )


def _given(values: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


async def ask_action(visit: Visit, rollout_id: str, action: str) -> Response:
    """Say what a button would do, to how many, and ask."""
    if action not in ACTIONS:
        raise ApiError(404, {"title": "There is no such page"})
    rollout = await visit.api.get(_path(rollout_id))
    exclude = visit.query("exclude")
    permission, label, _, kind, keep = ACTIONS[action]
    try:
        preview = await visit.api.get(f"{_path(rollout_id)}/actions/{action}", exclude=exclude or None)
    except ApiError as error:
        if error.status != FORBIDDEN:
            raise
        preview = {**NO_PREVIEW, "why_not": f"{error.title}."}
    refusal = visit.who.why_not(permission) or ("" if preview["is_possible"] else preview["why_not"])
    fields = []
    if action == "resume" and (common := (rollout.get("halt") or {}).get("common")):
        query = f'{query_name(common["attribute"])}="{common["value"]}"'
        fields.append(
            Field(
                "exclude", "Who goes on",
                choices=(("", "Everyone"), (query, f"All without {common['attribute']} = {common['value']}")),
                hint="Devices left out stay on the version they run.",
            )
        )  # fmt: skip
    if preview["needs_reason"]:
        fields.append(Field("reason", "Reason", hint="It stands in the audit for ever.", required=True, long=True))
    lines = [preview["sentence"]] if preview["sentence"] else []
    if preview["needs_second_person"]:
        lines.append("A second person must agree before it happens.")
    counted = f" {formats.number(preview['count'])}" if preview["count"] else ""
    return ask(
        visit,
        title=f"{label}: {rollout['name']}?",
        lines=lines,
        groups=[
            (words.look(words.TARGET, name).text, formats.number(n)) for name, n in preview["counts"].items() if n > 0
        ],
        fields=fields,
        hidden=(("expect_revision", rollout["revision"]),),
        refusal=refusal,
        action=f"/rollouts/{rollout_id}/{action}",
        back=f"/rollouts/{rollout_id}",
        label=label + (counted if action in {"revert", "retry-failed"} else ""),
        kind=kind or "primary",
        keep=keep,
    )


def query_name(attribute: str) -> str:
    """Return the query language's name for an attribute that failed devices share."""
    return attribute


async def act(visit: Visit, rollout_id: str, action: str) -> Response:
    """Do what was asked, with the revision the person saw."""
    if action not in ACTIONS:
        raise ApiError(404, {"title": "There is no such page"})
    fields = await visit.form()
    body: dict[str, Any] = {name: fields[name] for name in ("reason", "exclude") if fields.get(name, "").strip()}
    if fields.get("expect_revision", "").isdigit() and action != "acknowledge":
        body["expect_revision"] = int(fields["expect_revision"])
    await visit.api.post(f"{_path(rollout_id)}/{action}", body)
    return visit.go(f"/rollouts/{rollout_id}", said=action)


def _path(rollout_id: str) -> str:
    return f"/rollouts/{quote(rollout_id, safe='')}"


# --- a new one -----------------------------------------------------------------------------


async def new(visit: Visit) -> Response:
    """Show the form, with what it would do beside it."""
    fields = dict(visit.request.query_params) if visit.request is not None else {}
    values = await _planned(visit, fields)
    return visit.page("plan.html" if visit.wants_fragment else "rollout_new.html", **values)


async def _planned(visit: Visit, fields: Mapping[str, str]) -> dict[str, Any]:
    releases = await visit.card(visit.api.get("/releases"))
    usable = [found for found in (releases.value or {}).get("releases", ()) if found["withdrawn_at"] is None]
    release = fields.get("release") or (usable[0]["release"] if usable else "")
    plan = await visit.card(visit.api.post("/rollouts/plan", wish(release, fields))) if release else None
    problem = plan.error if plan is not None and plan.error is not None and "position" in plan.error.facts else None
    return {
        "found": releases,
        "releases": usable,
        "release": release,
        "fields": fields,
        "plan": plan,
        "problem": problem,
        "ramps": RAMPS,
        "ramp": fields.get("ramp") or "",
        "refusal": "",
        "groups": await visit.card(visit.api.get("/groups", counts=0)),
    }


def wish(release: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """Return what the form asks of the plan route; what is not filled in is the server's default. Pure."""
    body: dict[str, Any] = {"release": release, "selector": selector(release, fields)}
    if fields.get("ramp") in RAMPS:
        body["waves"] = list(RAMPS[fields["ramp"]])
    gate: dict[str, Any] = {}
    if _is_number(fields.get("limit_percent", "")):
        gate["limit_ratio"] = f"{float(fields['limit_percent']) / 100:.6f}".rstrip("0").rstrip(".") or "0"
    if fields.get("min_finished", "").isdigit():
        gate["min_finished"] = int(fields["min_finished"])
    if gate:
        body["gate"] = gate
    if fields.get("hold_h", "").isdigit():
        body["hold_s"] = int(fields["hold_h"]) * formats.HOUR_S
    if fields.get("window_start") and fields.get("window_end"):
        body["windows"] = [{"start": fields["window_start"], "end": fields["window_end"]}]
    if fields.get("on_stop") in {"hold", "revert"}:
        body["on_stop"] = fields["on_stop"]
    if fields.get("wait_for") in {"installed", "healthy"}:
        body["wait_for"] = fields["wait_for"]
    if fields.get("per_minute", "").isdigit():
        body["caps"] = {"starts_per_minute": int(fields["per_minute"])}
    body["dynamic"] = fields.get("dynamic") == "1"
    return body


def _is_number(text: str) -> bool:
    try:
        return 0 <= float(text) <= 100  # noqa: PLR2004 - percent
    except ValueError:
        return False


def selector(release: str, fields: Mapping[str, str]) -> str:
    """Return the query of the form: its own text, and the group that was chosen. Pure."""
    product = release.partition("/")[0]
    parts = [f'product="{product}"'] if product else []
    if fields.get("selector", "").strip():
        parts.append(fields["selector"].strip())
    if fields.get("group"):
        parts.append(f'group="{fields["group"]}"')
    return " and ".join(f"({part})" if " or " in part else part for part in parts)


async def create(visit: Visit) -> Response:
    """Make the rollout that was previewed; a fleet that has changed since is refused by the API."""
    fields = await visit.form()
    release = fields.get("release", "")
    body = wish(release, fields) | {"name": fields.get("name", "").strip() or release, "note": fields.get("note", "")}
    if fields.get("expect_count", "").isdigit():
        body["expect_count"] = int(fields["expect_count"])
    try:
        made = await visit.api.post("/rollouts", body)
    except ApiError as error:
        if error.status in {401, 403}:
            raise
        values = await _planned(visit, fields)
        return visit.page("rollout_new.html", status=error.status, **{**values, "refusal": error.detail})
    return visit.go(f"/rollouts/{made['rollout_id']}")


VIEWS: Final = (
    get("/rollouts", listed),
    get("/rollouts/new", new),
    post("/rollouts/new", create),
    get("/rollouts/{rollout_id}", shown),
    get("/rollouts/{rollout_id}/targets", targets),
    get("/rollouts/{rollout_id}/{action}", ask_action),
    post("/rollouts/{rollout_id}/{action}", act),
)
