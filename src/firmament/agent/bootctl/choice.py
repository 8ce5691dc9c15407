"""The two facts that agent and boot loader share, and the rules for changing them.

Every boot control keeps the same six states; they differ only in where and how the states are
stored. So the rules stand here once: `Choice` is the value, `decide` what a boot loader does with
it, `ChoiceStore` the storage, `StoredBootControl` the agent's half on top of it and
`StoredLoader` the loader's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from firmament.agent.bootctl.port import Restart
from firmament.agent.slots.port import Label
from firmament.errors import BootControlError
from firmament.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmament.agent.bootctl.machine import Machine

log = logger("agent.bootctl")


class Other(StrEnum):
    """What the slot that is not primary is good for."""

    WHOLE = "whole"
    """It holds an image that ran before: a fallback if the primary cannot be loaded."""
    ARMED = "armed"
    """It is tried once at the next start."""
    SPENT = "spent"
    """Its try is spent, or it is being written: it is never started."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which slot starts next."""

    primary: Label = Label.A
    other: Other = Other.SPENT
    """A new device has one image; nothing is known of the other slot."""

    @property
    def armed(self) -> Label | None:
        """The slot whose try is set and not spent."""
        return self.primary.other if self.other is Other.ARMED else None

    def arm(self, label: Label) -> Choice:
        """Return the choice that tries `label` once."""
        self._require_other(label, "armed")
        return Choice(self.primary, Other.ARMED)

    def retire(self, label: Label) -> Choice:
        """Return the choice that never starts `label`."""
        self._require_other(label, "retired")
        return Choice(self.primary, Other.SPENT)

    def confirm(self, label: Label) -> Choice:
        """Return the choice that keeps `label`; the slot it replaces becomes the fallback."""
        if label is not self.primary:
            return Choice(label, Other.WHOLE)
        return Choice(label, Other.SPENT) if self.other is Other.ARMED else self

    def revert(self, label: Label) -> Choice:
        """Return the choice that goes back to `label` and does not trust the slot it leaves."""
        return Choice(label, Other.SPENT)

    def _require_other(self, label: Label, verb: str) -> None:
        if label is self.primary:
            raise BootControlError(f"The primary slot cannot be {verb}", primary=self.primary)


def decide(choice: Choice) -> tuple[Label, Choice]:
    """Return the slot a boot loader starts, and the choice it must store before it does."""
    if choice.other is Other.ARMED:
        return choice.primary.other, Choice(choice.primary, Other.SPENT)
    return choice.primary, choice


class ChoiceStore(Protocol):
    """Durable storage for a choice. `store` is atomic: after a power cut the old or the new one."""

    def load(self) -> Choice:
        """Read it; raises BootControlError when there is something that cannot be used."""
        ...

    def store(self, choice: Choice) -> None:
        """Replace it durably."""
        ...


class StoredBootControl:
    """`BootControl` over a store, on a machine whose boot loader reads the same store."""

    def __init__(self, store: ChoiceStore, machine: Machine) -> None:
        self._store = store
        self._machine = machine

    def start(self) -> None:  # noqa: D102 - see BootControl, here and below
        return

    def stop(self) -> None:  # noqa: D102
        return

    def booted(self) -> Label:  # noqa: D102
        return self._machine.booted()

    def boot_id(self) -> str:  # noqa: D102
        return self._machine.boot_id()

    def primary(self) -> Label:  # noqa: D102
        return self._store.load().primary

    def armed(self) -> Label | None:  # noqa: D102
        return self._store.load().armed

    def arm(self, label: Label) -> None:  # noqa: D102
        if label is self.booted():
            raise BootControlError("The booted slot cannot be armed", booted=label)
        self._change(lambda choice: choice.arm(label))

    def retire(self, label: Label) -> None:  # noqa: D102
        self._change(lambda choice: choice.retire(label))

    def confirm(self, label: Label) -> None:  # noqa: D102
        booted = self.booted()
        if label is not booted:
            raise BootControlError("Only the slot that is booted can be confirmed", booted=booted, asked=label)
        self._change(lambda choice: choice.confirm(label))

    def revert(self, label: Label) -> None:  # noqa: D102
        self._change(lambda choice: choice.revert(label))

    def restart(self) -> Restart:  # noqa: D102
        self._machine.restart()
        return Restart.UNDERWAY

    def trouble(self) -> str | None:  # noqa: D102
        return None

    def tend(self) -> float:  # noqa: D102
        return math.inf

    def _change(self, rule: Callable[[Choice], Choice]) -> None:
        old = self._store.load()
        new = rule(old)
        if new != old:
            self._store.store(new)
            log.info("bootctl.changed", primary=new.primary, other=new.other)


class StoredLoader:
    """`Loader` over a store, for boot loaders that follow `decide` to the letter."""

    def __init__(self, store: ChoiceStore) -> None:
        self._store = store

    def start(self) -> Label:  # noqa: D102 - see Loader
        choice = self._store.load()
        label, after = decide(choice)
        if after != choice:
            self._store.store(after)
        return label
