"""What an attacker does with metadata when some keys are his."""

from collections.abc import Callable
from typing import Any

from securesystemslib.signer import CryptoSigner
from support.world import PRODUCT
from tuf.api.metadata import Metadata, MetaFile


def ed25519() -> CryptoSigner:
    return CryptoSigner.generate_ed25519()


def edit(image, name: str, change: Callable[[Any], None], *signers, as_name: str = "") -> None:
    """Change a metadata file and sign it again with these keys."""
    metadata = Metadata.from_bytes(image.files[name])
    change(metadata.signed)
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    image.files[as_name or name] = metadata.to_bytes()


def name_of(image, role: str) -> str:
    """The file of a role as it is published now."""
    return "timestamp.json" if role == "timestamp" else f"{image.versions[role]}.{role}.json"


def point_timestamp_at(image, snapshot_version: int) -> None:
    """With the timestamp key: name another snapshot."""

    def change(signed):
        signed.version += 1
        signed.snapshot_meta = MetaFile(snapshot_version)

    edit(image, "timestamp.json", change, image.keys["timestamp"])


def point_snapshot_at(image, role: str, version: int) -> None:
    """With the snapshot and timestamp keys: name another version of a role."""
    number = image.versions["snapshot"]

    def change(signed):
        signed.version = number + 1
        signed.meta[f"{role}.json"] = MetaFile(version)

    edit(image, f"{number}.snapshot.json", change, image.keys["snapshot"], as_name=f"{number + 1}.snapshot.json")
    point_timestamp_at(image, number + 1)
    image.versions["snapshot"] = number + 1


def new_root(image, change: Callable[[Any], None], *signers, version: int = 2, of: int = 1) -> None:
    """Publish ``<version>.root.json``, made from an earlier one."""

    def changed(signed):
        signed.version = version
        change(signed)

    edit(image, f"{of}.root.json", changed, *signers, as_name=f"{version}.root.json")


def swap_key(role: str, new: CryptoSigner, old: CryptoSigner) -> Callable[[Any], None]:
    """A change of root that puts one key in place of another."""

    def change(signed):
        signed.revoke_key(old.public_key.keyid, role)
        signed.add_key(new.public_key, role)

    return change


def nothing(signed) -> None:
    """No change: only the signatures differ."""


__all__ = (
    "PRODUCT",
    "ed25519",
    "edit",
    "name_of",
    "new_root",
    "nothing",
    "point_snapshot_at",
    "point_timestamp_at",
    "swap_key",
)
