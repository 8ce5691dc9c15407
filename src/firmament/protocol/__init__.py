"""What crosses the wire, as values; golden bytes and JSON Schemas ship beside the code (floor 2).

Public: the names in `__all__`; the wire itself is described in docs/protocol/.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from firmament.protocol.status import AttemptStatus, ConsentAnswer, Outcome
    from firmament.protocol.v1 import envelope, messages, paths

__all__ = (
    "AttemptStatus",
    "ConsentAnswer",
    "Outcome",
    "envelope",
    "messages",
    "paths",
)
_PLACES: Final = {
    "AttemptStatus": "firmament.protocol.status:AttemptStatus",
    "ConsentAnswer": "firmament.protocol.status:ConsentAnswer",
    "Outcome": "firmament.protocol.status:Outcome",
    "envelope": "firmament.protocol.v1.envelope",
    "messages": "firmament.protocol.v1.messages",
    "paths": "firmament.protocol.v1.paths",
}


def __getattr__(name: str) -> Any:
    """Import on first use: a device's start must not pay for what it does not need."""
    if name not in _PLACES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    place, _, attribute = _PLACES[name].partition(":")
    module = import_module(place)
    return getattr(module, attribute) if attribute else module
