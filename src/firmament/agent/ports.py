"""Where the agent touches the world beyond storage: the server, seen as two small ports.

`Transport` moves bytes (real: fetch.HttpTransport; simulated: sim). `Link` speaks for the device
(real: link.ServerLink, which verifies everything before it answers). Storage is `durable.Disk`,
time is `core.clock.Clock`; slots, boot controls and health checks have their ports beside their
implementations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from firmament.core.consent import Mode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from firmament.core.ids import AttemptId
    from firmament.core.manifest import Manifest, Payload
    from firmament.protocol.v1.messages import ConsentEvent, Report
    from firmament.trust.walk import Assignment, Release


class Response(Protocol):
    """An answer whose body is read in chunks; every method raises TransferError only."""

    @property
    def status(self) -> int:
        """HTTP status code."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Header names in lower case."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """Yield the body; raises TransferError (SlowError, TruncatedError ...) while iterating."""
        ...

    def close(self) -> None:
        """Give the connection back or drop it."""
        ...


class Transport(Protocol):
    """Bytes to and from the server: no redirects, no content encoding, minimum rate, deadline."""

    def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
    ) -> Response:
        """Send one request; `deadline_s` bounds the whole exchange, None means the default."""
        ...


@dataclass(frozen=True, slots=True)
class Running:
    """What the device runs now, told to the server at each poll."""

    version: str
    sequence_number: int
    image_digest: str
    boot_id: str
    attributes: Mapping[str, str]
    held_digest: str = ""
    """Digest of the confirmed image that the other slot still holds; empty if none. Not told to the server."""
    installed_by: str = ""
    """The attempt that brought what runs now. Not told to the server."""
    failed_payloads: tuple[str, ...] = ()
    """Payloads of the attempt in hand that did not lead to the image here."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A release that both repositories vouch for, for this device, chosen and verified.

    Everything here is signed: the manifest by the author (image repository), the attempt by the
    director, and they agree on length and digest. Whether the device takes it (floors, product,
    hardware, requirements) was checked as well; preconditions, windows and consent were not.
    """

    attempt_id: AttemptId
    manifest: Manifest
    payload: Payload
    """The payload the director chose among `manifest.payloads`."""
    key_wrap: bytes | None
    """HPKE-wrapped content key for a sealed payload, else None."""
    issued_at: datetime
    """The director's signed time."""
    takes_back: AttemptId | None = None
    """Set: go back to `manifest`, which the other slot still holds, as its author permitted; nothing is fetched."""
    fallback: str = ""
    """Sealed payload of the manifest for which `fallback_wrap` is the key, if the chosen one fails."""
    fallback_wrap: bytes | None = None
    consent: Mode = Mode.AUTOMATIC
    """What the operator asks at least, whatever the owner's rule says."""
    is_local: bool = False
    """From a parcel without a director: the attempt is known here only."""

    @classmethod
    def of(cls, assignment: Assignment, release: Release, issued_at: datetime) -> Offer:
        """Put together what the director assigned, by a reply or in a parcel, and what was verified of it."""
        return cls(
            assignment.attempt_id,
            release.manifest,
            release.payload,
            assignment.key_wrap,
            issued_at,
            assignment.takes_back,
            assignment.fallback,
            assignment.fallback_wrap,
            assignment.consent,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a poll brought."""

    offer: Offer | None
    poll_after_s: int
    issued_at: datetime
    tag: str = ""
    """With no offer: what `Link.is_unchanged` may ask by; empty if the server does not know that."""


class Link(Protocol):
    """The server as the install machine sees it."""

    def poll(self, running: Running) -> Answer:
        """Ask and verify; raises TrustError, ApplicabilityError or TransferError.

        An error that concerns an attempt carries its id in `facts["attempt_id"]`, so that the
        refusal can be reported.
        """
        ...

    def is_unchanged(self, tag: str) -> bool:
        """Ask whether a poll would say "nothing to do" again, as the answer with this tag did.

        Nobody signs what this says: it may put a poll off for a while, and do nothing else. Raises
        TransferError when no server can be reached; whatever it does not understand is a "no".
        """
        ...

    def carry(self, parcel: Path, running: Running) -> Answer:
        """Verify what was carried here by hand, in place of a poll; nothing is asked of anybody.

        Raises TrustError, ApplicabilityError, ForbiddenError, or what is wrong with the file.
        """
        ...

    def open_payload(
        self, payload: Payload, *, offset: int, end: int | None = None, parcel: str = ""
    ) -> Iterator[bytes]:
        """Yield payload bytes from `offset` to `end` (its signed length), never more.

        From the parcel if there is one and it is still there, else from the net. Digest checking is
        the caller's: it knows what came before `offset`.
        """
        ...

    def distrust_caches(self) -> bool:
        """Ask those caches that bytes came from no more before the next start: bytes were not the signed ones.

        Returns whether any came from one.
        """
        ...

    def fetch_chunk_list(self, payload: Payload, *, parcel: str = "") -> bytes:
        """Return the payload's chunk list; the caller compares it with the pin."""
        ...

    def receipt(self, report: Report, *, release_id: str, image_digest: str) -> bytes:
        """Return the file that says how an attempt from a parcel ended, signed (docs/protocol/parcel.md)."""
        ...

    def send(self, reports: Sequence[Report]) -> Sequence[int]:
        """Sign and deliver reports; return the report numbers the server stored for good."""
        ...

    def send_consents(self, events: Sequence[ConsentEvent]) -> Sequence[int]:
        """Sign and deliver consent events; return the consent numbers the server stored for good."""
        ...
