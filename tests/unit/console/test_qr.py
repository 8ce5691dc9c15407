"""QR codes: the picture that a reader decoded once stays the same, and the parts of the standard that can be checked."""

import hashlib

import pyotp
import pytest

from firmament.console import qr
from firmament.errors import TooLargeError

READ = {
    # Text to the digest of its modules. Each picture was read back by zbarimg (zbar 0.23) before it was written here.
    "A": "6599e524f9b9",
    "x" * 17: "2bb2b854f3b3",
    "x" * 18: "0d50071404ae",
    "y" * 53: "5b56cc482b3b",
    "y" * 78: "cbddc02c226a",
    "z" * 106: "f8336ee36932",
    "q" * 134: "0ce0c056252d",
    "w" * 154: "3a7c85ce2c6b",
    "e" * 192: "869fb85318d6",
    "r" * 230: "0310ff7652b7",
    "t" * 271: "bc6abab5bf7b",
}


@pytest.mark.parametrize("text", READ, ids=len)
def test_every_version_draws_what_was_read_back(text):
    assert hashlib.sha256(str(qr.encode(text.encode())).encode()).hexdigest()[:12] == READ[text]


def test_a_text_that_does_not_fit_is_refused():
    with pytest.raises(TooLargeError, match="too long"):
        qr.draw("t" * 272)


def test_the_longest_account_fits():
    account = f"{'n' * 64}@{'t' * 64}"
    uri = pyotp.TOTP(pyotp.random_base32()).provisioning_uri(name=account, issuer_name="Firmament")
    assert qr.draw(uri).size <= 57 + 2 * 4


def test_the_picture_has_its_margin():
    picture = qr.draw("A")
    assert picture.size == 21 + 2 * 4
    assert picture.path.startswith("M4 4h1v1h-1z")  # the corner that a camera looks for


@pytest.mark.parametrize("length", [7, 10, 30])
def test_the_correction_makes_a_multiple_of_the_generator(length):
    """A reader finds no error: the block and its correction vanish at every root."""
    block = bytes(range(19))
    whole = [*block, *qr._correction(block, length)]
    root = 1
    for _ in range(length):
        value = 0
        for byte in whole:
            value = qr._times(value, root) ^ byte
        assert value == 0
        root = qr._times(root, 2)
