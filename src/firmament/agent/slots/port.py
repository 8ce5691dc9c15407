"""The port through which the install engine stores an image in the slot that is not booted.

A session, in the order the engine calls (everything not in this picture is a RuntimeError)::

    begin(image)            or   resume(image, offset)     once
    write(data) ... checkpoint() ... write(data) ...       any number of times
    finish()                                               once, after the last byte
    verify(image)                                          then, and after any restart
    close()                                                always, also after an error

Who promises what:

* the engine picks the slot (`Slots.other`), journals each offset that `checkpoint` returned, and
  gives that offset, or 0, to `resume` after a restart;
* the slot never writes a byte past the image's signed length or its own capacity, keeps the
  running digest of what was written (on `resume` by reading the stored prefix again), and touches
  nothing outside itself. It needs no state of its own: the offset in the journal is enough.

The lie that is harmless (house rule 3): the slot may be ahead of the journal, then bytes are
fetched twice. The journal is never ahead of the slot, because `checkpoint` returns after fsync.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from firmament.core.manifest import Image
    from firmament.durable import Reader

CHECKPOINT_BYTES: Final = 4 * 1024 * 1024
# How often the engine should call `checkpoint`: at 1 MB/s a power cut costs 4 s of download; an
# fsync per 4 MiB costs under 2 % on eMMC (about 10 ms against 600 ms of writing).


class Label(StrEnum):
    """A slot by name. Which of the two is *booted* is a fact that `BootControl.booted` tells."""

    A = "a"
    B = "b"

    @property
    def other(self) -> Label:
        """The slot that this one is not."""
        return Label.B if self is Label.A else Label.A


class Slot(Protocol):
    """One place for one image. Errors are SlotError, TrustError or FileError; none harms the booted slot."""

    @property
    def label(self) -> Label:
        """Which slot this is."""
        ...

    def capacity_bytes(self) -> int:
        """Return the length of the longest image that fits, the present content given up."""
        ...

    def begin(self, image: Image) -> None:
        """Start a session at byte 0; what the slot held is lost from here on.

        Raises SlotTooSmallError, or DiskFullError where the file system is shared, before anything is
        changed, and BootControlError if the slot is in use by the running system.
        """
        ...

    def resume(self, image: Image, offset: int) -> int:
        """Continue the session that was cut; return where the next `write` must start.

        `offset` is the last one journalled. The answer is at most `offset`: everything before it
        was read back from the storage and is in the running digest. 0 means that nothing could be
        kept and the slot began again. Idempotent: resuming twice is resuming once.
        """
        ...

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append image bytes; durable only after the next `checkpoint` or `finish`.

        Raises LengthExceededError before writing past the signed length, UnsafeArchiveError at
        the first entry a bundle may not have, DiskFullError, ReadOnlyError or FileError.
        """
        ...

    def checkpoint(self) -> int:
        """Make durable what was written; return an offset that `resume` accepts.

        It may lie before the last byte written, never after. It never goes back in a session.
        """
        ...

    def finish(self) -> None:
        """Make everything durable; the running digest must be the signed one.

        Raises DigestMismatchError if the bytes written are not the image (wrong or too few).
        """
        ...

    def verify(self, image: Image) -> None:
        """Read the slot from the storage, past caches where the system allows, and compare.

        Needs no session and changes nothing; raises ReadBackError if the slot does not hold
        exactly this image.
        """
        ...

    def open_image(self, image: Image) -> Reader:
        """Open the slot's bytes as those of `image`, to be read at random: the precursor of a delta.

        Needs no session, changes nothing and promises nothing about the content (`verify` does);
        the caller closes it. Raises FileError or UnsafeArchiveError.
        """
        ...

    def close(self) -> None:
        """End the session and release what is open; says nothing about durability. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Slots:
    """The two slots of a component, and the kind they are of (settings, manifest's `installer`)."""

    kind: str
    a: Slot
    b: Slot

    def __getitem__(self, label: Label) -> Slot:
        """Return the slot with this label."""
        return self.a if label is Label.A else self.b

    def other(self, booted: Label) -> Slot:
        """Return the only slot that may be written while `booted` runs."""
        return self[booted.other]
