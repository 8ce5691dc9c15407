"""The manifest, field by field: one whole valid manifest, one thing broken at a time."""

from datetime import UTC, datetime

import pytest

from firmament.core.digest import Digest
from firmament.core.manifest import Image, Manifest, Payload, UpdateClass, decode
from firmament.errors import MalformedError, TooLargeError, UnknownManifestError

IMAGE = Image(Digest.of(b"image"), 5)
MANIFEST = Manifest(
    product="thermo",
    version="1.1",
    sequence_number=2,
    hardware=("rpi4", "rpi5"),
    installer="bundle",
    image=IMAGE,
    payloads=(Payload("whole", 1, "thermo/1.1/app.tar", 5, IMAGE.digest),),
    created_at=datetime(2026, 11, 20, 12, tzinfo=UTC),
)
HEX = "00" * 32


def changed(path, value):
    """The manifest's JSON with one field set (or removed, with `...`)."""
    root = MANIFEST.to_json()
    *parents, last = path.split(".")
    place = root
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    if value is ...:
        del place[last]
    elif isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return root


def test_it_names_its_release():
    assert MANIFEST.release_id == "thermo/1.1"


def test_optional_fields_have_defaults():
    value = MANIFEST.to_json()
    for name in ("class", "requires", "preconditions", "notes"):
        del value[name]
    assert decode(value) == MANIFEST
    assert MANIFEST.update_class is UpdateClass.FEATURE


def test_optional_fields_are_written_only_when_set():
    assert not {"sbom_digest", "provenance_digest", "allow_downgrade"} & set(MANIFEST.to_json())
    payload = MANIFEST.to_json()["payloads"][0]
    assert not {"precursor_digest", "facts"} & set(payload)


@pytest.mark.parametrize("version", [0, 2, 99])
def test_another_major_version_is_refused_before_anything_else_is_read(version):
    with pytest.raises(UnknownManifestError) as caught:
        decode({"v": version})
    assert caught.value.facts == {"found": version, "known": 1}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("v", ...), ("v", "1"), ("v", True), ("v", -1),
        ("product", ...), ("product", "../x"), ("product", "Thermo"), ("product", ""), ("product", 7),
        ("version", ...), ("version", ""), ("version", "1/2"), ("version", 1.1), ("version", "v" * 65),
        ("sequence_number", ...), ("sequence_number", 0), ("sequence_number", -1), ("sequence_number", "2"), ("sequence_number", 2**63), ("sequence_number", True), ("sequence_number", 2.0),
        ("hardware", ...), ("hardware", []), ("hardware", ["rpi*"]), ("hardware", "rpi4"), ("hardware", [""]), ("hardware", ["rpi4"] * 65), ("hardware", None),
        ("installer", ...), ("installer", ""), ("installer", "Bundle"), ("installer", "a" * 33),
        ("class", "urgent"), ("class", 1),
        ("image", ...), ("image", []), ("image.digest", {}), ("image.digest", {"md5": "00" * 16}), ("image.digest", {"sha256": "00"}), ("image.length_bytes", -1), ("image.length_bytes", 64 * 1024**3 + 1), ("image.length_bytes", ...),
        ("payloads", ...), ("payloads", []), ("payloads", [None]), ("payloads", MANIFEST.to_json()["payloads"] * 17),
        ("payloads.0.method", "Whole"), ("payloads.0.method_version", 0), ("payloads.0.method_version", 256),
        ("payloads.0.target", "../../etc/passwd"), ("payloads.0.target", "/thermo/1.1/app"), ("payloads.0.target", "a" * 513), ("payloads.0.target", ...),
        ("payloads.0.length_bytes", None), ("payloads.0.digest", ...), ("payloads.0.digest", HEX),
        ("payloads.0.precursor_digest", {"sha1": "00" * 20}), ("payloads.0.facts", []),
        ("requires", []), ("requires.min_agent", -1), ("requires.min_sequence_number", "1"),
        ("preconditions.battery_percent", 101), ("preconditions.mains_power", 1), ("preconditions.free_bytes", -1),
        ("notes", {"en": 1}), ("notes", {"English": "x"}), ("notes", {"en": "x" * 2049}), ("notes", []), ("notes", {f"e{chr(97 + n % 26)}-{n:02}": "" for n in range(33)}),
        ("created_at", ...), ("created_at", "yesterday"), ("created_at", "2026-11-20T12:00:00+01:00"),
        ("sbom_digest", {"md5": "00" * 16}), ("provenance_digest", "sha256:" + HEX), ("allow_downgrade", "yes"),
        ("facts", 1.5),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused(path, value):
    with pytest.raises(MalformedError):
        decode(changed(path, value))


def test_the_whole_has_a_ceiling():
    fat = changed("notes", {f"{a}{b}": "x" * 2048 for a in "abcd" for b in "abcdefgh"})
    with pytest.raises(TooLargeError) as caught:
        decode(fat)
    assert caught.value.facts["length_bytes"] > caught.value.facts["limit_bytes"] == 64 * 1024


def test_a_manifest_is_never_changed_by_a_caller():
    with pytest.raises(AttributeError):
        MANIFEST.sequence_number = 3
