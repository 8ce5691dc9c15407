"""Any pair of byte strings goes through every method, sealed and not, cut anywhere."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmament.errors import FirmamentError
from firmament.payload.methods import METHODS, Job
from firmament.payload.readers import BytesReader
from firmament.payload.sealed import Opener, seal

KEY = bytes(32)
AVAILABLE = [method for method in METHODS.values() if method.is_available()]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two images, the second mostly pieces of the first."""
    old = draw(st.binary(max_size=60)) * draw(st.integers(1, 600))
    new = bytearray()
    for _ in range(draw(st.integers(0, 5))):
        if old and draw(st.booleans()):
            start = draw(st.integers(0, len(old) - 1))
            new += old[start : start + draw(st.integers(1, 20_000))]
        else:
            new += draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(0, 4)) if new else 0):
        new[draw(st.integers(0, len(new) - 1))] = draw(st.integers(0, 255))
    return old, bytes(new)


def job(payload: bytes, old: bytes, new: bytes, *, sealed: bool) -> Job:
    source = BytesReader(payload)
    if sealed:
        out = bytearray()
        seal(source, len(payload), KEY, out.extend, log2_chunk=12)
        container = bytes(out)
        source = Opener(BytesReader(container), len(container), KEY, max_plain_length_bytes=len(payload))
    return Job(source, len(payload), len(new), BytesReader(old), len(old))


@pytest.mark.parametrize("method", AVAILABLE, ids=lambda method: method.key)
@settings(max_examples=30, deadline=None)
@given(pair=pairs(), data=st.data())
def test_any_pair_round_trips_sealed_and_cut_anywhere(method, pair, data):
    old, new = pair
    payload = method.encode(old, new)
    work = job(payload, old, new, sealed=data.draw(st.booleans()))
    start = data.draw(st.integers(0, len(new)))
    image = bytearray(new[:start])  # what was durable before the power went
    for offset, piece in method.apply(work, start=start):
        assert offset == len(image)
        image += piece
    assert bytes(image) == new


@pytest.mark.parametrize("key", ["refdelta/1", "refdelta/2", "xz/1", "whole/1"])
@settings(max_examples=60, deadline=None)
@given(
    garbage=st.binary(max_size=400),
    start=st.sampled_from([b"", b"FRD\1", b"FRD\2", b"\xfd7zXZ\0"]),
    length=st.integers(0, 5000),
)
def test_garbage_raises_only_our_errors(key, garbage, start, length):
    payload = start + garbage
    work = Job(BytesReader(payload), len(payload), length, BytesReader(b"old" * 100), 300)
    written = 0
    try:
        for offset, piece in METHODS[key].apply(work):
            written = offset + len(piece)
    except FirmamentError:
        pass
    assert written <= length


@pytest.mark.parametrize("key", ["refdelta/1", "refdelta/2"])
@settings(max_examples=60, deadline=None)
@given(pair=pairs(), data=st.data())
def test_a_damaged_refdelta_never_writes_outside_the_image(key, pair, data):
    old, new = pair
    payload = bytearray(METHODS[key].encode(old, new))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    written = 0
    try:
        for offset, piece in METHODS[key].apply(job(bytes(payload), old, new, sealed=False)):
            assert offset == written
            written = offset + len(piece)
    except FirmamentError:
        pass
    assert written <= len(new)
