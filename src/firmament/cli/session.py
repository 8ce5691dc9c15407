"""``firmament whoami`` and ``status``: who one is to the server, and what needs one now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from firmament.cli.common import output
from firmament.cli.rollout_view import number
from firmament.cli.selection import with_server
from firmament.core.offer import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from firmament.release.remote import OperatorApi

WAITING_STATES = ("halted", "awaiting-approval")
MAX_SHOWN = 20
SOON = timedelta(days=60)
"""As the console's overview: time enough for a ceremony."""


@click.command()
@with_server
def whoami(server: Callable[[], OperatorApi]) -> None:
    """Say who the token speaks for, and what it may do."""
    with server() as client:
        found = client.call("GET", "/api/v1/me")
    product = f", for {found['product']} only" if found.get("product") else ""
    lines = [f"{found['name']} ({found['role']}{product})", f"may: {', '.join(sorted(found['actions'])) or 'nothing'}"]
    output().document("me", found, lines=lines)


@click.command()
@with_server
def status(server: Callable[[], OperatorApi]) -> None:
    """Say what needs you: halted rollouts, approvals, what must be signed again, notifications nobody acknowledged."""
    from firmament.core.clock import SystemClock

    with server() as client:
        items = list(_items(client))
        items += expiring(client.call("GET", "/api/v1/trust")["roles"], SystemClock().now())
    out = output()
    lines = [f"{item['kind']:10} {item['subject']}  {item['sentence']}" for item in items] or ["Nothing needs you."]
    out.document("needs", {"items": items}, lines=lines)
    if items:
        out.next_command(items[0]["next"])


def expiring(roles: list[dict[str, Any]], now: datetime) -> list[dict[str, Any]]:
    """Return an item for each role that a person must sign again within `SOON`, the soonest first. Pure."""
    soon = [
        role
        for role in roles
        if role["expires_at"] is not None and not role["is_online"] and role["expires_at"] < (now + SOON).timestamp()
    ]
    found = []
    for role in sorted(soon, key=lambda role: role["expires_at"]):
        day = datetime.fromtimestamp(role["expires_at"], UTC).date().isoformat()
        when = f"expires on {day}" if role["expires_at"] > now.timestamp() else f"has expired on {day}"
        name = f"{role['repository']} {role['role']}"
        sentence = f"The role {name} {when}. If nobody signs it again, devices refuse what it names."
        item = {"kind": "expiry", "subject": name, "sentence": printable(sentence)}
        found.append(item | {"next": f"firmament key expiry --within {SOON.days}d"})
    return found


def _items(client: OperatorApi) -> Iterator[dict[str, Any]]:
    for state in WAITING_STATES:
        for rollout in client.call("GET", f"/api/v1/rollouts?state={state}&limit={MAX_SHOWN}")["rollouts"]:
            name = rollout["rollout_id"]
            halt = rollout.get("halt") or {}
            if state == "halted":
                sentence = halt.get("sentence") or rollout["state_reason"].get("message") or "It halted."
                command = f"firmament rollout show {name}"
            else:
                sentence = f"{rollout['release']} for {number(rollout['total'])} devices waits for a second person."
                command = f"firmament rollout approve {name}"
            yield {"kind": state, "subject": name, "sentence": printable(sentence), "next": command}
    for told in client.call("GET", "/api/v1/notifications")["notifications"][:MAX_SHOWN]:
        # "Is running" is for information; a warning or worse wants somebody.
        is_open = told.get("acknowledged_at") is None and told.get("closed_at") is None
        if is_open and told["severity"] != "info":
            yield {
                "kind": "told",
                "subject": str(told["id"]),
                "sentence": printable(str(told["title"])),
                "next": f"firmament notify ack {told['id']}",
            }
