"""The evidence of a play: the chain of events, signed, exported and verified with the public key alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from firmament.server.audit import chain, export
from firmament.sim.fleet.inside import OPERATOR
from firmament.trust.audit import (
    GENESIS,
    Checkpoint,
    Verification,
    export_header,
    keyid_of,
    sign_checkpoint,
    verify_export,
)

if TYPE_CHECKING:
    from pathlib import Path

    from firmament.sim.fleet.inside import InsideServer


def export_and_verify(server: InsideServer, path: Path) -> Verification:
    """Write every event of a play to a file and verify the file as an auditor would.

    The checkpoint at the end is signed by a key of this moment; a server's is held by its signer.
    """
    key = Ed25519PrivateKey.generate()
    number, hashed = chain.head(server.database, OPERATOR.tenant_id)
    envelope = sign_checkpoint(key, Checkpoint(OPERATOR.tenant_id, number, hashed, server.now_s)).to_json()
    header = export_header(tenant=OPERATOR.tenant_id, first=1, previous=GENESIS, keyid=keyid_of(key.public_key()))
    exporter = export.Exporter(header)
    with path.open("wb") as file:
        file.write(exporter.begin())
        while exporter.number < number:
            page = export.page(server.database, OPERATOR, after=exporter.number, last=number)
            if page.events[-1][0]["number"] == number:
                page.checkpoints[number] = envelope
            file.write(exporter.lines(page))
        file.write(exporter.end())
    with path.open("rb") as file:
        return verify_export(file, key.public_key())
