"""The operator API: what the release tool, the command line and later the console use.

Each handler reads its fields, asks a service in the caller's `Scope`, and answers; rules live in
the services. Refusals are problem+json everywhere, also the framework's own.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Request, Response

from firmament import __version__
from firmament.core.canonical import decode_object
from firmament.core.fields import Fields
from firmament.core.ids import HARDWARE, PRODUCT, VERSION, check
from firmament.errors import MalformedError, SlowError, UnauthenticatedError
from firmament.protocol.v1.messages import HPKE_PUBLIC_KEY_LENGTH_BYTES, EnrolReply
from firmament.server import events, products, questions
from firmament.server.attempts import service as attempts
from firmament.server.http import shapes
from firmament.server.http.messages import content_length, read_body
from firmament.server.inventory import service as inventory
from firmament.server.inventory import store as inventory_store
from firmament.server.payloads.store import digest_of_hex
from firmament.server.people import service as people
from firmament.server.people.passwords import hash_password, verify_password
from firmament.server.releases import store as releases
from firmament.server.releases.model import MAX_FILES, Submission
from firmament.server.scope import Action, Role, Scope

if TYPE_CHECKING:
    from firmament.server.attempts.model import AttemptRecord
    from firmament.server.inventory.model import DeviceRecord
    from firmament.server.parts import Parts

MAX_BODY_LENGTH_BYTES: Final = 64 * 1024
MAX_PUBLISH_LENGTH_BYTES: Final = 64 * 1024 * 1024
# Ten product roles at TUF's limit of 5 MB each; a usual publish is below 100 KiB.
MAX_METADATA_FILE_CHARACTERS: Final = 5_000_000
CHANNEL: Final = PRODUCT
DAY_S: Final = 86_400
TEXT: Final = "string"
INTEGER: Final = "integer"
OBJECT: Final = "object"


class OperatorApi:
    """Handlers with the parts they use."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.router = APIRouter(
            responses={
                400: {"model": shapes.Problem, "description": "The request cannot be done"},
                401: {"model": shapes.Problem, "description": "Sign in first"},
                403: {"model": shapes.Problem, "description": "The role or token does not allow it"},
            }
        )
        self._add_people()
        self._add_image()
        self._add_inventory()
        self._add_questions()

    # --- who is asking ---------------------------------------------------------------------

    def _scope(self, request: Request) -> Scope:
        """Return who a bearer token speaks for; raises UnauthenticatedError."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise UnauthenticatedError("This needs an operator token")
        return people.scope_of_token(self._parts.reader, token.strip(), self._parts.clock.now())

    def _readable(self, request: Request, *, product: str | None = None) -> Scope:
        scope = self._scope(request)
        scope.require(Action.READ, product=product)
        return scope

    async def _fields(self, request: Request, *, limit_bytes: int = MAX_BODY_LENGTH_BYTES) -> Fields:
        body = await read_body(
            request.scope, request.receive, limit_bytes=limit_bytes, deadline_s=self._parts.settings.body_deadline_s
        )
        return Fields(decode_object(body, limit_bytes=limit_bytes, what="The body"), what="body")

    # --- people ----------------------------------------------------------------------------

    def _add_people(self) -> None:
        router = self.router
        router.get("/health", response_model=shapes.Health, summary="Say that the server answers")(self.health)
        router.post(
            "/api/v1/login",
            response_model=shapes.Token,
            summary="Sign in with a name and a password",
            openapi_extra=shapes.takes({"name": TEXT, "password": TEXT}),
        )(self.login)
        router.post("/api/v1/logout", status_code=204, summary="Make the token used here useless")(self.logout)
        router.post(
            "/api/v1/tokens",
            response_model=shapes.Token,
            status_code=201,
            summary="Make a token that may do at most what this one may",
            openapi_extra=shapes.takes({"role": TEXT, "expires_in_s": INTEGER}, {"product": TEXT, "label": TEXT}),
        )(self.make_token)
        router.get("/api/v1/people", response_model=shapes.People, summary="List people")(self.list_people)
        router.post(
            "/api/v1/people",
            response_model=shapes.Person,
            status_code=201,
            summary="Add a person",
            openapi_extra=shapes.takes({"name": TEXT, "role": TEXT, "password": TEXT}),
        )(self.add_person)
        router.delete("/api/v1/people/{name}", status_code=204, summary="Disable a person and all their tokens")(
            self.disable_person
        )
        router.get("/api/v1/events", response_model=shapes.Events, summary="Read what happened")(self.list_events)

    async def health(self) -> dict[str, Any]:
        """Answer without a token: for load balancers and people who wonder."""
        return {"status": "ok", "version": __version__}

    async def login(self, request: Request) -> dict[str, Any]:
        """Check a password in a thread and open a session."""
        parts = self._parts
        address = request.client.host if request.client else ""
        parts.login_limit.require(address, parts.clock.monotonic_s(), what="sign-in attempts")
        fields = await self._fields(request)
        name, password = fields.text("name", max_length=64), fields.text("password", max_length=256)
        found = people.credentials(parts.reader, name)
        is_right = await asyncio.to_thread(verify_password, found.hashed, password)
        issued = await parts.writer.submit(
            lambda connection: people.open_session(
                connection, found, is_right=is_right, label="session", now=parts.clock.now()
            )
        )
        if issued is None:
            raise UnauthenticatedError("Name or password is wrong, or the name is locked for a while")
        return _token(issued)

    async def logout(self, request: Request) -> Response:
        """Revoke the token that is used."""
        scope = self._scope(request)
        token = request.headers["authorization"].partition(" ")[2].strip()
        now = self._parts.clock.now()
        await self._parts.writer.submit(lambda connection: people.revoke_token(connection, scope, token, now))
        return Response(status_code=204)

    async def make_token(self, request: Request) -> dict[str, Any]:
        """Issue a narrower or equal token."""
        scope = self._scope(request)
        fields = await self._fields(request)
        role = fields.one_of("role", Role)
        product = fields.maybe("product", fields.text)
        lifetime = timedelta(seconds=fields.integer("expires_in_s", minimum=1, maximum=366 * DAY_S))
        label = fields.text("label", max_length=80, default="")
        now = self._parts.clock.now()
        return _token(
            await self._parts.writer.submit(
                lambda connection: people.issue_token(
                    connection, scope, role=role, product=product, lifetime=lifetime, label=label, now=now
                )
            )
        )

    async def list_people(self, request: Request) -> dict[str, Any]:
        """List everybody."""
        return {"people": people.list_people(self._parts.reader, self._scope(request))}

    async def add_person(self, request: Request) -> dict[str, Any]:
        """Add somebody; the password is hashed in a thread."""
        scope = self._scope(request)
        scope.require(Action.MANAGE_PEOPLE)
        fields = await self._fields(request)
        name, role = fields.text("name", max_length=64), fields.one_of("role", Role)
        hashed = await asyncio.to_thread(hash_password, fields.text("password", max_length=256))
        now = self._parts.clock.now()
        await self._parts.writer.submit(
            lambda connection: people.add_person(connection, scope, name=name, role=role, password_hash=hashed, now=now)
        )
        return {"name": name, "role": role.value, "disabled": False, "created_at": int(now.timestamp())}

    async def disable_person(self, request: Request, name: str) -> Response:
        """Disable somebody."""
        scope, now = self._scope(request), self._parts.clock.now()
        await self._parts.writer.submit(lambda connection: people.disable_person(connection, scope, name=name, now=now))
        return Response(status_code=204)

    async def list_events(self, request: Request) -> dict[str, Any]:
        """Return one page; `after` is the id of the last one seen."""
        scope = self._readable(request)
        after = _integer(request, "after", 0)
        subject = request.query_params.get("subject")
        limit = _integer(request, "limit", 100)
        found = events.list_events(self._parts.reader, scope, subject=subject, after=after, limit=limit)
        return {"events": found}

    # --- image repository ------------------------------------------------------------------

    def _add_image(self) -> None:
        router = self.router
        blob = "/api/v1/blobs/{sha256}"
        body = {"requestBody": {"required": True, "content": {"application/octet-stream": {}}}}
        router.put(blob, response_model=shapes.Blob, summary="Upload bytes", openapi_extra=body)(self.put_blob)
        router.head(blob, summary="Ask whether bytes are there")(self.head_blob)
        router.post(
            "/api/v1/image/publish",
            response_model=shapes.PublishResult,
            summary="Publish signed metadata, all of it or nothing",
            openapi_extra=shapes.takes({"metadata": OBJECT}, {"director_roots": OBJECT}),
        )(self.publish)
        router.get("/api/v1/image/state", response_model=shapes.ImageState, summary="Versions of every role")(
            self.image_state
        )
        router.get("/api/v1/products", response_model=shapes.Products, summary="List products")(self.list_products)
        router.get("/api/v1/releases", response_model=shapes.Releases, summary="List releases")(self.list_releases)
        release = "/api/v1/releases/{product}/{version}"
        router.get(release, response_model=shapes.ReleaseDetail, summary="Show a release")(self.get_release)
        router.post(
            release + "/promote",
            response_model=shapes.ReleaseDetail,
            summary="Let a channel name this release",
            openapi_extra=shapes.takes({"channel": TEXT}),
        )(self.promote)

    async def put_blob(self, request: Request, response: Response, sha256: str) -> dict[str, Any]:
        """Receive bytes; they are durable and digested when this answers. Idempotent."""
        self._scope(request).require(Action.UPLOAD)
        digest = digest_of_hex(sha256)
        blobs = self._parts.blobs
        is_new = blobs.length_bytes(digest) is None
        upload = await asyncio.to_thread(blobs.receive, digest, expected_bytes=content_length(request.scope))
        try:
            chunks = request.stream()
            while True:
                # No limit on the whole: a large image over a slow line is fine while it moves.
                async with asyncio.timeout(self._parts.settings.body_deadline_s):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                await asyncio.to_thread(upload.write, chunk)
            length = await asyncio.to_thread(upload.finish)
        except TimeoutError:
            raise SlowError("The upload stopped", deadline_s=self._parts.settings.body_deadline_s) from None
        finally:
            await asyncio.to_thread(upload.abandon)
        response.status_code = 201 if is_new else 200
        return {"sha256": sha256, "length_bytes": length}

    async def head_blob(self, request: Request, sha256: str) -> Response:
        """Say whether bytes are there; 200 or 404."""
        self._scope(request).require(Action.UPLOAD)
        length = self._parts.blobs.length_bytes(digest_of_hex(sha256))
        if length is None:
            return Response(status_code=404)
        return Response(status_code=200, headers={"content-length": str(length)})

    async def publish(self, request: Request) -> dict[str, Any]:
        """Publish; see `releases.admission`."""
        scope = self._scope(request)
        scope.require(Action.PUBLISH)
        fields = await self._fields(request, limit_bytes=MAX_PUBLISH_LENGTH_BYTES)
        submission = Submission(_files(fields, "metadata"), _files(fields, "director_roots"))
        return await self._parts.publisher.publish(scope, submission)

    async def image_state(self, request: Request) -> dict[str, Any]:
        """Return what is published."""
        self._readable(request)
        return self._parts.publisher.published.state()

    async def list_products(self, request: Request) -> dict[str, Any]:
        """List product lines."""
        return {"products": products.list_products(self._parts.reader, self._readable(request))}

    async def list_releases(self, request: Request) -> dict[str, Any]:
        """List releases, of one product or all."""
        product = request.query_params.get("product")
        return {"releases": releases.list_releases(self._parts.reader, self._readable(request), product=product)}

    async def get_release(self, request: Request, product: str, version: str) -> dict[str, Any]:
        """Show one release."""
        scope = self._readable(request, product=product)
        return releases.get_release(self._parts.reader, scope, product=product, version=version)

    async def promote(self, request: Request, product: str, version: str) -> dict[str, Any]:
        """Point a channel at a release."""
        scope = self._scope(request)
        channel = (await self._fields(request)).text("channel", max_length=63, pattern=CHANNEL)
        now = self._parts.clock.now()
        await self._parts.writer.submit(
            lambda connection: releases.promote(
                connection, scope, product=product, version=version, channel=channel, now=now
            )
        )
        return releases.get_release(self._parts.reader, scope, product=product, version=version)

    # --- inventory and attempts ------------------------------------------------------------

    def _add_inventory(self) -> None:
        router = self.router
        device = "/api/v1/devices/{device_id}"
        router.get("/api/v1/devices", response_model=shapes.Devices, summary="List devices")(self.list_devices)
        router.get(device, response_model=shapes.Device, summary="Show a device")(self.get_device)
        router.get(device + "/attempts", response_model=shapes.Attempts, summary="List a device's attempts")(
            self.list_attempts
        )
        router.post(
            device + "/assign",
            response_model=shapes.Assigned,
            summary="Assign a release to a device",
            openapi_extra=shapes.takes({"release": TEXT}),
        )(self.assign)
        router.delete(device + "/assign", response_model=shapes.Assigned, summary="Take the assignment back")(
            self.unassign
        )
        router.post(device + "/disable", status_code=204, summary="Refuse a device from now on")(self.disable_device)
        router.post(device + "/enable", status_code=204, summary="Take a disabled device back")(self.enable_device)
        router.post(
            "/api/v1/enrolment-tokens",
            response_model=shapes.EnrolmentToken,
            status_code=201,
            summary="Make a one-time enrolment token",
            openapi_extra=shapes.takes({"product": TEXT, "expires_in_s": INTEGER}, {"hardware": TEXT, "uses": INTEGER}),
        )(self.make_enrolment_token)
        router.post(
            "/api/v1/enrolments/csr",
            response_model=shapes.Enrolment,
            status_code=201,
            summary="Enrol a device by its certificate request (factory)",
            openapi_extra=shapes.takes(
                {"csr_pem": TEXT, "product": TEXT, "hardware": TEXT, "hpke_public_key": TEXT}, {"serial": TEXT}
            ),
        )(self.enrol_by_request)

    async def list_devices(self, request: Request) -> dict[str, Any]:
        """Return one page of devices."""
        scope = self._readable(request)
        limit = max(1, min(_integer(request, "limit", 100), inventory_store.MAX_PAGE))
        found = inventory_store.list_devices(
            self._parts.reader,
            scope,
            product=request.query_params.get("product"),
            after=_integer(request, "cursor", 0),
            limit=limit,
        )
        return {
            "devices": [_device(record) for record in found],
            "next": str(found[-1].row_id) if len(found) == limit else None,
        }

    async def get_device(self, request: Request, device_id: str) -> dict[str, Any]:
        """Show one device."""
        return _device(inventory_store.get_device(self._parts.reader, self._readable(request), device_id))

    async def list_attempts(self, request: Request, device_id: str) -> dict[str, Any]:
        """List one device's attempts."""
        found = attempts.list_attempts(self._parts.reader, self._readable(request), device_id)
        return {"attempts": [_attempt(record) for record in found]}

    async def assign(self, request: Request, device_id: str) -> dict[str, Any]:
        """Open an attempt."""
        scope = self._scope(request)
        product, _, version = (await self._fields(request)).text("release", max_length=128).partition("/")
        check(product, PRODUCT, what="The product name")
        check(version, VERSION, what="The version")
        now = self._parts.clock.now()
        attempt_id = await self._parts.writer.submit(
            lambda connection: attempts.assign(
                connection, scope, device_id=device_id, product=product, version=version, now=now
            )
        )
        return {"attempt_id": attempt_id}

    async def unassign(self, request: Request, device_id: str) -> dict[str, Any]:
        """Cancel the open attempt."""
        scope, now = self._scope(request), self._parts.clock.now()
        attempt_id = await self._parts.writer.submit(
            lambda connection: attempts.unassign(connection, scope, device_id=device_id, now=now)
        )
        return {"attempt_id": attempt_id}

    async def disable_device(self, request: Request, device_id: str) -> Response:
        """Refuse a device."""
        return await self._set_disabled(request, device_id, disabled=True)

    async def enable_device(self, request: Request, device_id: str) -> Response:
        """Accept a device again."""
        return await self._set_disabled(request, device_id, disabled=False)

    async def _set_disabled(self, request: Request, device_id: str, *, disabled: bool) -> Response:
        scope, now = self._scope(request), self._parts.clock.now()
        await self._parts.writer.submit(
            lambda connection: inventory.set_disabled(connection, scope, device_id, disabled=disabled, now=now)
        )
        return Response(status_code=204)

    async def make_enrolment_token(self, request: Request) -> dict[str, Any]:
        """Issue a token for one or more devices of one kind."""
        scope = self._scope(request)
        fields = await self._fields(request)
        product = fields.text("product", pattern=PRODUCT)
        hardware = fields.text("hardware", pattern=HARDWARE) if "hardware" in fields else None
        lifetime = timedelta(seconds=fields.integer("expires_in_s", minimum=1, maximum=366 * DAY_S))
        uses = fields.integer("uses", minimum=1, default=1)
        now = self._parts.clock.now()
        token = await self._parts.writer.submit(
            lambda connection: inventory.issue_enrolment_token(
                connection, scope, product=product, hardware=hardware, lifetime=lifetime, uses=uses, now=now
            )
        )
        return {"token": token}

    async def enrol_by_request(self, request: Request) -> dict[str, Any]:
        """Certify a device that an operator vouches for."""
        scope = self._scope(request)
        fields = await self._fields(request)
        applicant = inventory.applicant(
            product=fields.text("product", pattern=PRODUCT),
            hardware=fields.text("hardware", pattern=HARDWARE),
            serial=fields.text("serial", max_length=128, default=""),
            csr_pem=fields.text("csr_pem", max_length=8192),
            hpke_public_key=fields.hex_bytes("hpke_public_key", length=HPKE_PUBLIC_KEY_LENGTH_BYTES),
        )
        now = self._parts.clock.now()
        enrolled = await self._parts.writer.submit(
            lambda connection: inventory.enrol_with_request(connection, scope, self._parts.registrar, applicant, now)
        )
        return EnrolReply(enrolled.device_id, enrolled.certificate_chain_pem).to_json()

    # --- stateless questions ---------------------------------------------------------------

    def _add_questions(self) -> None:
        router = self.router
        router.get("/api/v1/updates/check", summary="Is there an update for this device type and version?")(
            self.check_for_updates
        )
        router.get("/api/v1/updates/download", summary="Where are the bytes of a release?")(self.get_firmware_download)
        router.post(
            "/api/v1/updates/record",
            status_code=204,
            summary="Write down what happened to a device (unverified)",
            openapi_extra=shapes.takes({"device_id": TEXT, "old_version": TEXT, "new_version": TEXT, "status": TEXT}),
        )(self.record_update)
        router.get("/api/v1/updates/device/{device_id}", summary="What is known about a device")(self.get_device_info)

    async def check_for_updates(self, request: Request, device_type: str, version: str) -> dict[str, Any]:
        """Compare with the stable channel, or the one that is named."""
        channel = request.query_params.get("channel", questions.STABLE)
        scope = self._readable(request, product=device_type)
        return questions.check_for_updates(
            self._parts.reader, scope, device_type=device_type, version=version, channel=channel
        )

    async def get_firmware_download(self, request: Request, device_type: str) -> dict[str, Any]:
        """Name path, length and digest."""
        scope = self._readable(request, product=device_type)
        version = request.query_params.get("version")
        return questions.get_firmware_download(self._parts.reader, scope, device_type=device_type, version=version)

    async def record_update(self, request: Request) -> Response:
        """Store somebody's word."""
        scope = self._scope(request)
        fields = await self._fields(request)
        words = {
            name: fields.text(name, max_length=64) for name in ("device_id", "old_version", "new_version", "status")
        }
        now = self._parts.clock.now()
        await self._parts.writer.submit(lambda connection: questions.record_update(connection, scope, now=now, **words))
        return Response(status_code=204)

    async def get_device_info(self, request: Request, device_id: str) -> dict[str, Any]:
        """Describe one device."""
        return questions.get_device_info(self._parts.reader, self._readable(request), device_id=device_id)


def _token(issued: people.IssuedToken) -> dict[str, Any]:
    return {
        "token": issued.token,
        "expires_at": issued.expires_at,
        "role": issued.role.value,
        "product": issued.product,
    }


def _device(record: DeviceRecord) -> dict[str, Any]:
    value = asdict(record)
    del value["row_id"]
    return {**value, "attributes": json.loads(record.attributes)}


def _attempt(record: AttemptRecord) -> dict[str, Any]:
    value = asdict(record)
    value["status"] = value.pop("state").value
    return {**value, "log": json.loads(record.log)}


def _files(fields: Fields, name: str) -> dict[str, bytes]:
    texts = fields.text_map(
        name, max_items=MAX_FILES, max_length=MAX_METADATA_FILE_CHARACTERS, optional=name != "metadata"
    )
    return {file_name: text.encode() for file_name, text in texts.items()}


def _integer(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isdigit() or len(text) > 18:  # noqa: PLR2004 - digits of 2^63
        raise MalformedError("A query parameter is not a whole number", parameter=name)
    return int(text)
