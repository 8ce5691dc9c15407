"""Bring the payload into the other slot: from *fetching* to *verified*, *refused* or *failed*.

A whole payload goes in one pass from the link into the slot, and into a running digest in the
slot; nothing is kept beside it. Any other is stored first (storing.py) and then applied from
there (applying.py). The journal's offsets follow the `checkpoint` of file and slot, never lead
them, so after a power cut both go on where they were durable, nothing stored is fetched again,
and what is there is read back and digested again before it counts.

A payload that does not lead to the image here, e.g. a delta from an image that somebody changed,
is given up for another one that needs no precursor: within the attempt, said in its reports, and
not counted as a failure.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from firmament.agent.applying import Applying, CannotApplyError, is_direct, next_payload, require_known
from firmament.agent.events import Progress
from firmament.agent.ledger import MAX_STARTS_OVER, MAX_TRIES
from firmament.agent.machine import Event, State
from firmament.agent.record import FailedPayload, Reason
from firmament.agent.slots.port import CHECKPOINT_BYTES
from firmament.agent.stored import StoredPayload
from firmament.agent.storing import PROGRESS_BYTES, StoppedError, Storing
from firmament.errors import (
    ApplicabilityError,
    DigestMismatchError,
    FileError,
    FirmamentError,
    LengthExceededError,
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
    UnsafeArchiveError,
)
from firmament.log import logger

if TYPE_CHECKING:
    from firmament.agent.ledger import Ledger
    from firmament.agent.parts import Parts
    from firmament.agent.ports import Offer
    from firmament.agent.slots.port import Slot
    from firmament.core.manifest import Manifest, Payload

log = logger("agent.fetching")


class Fetching:
    """One fetch at a time; `checkpoint_bytes` is smaller in simulations, to cut between checkpoints."""

    def __init__(self, parts: Parts, ledger: Ledger, *, checkpoint_bytes: int = CHECKPOINT_BYTES) -> None:
        self._parts = parts
        self._ledger = ledger
        self._checkpoint_bytes = checkpoint_bytes
        self._began_at = 0
        self._stored = StoredPayload(parts.disk, parts.state_directory, limit_bytes=parts.payloads.limit_bytes)
        self._storing = Storing(parts, ledger, self._stored, checkpoint_bytes=checkpoint_bytes)

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
        require_known(self._parts, manifest, payload)

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
            if self._parts.share is not None:
                self._parts.share.withdraw_slot(slot.label)
            self._fetch(slot)
        except _SlotRottedError as error:
            self._start_over(error.cause, Event.STORAGE_GAVE_UP, keep_stored=True)
        except CannotApplyError as error:
            if not self._fall_back(error.cause):
                event = Event.IMAGE_REJECTED if _is_refusal(error.cause) else Event.STORAGE_GAVE_UP
                ledger.go(event, reason=reason_for(error.cause))
        except TrustError as error:
            self._reject(error)
        except (UnsafeArchiveError, LengthExceededError) as error:
            # Seen before the digest could be: it is what was signed, or what a cache made of it.
            if self._parts.link.distrust_caches():
                self._start_over(error, Event.STORAGE_GAVE_UP)
            elif isinstance(error, LengthExceededError):
                self._try_again(error)
            else:
                ledger.go(Event.STORAGE_GAVE_UP, reason=reason_for(error))
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
        self._began_at = 0
        payload = ledger.attempt.chosen
        self.check_applicable(image, payload)
        if is_direct(payload):
            offset = self._begin(slot, image)
            self._transfer(slot, payload, offset)
        else:
            applying = Applying(self._parts, ledger.attempt, ledger.record.running)
            applying.require_possible()
            self._began_at = self._storing.run(payload)
            offset = self._begin(slot, image)
            self._apply(slot, applying, image, offset)
        slot.finish()
        slot.verify(image.image)
        # Act (the bytes are durable and were read back), then say so. The lie in between, "still
        # fetching", costs reading the slot once more and asking for zero bytes.
        ledger.go(Event.IMAGE_VERIFIED, offset=image.image.length_bytes)
        if self._parts.share is not None:
            # After that: nothing reads the stored payload again unless the slot rots before it is tried.
            if is_direct(payload):
                self._parts.share.offer_slot(slot.label, payload)
            else:
                self._parts.share.keep(self._stored.path, payload)

    def _begin(self, slot: Slot, image: Manifest) -> int:
        """Open the slot where it was durable; return that offset."""
        ledger = self._ledger
        if ledger.attempt.offset:
            offset = slot.resume(image.image, ledger.attempt.offset)
            if offset < ledger.attempt.offset:
                ledger.note(offset=offset)
        else:
            slot.begin(image.image)
            offset = 0
        self._began_at = max(self._began_at, offset)
        log.info("fetch.begun", attempt_id=ledger.attempt.attempt_id, slot=slot.label, offset=offset)
        return offset

    def _apply(self, slot: Slot, applying: Applying, image: Manifest, offset: int) -> None:
        """Make the image in the slot from the stored payload."""
        ledger, began_at = self._ledger, offset
        checkpoint = offset
        try:
            for _, piece in applying.pieces(self._stored, start=offset):
                slot.write(piece)
                offset += len(piece)
                stop = self._parts.should_stop()
                if offset - checkpoint >= self._checkpoint_bytes or stop:
                    checkpoint = offset
                    ledger.note(offset=slot.checkpoint())
                if stop:
                    raise StoppedError
            slot.finish()
        except (DigestMismatchError, LengthExceededError, UnsafeArchiveError) as error:
            # Not the image. What lay in the slot before this run may have rotted: once more from its
            # beginning, from what is stored. Otherwise it is this payload, and another one may do.
            if began_at and ledger.attempt.starts_over < MAX_STARTS_OVER:
                raise _SlotRottedError(error) from error
            raise CannotApplyError(error) from error
        log.info("payload.applied", attempt_id=ledger.attempt.attempt_id, length_bytes=image.image.length_bytes)

    def _transfer(self, slot: Slot, payload: Payload, offset: int) -> None:
        ledger, attempt_id = self._ledger, self._ledger.attempt.attempt_id
        checkpoint = told = offset
        if offset == payload.length_bytes:
            return
        chunks = self._parts.link.open_payload(payload, offset=offset, parcel=self._ledger.attempt.parcel)
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
        if isinstance(error, DigestMismatchError) and (self._parts.link.distrust_caches() or self._began_at):
            self._start_over(error, Event.IMAGE_REJECTED)
        elif not self._fall_back(error):
            self._ledger.go(Event.IMAGE_REJECTED, reason=reason_for(error))

    def _start_over(self, error: FirmamentError, otherwise: Event, *, keep_stored: bool = False) -> None:
        attempt = self._ledger.attempt
        if attempt.starts_over >= MAX_STARTS_OVER:
            if not self._fall_back(error):
                self._ledger.go(otherwise, reason=reason_for(error))
            return
        log.warning("fetch.started-over", attempt_id=attempt.attempt_id, code=error.code, problem=error.problem)
        stored = attempt.stored if keep_stored else 0
        self._ledger.note(offset=0, stored=stored, starts_over=attempt.starts_over + 1)

    def _fall_back(self, error: FirmamentError) -> bool:
        """Go on with a payload that needs no precursor; whether there is one. The attempt has not failed."""
        attempt = self._ledger.attempt
        if is_direct(attempt.chosen):
            return False  # there is nothing simpler
        other = next_payload(self._parts, attempt)
        if other is None:
            return False
        log.warning(
            "payload.fell-back",
            attempt_id=attempt.attempt_id,
            payload=attempt.payload,
            to=other.target,
            code=error.code,
            problem=error.problem,
        )
        # The file is cut by the next write to it: until then its bytes are of no payload, and `stored` says so.
        self._ledger.note(
            payload=other.target,
            key_wrap=attempt.fallback_wrap if other.is_sealed else None,
            failed=(*attempt.failed, FailedPayload(attempt.payload, error.code)),
            stored=0,
            offset=0,
            tries=0,
            starts_over=0,
        )
        return True

    def _try_again(self, error: TransferError | FileError) -> None:
        """Count a failed try, unless the device was merely offline; raise `error` to back off."""
        tries = self._ledger.attempt.tries
        is_final = error.retry is Retry.NEVER and not isinstance(error, FileError)
        if is_final or tries >= MAX_TRIES:
            if isinstance(error, FileError) or not self._fall_back(error):
                self._ledger.go(Event.STORAGE_GAVE_UP, reason=reason_for(error))
            return
        if not isinstance(error, UnreachableError | TlsError):
            self._ledger.note(tries=tries + 1)
        raise error

    def clear(self) -> None:
        """Remove the stored payload of an attempt that is over; failing is no trouble, the next start tries again."""
        with contextlib.suppress(FirmamentError):
            self._stored.clear()

    def give_up(self) -> None:
        """End a fetch that goes in a circle."""
        error = LoopError("The fetch does not get further", stores=self._ledger.attempt.stores)
        assert self._ledger.state in {State.FETCHING, State.VERIFIED}
        self._ledger.go(Event.STORAGE_GAVE_UP, reason=reason_for(error))


class _SlotRottedError(Exception):
    """What lay in the slot from an earlier run is not what was written."""

    def __init__(self, cause: FirmamentError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _is_refusal(error: FirmamentError) -> bool:
    return isinstance(error, TrustError | ApplicabilityError)


def reason_for(error: FirmamentError, log_lines: tuple[str, ...] = ()) -> Reason:
    """Return an error as what a report says."""
    facts = ", ".join(f"{name}={value}" for name, value in error.facts.items() if name != "attempt_id")
    return Reason(error.code, f"{error.problem}{f' ({facts})' if facts else ''}", log_lines)
