"""Every role's keys can be replaced, and a client of the old root follows; case 65 at the author's bench."""

import json
from pathlib import Path

import pytest
from support import authoring
from support.authoring import NOW, PASSPHRASE, SECRETS

from firmament.errors import (
    ConflictError,
    FirmamentError,
    KeyFileError,
    MalformedError,
    NotFoundError,
    PassphraseError,
    ThresholdNotMetError,
)
from firmament.release import publish, rotate, rotation, setup
from firmament.release.setup import read_online
from firmament.release.verify import verify_repository
from firmament.trust import ceremony
from firmament.trust.ceremony import Which


def replace(workspace, role, **options):
    given = {"old": None, "new": None} | options
    return rotation.replace(workspace, role, passphrase=PASSPHRASE, secrets=SECRETS, now=NOW, **given)


def verified(workspace):
    files = workspace.images.files()
    return verify_repository(files, files["1.root.json"], now=NOW)


@pytest.fixture
def served(tmp_path):
    public, _ = authoring.online_keys()
    return authoring.make_workspace(tmp_path / "served", online=read_online(json.dumps(public).encode()))


def test_every_role_rotates_and_the_first_root_still_leads_there(workspace, tree):
    authoring.release(workspace, tree, "1.0")
    before = {record.key.keyid for record in workspace.key_records().values()}
    for role in ("targets", "thermo", "snapshot", "timestamp", "root", "root"):
        result = replace(workspace, role)
        assert not result.pending
        assert set(result.removed) <= before | {r.key.keyid for r in workspace.key_records().values()}
        assert list(verified(workspace).releases) == ["thermo/1.0"]
    assert workspace.root().signed.version == 6
    authoring.release(workspace, tree, "1.1")
    assert len(verified(workspace).releases) == 2


def test_a_root_rotation_covers_both_chains(served):
    result = replace(served, "root")
    assert result.versions == {"director root": 2, "image root": 2}
    image, director = (served.root(which).signed for which in Which)
    assert set(image.roles["root"].keyids) == set(director.roles["root"].keyids)


def test_one_key_is_replaced_by_one_that_was_made_before(workspace):
    from firmament.trust import keys
    from firmament.trust.keys import KeyKind

    workspace.add_key("root-p256", keys.generate(KeyKind.ECDSA_P256), PASSPHRASE, now=NOW)
    replace(workspace, "root", old="root-ed25519", new="root-p256")
    holders = {
        record.name for record in workspace.local_keys(rotation.repository_roles(workspace, Which.IMAGE)["root"])
    }
    assert holders == {"root-p256", "root-ml-dsa"}


def test_without_enough_keys_the_root_becomes_a_ceremony_file(workspace):
    (workspace.keys_directory / "root-ml-dsa.pem").rename(workspace.directory / "away.pem")
    result = replace(workspace, "timestamp")
    assert workspace.root().signed.version == 1
    (path,) = result.pending
    held = ceremony.read(Path(path).read_bytes())
    with pytest.raises(ThresholdNotMetError):
        rotate.finish_root(workspace, held, secrets=SECRETS, now=NOW)
    (workspace.directory / "away.pem").rename(workspace.keys_directory / "root-ml-dsa.pem")
    assert rotate.sign_root(workspace, held, secrets=SECRETS) == ["root-ed25519", "root-ml-dsa"]
    rotate.finish_root(workspace, held, secrets=SECRETS, now=NOW)
    assert verified(workspace).root.signed.version == 2


def test_a_stolen_key_is_revoked(workspace, tree):
    """The product keeps one key of each class; the third is taken out."""
    from firmament.trust import keys
    from firmament.trust.keys import KeyKind

    spare = workspace.add_key("thermo-spare", keys.generate(KeyKind.ED25519), PASSPHRASE, now=NOW)
    rotate.rotate_product(workspace, "thermo", rotate.Change(add=(spare.key,)), secrets=SECRETS, now=NOW)
    assert len(workspace.product_keys("thermo").keys) == 3
    result = rotation.revoke(workspace, "thermo", "thermo-ed25519", threshold=None, secrets=SECRETS, now=NOW)
    assert len(result.removed) == 1
    authoring.build_release(workspace, tree, "1.0")
    with pytest.raises(KeyFileError):
        authoring.sign_release(workspace, "thermo/1.0", "thermo-ed25519")
    authoring.release(workspace, authoring.make_tree(tree.parent / "next"), "1.1")
    assert verified(workspace).releases


def test_a_revocation_cannot_put_the_threshold_out_of_reach(workspace):
    with pytest.raises(MalformedError):
        rotation.revoke(workspace, "root", "root-ed25519", threshold=None, secrets=SECRETS, now=NOW)
    assert workspace.root().signed.version == 1


def test_changes_that_say_nothing_are_refused(workspace):
    for change, error in (
        (rotate.Change(remove=("0" * 64,)), NotFoundError),
        (rotate.Change(add=(workspace.key_record("root-ed25519").key,)), ConflictError),
    ):
        with pytest.raises(error):
            rotate.start_root(workspace, Which.IMAGE, {"root": change}, expires_at=NOW)
    with pytest.raises(MalformedError):
        rotate.start_root(workspace, Which.IMAGE, {"thermo": rotate.Change()}, expires_at=NOW)
    with pytest.raises(NotFoundError):
        rotate.start_root(workspace, Which.DIRECTOR, {}, expires_at=NOW)


def test_the_servers_keys_take_over_from_the_author(workspace, tree):
    """A static repository becomes a served one: new online keys, and a director root of its own."""
    public, _ = authoring.online_keys()
    result = rotation.use_online(workspace, json.dumps(public).encode(), secrets=SECRETS, now=NOW)
    assert result.versions == {"image root": 2, "director root": 1}
    assert publish.author_held(workspace, SECRETS) == {}
    again = rotation.use_online(workspace, json.dumps(public).encode(), secrets=SECRETS, now=NOW)
    assert again.versions == {}
    authoring.release(workspace, tree, "1.0")


def test_a_new_server_replaces_the_old_ones_keys(served):
    public, _ = authoring.online_keys()
    result = rotation.use_online(served, json.dumps(public).encode(), secrets=SECRETS, now=NOW)
    assert result.versions == {"image root": 2, "director root": 2}
    keyids = served.root(Which.DIRECTOR).signed.roles["targets"].keyids
    assert keyids == [public["director"]["targets"]["keyid"]]


def test_a_finished_root_must_follow_the_workspaces_own(workspace, tmp_path):
    other = authoring.make_workspace(tmp_path / "other")
    held = rotate.start_root(other, Which.IMAGE, {}, expires_at=NOW.replace(year=2028))
    rotate.sign_root(other, held, secrets=SECRETS)
    with pytest.raises(ConflictError):
        rotate.finish_root(workspace, held, secrets=SECRETS, now=NOW)
    assert workspace.root().signed.version == 1


def test_product_lines_are_added_beside_each_other(workspace, tree):
    authoring.release(workspace, tree, "1.0")
    setup.add_product(workspace, "pump", passphrase=PASSPHRASE, secrets=SECRETS, now=NOW)
    authoring.release(workspace, tree, "1.0", product="pump")
    assert sorted(verified(workspace).releases) == ["pump/1.0", "thermo/1.0"]
    with pytest.raises(ConflictError):
        setup.add_product(workspace, "pump", passphrase=PASSPHRASE, secrets=SECRETS, now=NOW)
    for name in ("root", "snapshot", "../x", "UPPER", ""):
        with pytest.raises(MalformedError):
            setup.add_product(workspace, name, passphrase=PASSPHRASE, secrets=SECRETS, now=NOW)


def test_init_makes_everything_or_nothing(tmp_path):
    with pytest.raises(PassphraseError):
        setup.quick_start(
            authoring.RealDisk(), tmp_path / "ws", product="thermo", online=None, passphrase=b"short", now=NOW
        )
    assert not (tmp_path / "ws").exists()
    authoring.make_workspace(tmp_path / "ws")
    with pytest.raises(ConflictError):
        authoring.make_workspace(tmp_path / "ws")
    assert not (tmp_path / "ws.new").exists()


ONLINE_CHANGES = {
    "not-json": b"{",
    "empty": b"{}",
    "other-version": b'{"v":2}',
    "no-director": b'{"v":1,"image":{}}',
    "huge": b" " * 100_000,
    "not-an-object": b'{"v":1,"image":{"snapshot":1,"timestamp":1},"director":{}}',
}


@pytest.mark.parametrize("name", ONLINE_CHANGES)
def test_a_strange_online_file_is_refused(name):
    with pytest.raises(FirmamentError):
        read_online(ONLINE_CHANGES[name])


def test_an_online_key_under_a_false_keyid_is_refused():
    public, _ = authoring.online_keys()
    public["image"]["snapshot"]["keyid"] = "0" * 64
    with pytest.raises(MalformedError):
        read_online(json.dumps(public).encode())
