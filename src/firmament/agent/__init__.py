"""The program on the device: poll, verify, install, try, confirm or revert, report (floor 4).

Public: the names in `__all__`; everything else may change without notice. A device that is more
than `firmament-agent` builds its own loop from them:

    from firmament.agent.compose import compose

    world = compose(read_settings(disk, path), disk=disk, clock=SystemClock())
    world.events.listen(print)
    while True:
        clock.sleep(world.agent.tick())
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from firmament.agent.agent import Agent
    from firmament.agent.compose import World
    from firmament.agent.events import Asked, Events, HealthChecked, Progress, StateChanged, Trouble
    from firmament.agent.machine import State
    from firmament.agent.settings import AgentSettings, read_settings
    from firmament.agent.status import Status

__all__ = (
    "Agent",
    "AgentSettings",
    "Asked",
    "Events",
    "HealthChecked",
    "Progress",
    "State",
    "StateChanged",
    "Status",
    "Trouble",
    "World",
    "read_settings",
)
_PLACES: Final = {
    "Agent": "firmament.agent.agent:Agent",
    "AgentSettings": "firmament.agent.settings:AgentSettings",
    "Asked": "firmament.agent.events:Asked",
    "Events": "firmament.agent.events:Events",
    "HealthChecked": "firmament.agent.events:HealthChecked",
    "Progress": "firmament.agent.events:Progress",
    "State": "firmament.agent.machine:State",
    "StateChanged": "firmament.agent.events:StateChanged",
    "Status": "firmament.agent.status:Status",
    "Trouble": "firmament.agent.events:Trouble",
    "World": "firmament.agent.compose:World",
    "read_settings": "firmament.agent.settings:read_settings",
}


def __getattr__(name: str) -> Any:
    """Import on first use: a device's start must not pay for what it does not need."""
    if name not in _PLACES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    place, _, attribute = _PLACES[name].partition(":")
    module = import_module(place)
    return getattr(module, attribute) if attribute else module
