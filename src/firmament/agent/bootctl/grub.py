"""Boot control through GRUB's environment block, with two variables of one character each.

    firmament_primary   ``a`` or ``b``: the slot that starts when nothing is armed
    firmament_left      tries of the other slot: ``1`` armed, ``0`` spent, ``9`` whole (a fallback)

GRUB's script (docs/integrate/boot/grub/firmament.cfg) does what `decide_block` does: if one try
is left it stores ``0`` with save_env *first*, and only if that worked starts the other slot. A
GRUB that cannot write (LVM, RAID, btrfs) therefore never starts a trial, and the attempt ends as
reverted.

A change of both variables is two changes of one byte (grub_env.py), in an order in which the
state between them starts a whole image and arms nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmament.agent.bootctl import grub_env
from firmament.agent.bootctl.choice import Choice, Other
from firmament.agent.slots.port import Label

if TYPE_CHECKING:
    from firmament.agent.bootctl.grub_env import GrubEnvironment

PRIMARY: Final = "firmament_primary"
LEFT: Final = "firmament_left"
LEFT_OF: Final = {Other.WHOLE: b"9", Other.ARMED: b"1", Other.SPENT: b"0"}
DEFAULTS: Final = {PRIMARY: b"a", LEFT: LEFT_OF[Other.WHOLE]}
"""What the script does without the variables."""


class GrubStore:
    """`ChoiceStore` in GRUB's environment block; other variables are left as they are."""

    def __init__(self, environment: GrubEnvironment) -> None:
        self._environment = environment

    def load(self) -> Choice:  # noqa: D102 - see ChoiceStore
        block = self._environment.read()
        return choice_of(grub_env.empty() if block is None else block)

    def store(self, choice: Choice) -> None:  # noqa: D102
        self._environment.prepare(DEFAULTS)
        if choice.primary is not self.load().primary:
            # In between nothing may be armed: what was armed is the primary now, and the slot it
            # replaces must not be tried in its place.
            self._environment.set_character(LEFT, LEFT_OF[Other.SPENT])
            self._environment.set_character(PRIMARY, choice.primary.encode())
        self._environment.set_character(LEFT, LEFT_OF[choice.other])


class GrubLoader:
    """`Loader` that does what firmament.cfg does: save_env writes the block's sectors in place."""

    def __init__(self, environment: GrubEnvironment) -> None:
        self._environment = environment

    def start(self) -> Label:  # noqa: D102 - see Loader
        block = self._environment.read()
        if block is None:
            return Label.A
        label, after = decide_block(block)
        if after != block:
            self._environment.set_character(LEFT, LEFT_OF[Other.SPENT])
        return label


def choice_of(block: bytes) -> Choice:
    """Return the choice that a block means; missing and unknown values are read as the script does."""
    variables = grub_env.decode(block)
    primary = Label.B if variables.get(PRIMARY) == b"b" else Label.A
    left = variables.get(LEFT, LEFT_OF[Other.WHOLE])
    return Choice(primary, next((other for other, text in LEFT_OF.items() if text == left), Other.SPENT))


def decide_block(block: bytes) -> tuple[Label, bytes]:
    """Return what firmament.cfg starts with this block, and the block that save_env leaves."""
    choice = choice_of(block)
    if choice.armed is None:
        return choice.primary, block
    return choice.armed, grub_env.set_variable(block, LEFT, LEFT_OF[Other.SPENT])
