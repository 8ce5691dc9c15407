"""The port through which the engine chooses what starts next, and the boot loader's half of it.

The whole protocol between agent and boot loader is two facts in a durable record: which slot is
*primary*, and whether the other one is *whole* (a fallback if the primary cannot even be
loaded), *armed* (to be tried once) or *spent* (never to be started). In order::

    agent         retire(other)    before its slot is written: no loader may fall back into half an image
    agent         arm(other)       verified: try `other` once at the next start
    agent         (journal: trial)
    agent         restart()
    boot loader   start()          spend the try durably, then jump: `Loader.start`
    agent         booted()         other: examine it;  previous: the trial failed
    agent         confirm(other)   healthy: `other` is primary from now on
             or   revert(previous) unhealthy: `previous` is, nothing is armed
    agent         (journal), and after revert: restart()

Rules that every implementation keeps (sim/conformance.py checks them):

* each call is one atomic, durable change: after a power cut it happened or it did not, and in
  both cases something starts;
* every call is idempotent; one that changes nothing writes nothing;
* the act comes before the journal entry (house rule 3): armed but not journalled is harmless,
  because arming twice is arming once; confirmed but not journalled is, because confirming twice
  is confirming once;
* the loader spends the try before it jumps: a try spent without starting only costs a start;
* with nothing armed the primary starts, for ever; the loader never makes a slot primary;
* `confirm` refuses a label that is not booted: blessing what does not run is how a bad image
  gets kept (testbed: stale LoaderBootCountPath).

At each start of the agent: `start()`, then `booted()` and `armed()` against the journal::

    journal trial(other), booted other                 the trial runs: examine
    journal trial(other), booted previous, armed other  the cut came before the restart: restart()
    journal trial(other), booted previous, armed None   the trial failed: revert(previous) to tidy up
    journal idle, nothing armed                         confirm(booted()): boot loaders that count every start need it
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from firmament.agent.slots.port import Label


class Restart(StrEnum):
    """What `BootControl.restart` has done when it returns."""

    DONE = "done"
    """The slot was swapped and its program started; this process goes on (supervisor)."""
    UNDERWAY = "underway"
    """The machine is going down; the caller journals nothing more and ends."""


class BootControl(Protocol):
    """The agent's half. Every method raises BootControlError, or a storage error of `durable`."""

    def start(self) -> None:
        """Begin with the daemon: a supervisor starts the program, others do nothing."""
        ...

    def stop(self) -> None:
        """End with the daemon: a supervisor stops the program, others do nothing."""
        ...

    def booted(self) -> Label:
        """Return the slot that runs now, as a fact of the system, not from the record."""
        ...

    def boot_id(self) -> str:
        """Return a name for this start of the image; a new one after each restart."""
        ...

    def primary(self) -> Label:
        """Return the slot that starts when nothing is armed."""
        ...

    def armed(self) -> Label | None:
        """Return the slot whose try is set and not yet spent."""
        ...

    def arm(self, label: Label) -> None:
        """Let `label` be tried once at the next start; it must be neither booted nor primary."""
        ...

    def retire(self, label: Label) -> None:
        """Say that `label`, which must not be primary, holds nothing to start; disarm it."""
        ...

    def confirm(self, label: Label) -> None:
        """Make `label`, which must be booted, primary; if it was not, the other becomes the fallback."""
        ...

    def revert(self, label: Label) -> None:
        """Make `label` primary and retire the other, whichever slot is booted.

        The engine must know from its journal that `label` holds a whole image.
        """
        ...

    def restart(self) -> Restart:
        """Start again through the boot loader's decision."""
        ...

    def trouble(self) -> str | None:
        """Return why the running image is known to be unhealthy (it crashed), None if it is not."""
        ...

    def tend(self) -> float:
        """Look after what runs (restart a crashed program); return seconds until the next look.

        May be called from another thread than the engine's. `math.inf`: never again.
        """
        ...


class Loader(Protocol):
    """The boot loader's half over the same storage, as its script does it; simulators run it."""

    def start(self) -> Label:
        """Decide, spend a try durably as the boot loader would, and return the slot to start."""
        ...
