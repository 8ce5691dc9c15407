"""What every implementation of a device port must do, as functions that a test calls.

    check_slot(make, data)          make() -> Slot, a new object over the same storage each time
    check_boot_control(bench)       a machine with slot A booted and nothing armed

They raise AssertionError with a sentence. A plug-in's tests call them too (after
trio.testing.check_one_way_stream).
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Final, Protocol

from firmament.agent.bootctl.port import Restart
from firmament.agent.slots.port import Label
from firmament.core.digest import Digest
from firmament.core.manifest import Image
from firmament.errors import (
    BootControlError,
    DigestMismatchError,
    DiskFullError,
    FirmamentError,
    LengthExceededError,
    ReadBackError,
    SlotTooSmallError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmament.agent.bootctl.port import BootControl
    from firmament.agent.slots.port import Slot

PIECE_BYTES: Final = 333
"""Prime to every block size, so that pieces end in the middle of everything."""


class BootBench(Protocol):
    """A machine to try a boot control on."""

    def control(self) -> BootControl:
        """Return a new agent's half over the machine's storage."""
        ...

    def power_on(self) -> Label:
        """Start the machine through its boot loader; return the slot that is booted now."""
        ...


# --- slots ---------------------------------------------------------------------------------


def check_slot(make: Callable[[], Slot], data: bytes) -> None:
    """Check a slot with `data`, an image of at least 4 KiB that it accepts. Its content is lost."""
    image = Image(Digest.of(data), len(data))
    _check_order(make)
    _check_whole(make, image, data)
    _check_too_small(make, image)
    for cut in range(0, len(data), max(1, len(data) // 17)):
        _check_resume(make, image, data, cut)
    _check_refusals(make, image, data)
    _check_whole(make, image, data)


def _check_order(make: Callable[[], Slot]) -> None:
    with closing(make()) as slot:
        for name, call in (
            ("write", lambda: slot.write(b"")),
            ("checkpoint", slot.checkpoint),
            ("finish", slot.finish),
        ):
            assert isinstance(_raised(call), RuntimeError), f"{name} before begin must be a RuntimeError"
        slot.close()


def _check_whole(make: Callable[[], Slot], image: Image, data: bytes) -> None:
    with closing(make()) as slot:
        assert slot.label in set(Label), "a slot has one of the two labels"
        assert slot.capacity_bytes() >= image.length_bytes, "the bench must have room for the image"
        slot.begin(image)
        written, kept = 0, 0
        for start in range(0, len(data), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            slot.write(memoryview(piece))
            written += len(piece)
            if start % (7 * PIECE_BYTES) == 0:
                offset = slot.checkpoint()
                assert kept <= offset <= written, f"checkpoint said {offset} after {kept}, with {written} written"
                kept = offset
        slot.finish()
        slot.verify(image)
    with closing(make()) as again:
        again.verify(image)
        other = Image(Digest.of(b"another"), image.length_bytes)
        assert isinstance(_raised(lambda: again.verify(other)), ReadBackError), "verify must tell images apart"
        longer = Image(image.digest, image.length_bytes + 1)
        assert isinstance(_raised(lambda: again.verify(longer)), ReadBackError), "verify must see a missing byte"


def _check_too_small(make: Callable[[], Slot], image: Image) -> None:
    with closing(make()) as slot:
        huge = Image(image.digest, slot.capacity_bytes() + 1)
        refusal = _raised(lambda: slot.begin(huge))
        # For good in a slot of fixed size, for now where the file system is shared.
        assert isinstance(refusal, SlotTooSmallError | DiskFullError), "too large an image must be refused"
        slot.verify(image)  # and nothing was changed


def _check_resume(make: Callable[[], Slot], image: Image, data: bytes, cut: int) -> None:
    with closing(make()) as slot:
        slot.begin(image)
        slot.write(data[:cut])
        offset = slot.checkpoint()
        slot.write(data[cut : cut + PIECE_BYTES])  # was never promised
    for _ in range(2):
        with closing(make()) as again:
            start = again.resume(image, offset)
            assert start in {0, offset}, f"resume at {offset} answered {start}"
            assert start == offset, f"what a checkpoint promised ({offset}) was not kept"
    with closing(make()) as again:
        start = again.resume(image, offset)
        assert again.checkpoint() == start, "right after resume the checkpoint is where it resumed"
        again.write(data[start:])
        again.finish()
        again.verify(image)
    with closing(make()) as again:
        assert again.resume(image, 0) == 0, "resume at 0 begins"


def _check_refusals(make: Callable[[], Slot], image: Image, data: bytes) -> None:
    with closing(make()) as slot:
        slot.begin(image)
        slot.write(data)
        assert isinstance(_raised(lambda: slot.write(b"\0")), LengthExceededError), "more than signed must be refused"
    with closing(make()) as slot:
        slot.begin(image)
        slot.write(data[:-1])
        assert isinstance(_raised(slot.finish), DigestMismatchError), "finish must see that a byte is missing"
    with closing(make()) as slot:
        wrong = Image(Digest.of(b"another"), image.length_bytes)
        slot.begin(wrong)
        slot.write(data)
        assert isinstance(_raised(slot.finish), DigestMismatchError), "finish must see wrong bytes"
    with closing(make()) as slot:
        assert isinstance(_raised(lambda: slot.verify(wrong)), ReadBackError), "verify must see wrong bytes"


# --- boot controls -------------------------------------------------------------------------


def check_boot_control(bench: BootBench) -> None:
    """Check a boot control on a machine that runs slot A, which is primary, with nothing armed."""
    _check_rest(bench)
    _check_trial_given_back(bench)
    _check_disarmed(bench)
    _check_trial_confirmed(bench, Label.B)
    _check_trial_confirmed(bench, Label.A)
    _check_reverted_after_confirm(bench)


def _check_rest(bench: BootBench) -> None:
    for _ in range(3):
        _expect(bench, booted=Label.A, primary=Label.A, armed=None)
        assert bench.power_on() is Label.A, "with nothing armed the primary starts, for ever"
        bench.control().confirm(Label.A)  # what the engine does at each start
        for name, call in (
            ("arming what is booted", lambda: bench.control().arm(Label.A)),
            ("retiring the primary", lambda: bench.control().retire(Label.A)),
            ("confirming what is not booted", lambda: bench.control().confirm(Label.B)),
        ):
            assert isinstance(_raised(call), BootControlError), f"{name} must be refused"
        _expect(bench, booted=Label.A, primary=Label.A, armed=None)


def _check_trial_given_back(bench: BootBench) -> None:
    _retire_and_arm(bench, Label.B)
    first = bench.control().boot_id()
    _restart(bench, Label.B)
    _expect(bench, booted=Label.B, primary=Label.A, armed=None)
    assert bench.control().boot_id() != first, "each start has a boot id of its own"
    assert bench.power_on() is Label.A, "one try is one try"
    _expect(bench, booted=Label.A, primary=Label.A, armed=None)
    for _ in range(2):
        bench.control().revert(Label.A)  # the engine tidies up
        assert bench.power_on() is Label.A, "a slot that failed is not started again"
    _expect(bench, booted=Label.A, primary=Label.A, armed=None)


def _check_disarmed(bench: BootBench) -> None:
    for disarm in ("revert", "retire"):
        _retire_and_arm(bench, Label.B)
        boot = bench.control()
        if disarm == "revert":
            boot.revert(Label.A)
        else:
            boot.retire(Label.B)
        _expect(bench, booted=Label.A, primary=Label.A, armed=None)
        assert bench.power_on() is Label.A, f"{disarm} must disarm"


def _check_trial_confirmed(bench: BootBench, label: Label) -> None:
    _retire_and_arm(bench, label)
    _restart(bench, label)
    for _ in range(2):
        bench.control().confirm(label)
        _expect(bench, booted=label, primary=label, armed=None)
    for _ in range(3):
        assert bench.power_on() is label, "a confirmed slot starts, for ever"
        bench.control().confirm(label)


def _check_reverted_after_confirm(bench: BootBench) -> None:
    _retire_and_arm(bench, Label.B)
    _restart(bench, Label.B)
    bench.control().confirm(Label.B)
    for _ in range(2):
        bench.control().revert(Label.A)
        _expect(bench, booted=Label.B, primary=Label.A, armed=None)
    _restart(bench, Label.A)
    _expect(bench, booted=Label.A, primary=Label.A, armed=None)


def _retire_and_arm(bench: BootBench, label: Label) -> None:
    for _ in range(2):
        bench.control().retire(label)
    _expect(bench, booted=label.other, primary=label.other, armed=None)
    for _ in range(2):
        bench.control().arm(label)
        _expect(bench, booted=label.other, primary=label.other, armed=label)


def _restart(bench: BootBench, expected: Label) -> None:
    boot = bench.control()
    booted = bench.power_on() if boot.restart() is Restart.UNDERWAY else bench.control().booted()
    assert booted is expected, f"slot {expected} should have started, {booted} did"


def _expect(bench: BootBench, *, booted: Label, primary: Label, armed: Label | None) -> None:
    boot = bench.control()
    found = (boot.booted(), boot.primary(), boot.armed())
    assert found == (booted, primary, armed), f"expected booted, primary, armed {(booted, primary, armed)}, got {found}"
    assert boot.trouble() is None, "nothing crashed"


def _raised(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except (FirmamentError, RuntimeError) as error:
        return error
    return None
