"""Sealing on the author's bench: what is written, what stays, what is refused."""

import random
from contextlib import closing

import pytest
from support import authoring
from support.authoring import PASSPHRASE, SECRETS, build_release

from firmament.cli.release_seal import SUITE_NAMES
from firmament.core.digest import Digest
from firmament.errors import (
    ConflictError,
    DigestMismatchError,
    KeyFileError,
    NotFoundError,
    PassphraseError,
    SealedError,
)
from firmament.payload.readers import FileReader
from firmament.payload.sealed import Opener, Suite
from firmament.payload.sealing import SUITES
from firmament.release import build, content_keys, delta, legacy, publish, seal, sign
from firmament.release.build import load_built
from firmament.release.inspect import inspect
from firmament.trust import repository
from firmament.trust.signers import GivenSecrets

SECRET = b"the recipe that nobody may read"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    directory, steady = tmp_path_factory.mktemp("images"), SECRET + random.Random(1).randbytes(100_000)
    (directory / "1.0").write_bytes(steady)
    (directory / "1.1").write_bytes(steady[:50_000] + b"one" + steady[50_000:])
    return directory


def sealer(workspace, **changes):
    return seal.Sealer(workspace, PASSPHRASE, **changes)


@pytest.fixture
def sealed(workspace, images):
    """1.0 published plain; 1.1 built and sealed."""
    authoring.release(workspace, images / "1.0", "1.0")
    built = build_release(workspace, images / "1.1", "1.1")
    done = sealer(workspace).seal(built)
    done.write(workspace.disk)
    return done


def verify(workspace, release, **changes):
    given = {
        "file_of": lambda payload: release.file_of(payload.target),
        "precursor_of": lambda digest: delta.image_file(workspace, "thermo", digest),
    }
    keys = content_keys.load(workspace, release.manifest.release_id, SECRETS)
    return seal.open_release(release.manifest, keys, **{**given, **changes})


def test_the_options_name_every_suite():
    assert set(SUITE_NAMES) == set(SUITES)


def test_a_sealed_build_names_sealed_payloads_only_and_keeps_the_plain_file(workspace, sealed, images):
    again = load_built(workspace.disk, sealed.directory)
    assert again == sealed
    assert again.manifest.confidential
    (payload,) = again.manifest.payloads
    assert payload.needs == ("sealed/1", "whole/1")
    assert not again.unsealed.manifest.confidential
    assert [payload.method for payload in again.unsealed.manifest.payloads] == ["whole"]
    assert again.file_of(again.plain[0].target).read_bytes() == (images / "1.1").read_bytes()
    assert SECRET not in again.file_of(payload.target).read_bytes()
    targets = repository.release_targets(again.manifest)
    assert set(targets) == {payload.target, payload.target + ".chunks"}
    sign.check_files(workspace, again)


def test_a_delta_is_made_first_and_sealed_afterwards(workspace, sealed):
    keys = content_keys.load(workspace, sealed.manifest.release_id, SECRETS)
    precursors = delta.named(workspace, sealed, ["1.0"])
    with pytest.raises(ConflictError):
        delta.make(workspace, sealed, precursors, methods=("refdelta/1",))
    made = delta.make(workspace, sealed, precursors, methods=("refdelta/1",), sealer=sealer(workspace, keys=keys))
    whole, small = made.built.manifest.payloads
    assert whole == sealed.manifest.payloads[0], "what was sealed stays: its key is known already"
    assert small.needs == ("sealed/1", "refdelta/1")
    assert small.length_bytes < 1000
    opened = verify(workspace, load_built(workspace.disk, sealed.directory))
    assert [(one.payload.inner.method, one.problem) for one in opened] == [("whole", ""), ("refdelta", "")]
    assert "from 1.0, sealed under aes-256-gcm" in seal.describe(small)
    unknown = verify(workspace, load_built(workspace.disk, sealed.directory), precursor_of=lambda _digest: None)
    assert unknown[1].to_json()["problem"] == "its precursor is not in this workspace"


def test_each_payload_has_a_key_of_its_own_and_only_it_opens(workspace, sealed):
    keys = content_keys.load(workspace, sealed.manifest.release_id, SECRETS)
    (payload,) = sealed.manifest.payloads
    path = content_keys.path_of(workspace, sealed.manifest.release_id)
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys[payload.target].key.hex().encode() not in path.read_bytes()
    with closing(FileReader(sealed.file_of(payload.target))) as source, pytest.raises(SealedError):
        Opener(source, payload.length_bytes, bytes(32), max_plain_length_bytes=10**6).chunk(0)
    with pytest.raises(PassphraseError):
        content_keys.load(workspace, sealed.manifest.release_id, GivenSecrets(b"another passphrase"))
    path.chmod(0o644)
    with pytest.raises(KeyFileError):
        content_keys.load(workspace, sealed.manifest.release_id, SECRETS)


def test_another_suite_means_other_containers_and_other_keys(workspace, sealed):
    before = content_keys.load(workspace, sealed.manifest.release_id, SECRETS)
    again = sealer(workspace, suite=Suite.CHACHA20_POLY1305, keys=before).seal(sealed)
    (old,), (new,) = sealed.manifest.payloads, again.manifest.payloads
    assert (old.digest != new.digest, new.facts["suite"], seal.suite_name(new)) == (True, 2, "chacha20-poly1305")
    after = content_keys.load(workspace, sealed.manifest.release_id, SECRETS)
    assert after[new.target].key != before[old.target].key
    with pytest.raises(NotFoundError):
        content_keys.of_payload(after, old)


def test_a_container_that_was_changed_on_the_bench_does_not_open(workspace, sealed):
    (payload,) = sealed.manifest.payloads
    path = sealed.file_of(payload.target)
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(SealedError):
        verify(workspace, sealed)
    with pytest.raises(DigestMismatchError):
        sign.sign_release(workspace, sealed.manifest.release_id, keys=(), secrets=SECRETS, now=authoring.NOW)


def test_a_build_that_fails_while_it_is_sealed_leaves_nothing(workspace, images):
    draft = build_release(workspace, images / "1.0", "1.0").manifest

    def fail(_built):
        raise SealedError("The payload ended while it was sealed", chunk=0)

    directory = workspace.directory / "releases" / "thermo-1.5"
    with pytest.raises(SealedError):
        build.build(workspace.disk, images / "1.1", directory, draft, finish=fail)
    assert not list(directory.parent.glob("thermo-1.5*"))


def test_what_is_published_is_sealed_and_clients_without_an_agent_get_none(workspace, sealed):
    authoring.sign_release(workspace, sealed.manifest.release_id)
    plan = publish.plan(workspace)
    assert plan.sealed() == [sealed.manifest]
    assert not any(name.endswith(".img") for name in plan.files)
    authoring.publish_local(workspace)
    published = [path for path in (workspace.directory / "repository").rglob("*/1.1/*") if path.is_file()]
    assert len(published) == 2
    assert not any(SECRET in path.read_bytes() for path in published)
    with pytest.raises(ConflictError):
        legacy.version_file(sealed.manifest)


def test_inspect_says_what_a_container_is(workspace, sealed):
    (payload,) = sealed.manifest.payloads
    path = sealed.file_of(payload.target)
    found = inspect(workspace.disk, path)
    assert (found["kind"], found["suite"], found["chunks"]) == ("sealed", "aes-256-gcm", 2)
    assert found["plain_length_bytes"] == payload.inner.length_bytes
    assert found["digest"] == str(Digest.of(path.read_bytes()))
    path.write_bytes(path.read_bytes()[:-1])
    assert "cut short" in inspect(workspace.disk, path)["problem"]
    path.write_bytes(b"OTAE" + bytes(30))
    assert "ends within its header" in inspect(workspace.disk, path)["problem"]
