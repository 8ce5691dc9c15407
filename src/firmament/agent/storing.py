"""Fetch a payload into its file, durably, and find every piece of it that is not the signed one.

The file goes on where it was durable. Once it is complete its digest is compared; if that fails
and the manifest pins a chunk list, the list says which pieces are bad, and only those are fetched
again (docs/protocol/sealed.md). Without a list the whole file is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmament.agent.applying import CannotApplyError, is_direct, next_payload
from firmament.agent.events import Progress
from firmament.errors import DigestMismatchError, DiskFullError, TooLargeError, TransferError, TruncatedError
from firmament.log import logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from firmament.agent.ledger import Ledger
    from firmament.agent.parts import Parts
    from firmament.agent.stored import StoredPayload
    from firmament.core.manifest import Payload

log = logger("agent.storing")

PROGRESS_BYTES: Final = 256 * 1024
# A listener on a terminal or socket hears at most 4 times per megabyte.


class StoppedError(Exception):
    """The daemon is to end; what was fetched is kept."""


class Storing:
    """Brings one payload into its file."""

    def __init__(self, parts: Parts, ledger: Ledger, stored: StoredPayload, *, checkpoint_bytes: int) -> None:
        self._parts = parts
        self._ledger = ledger
        self._stored = stored
        self._checkpoint_bytes = checkpoint_bytes

    def run(self, payload: Payload) -> int:
        """Return with the signed bytes in the file; the answer is how many lay there before.

        Raises CannotApplyError when this device can never store it, DiskFullError while there is
        no room, DigestMismatchError for bytes that are not the signed ones, and TransferError.
        """
        ledger = self._ledger
        began_at = self._stored.kept_bytes(ledger.attempt.stored)
        if began_at < ledger.attempt.stored:
            ledger.note(stored=began_at)
        try:
            if began_at < payload.length_bytes:
                self._require_room(payload)
                self._stored.open(began_at)
                self._fetch(payload, began_at)
            self._check(payload)
        finally:
            self._stored.close()
        return began_at

    def _require_room(self, payload: Payload) -> None:
        try:
            self._stored.require_room(payload)
        except TooLargeError as error:
            raise CannotApplyError(error) from error
        except DiskFullError as error:
            # A whole payload needs no room beside its slot. Without one this waits: a log may shrink.
            other = next_payload(self._parts, self._ledger.attempt)
            if other is None or not is_direct(other):
                raise
            raise CannotApplyError(error) from error

    def _fetch(self, payload: Payload, offset: int) -> None:
        ledger, stored = self._ledger, self._stored
        checkpoint = told = offset
        chunks = self._parts.link.open_payload(payload, offset=offset, parcel=ledger.attempt.parcel)
        try:
            for chunk in chunks:
                stored.write(offset, chunk)
                offset += len(chunk)
                if offset - told >= PROGRESS_BYTES or offset == payload.length_bytes:
                    told = offset
                    self._parts.events.tell(Progress(ledger.attempt.attempt_id, offset, payload.length_bytes))
                stop = self._parts.should_stop()
                if offset - checkpoint >= self._checkpoint_bytes or stop:
                    checkpoint = self._keep(offset)
                if stop:
                    raise StoppedError
        except TransferError:
            # File and journal keep what came: the next try goes on from here.
            if offset > checkpoint:
                self._keep(offset)
            raise
        finally:
            _close(chunks)
        if offset != payload.length_bytes:
            raise TruncatedError("The payload ended early", length_bytes=offset, expected_bytes=payload.length_bytes)
        if offset > checkpoint:
            self._keep(offset)

    def _keep(self, offset: int) -> int:
        self._stored.checkpoint()
        self._ledger.note(stored=offset)
        return offset

    def _check(self, payload: Payload) -> None:
        try:
            self._stored.verify(payload)
        except DigestMismatchError as error:
            if payload.chunks is None:
                raise
            self._parts.link.distrust_caches()  # the bad pieces come from elsewhere
            self._mend(payload, error)
            self._stored.verify(payload)

    def _mend(self, payload: Payload, error: DigestMismatchError) -> None:
        """Fetch every piece again that is not the signed one; raises DigestMismatchError if it comes wrong again."""
        from firmament.payload.chunks import ChunkList

        pin = payload.chunks
        assert pin is not None
        chunk_list = self._parts.link.fetch_chunk_list(payload, parcel=self._ledger.attempt.parcel)
        chunks = ChunkList(chunk_list, pin=pin, payload_length_bytes=payload.length_bytes)
        self._stored.open(payload.length_bytes)
        first = 0
        while (index := self._stored.next_bad_chunk(chunks, first)) is not None:
            start, length = index * chunks.chunk_length_bytes, chunks.piece_length_bytes(index)
            log.warning("payload.piece-bad", piece=index, offset=start, code=error.code)
            pieces = self._parts.link.open_payload(
                payload, offset=start, end=start + length, parcel=self._ledger.attempt.parcel
            )
            try:
                piece = b"".join(pieces)
            finally:
                _close(pieces)
            chunks.check(index, piece)
            self._stored.write(start, piece)
            first = index + 1
        self._stored.checkpoint()


def _close(chunks: Iterator[bytes]) -> None:
    close = getattr(chunks, "close", None)
    if close is not None:
        close()
