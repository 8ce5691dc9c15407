"""One device: what it runs, what was tried, why it has or has not a release, and what may be done with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from firmament.console.live import draws
from firmament.console.views.base import Change, Field, ask, ask_change, get, of_table, post, send

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.responses import Response

    from firmament.console.visit import Visit

MANAGE: Final = "manage-devices"
_WHY_AWAY: Final = Field("reason", "Reason", hint="Whoever asks why the device gets nothing reads it.", required=True)
CHANGES: Final[Mapping[str, Change]] = {
    "disable": Change(
        MANAGE, "Refuse {name} from now on?",
        "The server answers none of its questions any more: it gets no update and its reports are refused. "
        "What runs on it goes on running. An open attempt ends with what the device already has.",
        "Refuse the device", "POST", "/devices/{id}/disable", "disabled", "danger",
    ),
    "enable": Change(
        MANAGE, "Accept {name} again?",
        "Its questions are answered again, and it gets what is assigned to it.",
        "Accept the device", "POST", "/devices/{id}/enable", "enabled",
    ),
    "unassign": Change(
        "assign", "Take the assignment of {name} back?",
        "If the device has not started its trial, it stays on the version it runs. A trial that runs already ends "
        "by its own health check.",
        "Take it back", "DELETE", "/devices/{id}/assign", "unassigned", "danger",
    ),
    "quarantine": Change(
        MANAGE, "Keep every rollout away from {name}?",
        "No rollout starts on it until somebody releases it; it counts as left out, never as failed. "
        "It goes on polling and reporting, and what a person offers it by hand still reaches it.",
        "Put into quarantine", "POST", "/devices/{id}/quarantine", "quarantined", "primary", (_WHY_AWAY,),
    ),
    "release": Change(
        MANAGE, "Take {name} out of quarantine?",
        "Rollouts that match it from now on include it again; those that run already left it out.",
        "Release it", "DELETE", "/devices/{id}/quarantine", "released",
    ),
    "pin": Change(
        MANAGE, "Pin {name} to what it runs?",
        "It stays on its version until somebody unpins it: rollouts leave it out and say so, and nothing can be "
        "offered to it by hand. Only the revert of a rollout that brought it there still takes it back. "
        "It goes on polling and reporting. No other device is touched.",
        "Pin it", "POST", "/devices/{id}/pin", "pinned", "primary", (_WHY_AWAY,),
    ),
    "unpin": Change(
        MANAGE, "Unpin {name}?",
        "Nothing is sent now. Rollouts that match it from now on include it again; those that run already left it out.",
        "Unpin it", "DELETE", "/devices/{id}/pin", "unpinned",
    ),
    "mute": Change(
        MANAGE, "Mute {name}?",
        "What goes wrong with this device alone wakes nobody: it is kept from outlets that take events, and from the "
        "lists of devices that need attention or are silent. It still counts for the limit of a rollout, gets "
        "updates as before, and everything stays in the record.",
        "Mute it", "POST", "/devices/{id}/mute", "muted", "danger",
        (Field("reason", "Reason", hint="Whoever wonders about the silence reads it.", required=True),),
    ),
    "unmute": Change(
        MANAGE, "Unmute {name}?",
        "What goes wrong with it from now on is told again. What happened meanwhile is in the record.",
        "Unmute it", "DELETE", "/devices/{id}/mute", "unmuted",
    ),
    "retry": Change(
        MANAGE, "Let releases that failed on {name} be offered again?",
        "A release that failed on a device is not offered to it a second time until somebody says so. Nothing is "
        "sent now: the next rollout that matches, or an offer by hand, does that.",
        "Forget the failures", "POST", "/devices/clear-failures", "failures-cleared",
    ),
}  # fmt: skip


async def shown(visit: Visit, device_id: str) -> Response:
    """Show one device."""
    return visit.page("device.html", live=f"device.{device_id}", **await _device(visit, device_id))


async def _device(visit: Visit, device_id: str) -> dict[str, Any]:
    path = _path(device_id)
    api = visit.api
    device = await api.get(path)
    return {
        "device": device,
        "attempts": await visit.card(api.get(path + "/attempts")),
        "timeline": await visit.card(api.get(path + "/timeline")),
        "consent": await visit.card(api.get(path + "/consent")),
        "answers": await visit.card(api.get("/consent/events", device=device_id, newest=1, limit=5)),
        "releases": await visit.card(api.get("/releases", product=device["product"])),
    }


@draws("device")
async def regions(visit: Visit, key: str) -> dict[str, str]:
    """Draw what changes by itself."""
    context = await _device(visit, key)
    return {name: visit.draw(f"device_{name}.html", **context) for name in ("head", "slots", "timeline")}


async def why(visit: Visit, device_id: str) -> Response:
    """Say rule by rule why the device has or has not a release."""
    path = _path(device_id)
    device = await visit.api.get(path)
    releases = await visit.api.get("/releases", product=device["product"])
    release = visit.query("release") or (releases["releases"][0]["release"] if releases["releases"] else "")
    answer = await visit.card(visit.api.get(path + "/why", release=release)) if release else None
    return visit.page("device_why.html", device=device, release=release, releases=releases["releases"], answer=answer)


async def ask_assign(visit: Visit, device_id: str) -> Response:
    """Ask which release the device is to get."""
    device = await visit.api.get(_path(device_id))
    releases = await visit.api.get("/releases", product=device["product"])
    newer = [
        (found["release"], f"{found['version']} (sequence {found['sequence_number']})")
        for found in releases["releases"]
        if found["withdrawn_at"] is None
    ]
    return ask(
        visit,
        title=f"Offer a release to {name_of(device)}?",
        lines=(
            (
                "The device asks its owner where its policy says so, installs into the other slot, tries it once, "
                "and goes back by itself if it is not healthy."
            ),
        ),
        groups=(("Device", name_of(device)), ("Runs now", device["version"] or "unknown")),
        fields=(Field("release", "Release", choices=tuple(newer)),),
        refusal=visit.who.why_not("assign") or ("" if newer else "There is no release of this product yet."),
        action=f"/devices/{quote(device_id, safe='')}/assign",
        back=f"/devices/{device_id}",
        label="Offer it",
    )


async def assign(visit: Visit, device_id: str) -> Response:
    """Assign a release."""
    fields = await visit.form()
    await visit.api.post(f"{_path(device_id)}/assign", {"release": fields.get("release", "")})
    return visit.go(f"/devices/{device_id}", said="assigned")


async def ask_to_change(visit: Visit, device_id: str, change: str) -> Response:
    """Say what it would do, and ask."""
    found = of_table(CHANGES, change)
    device = await visit.api.get(_path(device_id))
    return ask_change(
        visit, found, name=name_of(device), action=f"{_path(device_id)}/{change}", back=f"/devices/{device_id}"
    )


async def change(visit: Visit, device_id: str, change: str) -> Response:
    """Do what was asked."""
    found, fields = of_table(CHANGES, change), await visit.form()
    body: dict[str, Any] = {field.name: fields.get(field.name, "") for field in found.fields}
    if change == "retry":
        body["ids"] = [device_id]
    await send(visit, found, found.path.format(id=quote(device_id, safe="")), body)
    return visit.go(f"/devices/{device_id}", said=found.said)


def _path(device_id: str) -> str:
    return f"/devices/{quote(device_id, safe='')}"


def name_of(device: Mapping[str, Any]) -> str:
    """Return what people call a device: its serial, else the start of its id."""
    return str(device.get("serial") or device["device_id"][:8])


VIEWS: Final = (
    get("/devices/{device_id}", shown),
    get("/devices/{device_id}/why", why),
    get("/devices/{device_id}/assign", ask_assign),
    post("/devices/{device_id}/assign", assign),
    get("/devices/{device_id}/{change}", ask_to_change),
    post("/devices/{device_id}/{change}", change),
)
