from hypothesis import given, settings
from hypothesis import strategies as st

from firmament.errors import FirmamentError, SealedError
from firmament.payload.sealed import Opener, Suite, seal


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        return self.data[offset : offset + length_bytes]


def sealed(plain: bytes, suite: Suite, key: bytes) -> bytes:
    out = bytearray()
    seal(Bytes(plain), len(plain), key, out.extend, suite=suite, log2_chunk=12)
    return bytes(out)


def opened(container: bytes, key: bytes) -> bytes:
    return b"".join(Opener(Bytes(container), len(container), key, max_plain_length_bytes=1 << 16).chunks())


plains = st.binary(max_size=64).flatmap(lambda piece: st.integers(0, 200).map(lambda n: piece * n))
keys = st.binary(min_size=32, max_size=32)
suites = st.sampled_from(Suite)


@settings(max_examples=40)
@given(plain=plains, suite=suites, key=keys, data=st.data())
def test_any_payload_round_trips_and_reads_at_random(plain, suite, key, data):
    container = sealed(plain, suite, key)
    assert opened(container, key) == plain
    offset = data.draw(st.integers(0, len(plain)))
    length = data.draw(st.integers(0, 9000))
    opener = Opener(Bytes(container), len(container), key, max_plain_length_bytes=1 << 16)
    assert opener.read_at(offset, length) == plain[offset : offset + length]


@settings(max_examples=60)
@given(plain=plains, suite=suites, key=keys, data=st.data())
def test_no_change_of_a_container_is_accepted(plain, suite, key, data):
    container = bytearray(sealed(plain, suite, key))
    place = data.draw(st.integers(0, len(container) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "append"]))
    if kind == "flip":
        container[place] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del container[place:]
    elif kind == "insert":
        container.insert(place, 0)
    else:
        container += data.draw(st.binary(min_size=1, max_size=40))
    try:
        opened(bytes(container), key)
    except SealedError:
        return
    raise AssertionError(kind)


@settings(max_examples=60)
@given(garbage=st.binary(max_size=300))
def test_garbage_raises_only_our_errors(garbage):
    try:
        opened(garbage, bytes(32))
    except FirmamentError:
        return
    raise AssertionError(garbage)
