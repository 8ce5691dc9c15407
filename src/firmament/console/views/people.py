"""People: who may sign in, with which role, and what an administrator does for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from firmament.console import words
from firmament.console.api import ApiError
from firmament.console.views.base import Change, Field, ask_change, get, of_table, post, send

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.responses import Response

    from firmament.console.visit import Visit

MANAGE: Final = "manage-people"
_ROLE: Final = Field("role", "Role", choices=tuple((role, f"{role}: {text}") for role, text in words.ROLES.items()))
_PASSWORD: Final = Field("password", "New password", hint="Twelve characters or more.", required=True, secret=True)
CHANGES: Final[Mapping[str, Change]] = {
    "disable": Change(
        MANAGE, "Refuse {name} from now on?",
        "All sessions and tokens of this person stop working at once. What the person did stays in the audit.",
        "Refuse", "DELETE", "/people/{id}", "person-disabled", "danger",
    ),
    "enable": Change(
        MANAGE, "Let {name} in again?",
        "The person can sign in with the password and second factor as before. Old sessions stay ended.",
        "Let in", "POST", "/people/{id}/enable", "person-enabled",
    ),
    "role": Change(
        MANAGE, "Change the role of {name}?",
        "It holds at once, also in open sessions. Tokens of this person that may do more stop working.",
        "Change", "PUT", "/people/{id}/role", "role-changed", "primary", (_ROLE,),
    ),
    "password": Change(
        MANAGE, "Set a new password for {name}?",
        "All sessions of this person end. Hand the password over in person, and ask for it to be changed.",
        "Set it", "POST", "/people/{id}/password", "password-set", "danger", (_PASSWORD,),
    ),
    "second-factor": Change(
        MANAGE, "Remove the second factor of {name}?",
        "For somebody who lost authenticator and recovery codes: until a new one is set up, the password alone "
        "signs them in. Be sure who asks.",
        "Remove it", "DELETE", "/people/{id}/second-factor", "factor-removed", "danger",
    ),
    "sessions": Change(
        MANAGE, "Sign {name} out everywhere?",
        "Every browser and command of this person is asked to sign in again. Tokens go on working.",
        "Sign out", "DELETE", "/people/{id}/sessions", "session-ended", "danger",
    ),
}  # fmt: skip


async def listed(visit: Visit) -> Response:
    """Show who may sign in."""
    return visit.page("settings_people.html", people=await visit.card(visit.api.get("/people")), problem="", name="")


async def add(visit: Visit) -> Response:
    """Add somebody; the form survives a refusal."""
    fields = await visit.form()
    body = {name: fields.get(name, "") for name in ("name", "role", "password")}
    try:
        await visit.api.post("/people", body)
    except ApiError as error:
        if error.status in {401, 403}:
            raise
        found = await visit.card(visit.api.get("/people"))
        return visit.page(
            "settings_people.html", status=error.status, people=found, problem=error.detail, name=body["name"]
        )
    return visit.go("/settings/people", said="person-added")


async def ask_to_change(visit: Visit, name: str, change: str) -> Response:
    """Say what it would do, and ask."""
    return _ask(visit, name, change)


def _ask(visit: Visit, name: str, change: str, *, problem: str = "") -> Response:
    action = f"/settings/people/{quote(name, safe='')}/{change}"
    return ask_change(
        visit, of_table(CHANGES, change), name=name, action=action, back="/settings/people", problem=problem
    )


async def change(visit: Visit, name: str, change: str) -> Response:
    """Do it; what was mistyped is asked again, with the reason."""
    found, fields = of_table(CHANGES, change), await visit.form()
    body: dict[str, Any] = {field.name: fields.get(field.name, "") for field in found.fields}
    try:
        await send(visit, found, found.path.format(id=quote(name, safe="")), body)
    except ApiError as error:
        if not body or error.status in {401, 403, 404}:
            raise
        return _ask(visit, name, change, problem=error.detail)
    return visit.go("/settings/people", said=found.said)


VIEWS: Final = (
    get("/settings/people", listed),
    post("/settings/people", add),
    get("/settings/people/{name}/{change}", ask_to_change),
    post("/settings/people/{name}/{change}", change),
)
