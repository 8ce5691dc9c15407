"""The server as the install machine sees it, with everything verified before it answers.

`ServerLink` joins the parts: one poll over the transport, the verification walk over both
repositories (trust/walk.py, whose steps are numbered), payload bytes, signed reports. It holds
no state between calls but what the floors and the metadata caches on disk hold.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from firmament.agent.fetch import NOT_MODIFIED, read_body, require_success
from firmament.agent.ports import Answer, Offer
from firmament.agent.resume import BACK_OFF_S, TransportSource
from firmament.agent.sources import (
    PARCEL_GONE,
    HttpPayloads,
    ParcelPayloads,
    PayloadSource,
    ServerPayloads,
    SourceGoneError,
    target_url,
)
from firmament.core import canonical
from firmament.core.digest import Digest
from firmament.core.manifest import CHUNKS_SUFFIX
from firmament.errors import MalformedError, TooLargeError, TransferError
from firmament.log import logger
from firmament.protocol.v1 import paths
from firmament.protocol.v1.envelope import CONSENT_TYPE, REPORT_TYPE, Envelope, pre_authentication_encoding
from firmament.protocol.v1.messages import (
    AGENT_LEVEL,
    MAX_DIRECTOR_VERSION,
    MAX_POLL_REPLY_LENGTH_BYTES,
    MAX_REPORTS,
    MAX_REQUEST_LENGTH_BYTES,
    NONCE_LENGTH_BYTES,
    ConsentBatch,
    PollRequest,
    ReportBatch,
    decode_consent_reply,
    decode_poll_reply,
    decode_report_reply,
)
from firmament.trust.client import DirectorClient, TrustedClient
from firmament.trust.floors import DIRECTOR
from firmament.trust.walk import BEGINNING, Device, verify_director, verify_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from firmament.agent.ports import Running, Transport
    from firmament.core.clock import Clock
    from firmament.core.ids import DeviceId
    from firmament.core.manifest import Payload
    from firmament.durable import Disk
    from firmament.protocol.parcel import Receipt
    from firmament.protocol.v1.messages import ConsentEvent, PollReply, Report
    from firmament.trust.device_keys import IdentityKey
    from firmament.trust.floors import Floors, FloorValues

log = logger("agent.link")

MAX_REPLY_LENGTH_BYTES: Final = MAX_REQUEST_LENGTH_BYTES
JSON: Final = {"Content-Type": "application/json"}
WHOLE: Final = frozenset({"whole/1"})
_BATCH_BYTES: Final = MAX_REQUEST_LENGTH_BYTES - 1024
"""What the envelopes of one batch may add up to; the rest is the batch's own JSON."""


@dataclass(frozen=True, slots=True)
class Relation:
    """What a device knows about itself and its server after enrolment."""

    device_id: DeviceId
    product: str
    hardware: str
    server_url: str
    repository_url: str
    """Base of the image repository, ending before ``metadata/`` and ``targets/``."""
    image_root: bytes
    director_root: bytes
    metadata_directory: Path
    """Holds the caches ``image/`` and ``director/``."""

    @property
    def image_metadata_url(self) -> str:
        """Where ``timestamp.json`` of the image repository is."""
        return f"{self.repository_url}/metadata/"

    @property
    def image_targets_url(self) -> str:
        """Where payloads are."""
        return f"{self.repository_url}/targets/"


def repository_of(server_url: str) -> str:
    """Return the image repository that the server itself serves."""
    return server_url.rstrip("/") + paths.IMAGE_METADATA.removesuffix("/metadata/")


@dataclass(frozen=True, slots=True)
class Cache:
    """A cache, CDN or agent nearby that may hold payloads; nothing it says is believed."""

    url: str
    """Base, ending in a slash, of ``<product>/<version>/<sha256>.<name>``."""
    transport: Transport


@dataclass
class ServerLink:
    """`ports.Link` over a transport."""

    relation: Relation
    key: IdentityKey
    transport: Transport
    disk: Disk
    clock: Clock
    floors: Floors
    methods: frozenset[str] = WHOLE
    payload_deadline_s: float = 86_400
    retry_wait_s: float = BACK_OFF_S
    caches: Sequence[Cache] = ()
    """Asked for payload bytes before the server, in this order."""
    parcel_piece_bytes: int = 64 * 1024
    """How much of a parcel is read at once; less in simulations, to cut between pieces."""
    takes_repository_parcels: bool = False
    """Whether a parcel that no director signed is enough (setting ``policy.repository_parcels``)."""
    _used: set[str] = field(default_factory=set)
    """Bases of the caches that bytes came from since `distrust_caches` was last asked."""
    _distrusted: set[str] = field(default_factory=set)
    nonce: Callable[[], bytes] = field(default=lambda: secrets.token_bytes(NONCE_LENGTH_BYTES))

    def poll(self, running: Running) -> Answer:
        """Ask and verify; see `ports.Link`. Nothing is fetched beyond what the walk needs."""
        nonce = self.nonce()
        reply = self._ask(running, nonce)
        director = DirectorClient(
            disk=self.disk,
            directory=self.relation.metadata_directory / "director",
            anchor=self.relation.director_root,
            source=_ReplySource(reply, self._source()),
            floors=self.floors,
            metadata_url=self._url(paths.DIRECTOR_METADATA),
            reference_time=BEGINNING,
        )
        issued_at, assignment = verify_director(director, nonce=nonce, device_id=self.relation.device_id)
        if assignment is None:
            return Answer(None, reply.poll_after_s, issued_at, reply.tag)
        values = self.floors.load()
        image = TrustedClient(
            disk=self.disk,
            directory=self.relation.metadata_directory / "image",
            anchor=self.relation.image_root,
            source=self._source(),
            floors=self.floors,
            metadata_url=self.relation.image_metadata_url,
            targets_url=self.relation.image_targets_url,
            reference_time=max(filter(None, (issued_at, values.time))),
        )
        release = verify_image(image, assignment, device=self._device(running, values))
        offer = Offer.of(assignment, release, issued_at)
        return Answer(offer, reply.poll_after_s, issued_at)

    def is_unchanged(self, tag: str) -> bool:
        """See `ports.Link`; the connection is done with at once, whatever comes."""
        response = self.transport.request("GET", self._url(paths.POLL), headers={"If-None-Match": f'"{tag}"'})
        response.close()
        return response.status == NOT_MODIFIED

    def carry(self, parcel: Path, running: Running) -> Answer:
        """See `ports.Link`."""
        from firmament.agent.parcel import Around, read_offer  # a device on a network never pays for it

        around = Around(
            relation=self.relation,
            disk=self.disk,
            floors=self.floors,
            now=self.clock.now(),
            takes_repository_parcels=self.takes_repository_parcels,
            device_of=lambda values: self._device(running, values),
        )
        return read_offer(parcel, around)

    def _device(self, running: Running, values: FloorValues) -> Device:
        return Device(
            device_id=self.relation.device_id,
            product=self.relation.product,
            hardware=self.relation.hardware,
            agent_level=AGENT_LEVEL,
            methods=self.methods,
            sequence_number=running.sequence_number,
            sequence_floor=values.sequence_number,
            image_digest=running.image_digest,
            held_digest=running.held_digest,
            installed_by=running.installed_by,
        )

    def open_payload(
        self, payload: Payload, *, offset: int, end: int | None = None, parcel: str = ""
    ) -> Iterator[bytes]:
        """Yield payload bytes from `offset`, continuing over dropped connections; see `ports.Link`.

        The address follows from the signed digest alone, so that an attempt can go on after a
        restart without asking again. Raises RangeError when the bytes must be fetched from 0.
        """
        end = payload.length_bytes if end is None else end
        for source in self._before_the_server(parcel):
            try:
                for piece in source.stream(payload, offset=offset, end=end):
                    self._used.add(source.name)
                    offset += len(piece)
                    yield piece
            except SourceGoneError as error:
                # What came of it is checked like any bytes; the next one, at last the server, goes on from there.
                log.info("payload.source-gone", source=source.name, code=error.cause.code, offset=offset)
            else:
                return
        server = ServerPayloads(self.relation.image_targets_url, self._source())
        yield from server.stream(payload, offset=offset, end=end)

    def _before_the_server(self, parcel: str) -> Iterator[PayloadSource]:
        if parcel:
            yield ParcelPayloads(self.disk, parcel, piece_bytes=self.parcel_piece_bytes)
        for cache in self.caches:
            if cache.url not in self._distrusted:
                yield HttpPayloads(cache.url, self._source(cache.transport))

    def distrust_caches(self) -> bool:
        """See `ports.Link`."""
        used = self._used & {cache.url for cache in self.caches}
        self._used.clear()
        self._distrusted |= used
        if used:
            log.warning("cache.distrusted", urls=" ".join(sorted(used)))
        return bool(used)

    def fetch_chunk_list(self, payload: Payload, *, parcel: str = "") -> bytes:
        """See `ports.Link`."""
        pin = payload.chunks
        assert pin is not None
        if parcel:
            from firmament.agent import parcel as carried

            try:
                return carried.fetch_chunk_list(self.disk, Path(parcel), payload)
            except PARCEL_GONE as error:
                log.info("parcel.gone", parcel=parcel, code=error.code)
        url = target_url(self.relation.image_targets_url, payload.target + CHUNKS_SUFFIX, pin.list_digest)
        return self._source().fetch(url, limit_bytes=pin.list_length_bytes(payload.length_bytes))

    def send(self, reports: Sequence[Report]) -> Sequence[int]:
        """Sign and deliver reports, oldest first; see `ports.Link`.

        A report of an earlier enrolment counts as stored: no server would take it from us now,
        and it must not stop those behind it.
        """
        accepted = [report.report_number for report in reports if report.device_id != self.relation.device_id]
        if accepted:
            log.warning("report.of-earlier-enrolment", report_numbers=accepted)
        ours = [report for report in reports if report.device_id == self.relation.device_id]
        for batch in _batches([self._sealed(report, REPORT_TYPE) for report in ours]):
            url = self._url(paths.REPORT)
            reply = self._post(url, canonical.encode(ReportBatch(batch).to_json()), limit_bytes=MAX_REPLY_LENGTH_BYTES)
            with _readable(url):
                accepted += decode_report_reply(reply).accepted
        sent = {report.report_number for report in reports}
        return [number for number in accepted if number in sent]

    def receipt(self, report: Report, *, release_id: str, image_digest: str) -> bytes:
        """See `ports.Link`."""
        from firmament.protocol.parcel import RECEIPT_TYPE, Receipt, ReceiptFile

        signed = self._sealed(report, REPORT_TYPE)
        receipt = Receipt(
            device_id=report.device_id,
            attempt_id=report.attempt_id,
            release_id=release_id,
            outcome=report.status,
            report_number=report.report_number,
            report_digest=Digest.of(canonical.encode(report.to_json())),
            version=report.version,
            sequence_number=report.sequence_number,
            image_digest=image_digest,
            at=report.at,
        )
        return canonical.encode(ReceiptFile(report.device_id, self._sealed(receipt, RECEIPT_TYPE), signed).to_json())

    def send_consents(self, events: Sequence[ConsentEvent]) -> Sequence[int]:
        """Sign and deliver consent events, oldest first; see `ports.Link`.

        Those of an earlier enrolment count as stored, as in `send`.
        """
        accepted = [event.consent_number for event in events if event.device_id != self.relation.device_id]
        ours = [event for event in events if event.device_id == self.relation.device_id]
        for batch in _batches([self._sealed(event, CONSENT_TYPE) for event in ours]):
            url = self._url(paths.CONSENT)
            reply = self._post(url, canonical.encode(ConsentBatch(batch).to_json()), limit_bytes=MAX_REPLY_LENGTH_BYTES)
            with _readable(url):
                accepted += decode_consent_reply(reply).accepted
        sent = {event.consent_number for event in events}
        return [number for number in accepted if number in sent]

    def _ask(self, running: Running, nonce: bytes) -> PollReply:
        request = PollRequest(
            nonce=nonce,
            version=running.version,
            sequence_number=running.sequence_number,
            image_digest=running.image_digest,
            boot_id=running.boot_id,
            attributes=dict(running.attributes),
            methods=tuple(sorted(self.methods)),
            failed_payloads=running.failed_payloads,
            director_version=min(self.floors.load().of(DIRECTOR).versions.get("timestamp", 0), MAX_DIRECTOR_VERSION),
        )
        url = self._url(paths.POLL)
        data = self._post(url, canonical.encode(request.to_json()), limit_bytes=MAX_POLL_REPLY_LENGTH_BYTES)
        with _readable(url):
            return decode_poll_reply(data)

    def _post(self, url: str, body: bytes, *, limit_bytes: int) -> bytes:
        response = self.transport.request("POST", url, body=body, headers=JSON)
        require_success(response, url)
        return read_body(response, limit_bytes=limit_bytes, url=url)

    def _sealed(self, message: Report | ConsentEvent | Receipt, kind: str) -> dict[str, object]:
        payload = canonical.encode(message.to_json())
        signature = self.key.sign(pre_authentication_encoding(kind, payload))
        return Envelope(payload, kind, self.key.keyid, signature).to_json()

    def _url(self, path: str) -> str:
        return self.relation.server_url.rstrip("/") + path

    def _source(self, transport: Transport | None = None) -> TransportSource:
        return TransportSource(
            transport or self.transport,
            self.clock,
            payload_deadline_s=self.payload_deadline_s,
            back_off_s=self.retry_wait_s,
        )


class _ReplySource:
    """The director's repository: the three files of one reply, and its root chain from the server."""

    def __init__(self, reply: PollReply, roots: TransportSource) -> None:
        self._files = {"timestamp": reply.timestamp, "snapshot": reply.snapshot, "targets": reply.targets}
        self._roots = roots

    def fetch(self, url: str, *, limit_bytes: int) -> bytes:
        """Return a file of the reply by its role, whatever version is asked: the walk checks it."""
        role = url.rpartition("/")[2].removesuffix(".json").rpartition(".")[2]
        if role in self._files:
            return self._files[role].encode()
        return self._roots.fetch(url, limit_bytes=limit_bytes)

    def stream(self, url: str, *, offset: int, length_bytes: int) -> Iterator[bytes]:
        """Refuse: a director serves no targets."""
        message = f"the director has no targets to fetch: {url} {offset} {length_bytes}"
        raise RuntimeError(message)


@contextlib.contextmanager
def _readable(url: str) -> Iterator[None]:
    """Say that an answer that cannot be read is a fault of the transfer, not of our request."""
    try:
        yield
    except (MalformedError, TooLargeError) as error:
        raise TransferError("The server's answer cannot be read", url=url, reason=error.problem) from error


def _batches(envelopes: Sequence[dict[str, object]]) -> Iterator[tuple[dict[str, object], ...]]:
    batch: list[dict[str, object]] = []
    length = 0
    for envelope in envelopes:
        size = len(canonical.encode(envelope)) + 1
        if batch and (len(batch) >= MAX_REPORTS or length + size > _BATCH_BYTES):
            yield tuple(batch)
            batch, length = [], 0
        batch.append(envelope)
        length += size
    if batch:
        yield tuple(batch)
