"""Consent: who is asked before an update, and what owners said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from firmament.console import words
from firmament.console.api import ApiError
from firmament.console.views.base import ask, get, post

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.responses import Response

    from firmament.console.visit import Visit

LEVELS: Final = ("tenant", "group", "device")
CLASSES: Final = ("security", "feature")
NAMES: Final = ("level", "subject", "update_class")
"""What names one rule."""
FIELDS: Final = (*NAMES, "mode", "window")
EVENTS: Final = 20
ANSWERS: Final = ("asked", "agreed", "postponed", "declined", "no_answer")
"""Asked is the sum of the others, always."""


async def shown(visit: Visit) -> Response:
    """Show the rules, a form for one more, and what owners said."""
    return await _page(visit)


async def _page(
    visit: Visit, *, status: int = 200, problem: str = "", fields: Mapping[str, str] | None = None
) -> Response:
    api = visit.api
    release = visit.query("release")
    return visit.page(
        "settings_consent.html",
        status=status,
        policies=await visit.card(api.get("/consent/policy")),
        report=await visit.card(api.get("/consent/report", release=release or None)),
        releases=await visit.card(api.get("/releases")),
        said_by=await visit.card(api.get("/consent/events", newest=1, limit=EVENTS)),
        groups=await visit.card(api.get("/groups", counts=0)),
        release=release,
        levels=LEVELS,
        classes=CLASSES,
        modes=words.CONSENT,
        answers=ANSWERS,
        problem=problem,
        fields=fields or {},
    )


async def set_rule(visit: Visit) -> Response:
    """Set a rule, in place of the one that was there for the same devices and class."""
    fields = await visit.form()
    body: dict[str, Any] = {name: fields.get(name, "").strip() for name in FIELDS}
    if body["level"] == "tenant":
        body["subject"] = ""
    if body["mode"] != "window":
        del body["window"]
    try:
        await visit.api.put("/consent/policy", body)
    except ApiError as error:
        if error.status in {401, 403}:
            raise
        return await _page(visit, status=error.status, problem=f"{error.title}.", fields=fields)
    return visit.go("/settings/consent", said="rule-set")


async def ask_remove(visit: Visit) -> Response:
    """Say what holds once the rule is gone."""
    rule = {name: visit.query(name) for name in NAMES}
    whom = "every device" if rule["level"] == "tenant" else f"{rule['level']} {rule['subject']}"
    return ask(
        visit,
        title=f"Take away the rule for {rule['update_class']} updates of {whom}?",
        lines=(
            (
                "The next more general rule holds then: a device's falls back to its group's, that to the tenant's, "
                "and without any an update installs by itself. What an owner chose on the device holds in any case."
            ),
        ),
        hidden=tuple(rule.items()),
        refusal=visit.who.why_not("set-consent"),
        action="/settings/consent/remove",
        back="/settings/consent",
        label="Take it away",
        kind="danger",
        keep="Keep it",
    )


async def remove(visit: Visit) -> Response:
    """Take a rule away."""
    fields = await visit.form()
    await visit.api.delete("/consent/policy", **{name: fields.get(name, "") for name in NAMES})
    return visit.go("/settings/consent", said="rule-removed")


VIEWS: Final = (
    get("/settings/consent", shown),
    post("/settings/consent", set_rule),
    get("/settings/consent/remove", ask_remove),
    post("/settings/consent/remove", remove),
)
