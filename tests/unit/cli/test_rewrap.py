"""One encrypted MCUboot image, written for one device after another, and checked with MCUboot's own imgtool."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from imgtool import image as imgtool
from imgtool import keys as imgtool_keys
from support import documents
from support.pem import private_pem, public_pem

from firmament.cli.agent import program as agent
from firmament.cli.main import program
from firmament.errors import KeyFileError, KeyWrapError, PassphraseError
from firmament.payload import mcuboot
from firmament.payload.readers import BytesReader
from firmament.release import mcuboot_build
from firmament.trust import mcu_keys

APPLICATION = bytes(range(256)) * 16
BOOT = ed25519.Ed25519PrivateKey.generate()
MAKERS = {
    "rsa-2048": lambda: rsa.generate_private_key(65537, 2048),
    "p-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "x25519": x25519.X25519PrivateKey.generate,
}


@pytest.fixture(params=MAKERS)
def bench(request, tmp_path, monkeypatch):
    """The common image, the bench's key that it was encrypted for, and two devices' public keys, as files."""
    monkeypatch.chdir(tmp_path)
    return lay_out(tmp_path, MAKERS[request.param])


@pytest.fixture
def one_bench(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lay_out(tmp_path, MAKERS["x25519"])


def lay_out(place, maker):
    keys = {name: maker() for name in ("bench", "one", "other")}
    recipe = mcuboot_build.Recipe("1.2.3", 7, encrypt_for=public_pem(keys["bench"]), encrypt_key_bits=256)
    common = mcuboot_build.make(APPLICATION, recipe, key=private_pem(BOOT))
    (place / "common.bin").write_bytes(common)
    (place / "bench.pem").write_bytes(private_pem(keys["bench"]))
    (place / "boot.pub.pem").write_bytes(public_pem(BOOT))
    for name in ("one", "other"):
        (place / f"{name}.pub.pem").write_bytes(public_pem(keys[name]))
    return keys


def rewrap(device="one", *, image="common.bin", key="bench.pem", boot="boot.pub.pem", by=program):
    command = ["rewrap", image, f"{device}.bin", "--for", f"{device}.pub.pem", "--key", key, "--boot-key", boot]
    return CliRunner().invoke(by, [*(["release"] if by is program else []), *command, "--json"])


def decrypted(made, key):
    """The image as its device decrypts it: everything as it is, but the body in clear."""
    source = BytesReader(made)
    found = mcuboot.read_image(source, len(made))
    cipher = Cipher(algorithms.AES(mcuboot.unwrap_content_key(found, source, key)), modes.CTR(bytes(16))).decryptor()
    start, end = found.header_length_bytes, found.header_length_bytes + found.body_length_bytes
    return made[:start] + cipher.update(made[start:end]) + made[end:]


def says_imgtool(image):
    Path("clear.bin").write_bytes(image)
    return imgtool.Image.verify("clear.bin", imgtool_keys.load("boot.pub.pem"))[0]


def test_each_device_gets_an_image_that_only_it_opens_and_imgtool_verifies(bench):
    common = Path("common.bin").read_bytes()
    for name, stranger in (("one", "other"), ("other", "one")):
        done = rewrap(name)
        assert done.exit_code == 0, done.output
        facts = documents.loads(done.stdout)
        made = Path(f"{name}.bin").read_bytes()
        entry = slice(facts["offset"], facts["offset"] + facts["length_bytes"])
        assert made[: entry.start] + common[entry] + made[entry.stop :] == common, "nothing but the entry differs"
        assert made[entry] != common[entry]
        clear = decrypted(made, bench[name])
        assert APPLICATION in clear
        assert says_imgtool(clear) == imgtool.VerifyResult.OK
        assert says_imgtool(made) == imgtool.VerifyResult.INVALID_HASH, "what lies outside the device stays encrypted"
        with pytest.raises(KeyWrapError):
            decrypted(made, bench[stranger])


def test_the_agent_does_the_same_on_the_device_that_carries_the_image(one_bench):
    done = rewrap(by=agent)
    assert done.exit_code == 0, done.output
    assert says_imgtool(decrypted(Path("one.bin").read_bytes(), one_bench["one"])) == imgtool.VerifyResult.OK


WRONG = {
    "another bench's key": (lambda: Path("bench.pem").write_bytes(private_pem(MAKERS["x25519"]())), "trust/key-wrap"),
    "another kind of device": (
        lambda: Path("one.pub.pem").write_bytes(public_pem(MAKERS["p-256"]())),
        "trust/key-wrap",
    ),
    "another author": (
        lambda: Path("boot.pub.pem").write_bytes(public_pem(ed25519.Ed25519PrivateKey.generate())),
        "trust/signature",
    ),
    "a flipped bit": (
        lambda: Path("common.bin").write_bytes(
            (data := Path("common.bin").read_bytes())[:600] + bytes([data[600] ^ 1]) + data[601:]
        ),
        "trust/digest-mismatch",
    ),
    "an encrypted key and nobody to ask": (
        lambda: Path("bench.pem").write_bytes(private_pem(MAKERS["x25519"](), b"a long passphrase")),
        "local/passphrase",
    ),
}


@pytest.mark.parametrize("how", WRONG)
def test_58_nothing_is_written_of_an_image_or_key_that_does_not_fit(one_bench, how):
    """The image is verified before it is spliced, and again after; a refusal leaves no file."""
    spoil, code = WRONG[how]
    spoil()
    done = rewrap()
    assert json.loads(done.stderr)["code"] == code, done.stderr
    assert not Path("one.bin").exists()
    assert not list(Path().glob("one.bin*"))


def test_keys_that_no_content_key_can_be_wrapped_for_are_refused(one_bench):
    for unfit in (BOOT, ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 3072)):
        with pytest.raises(KeyFileError, match="RSA of 2048"):
            mcu_keys.load_public(public_pem(unfit))
        with pytest.raises(KeyFileError, match="RSA of 2048"):
            mcu_keys.load_private(private_pem(unfit))
    with pytest.raises(KeyFileError):
        mcu_keys.load_public(b"no key")
    with pytest.raises(KeyFileError):
        mcu_keys.load_private(b"no key")
    locked = private_pem(one_bench["one"], b"the right one")
    with pytest.raises(PassphraseError):
        mcu_keys.load_private(locked)
    with pytest.raises(PassphraseError):
        mcu_keys.load_private(locked, ask=lambda: b"the wrong one")
    opened = mcu_keys.load_private(locked, ask=lambda: b"the right one")
    assert public_pem(opened) == public_pem(one_bench["one"])
