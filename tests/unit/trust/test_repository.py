"""A repository made here is read, verified and refused as TUF says; attacks by case of the attack list."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import Signature, SSlibKey
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp
from tuf.ngclient import Updater

from firmament.core.digest import Digest
from firmament.core.manifest import Image, Manifest, Payload
from firmament.errors import MalformedError, MalformedMetadataError, SignatureError, ThresholdNotMetError
from firmament.trust import keys, repository
from firmament.trust.keys import KeyKind
from firmament.trust.roles import RoleKeys

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
LATER = NOW + timedelta(days=365)


def pair():
    return keys.generate(KeyKind.ED25519), keys.generate(KeyKind.ML_DSA_65)


def role(*signers, threshold=None):
    return RoleKeys(tuple(signer.public_key for signer in signers), threshold or len(signers))


def manifest(data=b"image", product="thermo", version="1.0", sequence_number=1):
    digest = Digest.of(data)
    return Manifest(
        product=product,
        version=version,
        sequence_number=sequence_number,
        hardware=("rpi4",),
        installer="bundle",
        image=Image(digest, len(data)),
        payloads=(Payload("whole", 1, f"{product}/{version}/app.tar", len(data), digest),),
        created_at=NOW,
    )


@pytest.fixture(scope="module")
def signers():
    return {name: pair() for name in ("root", "targets", "thermo")} | {
        name: (keys.generate(KeyKind.ED25519),) for name in ("snapshot", "timestamp")
    }


@pytest.fixture
def roles(signers):
    return {name: role(*signers[name]) for name in ("root", "targets", "snapshot", "timestamp")}


@pytest.fixture
def files(signers, roles):
    made = {
        "root": repository.make_root(version=1, expires_at=LATER, roles=roles),
        "targets": repository.make_targets(version=1, expires_at=LATER, products={"thermo": role(*signers["thermo"])}),
        "thermo": repository.make_product(version=1, expires_at=LATER, targets=repository.release_targets(manifest())),
        "snapshot": repository.make_snapshot(version=1, expires_at=LATER, versions={"targets": 1, "thermo": 1}),
        "timestamp": repository.make_timestamp(version=1, expires_at=LATER, snapshot_version=1),
    }
    return {
        repository.file_name(name, metadata): repository.encode(repository.sign(metadata, *signers[name]))
        for name, metadata in made.items()
    }


def test_stock_tuf_client_accepts_what_is_made_and_sees_the_manifest(files, tmp_path):
    """python-tuf's own client, unchanged, walks the repository to the release's primary target."""
    from tuf.api.exceptions import DownloadHTTPError
    from tuf.ngclient.fetcher import FetcherInterface

    class Fetcher(FetcherInterface):
        def _fetch(self, url):
            name = url.removeprefix("http://repo/metadata/").removeprefix("http://repo/targets/")
            if name == f"thermo/1.0/{Digest.of(b'image').hex}.app.tar":
                return iter([b"image"])
            if name not in files:
                raise DownloadHTTPError("absent", 404)
            return iter([files[name]])

    updater = Updater(
        str(tmp_path / "m"),
        "http://repo/metadata/",
        str(tmp_path),
        "http://repo/targets/",
        fetcher=Fetcher(),
        bootstrap=files["1.root.json"],
    )
    updater.refresh()
    target = updater.get_targetinfo("thermo/1.0/app.tar")
    assert target.custom == manifest().to_json()
    assert updater.get_targetinfo("other/1.0/app.tar") is None
    assert Path(updater.download_target(target, str(tmp_path / "out"))).read_bytes() == b"image"


def test_file_names_and_target_files_follow_the_layout(files):
    assert set(files) == {"1.root.json", "1.targets.json", "1.thermo.json", "1.snapshot.json", "timestamp.json"}
    (target,) = repository.release_targets(manifest()).values()
    assert repository.target_file_name(target) == f"thermo/1.0/{Digest.of(b'image').hex}.app.tar"


def test_every_file_reads_back_as_its_kind_and_as_no_other(files):
    """Case 20: a snapshot served as a timestamp, and so on."""
    kinds = {"1.root.json": Root, "1.targets.json": Targets, "1.snapshot.json": Snapshot, "timestamp.json": Timestamp}
    for name, kind in kinds.items():
        assert repository.encode(repository.read(files[name], kind, what=name)) == files[name]
        for other in set(kinds.values()) - {kind}:
            with pytest.raises(MalformedMetadataError):
                repository.read(files[name], other, what=name)


def test_a_hybrid_role_needs_both_classes(files, signers):
    """Case 17: Ed25519 alone or ML-DSA alone is not enough."""
    root = repository.read(files["1.root.json"], Root, what="root")
    for signer in signers["root"]:
        alone = repository.read(files["1.root.json"], Root, what="root")
        alone.signatures = {signer.public_key.keyid: alone.signatures[signer.public_key.keyid]}
        with pytest.raises(ThresholdNotMetError):
            repository.verify_root(alone, None)
    repository.verify_root(root, None)


def test_a_signature_under_a_foreign_keyid_does_not_count(files, signers):
    """Case 18: the Ed25519 signature again under the ML-DSA keyid."""
    classical, post_quantum = signers["root"]
    root = repository.read(files["1.root.json"], Root, what="root")
    copied = root.signatures[classical.public_key.keyid].signature
    root.signatures[post_quantum.public_key.keyid] = Signature(post_quantum.public_key.keyid, copied)
    with pytest.raises(ThresholdNotMetError):
        repository.verify_root(root, None)


def test_one_key_under_two_keyids_is_refused(files, signers):
    """Case 15: one key must not count twice towards a threshold."""
    value = json.loads(files["1.root.json"])
    keyid = signers["root"][0].public_key.keyid
    value["signed"]["keys"]["f" * 64] = value["signed"]["keys"][keyid]
    value["signed"]["roles"]["root"]["keyids"].append("f" * 64)
    with pytest.raises(MalformedMetadataError):
        repository.read(json.dumps(value).encode(), Root, what="root")
    key = signers["root"][0].public_key
    twin = SSlibKey("0" * 64, key.keytype, key.scheme, dict(key.keyval))
    with pytest.raises(MalformedError):
        RoleKeys((key, twin), 2)


def test_the_same_signature_twice_is_refused(files):
    """Case 15: duplicate signatures."""
    value = json.loads(files["1.root.json"])
    value["signatures"].append(value["signatures"][0])
    with pytest.raises(MalformedMetadataError):
        repository.read(json.dumps(value).encode(), Root, what="root")


@pytest.mark.parametrize("threshold", [0, -1, 3, "1", None])
def test_a_threshold_out_of_reach_is_refused(files, threshold):
    """Case 16."""
    value = json.loads(files["1.root.json"])
    value["signed"]["roles"]["root"]["threshold"] = threshold
    with pytest.raises(MalformedMetadataError):
        repository.read(json.dumps(value).encode(), Root, what="root")


STRANGE_ROOTS = {
    "unknown-key-type": lambda s: s["keys"].update(
        {"a" * 64: {"keytype": "xyz", "scheme": "xyz", "keyval": {"public": "00"}}}
    ),
    "no-consistent-snapshot": lambda s: s.update(consistent_snapshot=False),
    "role-missing": lambda s: s["roles"].pop("snapshot"),
    "huge-version": lambda s: s.update(version=2**70),
    "text-version": lambda s: s.update(version="1"),
    "no-date": lambda s: s.update(expires="tomorrow"),
    "other-spec": lambda s: s.update(spec_version="2.0.0"),
    "keys-a-list": lambda s: s.update(keys=[]),
    "roles-null": lambda s: s.update(roles=None),
}


@pytest.mark.parametrize("name", STRANGE_ROOTS)
def test_a_strange_root_is_refused_without_a_crash(files, name):
    """Cases 19 and 25."""
    value = json.loads(files["1.root.json"])
    STRANGE_ROOTS[name](value["signed"])
    with pytest.raises(MalformedMetadataError):
        repository.read(json.dumps(value).encode(), Root, what="root")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"signed":{},"signed":{}}',
        b"[" * 100_000,
        b"{}" * 300_000,
    ],
    ids=lambda data: f"{data[:4]!r}-{len(data)}",
)
def test_bytes_that_are_no_metadata_are_refused(data):
    """Cases 25 and 26."""
    for kind in (Root, Targets, Snapshot, Timestamp):
        with pytest.raises(MalformedMetadataError):
            repository.read(data, kind, what="file")


STRANGE_DELEGATIONS = {
    "everything": lambda r: r.update(paths=["*"]),
    "two-products": lambda r: r.update(paths=["thermo/*/*", "other/*/*"]),
    "not-terminating": lambda r: r.update(terminating=False),
    "named-root": lambda r: r.update(name="root"),
    "named-outside": lambda r: r.update(name="../x"),
    "threshold-0": lambda r: r.update(threshold=0),
    "unknown-key": lambda r: r.update(keyids=["0" * 64]),
}


@pytest.mark.parametrize("name", STRANGE_DELEGATIONS)
def test_a_delegation_outside_its_product_is_refused(files, name):
    """Cases 23 and 24."""
    value = json.loads(files["1.targets.json"])
    STRANGE_DELEGATIONS[name](value["signed"]["delegations"]["roles"][0])
    with pytest.raises(MalformedMetadataError):
        repository.read(json.dumps(value).encode(), Targets, what="targets")


@pytest.mark.parametrize("hashes", [{"md5": "00" * 16}, {"sha1": "00" * 20}, {"blah": "00"}, {}], ids=str)
def test_a_weak_or_unknown_digest_is_refused(files, hashes):
    """Case 27."""
    value = json.loads(files["1.thermo.json"])
    value["signed"]["targets"]["thermo/1.0/app.tar"]["hashes"] = hashes
    with pytest.raises(MalformedMetadataError):
        repository.read(json.dumps(value).encode(), Targets, what="thermo")


def test_rotation_needs_old_and_new_threshold_and_no_gap(signers, roles):
    """Cases 11 and 12."""
    first = repository.sign(repository.make_root(version=1, expires_at=LATER, roles=roles), *signers["root"])
    fresh = pair()
    new_roles = roles | {"root": role(*fresh)}

    def second(*by, version=2):
        return repository.sign(repository.make_root(version=version, expires_at=LATER, roles=new_roles), *by)

    for only in (fresh, signers["root"], (*fresh, signers["root"][0])):
        with pytest.raises(ThresholdNotMetError):
            repository.verify_root(second(*only), first)
    repository.verify_root(second(*fresh, *signers["root"]), first)
    with pytest.raises(MalformedMetadataError):
        repository.verify_root(second(*fresh, *signers["root"], version=3), first)


def test_product_names_that_are_roles_cannot_be_delegated(signers):
    for name in ("root", "targets", "snapshot", "timestamp"):
        with pytest.raises(MalformedError):
            repository.make_targets(version=1, expires_at=LATER, products={name: role(*signers["thermo"])})


@pytest.mark.parametrize("target", ["other/1.0/app.tar", "thermo/1.1/app.tar", "thermo/app.tar", "thermo/1.0/a/b"])
def test_a_payload_outside_its_release_is_refused(target):
    good = manifest()
    with pytest.raises(MalformedError):
        repository.release_targets(replace(good, payloads=(replace(good.payloads[0], target=target),)))


def test_errors_of_a_signer_pass_unchanged(roles):
    class Broken:
        def sign(self, payload):
            raise SignatureError("The token was pulled out")

    with pytest.raises(SignatureError):
        repository.sign(repository.make_root(version=1, expires_at=LATER, roles=roles), Broken())


def test_a_root_names_exactly_the_four_roles(roles):
    for bad in ({name: roles[name] for name in ("root", "targets")}, roles | {"mirrors": roles["root"]}):
        with pytest.raises(MalformedError):
            repository.make_root(version=1, expires_at=LATER, roles=bad)


def test_payloads_appear_once_and_under_sha256():
    good = manifest()
    twice = replace(good, payloads=good.payloads * 2)
    other = replace(good, payloads=(replace(good.payloads[0], digest=Digest.of(b"image", "sha512")),))
    for bad in (twice, other):
        with pytest.raises(MalformedError):
            repository.release_targets(bad)


def test_hash_bins_are_not_used_here(files):
    """A delegation we would not have made is refused, though TUF knows it (TAP 15)."""
    value = json.loads(files["1.targets.json"])
    delegations = value["signed"]["delegations"]
    keyids = delegations["roles"][0]["keyids"]
    del delegations["roles"]
    delegations["succinct_roles"] = {"keyids": keyids, "threshold": 2, "bit_length": 8, "name_prefix": "bin"}
    with pytest.raises(MalformedMetadataError):
        repository.read(json.dumps(value).encode(), Targets, what="targets")


def test_the_highest_sequence_number_outlives_its_release():
    made = repository.make_product(
        version=1, expires_at=LATER, targets=repository.release_targets(manifest()), highest_sequence_number=9
    )
    assert repository.highest_sequence_number(made.signed) == 9
    made.signed.unrecognized_fields["x-highest-sequence-number"] = "many"
    assert repository.highest_sequence_number(made.signed) == 1
