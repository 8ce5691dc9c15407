"""Shapes of the operator API for its OpenAPI description.

Answers are `TypedDict`s, which the framework writes and checks. Requests are described here but
read with `core.fields`, like every body from outside: one reader, one kind of error.
"""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12


class Ready(TypedDict):
    """Requests may be sent here; `role` is leader or follower."""

    status: str
    role: str


class Health(TypedDict):
    """The server answers, and what it is."""

    status: str
    version: str


class Token(TypedDict):
    """A token, shown once."""

    token: str
    expires_at: int
    role: str
    product: str | None


class EnrolmentToken(TypedDict):
    """A one-time token for devices, shown once."""

    token: str


class Enrolment(TypedDict):
    """Name and certificate chain of a new device."""

    v: int
    device_id: str
    certificate_chain_pem: str


class Blob(TypedDict):
    """Bytes the server holds."""

    sha256: str
    length_bytes: int


class ContentKeyRecipient(TypedDict):
    """The key that content keys are to be wrapped for: HPKE, ML-KEM-768 + X25519, hexadecimal."""

    keyid: str
    public_key: str


class ContentKey(TypedDict):
    """The server has the key of this sealed payload."""

    sha256: str
    release: str
    keyid: str


class PublishResult(TypedDict):
    """What is published now."""

    snapshot_version: int
    releases: list[str]


class AliveImage(TypedDict):
    """An image, and how many enabled devices report to run it."""

    image_digest: str
    version: str
    sequence_number: int
    devices: int


class AliveImages(TypedDict):
    """The most common first."""

    images: list[AliveImage]


class ImageState(TypedDict):
    """Versions of every role, for making the next."""

    roles: dict[str, int]
    director_root: int
    snapshot_version: int
    timestamp_version: int


class Products(TypedDict):
    """Product lines."""

    products: list[str]


class Release(TypedDict):
    """One published release."""

    release: str
    product: str
    version: str
    sequence_number: int
    target: str
    length_bytes: int
    digest: str
    hardware: list[str]
    installer: str
    published_at: int
    withdrawn_at: int | None
    channels: list[str]


class ReleaseDetail(Release):
    """One release with its signed manifest."""

    manifest: dict[str, Any]


class Releases(TypedDict):
    """Releases, newest first."""

    releases: list[Release]


class Device(TypedDict):
    """One enrolled device."""

    device_id: str
    product: str
    hardware: str
    serial: str
    disabled: bool
    version: str
    sequence_number: int
    image_digest: str
    boot_id: str
    attributes: dict[str, str]
    enrolled_at: int
    last_seen: int | None
    tags: list[str]
    site: str | None
    gateway: str | None
    state: str
    error: str
    wrapping_key_revoked: str | None
    quarantine: str | None
    """Why no rollout touches it."""
    pinned: str | None
    """Why it stays on what it runs."""
    muted: str | None
    """Why its alarms wake nobody."""


class Devices(TypedDict):
    """One page of devices; `next` is the cursor of the following page."""

    devices: list[Device]
    next: str | None


class Attempt(TypedDict):
    """One device x one release x one try."""

    attempt_id: str
    device_id: str
    release: str
    status: str
    active: bool
    code: str
    message: str
    log: list[str]
    boot_id_before: str
    boot_id: str
    created_at: int
    updated_at: int


class Attempts(TypedDict):
    """Attempts of one device, newest first."""

    attempts: list[Attempt]


class Assigned(TypedDict):
    """The attempt that was opened, or is open already."""

    attempt_id: str


class Person(TypedDict):
    """Somebody who may sign in."""

    name: str
    role: str
    disabled: bool
    second_factor: bool
    created_at: int


class FactorBegun(TypedDict):
    """What an authenticator needs, shown once."""

    secret: str
    uri: str


class FactorConfirmed(TypedDict):
    """Codes for a lost authenticator, shown once; each works once."""

    recovery_codes: list[str]


class Session(TypedDict):
    """Somewhere one is signed in."""

    session_id: int
    kind: str
    address: str
    client: str
    proof: str
    created_at: int
    last_used_at: int
    expires_at: int
    current: bool


class Sessions(TypedDict):
    """Own sessions, newest first."""

    sessions: list[Session]


class TokenInfo(TypedDict):
    """A token without its secret."""

    token_id: int
    owner: str
    label: str
    role: str
    product: str | None
    created_at: int
    expires_at: int
    last_used_at: int | None
    last_address: str


class Tokens(TypedDict):
    """Tokens that hold, newest first."""

    tokens: list[TokenInfo]


class Tenant(TypedDict):
    """Somebody's own corner of the server."""

    name: str
    disabled: bool
    created_at: int
    people: int
    products: int
    devices: int


class Tenants(TypedDict):
    """Every tenant, the server's own first."""

    tenants: list[Tenant]


class People(TypedDict):
    """Everybody who may sign in."""

    people: list[Person]


class ConsentRule(TypedDict):
    """One rule that an operator set."""

    level: str
    subject: str
    update_class: str
    mode: str
    window: str | None
    set_by: str
    set_at: int


class ConsentRules(TypedDict):
    """Rules, general ones first."""

    rules: list[ConsentRule]


class RuleInForce(TypedDict):
    """A rule and whose it is."""

    mode: str
    window: str | None
    level: str
    subject: str
    set_by: str
    set_at: int


class ClassConsent(TypedDict):
    """The stricter of the operator's and the owner's rule holds."""

    holding: RuleInForce
    operator: RuleInForce
    owner: RuleInForce | None


class DeviceConsent(TypedDict):
    """What holds for one device."""

    device_id: str
    opted_out_at: int | None
    security: ClassConsent
    feature: ClassConsent


class PostponedUntil(TypedDict):
    """When the first and the last of the postponed are asked again, as far as devices told."""

    first: int | None
    last: int | None


class ReleaseConsent(TypedDict):
    """asked = agreed + postponed + declined + no_answer."""

    release: str
    asked: int
    agreed: int
    postponed: int
    declined: int
    no_answer: int
    postponed_until: PostponedUntil | None


class ConsentReport(TypedDict):
    """Sums over the releases, and how many owners switched updates off."""

    asked: int
    agreed: int
    postponed: int
    declined: int
    no_answer: int
    opted_out: int
    releases: list[ReleaseConsent]


class ConsentEventShape(TypedDict):
    """What was said, by whom, to which text."""

    id: int
    device_id: str
    consent_number: int
    release: str | None
    update_class: str
    answer: str
    actor: str
    via: str
    at: int
    until: int | None
    text_digest: str
    language: str
    received_at: int


class ConsentEvents(TypedDict):
    """One page of answers."""

    events: list[ConsentEventShape]
    next: str | None


class CarriedPayload(TypedDict):
    """Bytes that a parcel takes along."""

    target: str
    sha256: str
    length_bytes: int


class Parcel(TypedDict):
    """Everything of a parcel but the payloads' bytes."""

    parcel_id: str
    kind: str
    product: str
    target: str
    created_at: str
    expires_at: str
    image: dict[str, str]
    director: dict[str, str]
    devices: dict[str, dict[str, Any]]
    payloads: list[CarriedPayload]


class ReceiptTaken(TypedDict):
    """What a receipt said, and whether it was news."""

    device_id: str
    attempt_id: str
    release: str
    outcome: str
    new: bool


class Event(TypedDict):
    """Something that happened."""

    id: int
    at: int
    kind: str
    actor: str
    subject: str
    facts: dict[str, Any]


class Events(TypedDict):
    """One page of events."""

    events: list[Event]


class Problem(TypedDict):
    """RFC 9457; `type` is a code of docs/reference/errors.md."""

    type: str
    title: str
    status: int
    detail: str
    retry: str
    facts: dict[str, Any]
    request_id: str


def takes(required: dict[str, str], optional: dict[str, str] | None = None) -> dict[str, Any]:
    """Describe a JSON request body for OpenAPI: field name to JSON type."""
    fields = {name: {"type": kind} for name, kind in {**required, **(optional or {})}.items()}
    schema = {"type": "object", "properties": fields, "required": sorted(required)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
