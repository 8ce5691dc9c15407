"""`release delta`'s library half: which precursors, what is listed, what is dropped, and when it is too late."""

import json
import random

import pytest
from support import authoring
from support.authoring import NOW, SECRETS, build_release, sign_release
from unit.payload.images import changed, functions, thumb

from firmament.core.digest import Digest
from firmament.errors import ConflictError, NotFoundError, TooLargeError
from firmament.payload.inplace.encoder import Shape
from firmament.payload.inplace.wire import read_header
from firmament.payload.methods import METHODS, Job
from firmament.payload.readers import BytesReader, FileReader
from firmament.release import delta, publish
from firmament.release.build import load_built

METHODS_TRIED = ("refdelta/1",)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three versions of a 100 kB image and one that has nothing in common with them."""
    directory, steady = tmp_path_factory.mktemp("images"), random.Random(1).randbytes(100_000)
    for name, data in {
        "1.0": steady,
        "1.1": steady[:50_000] + b"one" + steady[50_000:],
        "1.2": steady[:50_000] + b"two" + steady[50_000:] + b"end",
        "other": random.Random(2).randbytes(100_000),
    }.items():
        (directory / name).write_bytes(data)
    return directory


@pytest.fixture
def built(workspace, images):
    """1.0 and 1.1 built, signed and published; 1.2 built."""
    for version in ("1.0", "1.1"):
        authoring.release(workspace, images / version, version)
    build_release(workspace, images / "1.2", "1.2")
    return workspace


def make(workspace, versions, **options):
    release = delta.open_build(workspace, "thermo/1.2")
    options = {"methods": METHODS_TRIED, **options}
    return delta.make(workspace, release, delta.named(workspace, release, versions), **options)


def payloads(workspace):
    release = load_built(workspace.disk, workspace.directory / "releases" / "thermo-1.2")
    return release, {p.facts.get("from_version"): p for p in release.manifest.payloads}


def test_a_device_with_one_slot_gets_a_payload_of_its_own(workspace, tmp_path):
    bodies = functions(count=200)
    for version, data in (("1.1", thumb(bodies)), ("1.2", thumb(changed(bodies)))):
        (tmp_path / version).write_bytes(data)
        build_release(workspace, tmp_path / version, version)
    make(workspace, ["1.1"], in_place=Shape(memory_bytes=32 * 1024, log2_block=10, ring_blocks=2))
    release, _ = payloads(workspace)
    kept = {payload.method: payload for payload in release.manifest.payloads}
    assert {"whole", "refdelta", "inplace"} <= kept.keys()
    payload = kept["inplace"]
    data = release.file_of(payload.target).read_bytes()
    header, _ = read_header(BytesReader(data), len(data))
    assert (header.memory_length, header.block, header.ring_blocks) == (32 * 1024, 1024, 2)
    old = (tmp_path / "1.1").read_bytes()
    job = Job(BytesReader(data), len(data), release.manifest.image.length_bytes, BytesReader(old), len(old))
    assert b"".join(piece for _, piece in METHODS["inplace/1"].apply(job)) == (tmp_path / "1.2").read_bytes()


def test_deltas_are_listed_beside_the_image_and_make_it(built, images):
    seen = []
    made = make(built, ["1.0", "1.1"], workers=2, progress=lambda source, trial: seen.append((source, trial.method)))
    assert {(source and source.version, method) for source, method in seen} == {
        ("1.0", "refdelta/1"),
        ("1.1", "refdelta/1"),
        (None, "xz/1"),
    }
    release, listed = payloads(built)
    assert [p.method for p in release.manifest.payloads] == ["whole", "refdelta", "refdelta"]  # noise does not pack
    for version in ("1.0", "1.1"):
        payload, old = listed[version], images / version
        assert payload.precursor_digest == Digest.of([old.read_bytes()])
        assert payload.length_bytes < 300
        assert payload.facts.keys() == {"from_version", "encode_cpu_ms", "apply_cpu_ms"}
        data = release.file_of(payload.target).read_bytes()
        job = Job(
            BytesReader(data),
            len(data),
            release.manifest.image.length_bytes,
            FileReader(old),
            100_000 + 3 * (version > "1.0"),
        )
        assert b"".join(piece for _, piece in METHODS["refdelta/1"].apply(job)) == (images / "1.2").read_bytes()
    record = json.loads((release.directory / delta.RECORD_FILE).read_bytes())
    assert record == made.to_json()
    assert {row["from"] for row in record["deltas"]} == {"1.0", "1.1"}
    assert [row["method"] for row in record["dropped"]] == ["xz/1"]
    assert not (release.directory / "deltas.new").exists()


def test_they_are_signed_and_published_with_the_release(built):
    make(built, ["1.1"])
    sign_release(built, "thermo/1.2")
    plan = publish.plan(built)
    assert len(plan.files) == 2
    publish.publish_local(built, plan, secrets=SECRETS, now=NOW)
    with pytest.raises(ConflictError, match="signed already"):
        delta.open_build(built, "thermo/1.2")


def test_a_signed_draft_is_too_late(built):
    sign_release(built, "thermo/1.2")
    with pytest.raises(ConflictError, match="signed already"):
        delta.open_build(built, "thermo/1.2")


def test_what_does_not_pay_is_dropped_and_says_so(built, images):
    authoring.build_release(built, images / "other", "0.9")
    made = make(built, ["0.9", "1.1"])
    assert [source.version for source, _ in made.kept] == ["1.1"]
    dropped = {source.version: trial for source, trial in made.dropped if source is not None}
    assert dropped["0.9"].length_bytes > 90_000
    release, listed = payloads(built)
    assert set(listed) == {None, "1.1"}
    assert set(release.files.values()) | {"release.json", delta.RECORD_FILE} == {
        path.name for path in release.directory.iterdir()
    }


def test_making_again_replaces_and_keeps(built):
    make(built, ["1.0"])
    first = payloads(built)[1]["1.0"]
    make(built, ["1.1"])
    make(built, ["1.1"])
    release, listed = payloads(built)
    assert listed["1.0"] == first
    assert len(release.manifest.payloads) == 3
    assert len(list(release.directory.glob("from-1.1*"))) == 1


def test_a_manifest_holds_only_so_many(built, monkeypatch):
    monkeypatch.setattr(delta, "MAX_PAYLOADS", 2)
    before = payloads(built)[0]
    with pytest.raises(TooLargeError, match="too many payloads"):
        make(built, ["1.0", "1.1"])
    assert payloads(built)[0] == before


def test_an_old_version_must_be_here_and_another(built):
    release = delta.open_build(built, "thermo/1.2")
    with pytest.raises(NotFoundError, match="not in this workspace"):
        delta.named(built, release, ["0.1"])
    with pytest.raises(ConflictError, match="same image"):
        delta.named(built, release, ["1.2"])
    with pytest.raises(NotFoundError, match="not built"):
        delta.open_build(built, "thermo/9.9")


def test_the_fleets_images_are_found_by_digest(built, images):
    release = delta.open_build(built, "thermo/1.2")

    def image(version, devices, data=None):
        digest = Digest.of([data if data is not None else (images / version).read_bytes()])
        return {"version": version, "image_digest": str(digest), "devices": devices, "sequence_number": 1}

    fleet = [image("1.0", 500), image("1.2", 90), image("0.7", 40, b"lost"), image("1.1", 30)]
    found, missing = delta.alive(built, release, fleet)
    assert [(source.version, source.devices) for source in found] == [("1.0", 500), ("1.1", 30)]
    assert [(one.version, one.devices) for one in missing] == [("0.7", 40)]
    assert "not in this workspace" in missing[0].reason
    found, missing = delta.alive(built, release, fleet, most=1)
    assert [source.version for source in found] == ["1.0"]
    assert "most common" in missing[-1].reason
    older = delta.open_build(built, "thermo/1.2")
    object.__setattr__(older.manifest, "sequence_number", 1)
    assert delta.alive(built, older, fleet[:1])[1][0].reason == "it is not older than this release"
