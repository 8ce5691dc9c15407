"""What a view is: an address, its methods, and a coroutine that answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

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


def get(path: str, handle: Callable[..., Awaitable[Response]], *, is_public: bool = False) -> View:
    """Return a page."""
    return View(path, handle, ("GET", "HEAD"), is_public)


def post(path: str, handle: Callable[..., Awaitable[Response]], *, is_public: bool = False) -> View:
    """Return where a form is sent."""
    return View(path, handle, ("POST",), is_public)


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
        "kind": "primary",
        "keep": "Cancel",
    }
    return visit.page("ask_inside.html" if visit.wants_fragment else "ask_page.html", **{**base, **values})
