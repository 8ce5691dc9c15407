"""Devices: the list with search, filters, columns and saved views, its export, and tokens that let new ones in."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from starlette.responses import Response, StreamingResponse

from firmament.console import formats, guard
from firmament.console.views.base import ask, chosen, get, post

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from firmament.console.api import ApiError
    from firmament.console.visit import Visit

PAGE_SIZES: Final = (25, 50, 100)
"""The browser never gets more rows than the last of these."""
MAX_TRAIL: Final = 40
"""How many pages one can go back; further back is the first page."""
QUERY_PROBLEM: Final = "request/query"
CSV_PAGE: Final = 500
MAX_CSV_ROWS: Final = 250_000
"""A longer export ends with a line that says so: narrow the query."""
SHOWN_COLUMNS: Final = {
    "product": "Product",
    "site": "Site",
    "version": "Version",
    "sequence": "Sequence",
    "state": "State",
    "tags": "Tags",
    "gateway": "Gateway",
    "enrolled": "Enrolled",
    "seen": "Seen",
}
"""Beside the serial, which is always there; in this order."""
USUAL_COLUMNS: Final = ("product", "site", "version", "state", "tags", "seen")
LANGUAGE: Final = re.compile(r'[=<>~()"]|\b(?:has|in|not)\b')
PRESETS: Final = (
    ("attention", "Needs attention", "has error and not state=muted"),
    ("silent", "Not seen for a day", "seen>1d and not state=muted"),
    ("updating", "Updating", "state in (assigned, offered, waiting, fetching, verified, staged, trial)"),
    ("pinned", "Pinned", "state=pinned"),
    ("muted", "Muted", "state=muted"),
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
        "columns": columns_of(visit),
        "all_columns": SHOWN_COLUMNS,
        "views": await visit.card(api.get("/filters")),
    }
    if visit.wants_fragment:
        return visit.page("devices_list.html", **values)
    values |= {
        "versions": await visit.card(api.get("/devices/versions")),
        "products": await visit.card(api.get("/products")),
        "groups": await visit.card(api.get("/groups", counts=0)),
    }
    return visit.page("devices.html", **values)


def columns_of(visit: Visit) -> tuple[str, ...]:
    """Return the columns that this browser wants."""
    kept = visit.cookie(guard.COLUMNS_COOKIE)
    found = tuple(name for name in SHOWN_COLUMNS if name in kept.split("."))
    return found or USUAL_COLUMNS


async def choose_columns(visit: Visit) -> Response:
    """Keep the columns for this browser; none at all means the usual ones."""
    pairs = await visit.pairs()
    wanted = {value for name, value in pairs if name == "column"}
    response = visit.go(dict(pairs).get("back") or "/devices", said="columns")
    guard.set_choice(response, guard.COLUMNS_COOKIE, ".".join(name for name in SHOWN_COLUMNS if name in wanted))
    return response


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
    count = 0
    while True:
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        for device in page["devices"]:
            writer.writerow([_cell(name, device.get(name)) for name in COLUMNS])
        yield buffer.getvalue()
        count += len(page["devices"])
        if not page["next"]:
            return
        if count >= MAX_CSV_ROWS:
            yield f"# stopped after {count} rows: narrow the query\r\n"
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


async def ask_remove_view(visit: Visit) -> Response:
    """Say that only the name goes."""
    name = visit.query("name")
    return ask(
        visit,
        title=f"Remove the view {name}?",
        lines=("Its name and query go, for everybody. The devices it shows are not touched.",),
        hidden=(("name", name),),
        action="/devices/views/remove",
        back="/devices",
        label="Remove the view",
        kind="danger",
        keep="Keep it",
    )


async def remove_view(visit: Visit) -> Response:
    """Forget a saved query."""
    fields = await visit.form()
    await visit.api.delete(f"/filters/{quote(fields.get('name', ''), safe='')}")
    return visit.go("/devices", said="view-removed")


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


VIEWS: Final = (
    get("/devices", listed),
    get("/devices.csv", export),
    get("/devices/enrol", enrol),
    post("/devices/enrol", make_token),
    post("/devices/tags", tag),
    post("/devices/columns", choose_columns),
    post("/devices/views", save_view),
    get("/devices/views/remove", ask_remove_view),
    post("/devices/views/remove", remove_view),
)
