"""Settings: tokens, notifications, about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from firmament.console import formats, words
from firmament.console.api import ApiError
from firmament.console.views.base import Change, Field, ask, ask_change, get, of_table, post, send

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.responses import Response

    from firmament.console.visit import Visit

_MANAGE: Final = "manage-notifications"
_HOURS: Final = Field(
    "hours", "For how long", choices=(("2", "2 hours"), ("8", "8 hours"), ("24", "a day"), ("168", "a week"))
)
OUTLET_CHANGES: Final[Mapping[str, Change]] = {
    "remove": Change(
        _MANAGE, "Tell {name} no more?",
        "A rollout that stops by itself is not told there any more, and its secret is forgotten. "
        "If nobody else is told, the stop waits until somebody looks.",
        "Remove", "DELETE", "/notifications/outlets/{id}", "outlet-removed", "danger",
    ),
    "mute": Change(
        _MANAGE, "Mute {name} for a while?",
        "Nothing is sent there until then, not even that a rollout stopped by itself; what is missed is not sent "
        "later. Others are told as before.",
        "Mute", "POST", "/notifications/outlets/{id}/mute", "outlet-muted", "danger", (_HOURS,),
    ),
    "unmute": Change(
        _MANAGE, "Tell {name} again from now on?",
        "The next change of a rollout's state is told there again.",
        "Unmute", "POST", "/notifications/outlets/{id}/mute", "outlet-enabled",
    ),
    "enable": Change(
        _MANAGE, "Switch {name} on again?",
        "It was switched off because deliveries failed for long. The next news is tried there again; "
        "send a test first if you changed something.",
        "Switch on", "POST", "/notifications/outlets/{id}/enable", "outlet-enabled",
    ),
}  # fmt: skip
TOKEN_LIVES: Final = (("1", "a day"), ("30", "30 days"), ("90", "90 days"), ("365", "a year"))


async def tokens(visit: Visit) -> Response:
    """Show the form for a token, and the tokens there are."""
    return visit.page("settings_tokens.html", **await _tokens(visit), made=None)


async def make_token(visit: Visit) -> Response:
    """Make a token and show it once."""
    fields = await visit.form()
    days = fields.get("days", "1")
    body: dict[str, Any] = {
        "role": fields.get("role", "viewer"),
        "label": fields.get("label", ""),
        "expires_in_s": (int(days) if days in dict(TOKEN_LIVES) else 1) * formats.DAY_S,
    }
    if fields.get("product"):
        body["product"] = fields["product"]
    made = await visit.api.post("/tokens", body)
    return visit.page("settings_tokens.html", **await _tokens(visit), made=made)


async def ask_revoke(visit: Visit, token_id: str) -> Response:
    """Ask before a token stops working."""
    return ask(
        visit,
        title=f"Revoke token {token_id}?",
        lines=(
            (
                "The program that uses it is refused with its next request, and no token comes back: give it a new "
                "one first. Devices are not affected."
            ),
        ),
        action=f"/settings/tokens/{quote(token_id, safe='')}/revoke",
        back="/settings/tokens",
        label="Revoke",
        kind="danger",
        keep="Keep",
    )


async def revoke(visit: Visit, token_id: str) -> Response:
    """Make a token useless."""
    await visit.api.delete(f"/tokens/{quote(token_id, safe='')}")
    return visit.go("/settings/tokens", said="token-revoked")


async def _tokens(visit: Visit) -> dict[str, Any]:
    return {
        "products": await visit.card(visit.api.get("/products")),
        "tokens": await visit.card(visit.api.get("/tokens")),
        "lives": TOKEN_LIVES,
        "roles": [role for role in words.ROLES if role in {visit.who.role, "viewer"} or visit.who.role == "admin"],
    }


async def notifications(visit: Visit) -> Response:
    """Show who is told what, with a preview."""
    return await _outlets(visit)


async def add_outlet(visit: Visit) -> Response:
    """Add whom to tell; a secret that signs its deliveries is shown once."""
    fields = await visit.form()
    body: dict[str, Any] = {name: fields.get(name, "").strip() for name in ("name", "kind", "target")}
    if fields.get("is_escalation") == "1":
        body["is_escalation"] = True
    made, problem, status = None, "", 200
    try:
        made = await visit.api.post("/notifications/outlets", body)
    except ApiError as error:
        if error.status in {401, 403}:
            raise
        problem, status = error.detail, error.status
    return await _outlets(visit, status=status, made=made, problem=problem)


async def test_outlet(visit: Visit, name: str) -> Response:
    """Deliver a test message now and show the answer."""
    tested = await visit.api.post(f"/notifications/outlets/{quote(name, safe='')}/test")
    return await _outlets(visit, tested={"name": name, **tested})


async def ask_outlet_change(visit: Visit, name: str, change: str) -> Response:
    """Say what it would do, and ask."""
    action = f"/settings/notifications/{quote(name, safe='')}/{change}"
    return ask_change(visit, of_table(OUTLET_CHANGES, change), name=name, action=action, back="/settings/notifications")


async def outlet_change(visit: Visit, name: str, change: str) -> Response:
    """Do it."""
    found, fields = of_table(OUTLET_CHANGES, change), await visit.form()
    hours = fields.get("hours", "")
    body = {"for_s": int(hours) * formats.HOUR_S if hours.isdigit() else 0} if "mute" in change else {}
    await send(visit, found, found.path.format(id=quote(name, safe="")), body)
    return visit.go("/settings/notifications", said=found.said)


async def _outlets(visit: Visit, *, status: int = 200, **values: Any) -> Response:
    base: dict[str, Any] = {
        "outlets": await visit.card(visit.api.get("/notifications/outlets")),
        "sent": await visit.card(visit.api.get("/notifications")),
        "preview": await visit.card(visit.api.get("/notifications/preview")),
        "tested": None,
        "made": None,
        "problem": "",
    }
    return visit.page("settings_notifications.html", status=status, **{**base, **values})


async def about(visit: Visit) -> Response:
    """Show what runs here."""
    return visit.page("settings_about.html", state=await visit.card(visit.api.get("/image/state")))


VIEWS: Final = (
    get("/settings/tokens", tokens),
    post("/settings/tokens", make_token),
    get("/settings/tokens/{token_id}/revoke", ask_revoke),
    post("/settings/tokens/{token_id}/revoke", revoke),
    get("/settings/notifications", notifications),
    post("/settings/notifications", add_outlet),
    post("/settings/notifications/{name}/test", test_outlet),
    get("/settings/notifications/{name}/{change}", ask_outlet_change),
    post("/settings/notifications/{name}/{change}", outlet_change),
    get("/settings/about", about),
)
