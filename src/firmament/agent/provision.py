"""Provisioning: a device gets its trust anchors, makes its keys and becomes known to a server.

The provisioning file comes from the author's workspace, carried by hand or by the factory; what
it says is believed. The roots in it are the only thing a device ever believes without proof, so
they never come from the server (RFC 6024, trust anchor management).

Two ways: with a one-time token the device enrols itself over the network; without, it writes a
certificate request (`begin`) and gets its certificate as a file later (`finish`). Both keys are
made on the device and stay there.

Order of writes: everything is put into ``enrolment-<n>`` and synced; then the symlink
``enrolment`` is switched by rename; then the old directory goes. A power cut leaves the old
enrolment or the new one in force, whole. A cut (or a lost answer) before the switch keeps the
new keys in ``enrolment-pending``, and the same file tried again goes on with them, so that the
server can recognise the device.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from firmament.agent import identity
from firmament.agent.fetch import HttpTransport, TlsFiles, TransferSettings, read_body, require_success
from firmament.agent.link import repository_of
from firmament.core import canonical
from firmament.core.fields import Fields
from firmament.core.ids import HARDWARE, PRODUCT, UUID, DeviceId, check
from firmament.durable import read_file, replace_durably
from firmament.errors import (
    ConflictError,
    FileError,
    FirmamentError,
    MalformedError,
    MalformedMetadataError,
    NotEnrolledError,
    SettingError,
    SignatureError,
    TooLargeError,
    TransferError,
)
from firmament.log import logger
from firmament.payload import wrap
from firmament.protocol.v1 import paths
from firmament.protocol.v1.messages import EnrolReply, EnrolRequest, decode_enrol_reply
from firmament.trust.client import MAX_ROOT_LENGTH_BYTES, mapped_errors
from firmament.trust.device_keys import IdentityKey, certificate_name
from firmament.trust.floors import DIRECTOR, IMAGE, Floors

if TYPE_CHECKING:
    from pathlib import Path

    from firmament.agent.ports import Transport
    from firmament.core.clock import Clock
    from firmament.durable import Disk

log = logger("agent.provision")

MAX_FILE_LENGTH_BYTES: Final = 2 * MAX_ROOT_LENGTH_BYTES + 256 * 1024
MAX_REPLY_LENGTH_BYTES: Final = 64 * 1024
PENDING: Final = "enrolment-pending"
_NUMBERED: Final = re.compile(r"enrolment-(\d{1,9})")
_URL: Final = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+(?:/[A-Za-z0-9._~/-]*)?")


@dataclass(frozen=True, slots=True)
class ProvisioningFile:
    """What the factory or the operator hands to a device."""

    server_url: str
    ca_pem: str
    product: str
    hardware: str
    image_root: bytes
    director_root: bytes
    repository_url: str
    token: str = ""
    """One-time; empty for the factory path."""

    @property
    def facts(self) -> identity.Facts:
        """What of it is kept."""
        return identity.Facts(
            product=self.product,
            hardware=self.hardware,
            server_url=self.server_url,
            repository_url=self.repository_url,
            ca_pem=self.ca_pem,
        )


def read_provisioning(data: bytes) -> ProvisioningFile:
    """Read a provisioning file; raises MalformedError, TooLargeError or MalformedMetadataError.

    The roots must be what they say: readable TUF root metadata that its own keys signed.
    """
    value = canonical.decode_object(data, limit_bytes=MAX_FILE_LENGTH_BYTES, what="provisioning file")
    fields = Fields(value, what="provisioning file")
    version = fields.integer("v")
    if version != 1:
        raise MalformedError("The provisioning file has a version this agent does not know", found=version, known=1)
    server_url = fields.text("server_url", max_length=512, pattern=_URL).rstrip("/")
    repository_url = fields.text("repository_url", max_length=512, pattern=_URL, default=repository_of(server_url))
    return ProvisioningFile(
        server_url=server_url,
        ca_pem=fields.text("ca_pem", max_length=64 * 1024),
        product=fields.text("product", pattern=PRODUCT),
        hardware=fields.text("hardware", pattern=HARDWARE),
        image_root=_root(fields, "image_root"),
        director_root=_root(fields, "director_root"),
        repository_url=repository_url.rstrip("/"),
        token=fields.text("token", max_length=128, default=""),
    )


def _root(fields: Fields, name: str) -> bytes:
    from tuf.api.metadata import Metadata, Root  # lazily: only provisioning needs it outside the client

    data = fields.text(name, max_length=MAX_ROOT_LENGTH_BYTES).encode()
    canonical.decode_object(data, limit_bytes=MAX_ROOT_LENGTH_BYTES, what=name)
    with mapped_errors():
        metadata: Metadata[Root] = Metadata.from_bytes(data)
        found = metadata.signed.type
        if found == Root.type:
            metadata.signed.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
    if found != Root.type:
        raise MalformedMetadataError("The provisioned root has another type", field=name, found=found)
    return data


class Provisioning:
    """Provisions the device whose state is in `state_directory`; hold the instance lock around it."""

    def __init__(self, disk: Disk, state_directory: Path) -> None:
        self._disk = disk
        self._state = state_directory
        self._pending = state_directory / PENDING

    def enrol(self, file: ProvisioningFile, *, transport: Transport, force: bool = False) -> DeviceId:
        """Make keys, present the token, and put the enrolment in force; returns the device's id.

        Raises ConflictError when the device is enrolled and `force` is not given, SettingError
        without a token, TransferError when the server does not take it, SignatureError when its
        certificate is not for our key.
        """
        if not file.token:
            raise SettingError("The provisioning file has no token", way="use --csr-out for the factory path")
        self._require_free(force=force)
        key = self._prepare(file)
        earlier = self._earlier_reply(file)
        if earlier is not None:
            return self._complete(file.facts, key, earlier)
        private = read_file(self._disk, self._pending / identity.HPKE_KEY, limit_bytes=wrap.PRIVATE_KEY_LENGTH_BYTES)
        request = EnrolRequest(
            token=file.token,
            product=file.product,
            hardware=file.hardware,
            csr_pem=key.request_pem(product=file.product, hardware=file.hardware),
            hpke_public_key=wrap.public_of(private),
        )
        reply = _present(transport, file.server_url + paths.ENROL, request)
        return self._complete(file.facts, key, reply)

    def begin(self, file: ProvisioningFile, *, force: bool = False) -> dict[str, str]:
        """Make keys and return what the factory carries to the server: ``csr_pem`` and the rest.

        The same file again returns a request for the same keys.
        """
        self._require_free(force=force)
        key = self._prepare(file)
        private = read_file(self._disk, self._pending / identity.HPKE_KEY, limit_bytes=wrap.PRIVATE_KEY_LENGTH_BYTES)
        return {
            "csr_pem": key.request_pem(product=file.product, hardware=file.hardware),
            "product": file.product,
            "hardware": file.hardware,
            "hpke_public_key": wrap.public_of(private).hex(),
        }

    def finish(self, certificate: bytes, *, force: bool = False) -> DeviceId:
        """Take the certificate that was made for the request of `begin`: PEM, or the server's JSON.

        Raises NotEnrolledError when nothing was begun, SignatureError when it is for another key.
        """
        self._require_free(force=force)
        self._take_back()
        if not self._disk.exists(self._pending / identity.FACTS):
            raise NotEnrolledError("No certificate request was made here")
        facts = identity.read_facts(self._disk, self._pending)
        return self._complete(facts, self._load_key(), _read_certificate(certificate))

    def _require_free(self, *, force: bool) -> None:
        if identity.is_enrolled(self._disk, self._state) and not force:
            raise ConflictError("This device is provisioned already", state_dir=self._state, way="--force")

    def _prepare(self, file: ProvisioningFile) -> IdentityKey:
        """Fill the pending directory, or go on with it when it is for the same file."""
        disk, pending = self._disk, self._pending
        anchors = {identity.IMAGE_ROOT: file.image_root, identity.DIRECTOR_ROOT: file.director_root}
        self._take_back()
        with contextlib.suppress(FirmamentError):
            if replace(identity.read_facts(disk, pending), device_id=None) == file.facts and all(
                read_file(disk, pending / name, limit_bytes=MAX_ROOT_LENGTH_BYTES) == data
                for name, data in anchors.items()
            ):
                log.info("provision.continued")
                return self._load_key()
        disk.make_directory(self._state)
        disk.remove_tree(pending)
        disk.make_directory(pending)
        key = IdentityKey.generate()
        files = {identity.IDENTITY_KEY: key.pem, identity.HPKE_KEY: wrap.generate()[0], **anchors}
        for name, data in files.items():
            replace_durably(disk, pending / name, data)
        identity.write_facts(disk, pending, file.facts)  # last: it says that the others are whole
        disk.sync_directory(self._state)
        return key

    def _take_back(self) -> None:
        """Make an enrolment pending again whose switch was cut short."""
        disk, state = self._disk, self._state
        inside = disk.read_link(state / identity.CURRENT)
        left = [name for name in disk.list(state) if _NUMBERED.fullmatch(name) and name != inside]
        if left and not disk.exists(self._pending):
            disk.replace(state / max(left, key=_number), self._pending)
            disk.sync_directory(state)

    def _earlier_reply(self, file: ProvisioningFile) -> EnrolReply | None:
        """Return what the server said when a cut came after its answer: its token works only once."""
        with contextlib.suppress(FirmamentError, UnicodeDecodeError):
            facts = identity.read_facts(self._disk, self._pending)
            path = self._pending / identity.CERTIFICATE
            chain = read_file(self._disk, path, limit_bytes=MAX_REPLY_LENGTH_BYTES).decode()
            if facts.device_id is not None and replace(facts, device_id=None) == file.facts:
                return EnrolReply(facts.device_id, chain)
        return None

    def _load_key(self) -> IdentityKey:
        path = self._pending / identity.IDENTITY_KEY
        return IdentityKey.from_pem(read_file(self._disk, path, limit_bytes=identity.MAX_KEY_LENGTH_BYTES))

    def _complete(self, facts: identity.Facts, key: IdentityKey, reply: EnrolReply) -> DeviceId:
        key.require_certificate(reply.certificate_chain_pem, device_id=reply.device_id)
        disk, pending = self._disk, self._pending
        replace_durably(disk, pending / identity.CERTIFICATE, reply.certificate_chain_pem.encode())
        identity.write_facts(disk, pending, replace(facts, device_id=reply.device_id))
        self._carry_floors()
        self._switch()
        log.info("provision.enrolled", device_id=reply.device_id, product=facts.product, hardware=facts.hardware)
        return reply.device_id

    def _carry_floors(self) -> None:
        """Keep the floors that still mean something: those of a repository with the same root."""
        new = Floors(self._disk, self._pending / identity.FLOORS)
        self._disk.remove_tree(self._pending / identity.FLOORS)
        new.create()
        old_directory = self._state / identity.CURRENT
        old = Floors(self._disk, old_directory / identity.FLOORS)
        if not identity.is_enrolled(self._disk, self._state) or not old.exist():
            return
        values = old.load()
        for repository, name in ((IMAGE, identity.IMAGE_ROOT), (DIRECTOR, identity.DIRECTOR_ROOT)):
            if not self._is_same(old_directory / name, self._pending / name):
                continue
            roles = values.of(repository)
            time = values.time if repository == DIRECTOR else None
            new.store_roles(repository, versions=roles.versions, keyids=roles.keyids, time=time)
            if repository == IMAGE:
                new.raise_sequence(values.sequence_number)

    def _is_same(self, one: Path, other: Path) -> bool:
        with contextlib.suppress(FirmamentError):
            limit = MAX_ROOT_LENGTH_BYTES
            return read_file(self._disk, one, limit_bytes=limit) == read_file(self._disk, other, limit_bytes=limit)
        return False

    def _switch(self) -> None:
        """Put the pending enrolment in force: one rename decides."""
        disk, state = self._disk, self._state
        names = [name for name in disk.list(state) if _NUMBERED.fullmatch(name)]
        number = 1 + max(map(_number, names), default=0)
        directory = f"enrolment-{number}"
        disk.replace(self._pending, state / directory)
        disk.sync_directory(state)
        temporary = state / f"{identity.CURRENT}.new"
        disk.remove(temporary)
        disk.symlink(directory, temporary)
        disk.replace(temporary, state / identity.CURRENT)
        disk.sync_directory(state)
        for name in names:
            disk.remove_tree(state / name)


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])


def _present(transport: Transport, url: str, request: EnrolRequest) -> EnrolReply:
    body = canonical.encode(request.to_json())
    response = transport.request("POST", url, body=body, headers={"Content-Type": "application/json"})
    require_success(response, url)
    try:
        return decode_enrol_reply(read_body(response, limit_bytes=MAX_REPLY_LENGTH_BYTES, url=url))
    except (MalformedError, TooLargeError) as error:
        raise TransferError("The server's answer cannot be read", url=url, reason=error.problem) from error


def _read_certificate(data: bytes) -> EnrolReply:
    if data.lstrip().startswith(b"{"):
        return decode_enrol_reply(data)
    try:
        chain = data.decode()
    except UnicodeDecodeError as error:
        raise SignatureError("The device certificate cannot be read", reason=error) from error
    name = check(certificate_name(chain), UUID, what="The common name of the device certificate")
    return EnrolReply(DeviceId(name), chain)


def enrolment_transport(file: ProvisioningFile, clock: Clock, settings: TransferSettings) -> HttpTransport:
    """Return a transport to the server of a provisioning file, without a client certificate."""
    tls = TlsFiles(file.ca_pem) if file.server_url.startswith("https:") else None
    return HttpTransport(clock, settings=settings, tls=tls)


def read_provisioning_file(disk: Disk, path: Path) -> ProvisioningFile:
    """Read a provisioning file, or the one in a parcel; raises FileError and what `read_provisioning` raises."""
    from firmament.agent.parcel import provisioning_in

    try:
        carried = provisioning_in(disk, path, limit_bytes=MAX_FILE_LENGTH_BYTES)
        return read_provisioning(carried or read_file(disk, path, limit_bytes=MAX_FILE_LENGTH_BYTES))
    except (MalformedError, TooLargeError) as error:
        raise FileError("This is not a provisioning file", path=path, reason=error) from error
