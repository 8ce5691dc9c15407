"""Who may say what: keys, roles, metadata, floors and the verification walk (floor 3).

Public: the names in `__all__`; everything else may change without notice.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from firmament.trust.client import DirectorClient, Source, TrustedClient
    from firmament.trust.device_keys import IdentityKey
    from firmament.trust.floors import Floors
    from firmament.trust.walk import Device, Release, verify_director, verify_image, verify_release

__all__ = (
    "Device",
    "DirectorClient",
    "Floors",
    "IdentityKey",
    "Release",
    "Source",
    "TrustedClient",
    "verify_director",
    "verify_image",
    "verify_release",
)
_PLACES: Final = {
    "Device": "firmament.trust.walk:Device",
    "DirectorClient": "firmament.trust.client:DirectorClient",
    "Floors": "firmament.trust.floors:Floors",
    "IdentityKey": "firmament.trust.device_keys:IdentityKey",
    "Release": "firmament.trust.walk:Release",
    "Source": "firmament.trust.client:Source",
    "TrustedClient": "firmament.trust.client:TrustedClient",
    "verify_director": "firmament.trust.walk:verify_director",
    "verify_image": "firmament.trust.walk:verify_image",
    "verify_release": "firmament.trust.walk:verify_release",
}


def __getattr__(name: str) -> Any:
    """Import on first use: a device's start must not pay for what it does not need."""
    if name not in _PLACES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    place, _, attribute = _PLACES[name].partition(":")
    module = import_module(place)
    return getattr(module, attribute) if attribute else module
