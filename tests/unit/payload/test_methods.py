import subprocess
import sys

import pytest

from firmament.core.manifest import _METHOD
from firmament.errors import (
    DependencyMissingError,
    MalformedPayloadError,
    PrecursorMismatchError,
    UnknownMethodError,
)
from firmament.payload import methods
from firmament.payload.methods import METHODS, Job, applicable, find
from firmament.payload.readers import BytesReader

OLD = b"".join(b"%d old line\n" % number for number in range(9000))
NEW = OLD.replace(b"77 old", b"77 new") + b"end"


def job(payload: bytes, *, image: bytes = NEW, old: bytes = OLD) -> Job:
    return Job(BytesReader(payload), len(payload), len(image), BytesReader(old), len(old))


AVAILABLE = [key for key, method in METHODS.items() if method.is_available()]


def test_the_table_is_keyed_by_what_devices_state():
    assert all(key == f"{method.name}/{method.version}" for key, method in METHODS.items())
    assert all(_METHOD.fullmatch(method.name) for method in METHODS.values())
    assert find("refdelta", 1) is METHODS["refdelta/1"]
    with pytest.raises(UnknownMethodError) as refusal:
        find("refdelta", 99)
    assert refusal.value.code == "applicability/unknown-method"


@pytest.mark.parametrize("key", AVAILABLE)
@pytest.mark.parametrize("start", [0, 1, 65536, 100_000, len(NEW)])
def test_each_method_gives_the_image_from_any_byte_on(key, start):
    payload = METHODS[key].encode(OLD, NEW)
    out = bytearray()
    for offset, piece in METHODS[key].apply(job(payload), start=start):
        assert offset == start + len(out)
        out += piece
    assert bytes(out) == NEW[start:]


@pytest.mark.parametrize("key", AVAILABLE)
def test_an_image_of_another_length_than_signed_is_refused(key):
    payload = METHODS[key].encode(OLD, NEW)
    for length in (len(NEW) - 1, len(NEW) + 1):
        work = Job(BytesReader(payload), len(payload), length, BytesReader(OLD), len(OLD))
        with pytest.raises(MalformedPayloadError):
            list(METHODS[key].apply(work))


@pytest.mark.parametrize("key", [key for key in AVAILABLE if METHODS[key].is_delta])
def test_a_delta_without_a_precursor_is_refused(key):
    with pytest.raises(PrecursorMismatchError):
        list(METHODS[key].apply(Job(BytesReader(b""), 0, 10)))


@pytest.mark.parametrize("key", AVAILABLE)
def test_a_cut_payload_is_refused(key):
    payload = METHODS[key].encode(OLD, NEW)
    with pytest.raises(MalformedPayloadError):
        list(METHODS[key].apply(job(payload[: len(payload) // 2])))


def test_a_decompression_bomb_stops_at_the_image_length():
    bomb = METHODS["xz/1"].encode(b"", bytes(50_000_000))
    written = [0]

    def apply() -> None:
        written.extend(offset + len(piece) for offset, piece in METHODS["xz/1"].apply(job(bomb, image=bytes(100_000))))

    with pytest.raises(MalformedPayloadError):
        apply()
    assert max(written) <= 100_000


def test_an_xz_payload_with_something_behind_it_is_refused():
    payload = METHODS["xz/1"].encode(b"", NEW) + b"more"
    with pytest.raises(MalformedPayloadError):
        list(METHODS["xz/1"].apply(job(payload)))


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert applicable() == ("refdelta/2", "refdelta/1", "inplace/1", "xz/1", "whole/1")
    with pytest.raises(DependencyMissingError) as refusal:
        list(METHODS["hdiff/1"].apply(job(b"")))
    assert refusal.value.facts["package"] == "hdiffpatch"
    with pytest.raises(DependencyMissingError):
        METHODS["refdelta/1"].encode(OLD, NEW)


def test_a_small_device_states_only_what_fits():
    assert applicable(memory_bytes=32 * methods.MIB) == ("refdelta/1", "xz/1", "whole/1")
    assert applicable(memory_bytes=methods.MIB) == ("whole/1",)


def test_applying_imports_nothing_but_the_standard_library():
    """The device side of the table must not need numpy, nor even cryptography unless a payload is sealed."""
    code = (
        "import sys; import firmament.payload.methods; "
        "print([name for name in ('numpy', 'hdiffpatch', 'cryptography') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
