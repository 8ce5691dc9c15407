"""Signing and publishing: thresholds, drafts that travel, and what a verifier refuses."""

import json
import shutil
from datetime import timedelta

import pytest
from support import authoring
from support.authoring import NOW, SECRETS
from tuf.api.metadata import Root, TargetFile, Targets

from firmament.durable import RealDisk
from firmament.errors import (
    ConflictError,
    DigestMismatchError,
    ExpiredError,
    KeyFileError,
    MalformedMetadataError,
    NotFoundError,
    NothingToDoError,
    PassphraseError,
    RollbackError,
    ThresholdNotMetError,
    TrustError,
    UnknownTargetError,
)
from firmament.release import publish, sign
from firmament.release.store import RepositoryStore
from firmament.release.verify import find_file, verify_release, verify_repository
from firmament.release.workspace import Workspace
from firmament.trust import keys, repository
from firmament.trust.keys import KeyKind
from firmament.trust.signers import GivenSecrets


def view_of(store, now=NOW, root=None):
    files = store.files()
    return verify_repository(files, root or files["1.root.json"], now=now)


def test_a_release_is_published_as_a_verified_repository(workspace, tree, tmp_path):
    authoring.release(workspace, tree, "1.0")
    assert publish.publish_directory(workspace, tmp_path / "pub", now=NOW) == 2
    store = RepositoryStore(RealDisk(), tmp_path / "pub")
    made = verify_release(view_of(store), store, RealDisk(), "thermo/1.0")
    digest = made.image.digest.hex
    assert (tmp_path / "pub" / "targets" / "thermo" / "1.0" / f"{digest}.bundle.tar").exists()
    assert sorted(path.name for path in (tmp_path / "pub" / "metadata").iterdir()) == [
        "1.root.json",
        "1.snapshot.json",
        "1.targets.json",
        "1.thermo.json",
        "2.snapshot.json",
        "2.thermo.json",
        "timestamp.json",
    ]


def test_one_key_of_the_pair_is_not_enough(workspace, tree):
    """Case 17, at the author's bench."""
    authoring.build_release(workspace, tree, "1.0")
    for name in ("thermo-ed25519", "thermo-ml-dsa"):
        found = authoring.sign_release(workspace, "thermo/1.0", name)
        if name == "thermo-ed25519":
            assert not found.is_complete
            with pytest.raises(ThresholdNotMetError):
                publish.plan(workspace)
            assert workspace.product("thermo").signed.version == 1
    assert found.is_complete
    authoring.publish_local(workspace)


def test_a_draft_is_carried_to_a_second_signer(workspace, tree, tmp_path):
    """Two people, a key each, a copy of the repository each; the draft file goes between them."""
    other = tmp_path / "other"
    shutil.copytree(workspace.directory, other, symlinks=True)
    for name in ("thermo-ml-dsa.pem",):
        (workspace.directory / "keys" / name).unlink()
    for name in ("thermo-ed25519.pem",):
        (other / "keys" / name).unlink()
    authoring.build_release(workspace, tree, "1.0")
    assert not authoring.sign_release(workspace, "thermo/1.0").is_complete
    second = Workspace(RealDisk(), other)
    draft = repository.read(workspace.draft_path("thermo").read_bytes(), Targets, what="draft")
    sign.import_draft(second, "thermo", draft)
    assert authoring.sign_release(second, "thermo/1.0").is_complete
    back = repository.read(second.draft_path("thermo").read_bytes(), Targets, what="draft")
    sign.import_draft(workspace, "thermo", back)
    authoring.publish_local(workspace)
    view_of(workspace.images)


def test_a_key_of_another_role_does_not_sign(workspace, tree):
    """Case 61: the keys of root, of targets and of another product have no say."""
    authoring.build_release(workspace, tree, "1.0")
    for name in ("root-ed25519", "targets-ml-dsa", "snapshot"):
        with pytest.raises(KeyFileError):
            authoring.sign_release(workspace, "thermo/1.0", name)
    with pytest.raises(NotFoundError):
        authoring.sign_release(workspace, "thermo/1.0", "nobody")


def test_a_wrong_passphrase_loses_nothing(workspace, tree):
    authoring.build_release(workspace, tree, "1.0")
    with pytest.raises(PassphraseError):
        sign.sign_release(workspace, "thermo/1.0", keys=(), secrets=GivenSecrets(b"wrong"), now=NOW)
    assert workspace.draft("thermo") is None
    assert authoring.sign_release(workspace, "thermo/1.0").is_complete


def test_a_payload_changed_after_the_build_is_not_signed(workspace, tree):
    built = authoring.build_release(workspace, tree, "1.0")
    path = built.directory / "bundle.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DigestMismatchError):
        authoring.sign_release(workspace, "thermo/1.0")


def test_a_payload_changed_after_signing_is_not_published(workspace, tree):
    built = authoring.build_release(workspace, tree, "1.0")
    authoring.sign_release(workspace, "thermo/1.0")
    (built.directory / "bundle.tar").write_bytes(b"x" * built.manifest.image.length_bytes)
    with pytest.raises(DigestMismatchError):
        authoring.publish_local(workspace)
    assert workspace.product("thermo").signed.version == 1


def test_a_rebuilt_release_does_not_slip_under_old_signatures(workspace, tree):
    built = authoring.build_release(workspace, tree, "1.0")
    authoring.sign_release(workspace, "thermo/1.0", "thermo-ed25519")
    shutil.rmtree(built.directory)
    (tree / "lib" / "x").write_text("other")
    authoring.build_release(workspace, tree, "1.0", sequence_number=9)
    with pytest.raises(ConflictError):
        authoring.sign_release(workspace, "thermo/1.0", "thermo-ml-dsa")


def test_two_releases_share_a_draft_and_the_first_signatures_go(workspace, tree):
    authoring.build_release(workspace, tree, "1.0")
    authoring.sign_release(workspace, "thermo/1.0", "thermo-ed25519")
    authoring.build_release(workspace, tree, "1.1")
    found = authoring.sign_release(workspace, "thermo/1.1", "thermo-ml-dsa")
    assert len(found.signed) == 1
    authoring.sign_release(workspace, "thermo/1.1")
    what = publish.plan(workspace)
    assert what.added == ("thermo/1.0", "thermo/1.1")


def test_sequence_numbers_and_names_are_used_once(workspace, tree):
    authoring.release(workspace, tree, "1.0")
    built = authoring.build_release(workspace, tree, "1.1")
    value = json.loads((built.directory / "release.json").read_bytes())
    value["manifest"]["sequence_number"] = 1
    (built.directory / "release.json").write_text(json.dumps(value))
    with pytest.raises(RollbackError):
        authoring.sign_release(workspace, "thermo/1.1")
    shutil.rmtree(workspace.directory / "releases" / "thermo-1.0")
    authoring.build_release(workspace, tree, "1.0", sequence_number=7)
    with pytest.raises(ConflictError):
        authoring.sign_release(workspace, "thermo/1.0")


def test_withdrawn_releases_go_and_their_numbers_stay_used(workspace, tree, tmp_path):
    authoring.release(workspace, tree, "1.0")
    authoring.release(workspace, tree, "1.1")
    sign.withdraw_release(workspace, "thermo/1.1", keys=(), secrets=SECRETS, now=NOW)
    what = publish.plan(workspace)
    assert (what.added, what.withdrawn) == ((), ("thermo/1.1",))
    authoring.publish_local(workspace)
    view = view_of(workspace.images)
    assert list(view.releases) == ["thermo/1.0"]
    assert repository.highest_sequence_number(view.products["thermo"].signed) == 2
    with pytest.raises(NotFoundError):
        sign.withdraw_release(workspace, "thermo/1.1", keys=(), secrets=SECRETS, now=NOW)


def test_nothing_to_publish_is_said(workspace, tree):
    with pytest.raises(NothingToDoError):
        publish.plan(workspace)
    authoring.release(workspace, tree, "1.0")
    with pytest.raises(NothingToDoError):
        publish.plan(workspace)
    with pytest.raises(NotFoundError):
        authoring.sign_release(workspace, "thermo/9.9")


def test_a_renewed_role_lives_longer(workspace, tree):
    authoring.release(workspace, tree, "1.0")
    later = NOW + timedelta(days=170)
    sign.renew_product(workspace, "thermo", keys=(), secrets=SECRETS, now=later)
    authoring.publish_local(workspace, now=later)
    assert workspace.product("thermo").signed.expires == later + timedelta(days=180)
    assert publish.refresh(workspace, secrets=SECRETS, now=later) == 4


def test_expired_roles_are_told(workspace, tree):
    authoring.release(workspace, tree, "1.0")
    for days, role in ((31, "timestamp"), (366, "root")):
        with pytest.raises(ExpiredError) as caught:
            view_of(workspace.images, now=NOW + timedelta(days=days))
        assert caught.value.facts["role"] == role


def test_a_directory_never_goes_back_or_becomes_another(workspace, tree, tmp_path):
    authoring.release(workspace, tree, "1.0")
    old = tmp_path / "old"
    shutil.copytree(workspace.directory, old, symlinks=True)
    authoring.release(workspace, tree, "1.1")
    publish.publish_directory(workspace, tmp_path / "pub", now=NOW)
    with pytest.raises(ConflictError, match="newer"):
        publish.publish_directory(Workspace(RealDisk(), old), tmp_path / "pub", now=NOW)
    stranger = authoring.make_workspace(tmp_path / "stranger")
    with pytest.raises(ConflictError, match="other roots"):
        publish.publish_directory(stranger, tmp_path / "pub", now=NOW)
    assert sorted(view_of(RepositoryStore(RealDisk(), tmp_path / "pub")).releases) == ["thermo/1.0", "thermo/1.1"]


def test_with_a_servers_keys_a_directory_needs_the_server(tmp_path, tree):
    public, _ = authoring.online_keys()
    from firmament.release.setup import read_online

    workspace = authoring.make_workspace(tmp_path / "ws2", online=read_online(json.dumps(public).encode()))
    authoring.release(workspace, tree, "1.0")
    with pytest.raises(NotFoundError):
        publish.publish_directory(workspace, tmp_path / "pub", now=NOW)
    view = view_of(workspace.images)  # verified from root to payload, without a timestamp
    assert view.timestamp_version == 0
    assert verify_release(view, workspace.images, RealDisk(), "thermo/1.0").version == "1.0"


# --- attacks on a repository at rest -------------------------------------------------------


def change_json(path, change):
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


def newest(directory):
    return directory / "metadata"


ATTACKS = {
    "payload-flipped": lambda d: flip(next((d / "targets").rglob("*.bundle.tar"))),
    "payload-gone": lambda d: next((d / "targets").rglob("*.bundle.tar")).unlink(),
    "custom-changed": lambda d: change_json(
        newest(d) / "2.thermo.json",
        lambda v: v["signed"]["targets"]["thermo/1.0/bundle.tar"]["custom"].update(sequence_number=99),
    ),
    "old-product-role": lambda d: shutil.copy(newest(d) / "1.thermo.json", newest(d) / "2.thermo.json"),
    "old-timestamp-missing-snapshot": lambda d: (newest(d) / "2.snapshot.json").unlink(),
    "snapshot-as-timestamp": lambda d: shutil.copy(newest(d) / "2.snapshot.json", newest(d) / "timestamp.json"),
    "signature-removed": lambda d: change_json(newest(d) / "2.thermo.json", lambda v: v["signatures"].pop()),
    "signature-doubled": lambda d: change_json(
        newest(d) / "2.thermo.json", lambda v: v["signatures"].__setitem__(1, v["signatures"][0])
    ),
    "expiry-moved": lambda d: change_json(
        newest(d) / "1.targets.json", lambda v: v["signed"].update(expires="2099-01-01T00:00:00Z")
    ),
    "truncated": lambda d: (newest(d) / "2.thermo.json").write_bytes((newest(d) / "2.thermo.json").read_bytes()[:50]),
    "huge": lambda d: (newest(d) / "timestamp.json").write_bytes(b" " * 20_000),
    "timestamp-gone-snapshot-only": lambda d: (newest(d) / "2.thermo.json").unlink(),
}


def flip(path):
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_altered_repository_is_refused(workspace, tree, tmp_path, name):
    """Cases 1 to 5, 15, 17, 20, 22, 26, 38: on a stick or a mirror, before anything is used."""
    authoring.release(workspace, tree, "1.0")
    directory = tmp_path / "pub"
    publish.publish_directory(workspace, directory, now=NOW)
    root = (newest(directory) / "1.root.json").read_bytes()
    store = RepositoryStore(RealDisk(), directory)
    verify_release(view_of(store, root=root), store, RealDisk(), "thermo/1.0")
    ATTACKS[name](directory)
    with pytest.raises((TrustError, NotFoundError)):
        verify_release(view_of(store, root=root), store, RealDisk(), "thermo/1.0")


def test_a_whole_foreign_repository_is_refused_by_the_trusted_root(workspace, tree, tmp_path):
    """Case 10."""
    stranger = authoring.make_workspace(tmp_path / "stranger")
    authoring.release(stranger, tree, "1.0")
    mine = workspace.images.files()["1.root.json"]
    with pytest.raises(ThresholdNotMetError):
        verify_repository(stranger.images.files(), mine, now=NOW)


def test_a_root_of_strangers_or_with_a_gap_is_not_followed(workspace, tree, tmp_path):
    """Cases 10 and 11: version 2 by strangers is refused; version 3 without 2 is never reached."""
    files = workspace.images.files()
    root = repository.read(files["1.root.json"], Root, what="root")
    root.signed.version = 2
    stranger = keys.generate(KeyKind.ED25519)
    root.signed.add_key(stranger.public_key, "root")
    root.signatures.clear()
    repository.sign(root, stranger)
    with pytest.raises(ThresholdNotMetError):
        verify_repository(files | {"2.root.json": repository.encode(root)}, files["1.root.json"], now=NOW)
    root.signed.version = 3
    view = verify_repository(files | {"3.root.json": repository.encode(root)}, files["1.root.json"], now=NOW)
    assert view.root.signed.version == 1


def test_a_product_role_that_signs_another_products_path_is_refused(workspace, tree):
    """Cases 23 and 61: correctly signed, and still not its business."""
    manifest = authoring.release(workspace, tree, "1.0")
    from dataclasses import replace

    foreign = replace(
        manifest,
        product="pump",
        sequence_number=2,
        payloads=(replace(manifest.payloads[0], target="pump/1.0/bundle.tar"),),
    )
    bad = repository.make_product(
        version=3, expires_at=NOW + timedelta(days=9), targets=repository.release_targets(foreign)
    )
    repository.sign(bad, *workspace.signers(workspace.product_keys("thermo"), (), SECRETS))
    online = publish.author_held(workspace, SECRETS)
    publish.commit_roles(workspace, {"thermo": bad}, online=online, now=NOW)
    with pytest.raises(MalformedMetadataError):
        view_of(workspace.images)


def test_a_draft_holds_its_own_product_and_nothing_else(workspace, tree):
    """What a carried draft could hold beside releases is refused before anybody signs it."""
    other = repository.make_targets(version=2, expires_at=NOW, products=workspace.products())
    strays = repository.make_product(version=2, expires_at=NOW, targets={})
    strays.signed.targets["thermo/1.0/x"] = TargetFile(1, {"sha256": "00" * 32}, "thermo/1.0/x")
    for bad in (other, strays):
        with pytest.raises(MalformedMetadataError):
            sign.import_draft(workspace, "thermo", bad)
    for version in (1, 3):
        with pytest.raises(ConflictError):
            sign.import_draft(workspace, "thermo", repository.make_product(version=version, expires_at=NOW, targets={}))
    assert workspace.draft("thermo") is None


def test_a_file_is_matched_to_its_release(workspace, tree, tmp_path):
    built = authoring.build_release(workspace, tree, "1.0")
    authoring.sign_release(workspace, "thermo/1.0")
    authoring.publish_local(workspace)
    view = view_of(workspace.images)
    assert find_file(view, RealDisk(), built.directory / "bundle.tar")[1] == "thermo/1.0/bundle.tar"
    (tmp_path / "other").write_bytes(b"other")
    with pytest.raises(UnknownTargetError):
        find_file(view, RealDisk(), tmp_path / "other")
    with pytest.raises(UnknownTargetError):
        view.release("thermo/9.9")


def test_old_versions_are_dropped_but_every_root_stays(workspace):
    for number in range(20):
        publish.refresh(workspace, secrets=SECRETS, now=NOW + timedelta(minutes=number))
    names = workspace.images.files()
    assert "1.root.json" in names
    assert sum(name.endswith(".snapshot.json") for name in names) == 16
    assert len(list((workspace.directory / "repository" / ".generations").iterdir())) == 2
    view_of(workspace.images)


def test_a_published_file_never_changes(workspace):
    files = workspace.images.files()
    with pytest.raises(ConflictError):
        workspace.images.commit({"1.targets.json": files["1.targets.json"] + b" "})
    assert workspace.images.files() == files


@pytest.mark.parametrize("name", ["../x.json", "0.root.json", "1.root.json.new", "x.json", "1.Root.json", "timestamp"])
def test_only_metadata_names_are_written(workspace, name):
    from firmament.errors import MalformedError

    with pytest.raises(MalformedError):
        workspace.images.commit({name: b"{}"})
