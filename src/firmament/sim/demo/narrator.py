"""What the demonstration tells while it plays; the command line decides how that looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device, as its own log tells it at this moment."""

    name: str
    version: str = "-"
    """What it runs."""
    state: str = "off"
    """A word of the install machine, or ``off``."""
    target: str = ""
    """The version it is on the way to."""
    done_bytes: int = 0
    total_bytes: int = 0
    """0 while nothing is fetched."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """How one story ended on one device, as both the device and the server tell it."""

    device: str
    story: str
    """What was played, e.g. ``altered on the server's disk``."""
    before: str
    """The version that ran before."""
    offered: str
    """The version that was to come."""
    outcome: str
    """confirmed, reverted, refused."""
    code: str
    """The error code, empty if all went well."""
    runs: str
    """The version that runs now."""
    why: str


class Narrator(Protocol):
    """Receives the story in order; may be called from several threads."""

    def chapter(self, title: str, why: str) -> None:
        """Begin a part of the story; `why` is one sentence."""
        ...

    def command(self, line: str) -> None:
        """Show a command, as a person would type it."""
        ...

    def say(self, text: str) -> None:
        """Show what happened meanwhile."""
        ...

    def passed(self, text: str) -> None:
        """Show something that was checked and is as it must be."""
        ...

    def failed(self, text: str) -> None:
        """Show something that was checked and is not."""
        ...

    def device(self, view: DeviceView) -> None:
        """Show where a device is; called often."""
        ...
