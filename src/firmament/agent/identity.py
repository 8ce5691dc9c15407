"""Who this device is to which server: everything that provisioning made, in one directory.

``<state>/enrolment`` is a symlink to the enrolment in force, ``enrolment-<n>``; so a device has
one identity or none, and never half of two (provision.py). In it::

    enrolment.json       names and addresses
    identity.key         P-256, PKCS#8 PEM
    certificate.pem      the device's chain, leaf first
    hpke.key             96 bytes, X-Wing: opens content keys that are wrapped for this device
    image.root           root metadata of the image repository, as provisioned
    director.root        root metadata of the director, as provisioned
    floors/              numbers that never go down (trust/floors.py)
    metadata/            caches of both repositories (trust/client.py)

All files have mode 0600. Floors and caches lie here because they belong to these roots: with
other roots they would bind versions of other repositories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.agent.link import Relation
from firmament.core import canonical
from firmament.core.fields import Fields
from firmament.core.ids import HARDWARE, PRODUCT, UUID, DeviceId
from firmament.durable import read_file, replace_durably
from firmament.errors import CorruptStateError, FileError, FirmamentError, NotEnrolledError, StateError
from firmament.trust.client import MAX_ROOT_LENGTH_BYTES
from firmament.trust.device_keys import IdentityKey
from firmament.trust.floors import Floors

if TYPE_CHECKING:
    from pathlib import Path

    from firmament.durable import Disk

CURRENT: Final = "enrolment"
FACTS: Final = "enrolment.json"
IDENTITY_KEY: Final = "identity.key"
CERTIFICATE: Final = "certificate.pem"
HPKE_KEY: Final = "hpke.key"
IMAGE_ROOT: Final = "image.root"
DIRECTOR_ROOT: Final = "director.root"
FLOORS: Final = "floors"
METADATA: Final = "metadata"
MAX_FACTS_LENGTH_BYTES: Final = 128 * 1024
MAX_KEY_LENGTH_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Facts:
    """What ``enrolment.json`` says."""

    product: str
    hardware: str
    server_url: str
    repository_url: str
    ca_pem: str
    device_id: DeviceId | None = None
    """None while the certificate is still being made elsewhere (factory path)."""

    def to_json(self) -> dict[str, Any]:
        """Return the file's form."""
        return {
            "v": 1,
            "product": self.product,
            "hardware": self.hardware,
            "server_url": self.server_url,
            "repository_url": self.repository_url,
            "ca_pem": self.ca_pem,
            "device_id": self.device_id,
        }


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The enrolment in force."""

    directory: Path
    facts: Facts
    device_id: DeviceId
    key: IdentityKey
    image_root: bytes
    director_root: bytes

    @property
    def certificate_path(self) -> Path:
        """PEM chain for TLS."""
        return self.directory / CERTIFICATE

    @property
    def key_path(self) -> Path:
        """PEM key for TLS."""
        return self.directory / IDENTITY_KEY

    @property
    def relation(self) -> Relation:
        """What the link needs to know."""
        return Relation(
            device_id=self.device_id,
            product=self.facts.product,
            hardware=self.facts.hardware,
            server_url=self.facts.server_url,
            repository_url=self.facts.repository_url,
            image_root=self.image_root,
            director_root=self.director_root,
            metadata_directory=self.directory / METADATA,
        )

    def floors(self, disk: Disk) -> Floors:
        """Return the floors; raises CorruptStateError when they are gone (trust.md §10, case 9)."""
        floors = Floors(disk, self.directory / FLOORS)
        if not floors.exist():
            raise CorruptStateError("The floors of this device are missing", directory=self.directory / FLOORS)
        return floors


def is_enrolled(disk: Disk, state_directory: Path) -> bool:
    """Whether provisioning was finished here once."""
    return disk.read_link(state_directory / CURRENT) is not None


def load(disk: Disk, state_directory: Path) -> Enrolment:
    """Read the enrolment in force.

    Raises NotEnrolledError when there is none, StateError when its files cannot be used.
    """
    if not is_enrolled(disk, state_directory):
        raise NotEnrolledError("This device is not provisioned", state_dir=state_directory)
    directory = state_directory / CURRENT
    try:
        facts = read_facts(disk, directory)
        key = IdentityKey.from_pem(read_file(disk, directory / IDENTITY_KEY, limit_bytes=MAX_KEY_LENGTH_BYTES))
        roots = [
            read_file(disk, directory / name, limit_bytes=MAX_ROOT_LENGTH_BYTES) for name in (IMAGE_ROOT, DIRECTOR_ROOT)
        ]
    except StateError:
        raise
    except FirmamentError as error:
        raise CorruptStateError("The enrolment cannot be used", **{**error.facts, "reason": error.problem}) from error
    if facts.device_id is None:
        raise NotEnrolledError("The device certificate is missing", directory=directory)
    return Enrolment(directory, facts, facts.device_id, key, *roots)


def read_facts(disk: Disk, directory: Path) -> Facts:
    """Read ``enrolment.json`` of a directory; raises FileError or MalformedError."""
    data = read_file(disk, directory / FACTS, limit_bytes=MAX_FACTS_LENGTH_BYTES)
    value = canonical.decode_object(data, limit_bytes=MAX_FACTS_LENGTH_BYTES, what="enrolment")
    fields = Fields(value, what="enrolment")
    if fields.integer("v") != 1:
        raise FileError("The enrolment was written by a newer agent", path=directory / FACTS)
    return Facts(
        product=fields.text("product", pattern=PRODUCT),
        hardware=fields.text("hardware", pattern=HARDWARE),
        server_url=fields.text("server_url", max_length=512),
        repository_url=fields.text("repository_url", max_length=512),
        ca_pem=fields.text("ca_pem", max_length=64 * 1024),
        device_id=DeviceId(fields.text("device_id", pattern=UUID)) if "device_id" in fields else None,
    )


def write_facts(disk: Disk, directory: Path, facts: Facts) -> None:
    """Write ``enrolment.json`` durably."""
    replace_durably(disk, directory / FACTS, canonical.encode(facts.to_json()))
