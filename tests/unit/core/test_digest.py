"""Digests: a short list of algorithms, one spelling, exact comparison."""

import hashlib

import pytest

from firmament.core.digest import Digest, strongest
from firmament.errors import DigestMismatchError, MalformedError

DATA = b"firmware"
HEX = hashlib.sha256(DATA).hexdigest()


def test_of_bytes_and_of_chunks_agree():
    assert Digest.of(DATA) == Digest.of([b"firm", b"", b"ware"]) == Digest("sha256", bytes.fromhex(HEX))
    assert Digest.of(memoryview(DATA)) == Digest.of(bytearray(DATA)) == Digest.of(DATA)
    assert Digest.of(DATA, "sha512").hex == hashlib.sha512(DATA).hexdigest()
    assert str(Digest.of(DATA)) == f"sha256:{HEX}"


def test_json_is_tufs_form():
    digest = Digest.of(DATA)
    assert digest.to_json() == {"sha256": HEX}
    assert Digest.from_json({"sha256": HEX}, what="x") == digest == strongest({"sha256": HEX}, what="x")


def test_the_strongest_counts():
    both = {"sha256": HEX, "sha512": hashlib.sha512(DATA).hexdigest(), "md5": "00"}
    assert Digest.from_json(both, what="x").algorithm == "sha512"


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"md5": hashlib.md5(DATA).hexdigest()},
        {"sha1": hashlib.sha1(DATA).hexdigest()},
        {"sha3-256": HEX},
        {"sha256": HEX[:-2]},
        {"sha256": HEX + "00"},
        {"sha256": HEX.upper()},
        {"sha256": HEX[:2] + " " + HEX[2:]},
        {"sha256": ""},
        {"sha256": 7},
        {"sha256": None},
        {"sha512": "zz", "sha256": HEX},  # the strongest is broken: no falling back
        HEX,
        None,
    ],
)
def test_anything_else_is_refused(value):
    with pytest.raises(MalformedError):
        Digest.from_json(value, what="x")


def test_a_digest_cannot_be_made_of_the_wrong_length_or_algorithm():
    for algorithm, value in (("sha256", b"short"), ("md5", bytes(16)), ("sha512", bytes(32))):
        with pytest.raises(MalformedError):
            Digest(algorithm, value)


def test_a_mismatch_names_both():
    Digest.of(DATA).require(Digest.of(DATA), what="The payload")
    with pytest.raises(DigestMismatchError, match="The payload has another digest than was signed") as caught:
        Digest.of(DATA).require(Digest.of(b"else"), what="The payload")
    assert caught.value.facts == {"expected": Digest.of(DATA), "got": Digest.of(b"else")}
    with pytest.raises(DigestMismatchError):
        Digest.of(DATA).require(Digest.of(DATA, "sha512"), what="The payload")
