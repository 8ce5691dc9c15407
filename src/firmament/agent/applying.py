"""From the stored payload to image bytes: the method's applier, what is sealed opened on the way.

What is verified, and when: the stored bytes have the signed digest before this begins; a delta's
precursor is read back from the booted slot and has the digest that the delta names; the image
has its signed digest before it may boot (the slot's `finish` and `verify`). So an applier never
sees bytes that nobody signed, and what it makes is never believed.

Memory: what the method states (`payload.methods`), within the device's own ceiling, and two
chunks of a sealed payload.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from firmament.agent.record import MAX_FAILED_PAYLOADS
from firmament.errors import (
    FirmamentError,
    KeyWrapError,
    NoInstallerError,
    PrecursorMismatchError,
    ReadBackError,
    TooLargeError,
    UnknownMethodError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from firmament.agent.parts import Parts
    from firmament.agent.record import Attempt, Release
    from firmament.agent.stored import StoredPayload
    from firmament.core.manifest import Manifest, Payload
    from firmament.payload.methods import Job, Method
    from firmament.payload.readers import Reader


class CannotApplyError(Exception):
    """This payload does not lead to the image here; another one may. Carries why, as one of the house's errors."""

    def __init__(self, cause: FirmamentError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def is_direct(payload: Payload) -> bool:
    """Whether the payload's bytes are the image's, and go into the slot as they arrive."""
    return (payload.method, payload.method_version) == ("whole", 1)


def require_known(parts: Parts, manifest: Manifest, payload: Payload) -> None:
    """Raise NoInstallerError when this device has nothing that could install it."""
    if manifest.installer != parts.slots.kind:
        raise NoInstallerError("No installer for this release", needed=manifest.installer, present=parts.slots.kind)
    unknown = [method for method in payload.needs if method not in parts.methods]
    if unknown:
        raise NoInstallerError("This payload method is not known here", method=" ".join(unknown))
    if is_direct(payload) and (payload.length_bytes, payload.digest) != (
        manifest.image.length_bytes,
        manifest.image.digest,
    ):
        raise NoInstallerError("A whole payload must be the image itself", payload=payload.target)


def next_payload(parts: Parts, attempt: Attempt) -> Payload | None:
    """Return what to take after the chosen payload failed: the smallest other one that needs no precursor.

    A sealed one only if the director gave its key along (`Attempt.fallback`).
    """
    assert attempt.manifest is not None
    if len(attempt.failed) >= MAX_FAILED_PAYLOADS:
        return None
    tried = {attempt.payload, *(failed.target for failed in attempt.failed)}
    left = [
        payload
        for payload in attempt.manifest.payloads
        if payload.target not in tried
        and payload.precursor_digest is None
        and parts.methods.issuperset(payload.needs)
        and (not payload.is_sealed or payload.target == attempt.fallback)
    ]
    return min(left, key=lambda payload: payload.length_bytes, default=None)


class Applying:
    """One payload on its way into one image."""

    def __init__(self, parts: Parts, attempt: Attempt, running: Release | None) -> None:
        self._parts = parts
        self._attempt = attempt
        self._running = running
        self._payload = attempt.chosen

    def require_possible(self) -> None:
        """Raise CannotApplyError before anything is fetched: unknown method, another precursor, too much memory."""
        with _as_inapplicable():
            method = self._method()
            job = self._lengths()
            if self._payload.precursor_digest is not None and (
                self._running is None or self._running.image.digest != self._payload.precursor_digest
            ):
                raise PrecursorMismatchError(
                    "The delta starts from another image than the one that runs here",
                    needs=self._payload.precursor_digest,
                    running=self._running.image.digest if self._running is not None else "unknown",
                )
            need = method.memory_bytes(job)
            if need > self._parts.payloads.memory_bytes:
                raise TooLargeError(
                    "Applying this payload takes more memory than allowed here",
                    method=method.key,
                    need_bytes=need,
                    limit_bytes=self._parts.payloads.memory_bytes,
                )

    def pieces(self, stored: StoredPayload, *, start: int) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) of the image from `start` on; raises CannotApplyError, and what storage raises."""
        method = self._method()
        with contextlib.ExitStack() as opened:
            reader = stored.reader()
            opened.callback(reader.close)
            with _as_inapplicable():
                source = self._unsealed(reader)
                precursor = self._precursor(opened)
            job = self._lengths(source, precursor)
            pieces = method.apply(job, start=start)
            while True:
                with _as_inapplicable():
                    piece = next(pieces, None)
                if piece is None:
                    return
                yield piece

    def _method(self) -> Method:
        from firmament.payload import methods

        inner = self._payload.inner
        return methods.find(inner.method, inner.method_version)

    def _lengths(self, source: Reader | None = None, precursor: Reader | None = None) -> Job:
        from firmament.payload.methods import NOTHING, Job

        assert self._attempt.manifest is not None
        is_delta = self._payload.precursor_digest is not None
        return Job(
            payload=source or NOTHING,
            payload_length_bytes=self._payload.inner.length_bytes,
            image_length_bytes=self._attempt.manifest.image.length_bytes,
            precursor=(precursor or NOTHING) if is_delta else None,
            precursor_length_bytes=self._running.image.length_bytes if is_delta and self._running is not None else 0,
        )

    def _unsealed(self, reader: Reader) -> Reader:
        if not self._payload.is_sealed:
            return reader
        from firmament.payload.sealed import Opener

        attempt, payload = self._attempt, self._payload
        if attempt.key_wrap is None or self._parts.unwrap is None:
            raise KeyWrapError("The director gave no key for this sealed payload", payload=payload.target)
        assert attempt.release_id is not None
        key = self._parts.unwrap(attempt.key_wrap, attempt.release_id, payload.digest)
        opener = Opener(reader, payload.length_bytes, key, max_plain_length_bytes=payload.inner.length_bytes)
        if opener.length_bytes != payload.inner.length_bytes:
            raise KeyWrapError(
                "A sealed payload holds another length than was signed",
                expected=payload.inner.length_bytes,
                got=opener.length_bytes,
            )
        return opener

    def _precursor(self, opened: contextlib.ExitStack) -> Reader | None:
        """Return the booted slot's bytes, read back and found to be the precursor."""
        if self._payload.precursor_digest is None:
            return None
        assert self._running is not None
        slot = self._parts.slots[self._running.slot]
        try:
            slot.verify(self._running.image)
        except ReadBackError as error:
            raise PrecursorMismatchError(
                "The running slot was changed: the delta does not apply to it", slot=slot.label, reason=error.problem
            ) from error
        reader = slot.open_image(self._running.image)
        opened.callback(reader.close)
        return reader


@contextlib.contextmanager
def _as_inapplicable() -> Iterator[None]:
    """Say of what a payload or its applier raised that another payload may do; storage errors pass."""
    from firmament.errors import ApplicabilityError, DependencyMissingError, FileError, TrustError

    try:
        yield
    except FileError:
        raise
    except (TrustError, ApplicabilityError, DependencyMissingError, TooLargeError, UnknownMethodError) as error:
        raise CannotApplyError(error) from error
    except MemoryError as error:
        raise CannotApplyError(TooLargeError("There is not enough memory to apply this payload")) from error
