"""The author's bench: build, sign, publish, verify (floor 4). It never meets a server's or a device's code.

Public: the names in `__all__`; everything else may change without notice.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from firmament.release import build, publish, sign, verify
    from firmament.release.workspace import Workspace

__all__ = (
    "Workspace",
    "build",
    "publish",
    "sign",
    "verify",
)
_PLACES: Final = {
    "Workspace": "firmament.release.workspace:Workspace",
    "build": "firmament.release.build",
    "publish": "firmament.release.publish",
    "sign": "firmament.release.sign",
    "verify": "firmament.release.verify",
}


def __getattr__(name: str) -> Any:
    """Import on first use: a device's start must not pay for what it does not need."""
    if name not in _PLACES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    place, _, attribute = _PLACES[name].partition(":")
    module = import_module(place)
    return getattr(module, attribute) if attribute else module
