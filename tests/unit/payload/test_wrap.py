import json
from importlib.resources import files

import pytest

from firmament.errors import KeyWrapError
from firmament.payload import wrap

KEY = bytes(range(32))
PURPOSE = wrap.Purpose("11111111-1111-4111-8111-111111111111", "thermo/1.2.3", bytes(32))
PRIVATE, PUBLIC = wrap.generate()


def test_only_the_device_it_is_for_opens_it():
    wrapped = wrap.wrap(KEY, PUBLIC, PURPOSE)
    assert len(wrapped) == wrap.WRAP_LENGTH_BYTES
    assert wrap.unwrap(wrapped, PRIVATE, PURPOSE) == KEY
    with pytest.raises(KeyWrapError) as refusal:
        wrap.unwrap(wrapped, wrap.generate()[0], PURPOSE)
    assert refusal.value.code == "trust/key-wrap"


@pytest.mark.parametrize(
    "other",
    [
        wrap.Purpose("11111111-1111-4111-8111-111111111112", PURPOSE.release_id, PURPOSE.sealed_sha256),
        wrap.Purpose(PURPOSE.device_id, "thermo/1.2.4", PURPOSE.sealed_sha256),
        wrap.Purpose(PURPOSE.device_id, PURPOSE.release_id, b"\1" + bytes(31)),
        wrap.Purpose(PURPOSE.device_id + "t", PURPOSE.release_id[1:], PURPOSE.sealed_sha256),
    ],
)
def test_a_wrap_for_something_else_is_refused(other):
    assert other.info() != PURPOSE.info()
    with pytest.raises(KeyWrapError):
        wrap.unwrap(wrap.wrap(KEY, PUBLIC, other), PRIVATE, PURPOSE)


@pytest.mark.parametrize("place", [0, 600, 1087, 1100, 1130, 1160])
def test_a_changed_wrap_is_refused(place):
    wrapped = bytearray(wrap.wrap(KEY, PUBLIC, PURPOSE))
    wrapped[place] ^= 1
    with pytest.raises(KeyWrapError):
        wrap.unwrap(bytes(wrapped), PRIVATE, PURPOSE)


def test_wrong_lengths_are_refused():
    wrapped = wrap.wrap(KEY, PUBLIC, PURPOSE)
    for call in (
        lambda: wrap.unwrap(wrapped[:-1], PRIVATE, PURPOSE),
        lambda: wrap.unwrap(wrapped, PRIVATE[:-1], PURPOSE),
        lambda: wrap.wrap(KEY, PUBLIC[:-1], PURPOSE),
        lambda: wrap.wrap(KEY, b"\xff" * len(PUBLIC), PURPOSE),
    ):
        with pytest.raises(KeyWrapError):
            call()


def test_the_public_half_is_derived():
    assert wrap.public_of(PRIVATE) == PUBLIC
    assert (len(PRIVATE), len(PUBLIC)) == (wrap.PRIVATE_KEY_LENGTH_BYTES, wrap.PUBLIC_KEY_LENGTH_BYTES)


def test_vectors():
    vectors = json.loads(files("firmament.payload").joinpath("vectors/sealed-1.json").read_text())["wraps"]
    assert vectors
    for vector in vectors:
        purpose = wrap.Purpose(vector["device_id"], vector["release_id"], bytes.fromhex(vector["sealed_sha256"]))
        assert purpose.info().hex() == vector["info"]
        private = bytes.fromhex(vector["private"])
        assert wrap.public_of(private).hex() == vector["public"]
        assert wrap.unwrap(bytes.fromhex(vector["wrap"]), private, purpose).hex() == vector["key"]
