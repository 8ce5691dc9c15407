"""What a view is: an address, its methods, and a coroutine that answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from firmament.console.api import NOT_FOUND, ApiError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.responses import Response

    from firmament.console.visit import Visit


@dataclass(frozen=True, slots=True)
class View:
    """One address of the console."""

    path: str
    handle: Callable[..., Awaitable[Response]]
    methods: tuple[str, ...] = ("GET",)
    is_public: bool = False
    """Also for people who are not signed in."""
    is_for_enrolment: bool = False
    """Also for people whose role needs a second factor that they do not have yet."""


def get(
    path: str,
    handle: Callable[..., Awaitable[Response]],
    *,
    is_public: bool = False,
    is_for_enrolment: bool = False,
) -> View:
    """Return a page."""
    return View(path, handle, ("GET", "HEAD"), is_public, is_for_enrolment)


def post(
    path: str,
    handle: Callable[..., Awaitable[Response]],
    *,
    is_public: bool = False,
    is_for_enrolment: bool = False,
) -> View:
    """Return where a form is sent."""
    return View(path, handle, ("POST",), is_public, is_for_enrolment)


def chosen(visit: Visit, allowed: tuple[Any, ...], name: str, default: Any) -> Any:
    """Return a parameter that must be one of a few, else the default."""
    text = visit.query(name)
    return next((value for value in allowed if str(value) == text), default)


@dataclass(frozen=True, slots=True)
class Field:
    """One thing that a question asks for."""

    name: str
    label: str
    hint: str = ""
    value: str = ""
    required: bool = False
    long: bool = False
    secret: bool = False
    choices: tuple[tuple[str, str], ...] = ()


def ask(visit: Visit, **values: Any) -> Response:
    """Ask before something is done: a page of its own, or the inside of a dialog.

    The harmless answer has the focus; `groups` say what happens to whom.
    """
    base: dict[str, Any] = {
        "lines": (),
        "groups": (),
        "hidden": (),
        "fields": (),
        "refusal": "",
        "subject": "",
        "problem": "",
        "kind": "primary",
        "keep": "Cancel",
    }
    return visit.page("ask_inside.html" if visit.wants_fragment else "ask_page.html", **{**base, **values})


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that a button does: whose permission, what is said before, which call of the API it is."""

    permission: str
    title: str
    """With ``{name}`` for what it is done to."""
    line: str
    """What happens, and to whom."""
    label: str
    method: str
    path: str
    """Of the API, with ``{id}``."""
    said: str
    kind: str = "primary"
    fields: tuple[Field, ...] = ()


def of_table(table: Mapping[str, Change], name: str) -> Change:
    """Return a change by the name in the address; raises ApiError for one that is not there."""
    if name not in table:
        raise ApiError(NOT_FOUND, {"title": "There is no such page"})
    return table[name]


def ask_change(visit: Visit, change: Change, *, name: str, action: str, back: str, problem: str = "") -> Response:
    """Ask before a change, saying which role is missing if one is."""
    return ask(
        visit,
        title=change.title.format(name=name),
        lines=(change.line,),
        fields=change.fields,
        subject=name if any(field.secret for field in change.fields) else "",
        problem=problem,
        refusal=visit.who.why_not(change.permission),
        action=action,
        back=back,
        label=change.label,
        kind=change.kind,
        keep="Keep it as it is",
    )


async def send(visit: Visit, change: Change, path: str, body: Mapping[str, Any]) -> None:
    """Make the call of a change; raises ApiError."""
    if change.method == "DELETE":
        await visit.api.delete(path)
    elif change.method == "PUT":
        await visit.api.put(path, body)
    else:
        await visit.api.post(path, body)
