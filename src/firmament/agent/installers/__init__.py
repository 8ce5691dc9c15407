"""Which kind of slots can take what a manifest's `installer` names."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final

from firmament.errors import NoInstallerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from firmament.core.manifest import Manifest

GROUP: Final = "firmament.slots"
TAKEN_BY: Final[Mapping[str, frozenset[str]]] = {
    "bundle": frozenset({"bundle"}),
    "image": frozenset({"image"}),
}
"""Installer type to kinds of slots. A plug-in's kind of slots takes the installer of its own name."""


def require_installer(manifest: Manifest, slots_kind: str) -> None:
    """Raise NoInstallerError unless slots of this kind can take what the manifest describes."""
    kinds = TAKEN_BY.get(manifest.installer)
    if kinds is None:
        kinds = frozenset({point.name for point in entry_points(group=GROUP)} & {manifest.installer})
    if slots_kind not in kinds:
        raise NoInstallerError(
            "This device's slots cannot take the release", installer=manifest.installer, slots=slots_kind
        )
