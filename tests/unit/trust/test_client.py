"""The TUF client under attack: metadata cases 1-29 of trust.md §10 that concern one repository."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner, SSlibKey
from support.tuf_repository import MemorySource, TufRepository, now, root_of
from tuf.api.metadata import Delegations, Metadata, MetaFile, SuccinctRoles, Targets

from firmament.durable import RealDisk
from firmament.errors import (
    AnchorMissingError,
    CorruptStateError,
    DigestMismatchError,
    ExpiredError,
    HttpStatusError,
    LengthExceededError,
    MalformedMetadataError,
    RollbackError,
    ThresholdNotMetError,
    TruncatedError,
    TrustError,
)
from firmament.trust.client import TrustedClient
from firmament.trust.floors import IMAGE, Floors


class Device:
    def __init__(self, path, repository):
        self.path = path
        self.repository = repository
        self.source = MemorySource(repository)
        self.anchor = root_of(repository)
        self.floors = Floors(RealDisk(), path / "floors")
        self.cache = path / "cache"

    def client(self, *, at=None):
        return TrustedClient(
            disk=RealDisk(),
            directory=self.cache,
            anchor=self.anchor,
            source=self.source,
            floors=self.floors,
            metadata_url="https://server/metadata/",
            targets_url="https://server/targets/",
            targets_directory=self.path / "targets",
            reference_time=at or now(),
        )

    def refresh(self, **options):
        self.repository.requests.clear()
        client = self.client(**options)
        client.refresh()
        return client

    def versions(self):
        return dict(self.floors.load().of(IMAGE).versions)

    def wipe_cache(self):
        for path in self.cache.glob("*.json"):
            path.write_bytes(b"")


@pytest.fixture
def repo():
    return TufRepository()


@pytest.fixture
def device(tmp_path, repo):
    return Device(tmp_path, repo)


def test_refresh_asks_in_order_and_keeps_what_it_verified(device, repo):
    client = device.refresh()
    assert repo.requests == [("root", 2), ("timestamp", None), ("snapshot", 1), ("targets", 1)]
    assert client.versions() == device.versions() == {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}
    names = {path.relative_to(device.cache).as_posix() for path in device.cache.rglob("*")}
    assert names == {
        "root.json",
        "root_history",
        "root_history/1.root.json",
        "timestamp.json",
        "snapshot.json",
        "targets.json",
    }
    assert (device.cache / "root.json").read_bytes() == repo.roots[0]


def test_nothing_new_costs_two_requests_and_no_write(device, repo):
    device.refresh()
    before = {path: path.stat().st_mtime_ns for path in device.path.rglob("*") if path.is_file()}
    device.refresh()
    assert repo.requests == [("root", 2), ("timestamp", None)]
    assert {path: path.stat().st_mtime_ns for path in device.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("wiped", [False, True])
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_rollback_is_refused_with_and_without_a_cache(device, repo, role, wiped):
    """Cases 1, 2, 3 and 9: an old, correctly signed state is served again."""
    old = repo.save()
    repo.publish()
    device.refresh()
    match role:
        case "timestamp":
            repo.kept = old
        case "snapshot":  # the attacker holds the timestamp key
            repo.timestamp.signed.version += 1
            repo.timestamp.signed.snapshot_meta = MetaFile(1)
            repo.kept["timestamp.json"] = repo.sign("timestamp", repo.timestamp)
        case "targets":  # and the snapshot key
            repo.snapshot.signed.version += 1
            repo.snapshot.signed.meta["targets.json"] = MetaFile(1)
            repo.kept["3.snapshot.json"] = repo.sign("snapshot", repo.snapshot)
            repo.timestamp.signed.version += 1
            repo.timestamp.signed.snapshot_meta = MetaFile(3)
            repo.kept["timestamp.json"] = repo.sign("timestamp", repo.timestamp)
    if wiped:
        device.wipe_cache()
    with pytest.raises(RollbackError):
        device.refresh()
    assert device.versions()[role] == 2


def test_rollback_stops_before_asking_for_more(device, repo):
    old = repo.save()
    repo.publish()
    device.refresh()
    repo.kept = old
    device.wipe_cache()
    with pytest.raises(RollbackError):
        device.refresh()
    assert repo.requests == [("root", 2), ("timestamp", None)]
    assert (device.cache / "timestamp.json").read_bytes() == b""  # the old file did not replace anything


def test_mix_and_match_is_refused(device, repo):
    """Case 4: old targets under a new snapshot."""
    old = repo.kept["1.targets.json"]
    device.refresh()
    repo.publish()
    repo.broken["2.targets.json"] = old
    with pytest.raises(RollbackError):
        device.refresh()


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_expired_metadata_is_refused(device, repo, role):
    """Cases 5 and 13: the reference time decides, never this machine's clock."""
    metadata = getattr(repo, role)
    metadata.signed.expires = repo.made_at + timedelta(days=1)
    repo.publish_root()
    repo.publish()
    device.refresh()
    with pytest.raises(ExpiredError):
        device.refresh(at=repo.made_at + timedelta(days=2))


def test_a_reference_time_in_the_past_accepts_what_was_valid_then(device, repo):
    device.refresh(at=now() - timedelta(days=400))


def test_a_root_signed_by_an_attacker_is_refused(device, repo):
    """Case 10."""
    device.refresh()
    repo.signers["root"] = [CryptoSigner.generate_ed25519()]
    repo.publish_root()
    with pytest.raises(ThresholdNotMetError):
        device.refresh()
    assert device.versions()["root"] == 1


def test_a_root_that_skips_a_version_is_refused(device, repo):
    """Case 11: version 3 under the name 2.root.json."""
    repo.root.signed.version = 2
    repo.publish_root()
    repo.kept["2.root.json"] = repo.kept.pop("3.root.json")
    with pytest.raises(MalformedMetadataError):
        device.refresh()


@pytest.mark.parametrize("signed_by", ["old", "new"])
def test_a_rotated_root_needs_old_and_new_keys(device, repo, signed_by):
    """Case 12."""
    old = repo.signers["root"]
    repo.rotate("root")
    if signed_by == "new":
        repo.root.signatures = {
            keyid: item for keyid, item in repo.root.signatures.items() if keyid != old[0].public_key.keyid
        }
    else:
        repo.root.signatures = {old[0].public_key.keyid: repo.root.signatures[old[0].public_key.keyid]}
    repo.kept["2.root.json"] = repo.root.to_bytes()
    with pytest.raises(ThresholdNotMetError):
        device.refresh()


def test_roots_are_walked_from_the_anchor_and_remembered(device, repo):
    for _ in range(3):
        repo.rotate("root")
    device.refresh()
    assert repo.requests[:4] == [("root", 2), ("root", 3), ("root", 4), ("root", 5)]
    device.refresh()
    assert repo.requests[0] == ("root", 5)
    assert (device.cache / "root.json").resolve().name == "4.root.json"


def test_a_damaged_root_in_the_history_is_fetched_again(device, repo):
    repo.rotate("root")
    device.refresh()
    (device.cache / "root_history" / "2.root.json").write_bytes(b"{}")
    device.refresh()
    assert repo.requests[:2] == [("root", 2), ("root", 3)]


def test_an_endless_root_chain_ends(device, repo):
    """Case 14."""
    client = device.client()
    client.config.max_root_rotations = 8
    for _ in range(12):
        repo.publish_root()
    client.refresh()
    assert repo.requests[-4:] == [("root", 9), ("timestamp", None), ("snapshot", 1), ("targets", 1)]


def test_one_key_cannot_sign_twice(device, repo):
    """Case 15: the threshold counts keys."""
    repo.root.signed.add_key(CryptoSigner.generate_ed25519().public_key, "timestamp")
    repo.root.signed.roles["timestamp"].threshold = 2
    repo.publish_root()
    value = json.loads(repo.kept["timestamp.json"])
    value["signatures"] = value["signatures"] * 2
    repo.kept["timestamp.json"] = json.dumps(value).encode()
    with pytest.raises(TrustError):
        device.refresh()


def test_a_threshold_of_zero_is_refused(device, repo):
    """Case 16."""
    value = json.loads(repo.roots[0])
    value["signed"]["roles"]["timestamp"]["threshold"] = 0
    device.anchor = json.dumps(value).encode()
    with pytest.raises(MalformedMetadataError):
        device.client()


@pytest.mark.parametrize("missing", ["classical", "post-quantum"])
def test_a_hybrid_role_needs_both_classes(device, repo, missing):
    """Case 17."""
    pair = [CryptoSigner.generate_ed25519(), CryptoSigner.generate_mldsa()]
    repo.root.signed.revoke_key(repo.signers["targets"][0].public_key.keyid, "targets")
    for signer in pair:
        repo.root.signed.add_key(signer.public_key, "targets")
    repo.root.signed.roles["targets"].threshold = 2
    repo.publish_root()
    repo.signers["targets"] = pair
    repo.publish()
    device.refresh()
    repo.signers["targets"] = pair[1:] if missing == "classical" else pair[:1]
    repo.publish()
    with pytest.raises(ThresholdNotMetError):
        device.refresh()


def test_a_foreign_signature_under_a_post_quantum_keyid_is_refused(device, repo):
    """Case 18."""
    quantum = CryptoSigner.generate_mldsa()
    repo.root.signed.revoke_key(repo.signers["targets"][0].public_key.keyid, "targets")
    repo.root.signed.add_key(quantum.public_key, "targets")
    repo.publish_root()
    repo.publish()
    value = json.loads(repo.kept["2.targets.json"])
    value["signatures"][0]["keyid"] = quantum.public_key.keyid
    repo.kept["2.targets.json"] = json.dumps(value).encode()
    with pytest.raises(ThresholdNotMetError):
        device.refresh()


def test_an_unknown_key_kind_is_refused_and_the_old_state_kept(device, repo):
    """Case 19."""
    device.refresh()
    before = (device.cache / "root.json").read_bytes()
    value = json.loads(repo.roots[0])
    value["signed"]["version"] = 2
    key = next(iter(value["signed"]["keys"].values()))
    key["scheme"] = "telepathy"
    repo.kept["2.root.json"] = json.dumps(value).encode()
    with pytest.raises(TrustError):
        device.refresh()
    assert (device.cache / "root.json").read_bytes() == before


def test_another_roles_key_and_another_roles_file_are_refused(device, repo):
    """Case 20."""
    repo.signers["targets"] = repo.signers["snapshot"]
    repo.publish()
    with pytest.raises(ThresholdNotMetError):
        device.refresh()
    repo.kept["timestamp.json"] = repo.kept["2.snapshot.json"]
    with pytest.raises(MalformedMetadataError):
        device.refresh()


def test_a_cached_role_is_verified_for_its_delegator(device, repo):
    """Case 21: two delegators name the same role with different keys."""
    repo.delegate("a", ["a/*"])
    repo.delegate("b", ["b/*"])
    repo.delegate("shared", ["a/*"], parent="a")
    keys = repo.signers["shared"]
    repo.delegate("shared", ["b/*"], parent="b")  # other keys
    repo.signers["shared"] = keys
    repo.add_target("a/x", b"x", role="shared")
    repo.publish()
    client = device.refresh()
    assert client.get_targetinfo("a/x") is not None
    with pytest.raises(ThresholdNotMetError):
        client.get_targetinfo("b/x")


def test_a_delegation_that_the_snapshot_does_not_know_is_refused(device, repo):
    """Case 22."""
    repo.delegate("thermo", ["thermo/*/*"])
    repo.add_target("thermo/1/x", b"x", role="thermo")
    repo.publish()
    del repo.snapshot.signed.meta["thermo.json"]
    repo.publish_snapshot()
    with pytest.raises(MalformedMetadataError):
        device.refresh().get_targetinfo("thermo/1/x")


def test_a_role_cannot_sign_outside_its_paths(device, repo):
    """Case 23."""
    repo.delegate("thermo", ["thermo/*/*"], terminating=True)
    repo.add_target("valve/1/x", b"x", role="thermo")
    repo.add_target("thermo/1/x", b"x", role="thermo")
    repo.publish()
    client = device.refresh()
    assert client.get_targetinfo("valve/1/x") is None
    assert client.get_targetinfo("thermo/1/x") is not None


@pytest.mark.parametrize("name", ["../x", "?", "#", "/x", "..", "a b", "ä"])
def test_strange_role_names_stay_inside_the_cache(device, repo, name):
    """Case 24."""
    repo.delegate(name, ["*"])
    repo.add_target("x", b"x", role=name)
    repo.publish()
    assert device.refresh().get_targetinfo("x") is not None
    assert device.versions()[name] == 1
    assert {path.parent for path in device.path.rglob("*") if path.is_file()} <= {
        device.cache,
        device.cache / "root_history",
        device.path / "floors",
    }


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"[" * 16_000,
        b'{"signed":' + b"9" * 9000 + b"}",
        b'{"a":1,"a":2}',
        b"[]",
        b'{"signed":1.5,"signatures":[]}',
        b'{"signatures":[],"signed":{"_type":"timestamp"}}',
        b"null",
    ],
)
@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"])
def test_bytes_that_are_no_metadata_are_refused(device, repo, name, data):
    """Case 25."""
    repo.broken[name] = data
    with pytest.raises(TrustError):
        device.refresh()


def test_metadata_above_its_ceiling_is_refused(device, repo):
    """Case 26."""
    repo.broken["timestamp.json"] = b" " * 20_000
    with pytest.raises(LengthExceededError):
        device.refresh()


@pytest.mark.parametrize(
    ("algorithm", "is_taken"), [("sha256", True), ("sha512", True), ("md5", False), ("sha1", False)]
)
def test_weak_hashes_are_refused_however_well_signed(device, repo, algorithm, is_taken):
    """Case 27."""
    repo.add_target("fw.bin", b"firmware", algorithm=algorithm)
    repo.publish()
    client = device.refresh()
    info = client.get_targetinfo("fw.bin")
    if is_taken:
        assert Path(client.download_target(info)).read_bytes() == b"firmware"
    else:
        with pytest.raises(MalformedMetadataError):
            client.download_target(info)
        assert not (device.path / "targets" / "fw.bin").exists()


@pytest.mark.parametrize("wiped", [False, True])
@pytest.mark.parametrize(
    ("role", "rotated"), [("timestamp", "timestamp"), ("snapshot", "timestamp"), ("targets", "snapshot")]
)
def test_fast_forward_is_recovered_by_new_keys(device, repo, role, rotated, wiped):
    """Case 28: a stolen key pushed a version to 2^31; without new keys the device is stuck."""
    metadata = getattr(repo, role)
    metadata.signed.version = 2**31
    repo.publish(targets=False)
    device.refresh()
    metadata.signed.version = 2
    repo.publish(targets=False)
    if wiped:
        device.wipe_cache()
    with pytest.raises(RollbackError):
        device.refresh()
    repo.rotate(rotated)
    repo.publish(targets=False)
    device.refresh()
    assert device.versions()[role] < 10


def test_a_delegated_role_is_recovered_by_its_delegator(device, repo):
    repo.delegate("thermo", ["thermo/*/*"])
    repo.add_target("thermo/1/x", b"x", role="thermo")
    repo.delegated["thermo"].signed.version = 2**31
    repo.publish()
    device.refresh().get_targetinfo("thermo/1/x")
    repo.delegated["thermo"].signed.version = 2
    repo.snapshot.signed.meta["thermo.json"] = MetaFile(2)
    repo.rotate("snapshot")  # the snapshot remembers the version too
    repo.targets.signed.revoke_key(repo.signers["thermo"][0].public_key.keyid, "thermo")
    repo.delegate("thermo", ["thermo/*/*"])
    repo.publish()
    device.refresh().get_targetinfo("thermo/1/x")
    assert device.versions()["thermo"] == 2


def test_what_was_verified_before_a_failure_counts(device, repo):
    repo.publish()
    repo.broken["2.snapshot.json"] = None
    with pytest.raises(HttpStatusError):
        device.refresh()
    assert device.versions()["timestamp"] == 2
    assert json.loads((device.cache / "timestamp.json").read_bytes())["signed"]["version"] == 2


def test_damaged_floors_stop_everything(device, repo):
    device.refresh()
    for path in (device.path / "floors").iterdir():
        path.write_bytes(b"")
    with pytest.raises(CorruptStateError):
        device.refresh()


def test_a_dead_server_is_not_a_new_root(device, repo):
    device.source.fetch = lambda url, limit_bytes: (_ for _ in ()).throw(HttpStatusError("down", status=503))
    with pytest.raises(HttpStatusError):
        device.refresh()


# --- targets as files ----------------------------------------------------------------------


@pytest.fixture
def target(device, repo):
    repo.add_target("thermo/1.0/fw.bin", bytes(range(256)) * 40)
    repo.publish()
    client = device.refresh()
    return client, client.get_targetinfo("thermo/1.0/fw.bin"), device.path / "targets" / "thermo%2F1.0%2Ffw.bin"


def test_a_target_is_fetched_once(target, repo):
    client, info, path = target
    assert client.find_cached_target(info) is None
    assert client.download_target(info) == str(path)
    assert client.find_cached_target(info) == str(path)
    path.write_bytes(b"x" * info.length)
    assert client.find_cached_target(info) is None


def test_a_dropped_connection_is_continued(target, device, repo):
    """Case 32."""
    client, info, path = target
    device.source.cut_after = 4000
    with pytest.raises(TruncatedError):
        client.download_target(info)
    assert not path.exists()
    device.source.cut_after = None
    assert Path(client.download_target(info)).read_bytes() == bytes(range(256)) * 40


@pytest.mark.parametrize("part", [b"x" * 5000, b"x" * 50_000, b"x" * 10_240, b""])
def test_a_poisoned_part_is_thrown_away(target, repo, part):
    """Case 34."""
    client, info, path = target
    path.parent.mkdir()
    path.with_name(path.name + ".part").write_bytes(part)
    client.download_target(info)
    assert path.read_bytes() == bytes(range(256)) * 40
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda data: data[:-1] + b"\0", DigestMismatchError),
        (lambda data: data[:-1], TruncatedError),
        (lambda data: data + b"x", LengthExceededError),
    ],
)
def test_other_bytes_never_become_the_target(target, repo, change, error):
    """Cases 30 and 38."""
    client, info, path = target
    (name,) = repo.files
    repo.files[name] = change(repo.files[name])
    with pytest.raises(error):
        client.download_target(info)
    assert not path.exists()


def test_payloads_never_go_through_pythons_own_download(device):
    client = device.client()
    with pytest.raises(RuntimeError):
        list(client._fetcher._fetch("https://server/x"))


def test_an_unusable_anchor_is_refused(device):
    device.anchor = b"{}"
    with pytest.raises(TrustError):
        device.client()


def test_a_client_without_an_address_for_targets_says_so(device, repo):
    repo.add_target("a", b"x")
    repo.publish()
    device.refresh()
    client = TrustedClient(
        disk=RealDisk(),
        directory=device.cache,
        anchor=device.anchor,
        source=device.source,
        floors=device.floors,
        metadata_url="https://server/metadata",
        targets_directory=device.path / "targets",
        reference_time=now(),
    )
    info = client.get_targetinfo("a")
    assert client.reference_time <= now()
    with pytest.raises(RuntimeError):
        client.download_target(info)


def test_without_consistent_snapshots_names_are_plain(device, repo):
    repo.root.signed.consistent_snapshot = False
    repo.publish_root()
    repo.kept["snapshot.json"], repo.kept["targets.json"] = repo.kept["1.snapshot.json"], repo.kept["1.targets.json"]
    repo.add_target("a", b"x")
    repo.publish()
    repo.kept["snapshot.json"], repo.kept["targets.json"] = repo.kept["2.snapshot.json"], repo.kept["2.targets.json"]
    client = device.refresh()
    repo.files["a"] = b"x"
    assert Path(client.download_target(client.get_targetinfo("a"))).read_bytes() == b"x"
    assert repo.fetched == ["a"]


def test_a_poisoned_part_of_a_poisoned_target_is_not_kept(target, repo):
    """Case 34: the second try fails too; nothing of either stays."""
    client, info, path = target
    (name,) = repo.files
    repo.files[name] = b"x" * info.length
    path.parent.mkdir()
    path.with_name(path.name + ".part").write_bytes(b"y" * 5000)
    with pytest.raises(DigestMismatchError):
        client.download_target(info)
    assert list(path.parent.iterdir()) == []


def test_a_cached_target_that_cannot_be_read_is_no_target(target):
    client, info, path = target
    client.download_target(info)
    path.unlink()
    path.mkdir()
    info.length = path.stat().st_size
    assert client.find_cached_target(info) is None


def test_a_device_without_an_anchor_trusts_nobody(device):
    device.anchor = b""
    with pytest.raises(AnchorMissingError):
        device.client()


def test_metadata_whose_digest_the_role_above_names_otherwise_is_refused(device, repo):
    repo.publish()
    repo.snapshot.signed.meta["targets.json"] = MetaFile(2, hashes={"sha256": "0" * 64})
    repo.publish_snapshot()
    with pytest.raises(DigestMismatchError):
        device.refresh()


def test_hash_bins_are_delegations_like_others(device, repo):
    """Succinct roles (TAP 15): the keys of all bins are the floors' keys too."""
    signer = CryptoSigner.generate_ed25519()
    repo.targets.signed.delegations = Delegations(
        {}, succinct_roles=SuccinctRoles([signer.public_key.keyid], 1, bit_length=1, name_prefix="bin")
    )
    repo.targets.signed.delegations.keys[signer.public_key.keyid] = signer.public_key
    for name in ("bin-0", "bin-1"):
        repo.signers[name] = [signer]
        repo.delegated[name] = Metadata(Targets(expires=repo.targets.signed.expires))
        repo.add_target("a", b"x", role=name)
    repo.publish()
    assert device.refresh().get_targetinfo("a") is not None
    assert len([role for role in device.versions() if role.startswith("bin-")]) == 1


def test_one_key_under_two_names_is_refused(device, repo):
    """Case 15."""
    key = repo.signers["timestamp"][0].public_key
    double = SSlibKey("f" * 64, key.keytype, key.scheme, dict(key.keyval))
    repo.root.signed.keys[double.keyid] = double
    repo.root.signed.roles["timestamp"].keyids.append(double.keyid)
    repo.publish_root()
    with pytest.raises(MalformedMetadataError):
        device.refresh()
