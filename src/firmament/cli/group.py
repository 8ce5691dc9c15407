"""``firmament group``: names for devices, by a query or by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from firmament.cli.common import output
from firmament.cli.operator_client import element
from firmament.cli.selection import count_text, with_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmament.release.remote import OperatorApi

BASE = "/api/v1/groups"
SAMPLE = 5


@click.group("group")
def group() -> None:
    """Name devices by a query or by hand, for rollouts and lists."""


@group.command("list")
@with_server
def list_(server: Callable[[], OperatorApi]) -> None:
    """List groups with their size."""
    with server() as client:
        found = client.call("GET", BASE)
    out = output()
    rows = [
        (item["name"], count_text(item), item["query"] or "by hand", item["created_by"]) for item in found["groups"]
    ]
    out.document("groups", found, lines=out.table(rows, header=("GROUP", "DEVICES", "QUERY", "BY")))


@group.command()
@click.argument("name")
@with_server
def show(server: Callable[[], OperatorApi], name: str) -> None:
    """Show a group and some of its devices."""
    with server() as client:
        found = _one(client, name)
        sample = client.call("GET", f"/api/v1/devices?limit={SAMPLE}&query={element(f'group={name}')}")["devices"]
    out = output()
    lines = [f"{name}: {count_text(found)} devices, {found['query'] or 'by hand'}"]
    lines += [f"  {device['device_id']}  {device['product']} {device['version'] or '-'}" for device in sample]
    out.document("group", {**found, "sample": sample}, lines=lines)


@group.command()
@click.argument("name")
@click.option("-q", "--query", default="", help="Devices that match belong to it; without it, by hand.")
@with_server
def create(server: Callable[[], OperatorApi], name: str, query: str) -> None:
    """Make a group, by a query or to be filled by hand."""
    _save(server, name, query)


@group.command()
@click.argument("name")
@click.option("-q", "--query", required=True, help="The new query.")
@with_server
def edit(server: Callable[[], OperatorApi], name: str, query: str) -> None:
    """Change the query of a group."""
    _save(server, name, query)


@group.command()
@click.option("-q", "--query", required=True, help="E.g. 'hardware=C and site=Porto-03'.")
@with_server
def preview(server: Callable[[], OperatorApi], query: str) -> None:
    """Count what a query selects, and show some of it."""
    with server() as client:
        counted = client.call("GET", f"/api/v1/devices/count?query={element(query)}")
        sample = client.call("GET", f"/api/v1/devices?limit={SAMPLE}&query={element(query)}")["devices"]
    out = output()
    lines = [f"{count_text(counted)} devices match."]
    lines += [f"  {device['device_id']}  {device['product']} {device['version'] or '-'}" for device in sample]
    out.document("device-count", {**counted, "sample": sample}, lines=lines)
    out.next_command(f"firmament group create NAME -q '{query}'")


@group.command()
@click.argument("name")
@click.argument("devices", nargs=-1, required=True)
@with_server
def add(server: Callable[[], OperatorApi], name: str, devices: tuple[str, ...]) -> None:
    """Put devices into a group by hand."""
    _change(server, name, {"add": list(devices)})


@group.command()
@click.argument("name")
@click.argument("devices", nargs=-1, required=True)
@with_server
def remove(server: Callable[[], OperatorApi], name: str, devices: tuple[str, ...]) -> None:
    """Take devices out of a group."""
    _change(server, name, {"remove": list(devices)})


@group.command()
@click.argument("name")
@with_server
def delete(server: Callable[[], OperatorApi], name: str) -> None:
    """Remove a group; its devices stay."""
    with server() as client:
        client.call("DELETE", f"{BASE}/{element(name)}")
    output().document("group-removed", {"name": name}, lines=[f"Removed group {name}."])


def _save(server: Callable[[], OperatorApi], name: str, query: str) -> None:
    with server() as client:
        client.call("PUT", f"{BASE}/{element(name)}", {"query": query} if query else {})
        found = _one(client, name)
    out = output()
    out.document("group", {**found, "sample": []}, lines=[f"Group {name}: {count_text(found)} devices."])
    out.next_command(f"firmament rollout plan PRODUCT/VERSION -q 'group={name}'")


def _change(server: Callable[[], OperatorApi], name: str, body: dict[str, Any]) -> None:
    with server() as client:
        answer = client.call("POST", f"{BASE}/{element(name)}/members", body)
    output().document("changed", answer, lines=[f"{answer['changed']} devices changed."])


def _one(client: OperatorApi, name: str) -> dict[str, Any]:
    from firmament.errors import NotFoundError

    for item in client.call("GET", BASE)["groups"]:
        if item["name"] == name:
            found: dict[str, Any] = item
            return found
    raise NotFoundError("There is no such group", group=name)
