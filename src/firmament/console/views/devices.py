"""Devices: the list with search and filters, one device, and what may be done with them."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from starlette.responses import Response, StreamingResponse

from firmament.console import formats
from firmament.console.api import ApiError
from firmament.console.live import draws
from firmament.console.views.base import Field, ask, chosen, get, post

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from firmament.console.visit import Visit

PAGE_SIZES: Final = (25, 50, 100)
"""The browser never gets more rows than the last of these."""
MAX_TRAIL: Final = 40
"""How many pages one can go back; further back is the first page."""
QUERY_PROBLEM: Final = "request/query"
CSV_PAGE: Final = 100
LANGUAGE: Final = re.compile(r'[=<>~()"]|\b(?:has|in|not)\b')
PRESETS: Final = (
    ("attention", "Needs attention", "has error"),
    ("silent", "Not seen for a day", "seen>1d"),
    ("updating", "Updating", "state in (assigned, offered, waiting, fetching, verified, staged, trial)"),
    ("refused", "Refused", "state=disabled"),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the address says about which devices to show."""

    text: str
    preset: str
    product: str
    version: str
    group: str
    size: int
    cursor: str
    trail: tuple[str, ...]

    @property
    def query(self) -> str:
        """The query of the API that this means."""
        parts = [meaning(self.text)] if self.text else []
        parts += [f'{name}="{escaped(value)}"' for name, value in self.choices if value]
        parts += [query for name, _, query in PRESETS if name == self.preset]
        return " and ".join(f"({part})" if len(parts) > 1 and " or " in part else part for part in parts)

    @property
    def choices(self) -> tuple[tuple[str, str], ...]:
        """The drop-down filters."""
        return (("product", self.product), ("version", self.version), ("group", self.group))

    def address(self, **changes: object) -> str:
        """Return the address of the list with some of this changed; cursors are dropped unless given."""
        values: dict[str, object] = {
            "q": self.text, "preset": self.preset, "product": self.product, "version": self.version,
            "group": self.group, "size": self.size if self.size != PAGE_SIZES[0] else "",
        }  # fmt: skip
        values.update(changes)
        given = {name: value for name, value in values.items() if value not in {"", None}}
        return "/devices" + (f"?{urlencode(given)}" if given else "")

    @property
    def is_filtered(self) -> bool:
        """Whether anything narrows the list."""
        return bool(self.query)


def meaning(text: str) -> str:
    """Return the query that a search text means: a query of the language, or the start of a serial."""
    return text if LANGUAGE.search(text) else f'serial~"{escaped(text)}"'


def escaped(text: str) -> str:
    """Return a text as it stands between the query language's quotes."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


def read(visit: Visit) -> Asked:
    """Read the address."""
    trail = tuple(part for part in visit.query("trail").split(",") if part)[-MAX_TRAIL:]
    return Asked(
        text=visit.query("q").strip()[:4000],
        preset=chosen(visit, tuple(name for name, _, _ in PRESETS), "preset", ""),
        product=visit.query("product"),
        version=visit.query("version"),
        group=visit.query("group"),
        size=chosen(visit, PAGE_SIZES, "size", PAGE_SIZES[0]),
        cursor=visit.query("cursor"),
        trail=trail,
    )


async def listed(visit: Visit) -> Response:
    """Show one page of devices."""
    asked = read(visit)
    api = visit.api
    problem: ApiError | None = None
    page = await visit.card(api.get("/devices", query=asked.query, limit=asked.size, cursor=asked.cursor or None))
    if page.error is not None and "position" in page.error.facts:
        problem, page = page.error, type(page)({"devices": [], "next": None})
    count = await visit.card(api.get("/devices/count", query=asked.query)) if problem is None else None
    values: dict[str, Any] = {
        "asked": asked,
        "page": page,
        "count": count,
        "problem": problem,
        "marked": marked(asked, problem),
        "next_address": _next(asked, page.value),
        "back_address": _back(asked),
        "presets": PRESETS,
    }
    if visit.wants_fragment:
        return visit.page("devices_list.html", **values)
    values |= {
        "versions": await visit.card(api.get("/devices/versions")),
        "products": await visit.card(api.get("/products")),
        "groups": await visit.card(api.get("/groups")),
        "views": await visit.card(api.get("/filters")),
    }
    return visit.page("devices.html", **values)


def marked(asked: Asked, problem: ApiError | None) -> tuple[str, str, str] | None:
    """Split a query at the place where it cannot be read: before, the word there, after."""
    if problem is None:
        return None
    query, at = asked.query, max(0, min(int(problem.facts["position"]), len(asked.query)))
    word = re.match(r'"[^"]*"?|[\w.:+@/*-]+|.', query[at:])
    end = at + (word.end() if word else 0)
    return query[:at], query[at:end], query[end:]


def _next(asked: Asked, page: Mapping[str, Any] | None) -> str:
    if not page or not page["next"]:
        return ""
    trail = ",".join((*asked.trail, asked.cursor or "-")[-MAX_TRAIL:])
    return asked.address(cursor=page["next"], trail=trail)


def _back(asked: Asked) -> str:
    if not asked.cursor:
        return ""
    before = asked.trail[-1] if asked.trail else "-"
    return asked.address(cursor="" if before == "-" else before, trail=",".join(asked.trail[:-1]))


async def export(visit: Visit) -> Response:
    """Stream what matches as CSV, page by page: nothing is held in memory."""
    asked = read(visit)
    first = await visit.api.get("/devices", query=asked.query, limit=CSV_PAGE)
    return StreamingResponse(
        _csv(visit, asked, first),
        media_type="text/csv; charset=utf-8",
        headers={"content-disposition": 'attachment; filename="devices.csv"'},
    )


COLUMNS: Final = (
    "device_id", "serial", "product", "hardware", "version", "sequence_number", "site", "gateway", "tags",
    "disabled", "enrolled_at", "last_seen",
)  # fmt: skip


async def _csv(visit: Visit, asked: Asked, page: Mapping[str, Any]) -> AsyncIterator[str]:
    yield ",".join(COLUMNS) + "\r\n"
    while True:
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        for device in page["devices"]:
            writer.writerow([_cell(name, device.get(name)) for name in COLUMNS])
        yield buffer.getvalue()
        if not page["next"]:
            return
        page = await visit.api.get("/devices", query=asked.query, limit=CSV_PAGE, cursor=page["next"])


def _cell(name: str, value: object) -> object:
    if name in {"enrolled_at", "last_seen"}:
        return formats.iso(value) if isinstance(value, int) else ""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    text = "" if value is None else str(value)
    # A cell that begins like a formula is run by spreadsheets; devices choose their serials.
    return "'" + text if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text


# --- one device ----------------------------------------------------------------------------


async def shown(visit: Visit, device_id: str) -> Response:
    """Show one device."""
    return visit.page("device.html", live=f"device.{device_id}", **await _device(visit, device_id))


async def _device(visit: Visit, device_id: str) -> dict[str, Any]:
    path = f"/devices/{quote(device_id, safe='')}"
    api = visit.api
    device = await api.get(path)
    return {
        "device": device,
        "attempts": await visit.card(api.get(path + "/attempts")),
        "timeline": await visit.card(api.get(path + "/timeline")),
        "consent": await visit.card(api.get(path + "/consent")),
        "releases": await visit.card(api.get("/releases", product=device["product"])),
    }


@draws("device")
async def device_regions(visit: Visit, key: str) -> dict[str, str]:
    """Draw what changes by itself."""
    context = await _device(visit, key)
    return {name: visit.draw(f"device_{name}.html", **context) for name in ("head", "slots", "timeline")}


async def why(visit: Visit, device_id: str) -> Response:
    """Say rule by rule why the device has or has not a release."""
    path = f"/devices/{quote(device_id, safe='')}"
    device = await visit.api.get(path)
    releases = await visit.api.get("/releases", product=device["product"])
    release = visit.query("release") or (releases["releases"][0]["release"] if releases["releases"] else "")
    answer = await visit.card(visit.api.get(path + "/why", release=release)) if release else None
    return visit.page("device_why.html", device=device, release=release, releases=releases["releases"], answer=answer)


async def ask_assign(visit: Visit, device_id: str) -> Response:
    """Ask which release the device is to get."""
    device = await visit.api.get(f"/devices/{quote(device_id, safe='')}")
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
        refusal="" if newer else "There is no release of this product yet.",
        action=f"/devices/{quote(device_id, safe='')}/assign",
        back=f"/devices/{device_id}",
        label="Offer it",
    )


async def assign(visit: Visit, device_id: str) -> Response:
    """Assign a release."""
    fields = await visit.form()
    await visit.api.post(f"/devices/{quote(device_id, safe='')}/assign", {"release": fields.get("release", "")})
    return visit.go(f"/devices/{device_id}", said="assigned")


async def ask_change(visit: Visit, device_id: str, change: str) -> Response:
    """Ask before a device is refused, accepted again, or its assignment is taken back."""
    device = await visit.api.get(f"/devices/{quote(device_id, safe='')}")
    if change not in _CHANGES:
        raise ApiError(404, {"title": "There is no such page"})
    title, lines, label, kind, _ = _CHANGES[change]
    return ask(
        visit,
        title=title.format(name=name_of(device)),
        lines=lines,
        action=f"/devices/{quote(device_id, safe='')}/{change}",
        back=f"/devices/{device_id}",
        label=label,
        kind=kind,
        keep="Keep it as it is",
    )


async def change(visit: Visit, device_id: str, change: str) -> Response:
    """Do what was asked."""
    path = f"/devices/{quote(device_id, safe='')}"
    if change not in _CHANGES:
        raise ApiError(404, {"title": "There is no such page"})
    if change == "unassign":
        await visit.api.delete(path + "/assign")
    else:
        await visit.api.post(f"{path}/{change}")
    return visit.go(f"/devices/{device_id}", said=_CHANGES[change][4])


_CHANGES: Final[dict[str, tuple[str, tuple[str, ...], str, str, str]]] = {
    "disable": (
        "Refuse {name} from now on?",
        (("The server answers none of its questions any more: it gets no update and its reports are refused. "
         "What runs on it goes on running. An open attempt ends with what the device already has."),),
        "Refuse the device", "danger", "disabled",
    ),
    "enable": (
        "Accept {name} again?",
        ("Its questions are answered again, and it gets what is assigned to it.",),
        "Accept the device", "primary", "enabled",
    ),
    "unassign": (
        "Take the assignment of {name} back?",
        (("If the device has not started its trial, it stays on the version it runs. A trial that runs "
         "already ends by its own health check."),),
        "Take it back", "danger", "unassigned",
    ),
}  # fmt: skip


async def tag(visit: Visit) -> Response:
    """Add or remove a tag on everything that matches."""
    fields = await visit.form()
    add, remove = fields.get("add", "").split(), fields.get("remove", "").split()
    body: dict[str, Any] = {"query": fields.get("query", ""), "add": add, "remove": remove}
    if fields.get("expect_count", "").isdigit():
        body["expect_count"] = int(fields["expect_count"])
    await visit.api.post("/devices/tags", body)
    return visit.go(fields.get("back") or "/devices", said="tagged")


async def save_view(visit: Visit) -> Response:
    """Keep the query under a name."""
    fields = await visit.form()
    name = quote(fields.get("name", "").strip(), safe="")
    await visit.api.put(f"/filters/{name}", {"query": fields.get("query", "")})
    return visit.go("/devices?" + urlencode({"q": fields.get("query", "")}), said="view-saved")


async def enrol(visit: Visit) -> Response:
    """Ask for which product a one-time token is."""
    products = await visit.api.get("/products")
    return visit.page("enrol.html", products=products["products"], made=None, host=_host(visit))


async def make_token(visit: Visit) -> Response:
    """Show a new enrolment token once, in the command that uses it."""
    fields = await visit.form()
    uses = fields.get("uses", "1")
    body = {
        "product": fields.get("product", ""),
        "expires_in_s": formats.DAY_S,
        "uses": int(uses) if uses.isdigit() else 1,
    }
    made = await visit.api.post("/enrolment-tokens", body)
    products = await visit.api.get("/products")
    return visit.page("enrol.html", products=products["products"], made={**body, **made}, host=_host(visit))


def _host(visit: Visit) -> str:
    return visit.request.headers.get("host", "") if visit.request is not None else ""


def name_of(device: Mapping[str, Any]) -> str:
    """Return what people call a device: its serial, else the start of its id."""
    return str(device.get("serial") or device["device_id"][:8])


VIEWS: Final = (
    get("/devices", listed),
    get("/devices.csv", export),
    get("/devices/enrol", enrol),
    post("/devices/enrol", make_token),
    post("/devices/tags", tag),
    post("/devices/views", save_view),
    get("/devices/{device_id}", shown),
    get("/devices/{device_id}/why", why),
    get("/devices/{device_id}/assign", ask_assign),
    post("/devices/{device_id}/assign", assign),
    get("/devices/{device_id}/{change}", ask_change),
    post("/devices/{device_id}/{change}", change),
)
