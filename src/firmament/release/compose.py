"""Compose the manifest of a release that is about to be built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firmament.core.digest import Digest
from firmament.core.ids import VERSION, check
from firmament.core.manifest import Image, Manifest, Preconditions, Requires, UpdateClass
from firmament.durable import RealDisk
from firmament.errors import MalformedError, RollbackError
from firmament.release.build import RELEASE_FILE, load_built
from firmament.release.store import digest_of
from firmament.trust import repository
from firmament.trust.roles import check_product_role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from firmament.release.workspace import Workspace

_NOT_BUILT = Image(Digest.of(b""), 0)


def only_product(workspace: Workspace) -> str:
    """Return the workspace's product when there is only one; raises MalformedError."""
    found = sorted(workspace.products())
    if len(found) != 1:
        raise MalformedError("The workspace has several products; name one with --product", known=" ".join(found))
    return found[0]


def compose(
    workspace: Workspace,
    *,
    product: str,
    version: str,
    installer: str,
    hardware: Sequence[str],
    sequence_number: int | None = None,
    update_class: str = UpdateClass.FEATURE,
    notes: Mapping[str, str] | None = None,
    min_sequence_number: int = 0,
    min_agent: int = 0,
    free_bytes: int = 0,
    battery_percent: int = 0,
    mains_power: bool = False,
    unmetered_link: bool = False,
    sbom: Path | None = None,
    provenance: Path | None = None,
    allow_downgrade: bool = False,
    revertible_to: int | None = None,
    now: datetime,
) -> Manifest:
    """Return a manifest without image and payloads, for `build.build`.

    Raises NotFoundError for a product that is not delegated, RollbackError for a sequence number
    that was given out already.
    """
    check_product_role(product)
    check(version, VERSION, what="The version")
    workspace.product_keys(product)
    highest = highest_known(workspace, product)
    if sequence_number is not None and sequence_number <= highest:
        raise RollbackError(
            "The sequence number is not above the highest one given", highest=highest, got=sequence_number
        )
    return Manifest(
        product=product,
        version=version,
        sequence_number=highest + 1 if sequence_number is None else sequence_number,
        hardware=tuple(dict.fromkeys(hardware)),
        installer=installer,
        image=_NOT_BUILT,
        payloads=(),
        created_at=now,
        update_class=UpdateClass(update_class),
        requires=Requires(min_sequence_number, min_agent),
        preconditions=Preconditions(free_bytes, battery_percent, mains_power, unmetered_link),
        notes=dict(notes or {}),
        sbom_digest=digest_of(RealDisk(), sbom) if sbom is not None else None,
        provenance_digest=digest_of(RealDisk(), provenance) if provenance is not None else None,
        allow_downgrade=allow_downgrade,
        revertible_to=revertible_to,
    )


def highest_known(workspace: Workspace, product: str) -> int:
    """Return the highest sequence number published, drafted or built for a product; 0 for none."""
    numbers = [0]
    roles = (workspace.product(product), workspace.draft(product))
    numbers += [repository.highest_sequence_number(role.signed) for role in roles if role is not None]
    for name in workspace.disk.list(workspace.directory / "releases"):
        directory = workspace.directory / "releases" / name
        if name.startswith(f"{product}-") and workspace.disk.exists(directory / RELEASE_FILE):
            built = load_built(workspace.disk, directory).manifest
            if built.product == product:
                numbers.append(built.sequence_number)
    return max(numbers)
