"""Detached signatures and tags, byte-compatible with `openssl dgst` both ways; case 59."""

import hashlib
import json
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from support.pem import public_pem

from firmament.core.digest import Digest
from firmament.errors import FirmamentError, KeyFileError, MalformedError, SettingError, SignatureError
from firmament.trust import legacy
from firmament.trust.legacy import LegacyScheme, VersionFile

DATA = b"firmware" * 40_000
SCHEMES = list(LegacyScheme)


@pytest.fixture(scope="module")
def private():
    return {
        "rsa": rsa.generate_private_key(65537, 2048),
        "other-rsa": rsa.generate_private_key(65537, 2048),
        "ec": ec.generate_private_key(ec.SECP256R1()),
        "other-ec": ec.generate_private_key(ec.SECP256R1()),
    }


def key_for(private, scheme, prefix=""):
    return private[prefix + ("ec" if scheme is LegacyScheme.ECDSA_SHA256 else "rsa")]


def pin(private, scheme, prefix=""):
    return legacy.pin(scheme, public_pem(key_for(private, scheme, prefix)))


def pieces(data=DATA, length=10_000):
    return (data[start : start + length] for start in range(0, len(data), length))


@pytest.fixture
def files(tmp_path, private):
    (tmp_path / "data").write_bytes(DATA)
    for name, key in private.items():
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / f"{name}.pem").write_bytes(pem)
        (tmp_path / f"{name}.pub").write_bytes(public_pem(key))
    return tmp_path


def openssl(directory, *arguments):
    return subprocess.run(["openssl", "dgst", *arguments], cwd=directory, check=False, capture_output=True)


OPENSSL = {  # how people call it; PSS with the default (longest) salt and with the digest's length
    "pkcs1v15": (LegacyScheme.RSA_PKCS1V15_SHA256, "rsa", []),
    "pss-max": (LegacyScheme.RSA_PSS_SHA256, "rsa", ["-sigopt", "rsa_padding_mode:pss"]),
    "pss-digest": (
        LegacyScheme.RSA_PSS_SHA256,
        "rsa",
        ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:-1"],
    ),
    "ecdsa": (LegacyScheme.ECDSA_SHA256, "ec", []),
}


@pytest.mark.parametrize("name", OPENSSL)
def test_what_openssl_signs_verifies_here(files, private, name):
    scheme, key, options = OPENSSL[name]
    signature = openssl(files, "-sha256", *options, "-sign", f"{key}.pem", "data").stdout
    assert legacy.verify(pieces(), signature, pin(private, scheme)) == Digest.of(DATA)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_signed_here_verifies_with_openssl(files, private, scheme):
    key = "ec" if scheme is LegacyScheme.ECDSA_SHA256 else "rsa"
    options = ["-sigopt", "rsa_padding_mode:pss"] if scheme is LegacyScheme.RSA_PSS_SHA256 else []
    (files / "sig").write_bytes(legacy.sign(pieces(), private[key], scheme))
    check = ["-sha256", *options, "-verify", f"{key}.pub", "-signature", "sig", "data"]
    assert openssl(files, *check).stdout == b"Verified OK\n"
    (files / "data").write_bytes(DATA + b"x")
    assert openssl(files, *check).returncode == 1


def test_pkcs1v15_is_the_same_byte_for_byte(files, private):
    theirs = openssl(files, "-sha256", "-sign", "rsa.pem", "data").stdout
    assert legacy.sign(pieces(), private["rsa"], LegacyScheme.RSA_PKCS1V15_SHA256) == theirs


@pytest.mark.parametrize("scheme", SCHEMES)
def test_59_bad_signatures_are_refused(private, scheme):
    good = legacy.sign(pieces(), key_for(private, scheme), scheme)
    pinned = pin(private, scheme)
    bad = {
        "missing": None,
        "empty": b"",
        "truncated": good[:-1],
        "longer": good + b"\0",
        "huge": b"\0" * 10_000,
        "flipped": good[:-1] + bytes([good[-1] ^ 1]),
        "other-key": legacy.sign(pieces(), key_for(private, scheme, "other-"), scheme),
        "other-file": legacy.sign([DATA + b"x"], key_for(private, scheme), scheme),
        "text": b"signature",
    }
    for name, signature in bad.items():
        with pytest.raises(SignatureError):
            legacy.verify(pieces(), signature, pinned)
        assert name
    legacy.verify(pieces(), good, pinned)


def test_59_pkcs1_and_pss_are_not_confused(private):
    """The pin says which; a good signature of the other padding by the same key is refused."""
    pkcs1, pss = LegacyScheme.RSA_PKCS1V15_SHA256, LegacyScheme.RSA_PSS_SHA256
    for made, asked in ((pkcs1, pss), (pss, pkcs1)):
        signature = legacy.sign(pieces(), private["rsa"], made)
        with pytest.raises(SignatureError):
            legacy.verify(pieces(), signature, pin(private, asked))


@pytest.mark.parametrize("algorithm", ["-sha1", "-md5", "-sha512"])
def test_59_a_signature_over_another_digest_is_refused(files, private, algorithm):
    signature = openssl(files, algorithm, "-sign", "rsa.pem", "data").stdout
    assert signature
    with pytest.raises(SignatureError):
        legacy.verify(pieces(), signature, pin(private, LegacyScheme.RSA_PKCS1V15_SHA256))


@pytest.mark.parametrize("scheme", ["rsa-pkcs1v15-sha1", "rsa-pkcs1v15-md5", "ecdsa-sha1", "ed25519", "none", ""])
def test_59_weak_and_unknown_schemes_cannot_be_pinned(private, scheme):
    with pytest.raises(SettingError):
        legacy.pin(scheme, public_pem(private["rsa"]))


def test_59_keys_that_are_weak_or_do_not_fit_cannot_be_pinned_or_used(private):
    bad = {
        "rsa-1024": (LegacyScheme.RSA_PKCS1V15_SHA256, rsa.generate_private_key(65537, 1024)),
        "p-384": (LegacyScheme.ECDSA_SHA256, ec.generate_private_key(ec.SECP384R1())),
        "ec-as-rsa": (LegacyScheme.RSA_PSS_SHA256, private["ec"]),
        "rsa-as-ec": (LegacyScheme.ECDSA_SHA256, private["rsa"]),
        "ed25519": (LegacyScheme.ECDSA_SHA256, ed25519.Ed25519PrivateKey.generate()),
    }
    for scheme, key in bad.values():
        with pytest.raises(KeyFileError):
            legacy.pin(scheme, public_pem(key))
        with pytest.raises(KeyFileError):
            legacy.sign(pieces(), key, scheme)


@pytest.mark.parametrize(
    "pem", [b"", b"x", b"-----BEGIN PUBLIC KEY-----\nAA\n-----END PUBLIC KEY-----\n", b"A" * 100_000]
)
def test_what_is_no_public_key_cannot_be_pinned(pem):
    with pytest.raises(KeyFileError):
        legacy.pin("rsa-pss-sha256", pem)


def test_the_tag_is_openssls_hmac(files):
    theirs = openssl(files, "-sha256", "-hmac", "a device's own secret", "-r", "data").stdout.split()[0].decode()
    assert legacy.tag(DATA, b"a device's own secret").hex() == theirs


def test_the_tag_is_one_devices(files):
    mine, other = b"k" * 32, b"o" * 32
    legacy.verify_tag(DATA, legacy.tag(DATA, mine), mine)
    for data, found in (
        (DATA, None),
        (DATA, b""),
        (DATA, legacy.tag(DATA, other)),
        (DATA + b"x", legacy.tag(DATA, mine)),
    ):
        with pytest.raises(SignatureError):
            legacy.verify_tag(data, found, mine)
    with pytest.raises(SettingError):
        legacy.tag(DATA, b"short")


VIEW = VersionFile("1.1", "app.tar", "app.sig", 7, 5, Digest.of(b"image"))


def test_version_json_keeps_the_old_fields_first():
    data = VIEW.to_bytes()
    assert list(json.loads(data)) == ["version", "firmware", "signature", "sequence_number", "size", "sha256"]
    assert json.loads(data)["sha256"] == hashlib.sha256(b"image").hexdigest()
    assert legacy.read_version_file(data) == VIEW


CHANGES = {
    "path": {"firmware": "../x"},
    "url": {"firmware": "http://x/y"},
    "no-signature": {"signature": ""},
    "zero": {"sequence_number": 0},
    "negative": {"size": -1},
    "short-digest": {"sha256": "00"},
    "version": {"version": "\n"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_strange_version_json_is_refused(name):
    with pytest.raises(MalformedError):
        legacy.read_version_file(json.dumps(json.loads(VIEW.to_bytes()) | CHANGES[name]).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b" " * 20_000])
def test_bytes_that_are_no_version_json_are_refused(data):
    with pytest.raises(FirmamentError):
        legacy.read_version_file(data)


def test_a_pin_made_by_hand_of_things_that_do_not_fit_is_refused(private):
    bad = legacy.LegacyPin(LegacyScheme.ECDSA_SHA256, private["rsa"].public_key())
    with pytest.raises(KeyFileError):
        legacy.verify(pieces(), b"x", bad)
