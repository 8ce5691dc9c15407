"""``firmament release proof`` and ``verify-log``: that a server shows everybody the same releases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from firmament.cli.audit import what_and_where
from firmament.cli.common import output
from firmament.cli.operator_client import connect, element
from firmament.core import canonical
from firmament.core.fields import Fields
from firmament.durable import PUBLIC_MODE, RealDisk, read_file, replace_durably
from firmament.errors import LogProofError, MalformedError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from firmament.release.remote import OperatorApi

MAX_FILE_LENGTH_BYTES: Final = 64 * 1024


def _key(client: OperatorApi | None, key_file: Path | None) -> Ed25519PublicKey:
    from firmament.trust.audit import read_key

    if key_file is not None:
        return read_key(read_file(RealDisk(), key_file, limit_bytes=4096).decode(errors="replace"))
    if client is None:
        raise MalformedError("A file is verified with the public key: give --key")
    output().note("The key is the server's own word; keep it (`audit key --out`) and give --key.")
    return read_key(client.call("GET", "/api/v1/audit/key")["key"])


_key_option = click.option("--key", "key_file", type=click.Path(path_type=Path), help="File with the public audit key.")


@click.command()
@click.argument("release")
@what_and_where
@_key_option
@click.option("--out", type=click.Path(path_type=Path), help="Keep the proof in this file.")
@click.option("--file", "proof_file", type=click.Path(path_type=Path), help="Verify a proof that was kept; no server.")
def proof(
    release: str,
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    key_file: Path | None,
    out: Path | None,
    proof_file: Path | None,
) -> None:
    """Verify that RELEASE (product/version) is in the server's release log, under a signed tree head."""
    product, _, version = release.partition("/")
    if proof_file is not None:
        data = read_file(RealDisk(), proof_file, limit_bytes=MAX_FILE_LENGTH_BYTES)
        value = canonical.decode_object(data, limit_bytes=MAX_FILE_LENGTH_BYTES, what="The proof")
        public = _key(None, key_file)
    else:
        with connect(server_url, ca, workspace, token_file) as client:
            value = client.call("GET", f"/api/v1/releases/{element(product)}/{element(version)}/proof")
            public = _key(client, key_file)
    found = verify_proof(value, public, release)
    if out is not None:
        replace_durably(RealDisk(), out.absolute(), canonical.encode(value) + b"\n", mode=PUBLIC_MODE)
    output().document(
        "release-proof",
        {"release": release, **found},
        lines=[f"{release} is release {found['index'] + 1} of {found['size']} in the log; its tree head is signed."],
    )


def verify_proof(value: dict[str, Any], public: Ed25519PublicKey, release: str) -> dict[str, Any]:
    """Check leaf, path and tree head; raises LogProofError, SignatureError, MalformedError."""
    from firmament.trust import merkle

    fields = Fields(value, what="proof")
    head = merkle.open_tree_head(value.get("tree_head"), public)
    leaf = fields.text("leaf", max_length=4096)
    described = canonical.decode_object(leaf.encode(), limit_bytes=4096, what="The leaf")
    if described.get("release") != release:
        raise LogProofError("The leaf is of another release", asked=release, found=str(described.get("release"))[:80])
    index = fields.integer("index")
    merkle.verify_inclusion(
        merkle.leaf_hash(leaf.encode()),
        index=index,
        size=head.size,
        proof=merkle.read_proof(fields, "proof"),
        root_hash=head.root,
    )
    return {"index": index, "size": head.size, "leaf": described, "root": head.root.hex()}


@click.command(name="verify-log")
@what_and_where
@_key_option
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    required=True,
    help="File that remembers the newest tree head this command saw; made at the first run.",
)
def verify_log(
    server_url: str | None,
    ca: Path | None,
    workspace: Path | None,
    token_file: Path | None,
    key_file: Path | None,
    state: Path,
) -> None:
    """Verify the whole release log, and that it still begins with what was seen before."""
    from firmament.trust import merkle

    with connect(server_url, ca, workspace, token_file) as client:
        public = _key(client, key_file)
        before = merkle.TreeHead(0, 0, merkle.EMPTY_ROOT, 0)
        if state.exists():
            data = read_file(RealDisk(), state, limit_bytes=MAX_FILE_LENGTH_BYTES)
            kept = canonical.decode_object(data, limit_bytes=MAX_FILE_LENGTH_BYTES, what="The state file")
            before = merkle.open_tree_head(kept, public)
        answer = client.call("GET", f"/api/v1/release-log?old_size={before.size}")
        if answer["tree_head"] is None:
            if before.size:
                raise LogProofError("The log is empty now", seen_before=before.size)
            raise MalformedError("Nothing was published yet: there is no log to verify")
        head = merkle.open_tree_head(answer["tree_head"], public)
        merkle.verify_consistency(
            old_size=before.size,
            old_root=before.root,
            new_size=head.size,
            new_root=head.root,
            proof=merkle.read_proof(Fields(answer, what="log"), "proof"),
        )
        leaves = _leaves(client)
    if merkle.root(leaves[: head.size]) != head.root:
        raise LogProofError("The leaves are not those that the tree head commits to", size=head.size)
    replace_durably(RealDisk(), state.absolute(), canonical.encode(answer["tree_head"]) + b"\n", mode=PUBLIC_MODE)
    output().document(
        "release-log",
        {"size": head.size, "root": head.root.hex(), "seen_before": before.size},
        lines=[f"{head.size} releases, all under the signed tree head; the first {before.size} as seen before."],
    )


def _leaves(client: OperatorApi) -> list[bytes]:
    from firmament.trust import merkle

    found: list[bytes] = []
    cursor: int | None = 0
    while cursor is not None:
        page = client.call("GET", f"/api/v1/release-log/leaves?cursor={cursor}")
        found += [merkle.leaf_hash(str(leaf["leaf"]).encode()) for leaf in page["leaves"]]
        cursor = page["next"]
    return found
