"""Kinds of slots, boot controls and health checks by name: ours in tables, others by entry point.

A plug-in is a distribution with an entry point in one of the groups below; its object is called
like the rows of the table in question. Kinds of ours cannot be replaced by a plug-in.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final, TypeVar

from firmament.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from firmament.core.fields import Fields

SLOTS: Final = "firmament.slots"
BOOT_CONTROLS: Final = "firmament.boot_controls"
HEALTH_CHECKS: Final = "firmament.health_checks"

T = TypeVar("T")


def reader_of(kind: str, table: Mapping[str, Callable[..., T]], *, group: str) -> Callable[..., T]:
    """Return the reader of settings for `kind`; raises SettingError naming the kinds there are."""
    if kind in table:
        return table[kind]
    plugins = {point.name: point for point in entry_points(group=group)}
    if kind not in plugins:
        raise SettingError("This kind is not known", setting=f"kind = {kind!r}", known=" ".join([*table, *plugins]))
    try:
        found: Callable[..., T] = plugins[kind].load()
    except Exception as error:  # a plug-in may fail to import in any way; whose fault it is must be said
        raise SettingError("A plug-in cannot be loaded", kind=kind, group=group, reason=error) from error
    return found


def read_kind(fields: Fields, table: Mapping[str, Callable[..., T]], *, group: str, **given: Any) -> T:
    """Read the table ``fields`` by its ``kind``; raises SettingError or MalformedError."""
    return reader_of(fields.text("kind", max_length=32), table, group=group)(fields, **given)
