"""Bring the payload into the other slot: from *fetching* to *verified*, *refused* or *failed*.

One pass: each chunk goes from the link into the slot, and into a running digest in the slot.
Nothing is kept beside it. The journal's offset follows the slot's `checkpoint`, never leads it,
so after a power cut the fetch goes on where the slot was durable, and what is there is read back
and digested again before it counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmament.agent.events import Progress
from firmament.agent.ledger import MAX_STARTS_OVER, MAX_TRIES
from firmament.agent.machine import Event, State
from firmament.agent.record import Reason
from firmament.agent.slots.port import CHECKPOINT_BYTES
from firmament.errors import (
    ApplicabilityError,
    DigestMismatchError,
    FileError,
    FirmamentError,
    LoopError,
    NoInstallerError,
    RangeError,
    ReadBackError,
    Retry,
    TlsError,
    TransferError,
    TruncatedError,
    TrustError,
    UnreachableError,
)
from firmament.log import logger

if TYPE_CHECKING:
    from firmament.agent.ledger import Ledger
    from firmament.agent.parts import Parts
    from firmament.agent.ports import Offer
    from firmament.agent.slots.port import Slot
    from firmament.core.manifest import Manifest, Payload

log = logger("agent.fetching")

WHOLE: Final = ("whole", 1)
"""The only payload method so far: the payload's bytes are the image's."""
PROGRESS_BYTES: Final = 256 * 1024
# A listener on a terminal or socket hears at most 4 times per megabyte.


class StoppedError(Exception):
    """The daemon is to end; what was fetched is kept."""


class Fetching:
    """One fetch at a time; `checkpoint_bytes` is smaller in simulations, to cut between checkpoints."""

    def __init__(self, parts: Parts, ledger: Ledger, *, checkpoint_bytes: int = CHECKPOINT_BYTES) -> None:
        self._parts = parts
        self._ledger = ledger
        self._checkpoint_bytes = checkpoint_bytes
        self._began_at = 0

    def check_offer(self, offer: Offer) -> None:
        """Raise ApplicabilityError when this device has nothing that could install what is offered."""
        if offer.takes_back is None:
            self.check_applicable(offer.manifest, offer.payload)
        elif offer.manifest.installer != self._parts.slots.kind:
            raise NoInstallerError(
                "No installer for this release", needed=offer.manifest.installer, present=self._parts.slots.kind
            )

    def check_applicable(self, manifest: Manifest, payload: Payload) -> None:
        """Raise ApplicabilityError when this device has nothing that could install it."""
        kind = self._parts.slots.kind
        if manifest.installer != kind:
            raise NoInstallerError("No installer for this release", needed=manifest.installer, present=kind)
        if (payload.method, payload.method_version) != WHOLE:
            raise NoInstallerError(
                "This payload method is not known here", method=f"{payload.method}/{payload.method_version}"
            )
        if (payload.length_bytes, payload.digest) != (manifest.image.length_bytes, manifest.image.digest):
            raise NoInstallerError("A whole payload must be the image itself", payload=payload.target)

    def run(self) -> None:
        """Fetch on until the machine has left *fetching*; raises what is worth another try, later."""
        ledger = self._ledger
        if ledger.attempt.takes_back is not None:
            self._hold()
            return
        slot = self._slot()
        try:
            # Before the first byte changes: no boot loader may fall back into half an image. Idempotent.
            self._parts.boot.retire(slot.label)
            self._fetch(slot)
        except TrustError as error:
            self._reject(error)
        except ReadBackError as error:
            self._start_over(error, Event.STORAGE_GAVE_UP)
        except ApplicabilityError as error:
            ledger.go(Event.IMAGE_REJECTED, reason=reason_for(error))
        except RangeError as error:
            # The server cannot continue where we stopped: its file is another one than before.
            if not ledger.attempt.offset:
                self._try_again(error)
            self._start_over(error, Event.STORAGE_GAVE_UP)
        except (TransferError, FileError) as error:
            self._try_again(error)
        except FirmamentError as error:
            if error.retry is Retry.NEVER:
                ledger.go(Event.STORAGE_GAVE_UP, reason=reason_for(error))
                return
            ledger.explain(reason_for(error))
            raise
        finally:
            slot.close()

    def _hold(self) -> None:
        """Find that the other slot still holds the image to go back to; nothing is written."""
        ledger, manifest = self._ledger, self._ledger.attempt.manifest
        assert manifest is not None
        label, previous = self._parts.boot.booted().other, ledger.record.previous
        lost: ReadBackError | None = None
        if previous is None or previous.slot is not label or previous.image != manifest.image:
            lost = ReadBackError("The other slot does not hold the image to go back to", slot=label)
        else:
            try:
                self._parts.slots[label].verify(manifest.image)
            except ReadBackError as error:
                lost = error
        if lost is not None:
            ledger.go(Event.STORAGE_GAVE_UP, reason=reason_for(lost))
            return
        ledger.go(Event.IMAGE_VERIFIED, slot=label)

    def _slot(self) -> Slot:
        """Return the slot to write, which is never the one that runs, whatever the journal says."""
        slot = self._parts.slots.other(self._parts.boot.booted())
        attempt = self._ledger.attempt
        if attempt.slot is not slot.label:
            # The first time; or somebody booted the slot that was being written.
            self._ledger.note(slot=slot.label, offset=0, starts_over=attempt.starts_over + (attempt.slot is not None))
        return slot

    def _fetch(self, slot: Slot) -> None:
        ledger, image = self._ledger, self._ledger.attempt.manifest
        assert image is not None
        payload = ledger.attempt.chosen
        self.check_applicable(image, payload)
        self._began_at = ledger.attempt.offset
        if ledger.attempt.offset:
            offset = slot.resume(image.image, ledger.attempt.offset)
            if offset < ledger.attempt.offset:
                ledger.note(offset=offset)
        else:
            slot.begin(image.image)
            offset = 0
        self._began_at = offset
        log.info("fetch.begun", attempt_id=ledger.attempt.attempt_id, slot=slot.label, offset=offset)
        self._transfer(slot, payload, offset)
        slot.finish()
        slot.verify(image.image)
        # Act (the bytes are durable and were read back), then say so. The lie in between, "still
        # fetching", costs reading the slot once more and asking for zero bytes.
        ledger.go(Event.IMAGE_VERIFIED, offset=payload.length_bytes)

    def _transfer(self, slot: Slot, payload: Payload, offset: int) -> None:
        ledger, attempt_id = self._ledger, self._ledger.attempt.attempt_id
        checkpoint = told = offset
        if offset == payload.length_bytes:
            return
        chunks = self._parts.link.open_payload(payload, offset=offset)
        try:
            for chunk in chunks:
                slot.write(chunk)
                offset += len(chunk)
                if offset - told >= PROGRESS_BYTES or offset == payload.length_bytes:
                    told = offset
                    self._parts.events.tell(Progress(attempt_id, offset, payload.length_bytes))
                stop = self._parts.should_stop()
                if offset - checkpoint >= self._checkpoint_bytes or stop:
                    checkpoint = offset
                    ledger.note(offset=slot.checkpoint())
                if stop:
                    raise StoppedError
        except TransferError:
            # The slot and the journal keep what came: the next try goes on from here.
            if offset > checkpoint:
                ledger.note(offset=slot.checkpoint())
            raise
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
        if offset != payload.length_bytes:
            raise TruncatedError("The payload ended early", length_bytes=offset, expected_bytes=payload.length_bytes)

    def _reject(self, error: TrustError) -> None:
        """Refuse bytes that are not the signed ones; but once more from 0 if some lay here for a while."""
        # Not the journal's offset: that grew with every checkpoint of this very run.
        if isinstance(error, DigestMismatchError) and self._began_at:
            self._start_over(error, Event.IMAGE_REJECTED)
        else:
            self._ledger.go(Event.IMAGE_REJECTED, reason=reason_for(error))

    def _start_over(self, error: FirmamentError, otherwise: Event) -> None:
        attempt = self._ledger.attempt
        if attempt.starts_over >= MAX_STARTS_OVER:
            self._ledger.go(otherwise, reason=reason_for(error))
            return
        log.warning("fetch.started-over", attempt_id=attempt.attempt_id, code=error.code, problem=error.problem)
        self._ledger.note(offset=0, starts_over=attempt.starts_over + 1)

    def _try_again(self, error: TransferError | FileError) -> None:
        """Count a failed try, unless the device was merely offline; raise `error` to back off."""
        tries = self._ledger.attempt.tries
        is_final = error.retry is Retry.NEVER and not isinstance(error, FileError)
        if is_final or tries >= MAX_TRIES:
            self._ledger.go(Event.STORAGE_GAVE_UP, reason=reason_for(error))
            return
        if not isinstance(error, UnreachableError | TlsError):
            self._ledger.note(tries=tries + 1)
        raise error

    def give_up(self) -> None:
        """End a fetch that goes in a circle."""
        error = LoopError("The fetch does not get further", stores=self._ledger.attempt.stores)
        assert self._ledger.state in {State.FETCHING, State.VERIFIED}
        self._ledger.go(Event.STORAGE_GAVE_UP, reason=reason_for(error))


def reason_for(error: FirmamentError, log_lines: tuple[str, ...] = ()) -> Reason:
    """Return an error as what a report says."""
    facts = ", ".join(f"{name}={value}" for name, value in error.facts.items() if name != "attempt_id")
    return Reason(error.code, f"{error.problem}{f' ({facts})' if facts else ''}", log_lines)
