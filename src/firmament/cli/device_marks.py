"""`firmament device pin|unpin|mute|unmute`: marks with a reason on one device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from firmament.cli.common import output, output_options
from firmament.cli.operator_client import connect, element, server_options

if TYPE_CHECKING:
    from typing import Any

_PIN: Final = """Keep a device on what it runs: rollouts leave it out, and nothing can be offered to it by hand.

Only the revert of a rollout that brought it there still takes it back.
"""
_MUTE: Final = """Let a device's alarms wake nobody.

Outlets that take events, and the lists of what needs attention, leave them out.
It still counts for the limit of a rollout, gets updates as before, and everything stays in the record.
"""


def _setting(name: str, help_text: str, sentence: str) -> click.Command:
    @click.command(name, help=help_text)
    @click.argument("device_id")
    @click.option("--reason", required=True, help="Why; whoever asks later reads it.")
    @server_options
    @output_options
    def command(device_id: str, reason: str, **where: Any) -> None:
        _change("POST", name, device_id, sentence, where, {"reason": reason})

    return command


def _clearing(name: str, help_text: str, sentence: str) -> click.Command:
    @click.command(f"un{name}", help=help_text)
    @click.argument("device_id")
    @server_options
    @output_options
    def command(device_id: str, **where: Any) -> None:
        _change("DELETE", name, device_id, sentence, where, None)

    return command


def _change(
    method: str, name: str, device_id: str, sentence: str, where: dict[str, Any], body: dict[str, str] | None
) -> None:
    path = f"/api/v1/devices/{element(device_id)}"
    with connect(where["server_url"], where["ca"], where["workspace"], where["token_file"]) as client:
        client.call(method, f"{path}/{name}", body)
        device = client.call("GET", path)
    marks = {mark: device[mark] for mark in ("pinned", "muted")}
    output().document("device-marks", {"device_id": device_id, **marks}, lines=[f"{device_id} {sentence}"])


COMMANDS: Final[tuple[click.Command, ...]] = (
    _setting("pin", _PIN, "stays on what it runs."),
    _clearing("pin", "Let a pinned device move on; rollouts that match it from now on include it.", "may move on."),
    _setting("mute", _MUTE, "wakes nobody any more."),
    _clearing("mute", "Let a muted device's alarms be told again.", "is heard again."),
)
