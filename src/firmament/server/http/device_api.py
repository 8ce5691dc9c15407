"""The device API, version 1, as raw ASGI: it translates HTTP and decides nothing (house rule 7).

Dispatched before the operator's framework, because most requests a server ever sees are polls
(stack.md §1). Every answer that is not 2xx or 3xx is problem+json with a published code.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from firmament.core.consent import Mode
from firmament.errors import (
    FirmamentError,
    MalformedError,
    NotFoundError,
    OverloadedError,
    UnauthenticatedError,
)
from firmament.log import logger
from firmament.protocol.v1 import paths
from firmament.protocol.v1.messages import (
    MAX_REQUEST_LENGTH_BYTES,
    ConsentReply,
    EnrolReply,
    ReportReply,
    decode_consent_batch,
    decode_enrol_request,
    decode_poll_request,
    decode_report_batch,
)
from firmament.server import device_link, events, versions
from firmament.server.attempts import service as attempts
from firmament.server.attempts import taking
from firmament.server.attempts.machine import MAY_STILL_ASK
from firmament.server.attempts.taking import Told
from firmament.server.consent import answers
from firmament.server.consent.rules import asked_at_least
from firmament.server.device_link import Intervals, Session
from firmament.server.events import Event
from firmament.server.http.conditional import ConditionalPolls
from firmament.server.http.downloads import IMMUTABLE, NO_CACHE, CutOffError
from firmament.server.http.messages import (
    GoneError,
    answer,
    answer_encoded,
    answer_json,
    new_request_id,
    problem,
    read_body,
    unexpected,
)
from firmament.server.inventory import service as inventory
from firmament.server.payloads import content_keys
from firmament.server.payloads.store import FileSource
from firmament.server.products import owner
from firmament.server.reports import open_consent_event, open_report
from firmament.server.rollouts import offers
from firmament.server.scope import of_device
from firmament.trust.director import LastSaid, Snapshots, make_reply, say_nothing_to_do
from firmament.trust.roles import ROOT, SNAPSHOT, TARGETS, TIMESTAMP

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from datetime import datetime
    from typing import Any

    from firmament.protocol.v1.messages import PollReply, PollRequest, Report
    from firmament.server.authority import PeerIdentity
    from firmament.server.device_link import Reply
    from firmament.server.http.downloads import Downloads
    from firmament.server.http.front import Front
    from firmament.server.http.messages import AsgiScope, Receive, Send
    from firmament.server.inventory.model import Device
    from firmament.server.parts import Parts
    from firmament.server.payloads.content_keys import Openable
    from firmament.trust.director import Assignment

log = logger("server.device-api")

PREFIX: Final = "/v1/"
COMMON_ROLES: Final = frozenset({ROOT, TARGETS, SNAPSHOT, TIMESTAMP})
_METADATA_NAME: Final = re.compile(r"(?:[1-9][0-9]{0,18}\.[a-z0-9-]{1,63}|timestamp)\.json")
_ROOT_NAME: Final = re.compile(r"[1-9][0-9]{0,18}\.root\.json")
_TARGET_NAME: Final = re.compile(
    r"[a-z0-9-]{1,63}/[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}/[0-9a-f]{64}\.[A-Za-z0-9._+-]{1,200}"
)


@dataclass(slots=True)
class _Exchange:
    """One request and what is known about it for its log line."""

    scope: AsgiScope
    receive: Receive
    send: Send
    request_id: str
    address: str
    status: int = 0
    device_id: str = ""
    code: str = ""


class DeviceApi:
    """Everything below ``/v1/``."""

    def __init__(self, parts: Parts, downloads: Downloads, front: Front | None = None) -> None:
        self._parts = parts
        self._downloads = downloads
        self._intervals = Intervals(parts.settings.poll_interval_s, parts.settings.poll_interval_active_s)
        self._snapshots = Snapshots(parts.director_keys.snapshot)
        self._last_said = LastSaid()
        self.conditional = ConditionalPolls(parts, front)
        self._posts: Mapping[str, Callable[[_Exchange], Awaitable[None]]] = {
            paths.POLL: self._poll,
            paths.REPORT: self._report,
            paths.ENROL: self._enrol,
            paths.CONSENT: self._consent,
        }

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] == "GET" and scope["path"] == paths.POLL:
            await answer(send, *await self.conditional.answer(scope))
            return
        client = scope.get("client")
        exchange = _Exchange(scope, receive, send, new_request_id(), client[0] if client else "")
        started_s = self._parts.clock.monotonic_s()
        try:
            await self._dispatch(exchange)
        except GoneError:
            exchange.code = "gone"
        except CutOffError:
            exchange.code = "cut-off"
            self._log(exchange, started_s)
            raise
        except FirmamentError as error:
            await self._refuse(exchange, error)
        except Exception as error:  # noqa: BLE001 - a defect of ours: logged with its trace, answered with a 500
            await self._refuse(exchange, unexpected(error, exchange.request_id))
        self._log(exchange, started_s)

    async def _refuse(self, exchange: _Exchange, error: FirmamentError) -> None:
        exchange.status, headers, body = problem(error, exchange.request_id)
        exchange.code = error.code
        await answer(exchange.send, exchange.status, headers, body)

    def _log(self, exchange: _Exchange, started_s: float) -> None:
        is_quiet = not exchange.code and exchange.scope["path"] == paths.POLL
        if is_quiet and not log.is_debugging:
            return
        say = log.debug if is_quiet else log.info
        say(
            "request.done",
            request_id=exchange.request_id,
            method=exchange.scope["method"],
            path=exchange.scope["path"],
            status=exchange.status,
            code=exchange.code,
            device_id=exchange.device_id,
            address=exchange.address,
            duration_s=round(self._parts.clock.monotonic_s() - started_s, 4),
        )

    async def _dispatch(self, exchange: _Exchange) -> None:
        parts = self._parts
        parts.address_limit.require(exchange.address, parts.clock.monotonic_s(), what="requests from this address")
        path, method = exchange.scope["path"], exchange.scope["method"]
        handler = self._posts.get(path)
        if handler is not None:
            if method != "POST":
                raise MalformedError("This path takes POST only", method=method)
            await handler(exchange)
            return
        if method not in {"GET", "HEAD"}:
            raise MalformedError("This path takes GET and HEAD only", method=method)
        for prefix, grammar, directory in (
            (paths.IMAGE_METADATA, _METADATA_NAME, parts.layout.image_metadata),
            (paths.IMAGE_TARGETS, _TARGET_NAME, None),
            (paths.DIRECTOR_METADATA, _ROOT_NAME, parts.layout.director_metadata),
        ):
            if path.startswith(prefix):
                name = path.removeprefix(prefix)
                is_public = parts.settings.repository_access == "public" and prefix != paths.DIRECTOR_METADATA
                device = None if is_public else (await self._device(exchange))[0]
                peer = exchange.address if device is None else device.device_id
                if not grammar.fullmatch(name) or not await self._may_fetch(device, prefix, name):
                    raise NotFoundError("There is no such file in the repository", name=name[:80])
                if directory is not None and (name == "timestamp.json" or not (directory / name).is_file()):
                    # Another server may have published since: what a device sees must never go back.
                    await parts.publisher.catch_up()
                cache_control = NO_CACHE if name == "timestamp.json" else IMMUTABLE
                if directory is None and "is_fronted" in exchange.scope["state"] and parts.settings.front_prefix:
                    await self._redirect(exchange, name, cache_control)
                    return
                exchange.status = await self._downloads.send_source(
                    exchange.scope,
                    exchange.send,
                    await parts.blobs.open_target(name) if directory is None else FileSource(directory / name),
                    peer=peer,
                    cache_control=cache_control,
                    request_id=exchange.request_id,
                )
                return
        raise NotFoundError("There is no such path", path=path[:80])

    async def _redirect(self, exchange: _Exchange, name: str, cache_control: str) -> None:
        """Let the front server send a payload: it reads this header itself and shows it to nobody."""
        blobs = self._parts.blobs
        (await blobs.open_target(name)).close()
        exchange.status = 200
        where = self._parts.settings.front_prefix + blobs.redirect(name)
        headers = (
            (b"x-accel-redirect", where.encode()),
            (b"cache-control", cache_control.encode()),
            (b"content-type", b"application/octet-stream"),
            (b"x-request-id", exchange.request_id.encode()),
        )
        await answer(exchange.send, 200, headers)

    async def _may_fetch(self, device: Device | None, prefix: str, name: str) -> bool:
        """Whether a file is common to all tenants, or of a product of the device's own (ADR-0016)."""
        if device is None or prefix == paths.DIRECTOR_METADATA or name == "timestamp.json":
            return True
        product = name.partition("/")[0] if prefix == paths.IMAGE_TARGETS else name.split(".")[1]
        if product in COMMON_ROLES:
            return True
        return await self._parts.database.read(lambda connection: owner(connection, product)) == device.tenant_id

    async def _device(self, exchange: _Exchange) -> tuple[Device, Session]:
        """Return who speaks: a verified certificate, an enrolled device, its registered key, enabled."""
        parts = self._parts
        peer: PeerIdentity | None = exchange.scope["state"].get("peer")
        if peer is None:
            raise UnauthenticatedError("This needs a device certificate")
        exchange.device_id = peer.device_id
        parts.device_limit.require(peer.device_id, parts.clock.monotonic_s(), what="requests of this device")
        found = await parts.link_reader.find(peer.device_id)
        if found is None:
            raise UnauthenticatedError("This device is not enrolled here", device_id=peer.device_id)
        device, attempt, target = found
        device_link.require_identity(
            peer.device_id, is_disabled=device.is_disabled, enrolled=device.identity_keyid, shown=peer.keyid
        )
        parts.last_seen.note(
            device.row_id,
            int(parts.clock.now().timestamp()),
            exchange.address,
            is_idle_poll=attempt is None and exchange.scope["path"] == paths.POLL,
        )
        return device, Session(device, attempt, target)

    async def _body(self, exchange: _Exchange) -> bytes:
        return await read_body(
            exchange.scope,
            exchange.receive,
            limit_bytes=MAX_REQUEST_LENGTH_BYTES,
            deadline_s=self._parts.settings.body_deadline_s,
        )

    async def _json(self, exchange: _Exchange, value: Any) -> None:
        exchange.status = 200
        await answer_json(exchange.send, 200, value, request_id=exchange.request_id)

    # --- the three messages ----------------------------------------------------------------

    async def _poll(self, exchange: _Exchange) -> None:
        device, session = await self._device(exchange)
        poll = decode_poll_request(await self._body(exchange))
        now = self._parts.clock.now()
        session = await self._offered(session, poll, now)
        openable = await self._openable(session)
        _, effects = device_link.on_poll(
            session,
            poll,
            intervals=self._intervals,
            openable=openable.held,
            why_closed=openable.reason,
            consent=await self._asked_at_least(session, now),
        )
        reply = device_link.replies(effects)
        changes = [effect for effect in effects if effect is not reply]
        if changes:
            scope = of_device(device.tenant_id, device.device_id)
            await self._parts.database.submit(
                lambda connection: attempts.carry_out(connection, scope, device, changes, now)
            )
        signed = await self._sign(device, poll, reply, self._with_keys(device, reply, openable), now)
        if session.attempt is None and not self._may_begin(session, poll, now):
            signed = replace(signed, tag=self.conditional.tag)
        exchange.status = 200
        await answer_encoded(exchange.send, 200, signed.encode(), request_id=exchange.request_id)

    async def _sign(
        self, device: Device, poll: PollRequest, reply: Reply, assignment: Assignment | None, now: datetime
    ) -> PollReply:
        keys, device_id, trusted = self._parts.director_keys, device.device_id, poll.director_version
        version = await reply_version(self._parts, device_id, int(now.timestamp()), trusted=trusted)
        if assignment is None:
            return say_nothing_to_do(
                keys,
                self._last_said,
                device_id=device_id,
                nonce=poll.nonce,
                now=now,
                version=version,
                trusted=trusted,
                poll_after_s=reply.poll_after_s,
                snapshots=self._snapshots,
            )
        self._last_said.forget(device_id)
        return make_reply(
            keys,
            device_id=device_id,
            nonce=poll.nonce,
            assignment=assignment,
            now=now,
            version=version,
            poll_after_s=reply.poll_after_s,
            snapshots=self._snapshots,
        )

    async def _openable(self, session: Session) -> Openable:
        """Return what may be wrapped for this device; asks nothing unless its release is sealed."""
        device, attempt = session.device, session.attempt
        if attempt is None or not content_keys.is_sealed(attempt.manifest):
            return content_keys.NOTHING_SEALED
        manifest = attempt.manifest
        found = await self._parts.database.read(
            lambda connection: content_keys.openable(connection, device.tenant_id, device.row_id, manifest)
        )
        return found.within(self._parts.custodian)

    def _with_keys(self, device: Device, reply: Reply, openable: Openable) -> Assignment | None:
        """Put the wraps to what the reply names; about 0.2 ms for each sealed payload."""
        if reply.assignment is None:
            return None
        custodian, device_id = self._parts.custodian, device.device_id
        return replace(
            reply.assignment,
            key_wrap=openable.wrap_for(custodian, reply.chosen, device_id=device_id),
            fallback=reply.fallback.target if reply.fallback is not None else "",
            fallback_wrap=openable.wrap_for(custodian, reply.fallback, device_id=device_id),
        )

    async def _offered(self, session: Session, poll: PollRequest, now: datetime) -> Session:
        """Let the rollout that wants this device start it, if it may; then there is an open attempt."""
        device = session.device
        if session.attempt is not None or not self._may_begin(session, poll, now):
            return session
        facts = offers.describe(device, poll)
        has_begun = await self._parts.database.submit(
            lambda connection: offers.begin(connection, device.row_id, facts, offers.polled(poll), now)
        )
        found = await self._parts.link_reader.find(device.device_id) if has_begun else None
        return session if found is None else Session(*found)

    def _may_begin(self, session: Session, poll: PollRequest, now: datetime) -> bool:
        return session.target is not None and self._parts.board.may_begin(
            session.target, sequence_number=poll.sequence_number, attributes=session.device.attributes, now=now
        )

    async def _asked_at_least(self, session: Session, now: datetime) -> Mode:
        """Return what operators ask of the device at least, while its answer still matters."""
        attempt, device = session.attempt, session.device
        if attempt is None or attempt.takes_back is not None or attempt.state not in MAY_STILL_ASK:
            return Mode.AUTOMATIC
        scope, update_class = of_device(device.tenant_id, device.device_id), attempt.manifest.update_class
        return await self._parts.database.read(
            lambda connection: asked_at_least(connection, scope, device.row_id, update_class, now)
        )

    async def _report(self, exchange: _Exchange) -> None:
        device, _ = await self._device(exchange)
        batch = decode_report_batch(await self._body(exchange))
        opened = await asyncio.gather(
            *(self._opened(device, value) for value in batch.envelopes), return_exceptions=True
        )
        # All in this order before the first is awaited: what arrives together is stored together.
        answers = await asyncio.gather(*map(self._take, opened), return_exceptions=True)
        accepted: list[int] = []
        refused: FirmamentError | None = None
        for found in answers:
            if isinstance(found, FirmamentError):
                refused = refused or found
                exchange.code = found.code
                await self._note_refusal(device, found)
            elif isinstance(found, BaseException):
                raise found
            else:
                accepted.append(found)
        if refused is not None and not accepted:
            raise refused
        await self._json(exchange, ReportReply(tuple(accepted)).to_json())

    async def _opened(self, device: Device, value: Mapping[str, Any]) -> Told:
        identity_key = await self._parts.link_reader.identity_key(device)
        report, payload = open_report(value, identity_key=identity_key, keyid=device.identity_keyid)
        found = await self._parts.link_reader.attempt(report.attempt_id)
        attempt, owner = found if found is not None else (None, None)
        about = Session(device, attempt)
        device_link.check_report(about, report, owner_row_id=owner)
        return Told(about, report, payload, self._parts.clock.now())

    async def _take(self, told: Told | BaseException) -> int:
        if isinstance(told, BaseException):
            raise told
        await self._parts.database.submit_among(taking.take_reports, told)
        self._log_report(told.session.device, told.report)
        return told.report.report_number

    def _log_report(self, device: Device, report: Report) -> None:
        log.info(
            "attempt.reported",
            device_id=device.device_id,
            attempt_id=report.attempt_id,
            status=report.status.value,
            code=report.code,
            report_number=report.report_number,
        )

    async def _note_refusal(self, device: Device, error: FirmamentError) -> None:
        scope = of_device(device.tenant_id, device.device_id)
        note = device_link.refusal_note(error, number=None)
        await self._parts.database.submit(
            lambda connection: attempts.carry_out(connection, scope, device, [note], self._parts.clock.now())
        )

    async def _consent(self, exchange: _Exchange) -> None:
        device, _ = await self._device(exchange)
        batch = decode_consent_batch(await self._body(exchange))
        accepted: list[int] = []
        refused: FirmamentError | None = None
        for value in batch.envelopes:
            try:
                accepted.append(await self._one_answer(device, value))
            except FirmamentError as error:
                refused = refused or error
                exchange.code = error.code
                await self._note_refused_answer(device, error.code)
        if refused is not None and not accepted:
            raise refused
        await self._json(exchange, ConsentReply(tuple(accepted)).to_json())

    async def _note_refused_answer(self, device: Device, code: str) -> None:
        scope, now = of_device(device.tenant_id, device.device_id), self._parts.clock.now()
        await self._parts.database.submit(
            lambda connection: events.append(
                connection, scope, Event.CONSENT_REFUSED, now, subject=device.device_id, code=code
            )
        )

    async def _one_answer(self, device: Device, value: Mapping[str, Any]) -> int:
        identity_key = await self._parts.link_reader.identity_key(device)
        event, envelope = open_consent_event(value, identity_key=identity_key, keyid=device.identity_keyid)
        scope = of_device(device.tenant_id, device.device_id)
        await self._parts.database.submit(
            lambda connection: answers.take_event(connection, scope, device, event, envelope, self._parts.clock.now())
        )
        return event.consent_number

    async def _enrol(self, exchange: _Exchange) -> None:
        parts = self._parts
        parts.enrolment_limit.require(exchange.address, parts.clock.monotonic_s(), what="enrolments")
        request = decode_enrol_request(await self._body(exchange))
        applicant = inventory.applicant(
            product=request.product,
            hardware=request.hardware,
            serial=request.serial,
            csr_pem=request.csr_pem,
            hpke_public_key=request.hpke_public_key,
        )
        try:
            enrolled = await parts.database.submit(
                lambda connection: inventory.enrol_with_token(
                    connection, parts.registrar, request.token, applicant, parts.clock.now()
                )
            )
        except FirmamentError as error:
            code, address, product = error.code, exchange.address, request.product
            await parts.database.submit(
                lambda connection: inventory.note_refused_enrolment(
                    connection, code=code, address=address, product=product, now=parts.clock.now()
                )
            )
            raise
        exchange.device_id = enrolled.device_id
        await self._json(exchange, EnrolReply(enrolled.device_id, enrolled.certificate_chain_pem).to_json())


async def reply_version(parts: Parts, device_id: str, unix_s: int, *, trusted: int) -> int:
    """Return the version of the director's next word to a device; raises OverloadedError.

    `trusted` is the highest that the device says it trusts, 0 when it was not asked.
    """
    for _ in range(2):
        number = parts.reply_versions.next(device_id, unix_s, trusted=trusted)
        if number is not None:
            return number
        await extend_horizon(parts, unix_s)
    raise OverloadedError("No version number could be reserved", retry_after_s=1)


async def extend_horizon(parts: Parts, unix_s: int) -> None:
    """Store the next block of director versions if the present one runs out."""
    wanted = parts.reply_versions.wanted_horizon(unix_s)
    if wanted is not None:
        await parts.database.submit(lambda connection: versions.raise_horizon(connection, wanted))
        parts.reply_versions.stored(wanted)
