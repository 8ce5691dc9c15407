"""Boot control through U-Boot's environment, with the variables RAUC's boot scripts use.

    BOOT_ORDER     slots in the order they are tried, e.g. ``B A``
    BOOT_A_LEFT    how often A may still be tried: 3 = kept, not counted; 1 = armed; 0 = never
    BOOT_B_LEFT    the same for B

    armed b      BOOT_ORDER="B A"  BOOT_B_LEFT=1  BOOT_A_LEFT=3
    its trial    BOOT_ORDER="B A"  BOOT_B_LEFT=0  BOOT_A_LEFT=3     (written by U-Boot)
    confirmed b  BOOT_ORDER="B A"  BOOT_B_LEFT=3  BOOT_A_LEFT=3
    reverted a   BOOT_ORDER="A B"  BOOT_A_LEFT=3  BOOT_B_LEFT=0

The script (docs/integrate/boot/u-boot/boot.cmd) does what `decide_variables` does, and a test
compares the two. RAUC's own script works as well: it also counts the starts of a kept slot, and
the agent's `confirm` at each start sets that count back. All of a change is one write of the
environment, so it is as atomic as the environment is (uboot_env.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmament.agent.bootctl.choice import Choice, Other
from firmament.agent.slots.port import Label

if TYPE_CHECKING:
    from collections.abc import Mapping

    from firmament.agent.bootctl.uboot_env import UBootEnvironment

ORDER: Final = "BOOT_ORDER"
LEFT: Final = {Label.A: "BOOT_A_LEFT", Label.B: "BOOT_B_LEFT"}
KEPT: Final = 3
"""RAUC's default number of tries; here the mark of a slot that needs none."""


class UBootStore:
    """`ChoiceStore` in U-Boot's environment; other variables are left as they are."""

    def __init__(self, environment: UBootEnvironment) -> None:
        self._environment = environment

    def load(self) -> Choice:  # noqa: D102 - see ChoiceStore
        return choice_of(self._environment.read())

    def store(self, choice: Choice) -> None:  # noqa: D102
        self._environment.write({**self._environment.read(), **variables_of(choice)})


class UBootLoader:
    """`Loader` that does what boot.cmd does: count down, saveenv, start."""

    def __init__(self, environment: UBootEnvironment) -> None:
        self._environment = environment

    def start(self) -> Label:  # noqa: D102 - see Loader
        before = self._environment.read()
        label, after = decide_variables(before)
        if after != before:
            self._environment.write(after)
        return label


def choice_of(variables: Mapping[str, bytes]) -> Choice:
    """Return the choice that these variables mean, missing ones as the script sets them."""
    order, left = _order(variables), {label: _left(variables, label) for label in Label}
    if 0 < left[order[0]] < KEPT:
        # Armed; or RAUC's script has counted a start of a kept slot that was not confirmed since.
        return Choice(order[0].other, Other.ARMED)
    primary = next((label for label in order if left[label] >= KEPT), order[-1])
    return Choice(primary, Other.WHOLE if left[primary.other] > 0 else Other.SPENT)


def variables_of(choice: Choice) -> dict[str, bytes]:
    """Return the variables that mean `choice`."""
    first = choice.armed or choice.primary
    left = {Other.WHOLE: KEPT, Other.ARMED: 1, Other.SPENT: 0}[choice.other]
    return {
        ORDER: f"{first} {first.other}".upper().encode(),
        LEFT[choice.primary]: b"%d" % KEPT,
        LEFT[choice.primary.other]: b"%d" % left,
    }


def decide_variables(variables: Mapping[str, bytes]) -> tuple[Label, dict[str, bytes]]:
    """Return what boot.cmd starts with these variables, and the variables it saves before.

    The first slot in the order with tries left; a count below 3 is counted down. With no tries
    left anywhere the last slot in the order is started: before the trial it was the primary.
    """
    order = _order(variables)
    after = dict(variables)
    for label in order:
        left = _left(variables, label)
        if left > 0:
            if left < KEPT:
                after[LEFT[label]] = b"%d" % (left - 1)
            return label, after
    return order[-1], after


def _order(variables: Mapping[str, bytes]) -> tuple[Label, ...]:
    words = variables.get(ORDER, b"").split() or [b"A", b"B"]
    return tuple(Label.B if word == b"B" else Label.A for word in words)


def _left(variables: Mapping[str, bytes], label: Label) -> int:
    text = variables.get(LEFT[label], b"%d" % KEPT)
    return min(int(text[:3]), KEPT) if text.isdigit() else 0  # as `test -gt` in U-Boot: no number is 0
