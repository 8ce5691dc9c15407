"""Key files: encrypted, readable by their owner only, openable by openssl; everything else is refused."""

import subprocess
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, mldsa, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from support import authoring

from firmament.durable import RealDisk
from firmament.errors import (
    ConflictError,
    FirmamentError,
    KeyFileError,
    MalformedError,
    PassphraseError,
    TooLargeError,
)
from firmament.trust import key_files, keys, repository
from firmament.trust.keys import KeyKind, KeyRecord
from firmament.trust.signers import GivenSecrets, load_signer

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
PASSPHRASE = b"correct horse battery"


@pytest.fixture(autouse=True)
def cheap_scrypt(monkeypatch):
    authoring.cheap_scrypt(monkeypatch)


def private(signer):
    return signer._private_key


@pytest.fixture
def stored(tmp_path):
    signer = keys.generate(KeyKind.ED25519)
    path = tmp_path / "release.pem"
    key_files.store(RealDisk(), path, key_files.encrypt(private(signer), PASSPHRASE))
    return path, KeyRecord("release", signer.public_key, "file:release.pem", NOW)


@pytest.mark.parametrize("kind", KeyKind)
def test_every_kind_survives_its_file_and_signs(kind, tmp_path):
    signer = keys.generate(kind, rsa_bits=2048)
    path = tmp_path / "k.pem"
    key_files.store(RealDisk(), path, key_files.encrypt(private(signer), PASSPHRASE))
    assert path.stat().st_mode & 0o777 == 0o600
    record = keys.read_record(
        repository.json_text(KeyRecord("k", signer.public_key, "file:k.pem", NOW).to_json()), what="k"
    )
    opened = load_signer(record, GivenSecrets(PASSPHRASE), base=tmp_path)
    record.key.verify_signature(opened.sign(b"data"), b"data")
    assert record.kind is kind


@pytest.mark.parametrize("kind", [KeyKind.ED25519, KeyKind.ECDSA_P256, KeyKind.RSA_PSS])  # openssl 3.0 has no ML-DSA
def test_openssl_opens_our_files_and_we_open_its(kind, tmp_path):
    ours = tmp_path / "ours.pem"
    ours.write_bytes(key_files.encrypt(private(keys.generate(kind, rsa_bits=2048)), PASSPHRASE))
    plain = subprocess.run(
        ["openssl", "pkey", "-in", str(ours), "-passin", f"pass:{PASSPHRASE.decode()}"], check=True, capture_output=True
    ).stdout
    theirs = tmp_path / "theirs.pem"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-scrypt", "-out", str(theirs), "-passout", f"pass:{PASSPHRASE.decode()}"],
        input=plain,
        check=True,
        capture_output=True,
    )
    both = [key_files.decrypt(path.read_bytes(), PASSPHRASE, what="k") for path in (ours, theirs)]
    assert both[0].public_key() == both[1].public_key()


def test_the_key_derivation_is_scrypt_as_costly_as_promised(monkeypatch):
    """Not `cryptography`'s PBKDF2 with 2048 rounds: the parameters stand in the file."""
    monkeypatch.undo()
    pem = key_files.encrypt(private(keys.generate(KeyKind.ED25519)), PASSPHRASE)
    listing = subprocess.run(["openssl", "asn1parse"], input=pem, check=True, capture_output=True).stdout.decode()
    assert ":scrypt" in listing
    assert ":aes-256-cbc" in listing
    numbers = [int(line.rpartition(":")[2], 16) for line in listing.splitlines() if "INTEGER" in line]
    assert numbers == [2**14, 8, 5]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_file_that_others_may_use_is_refused(stored, mode):
    path, _ = stored
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600"):
        key_files.load(path, PASSPHRASE)


def test_a_symlink_a_directory_and_a_missing_file_are_refused(stored, tmp_path):
    path, _ = stored
    link = tmp_path / "link.pem"
    link.symlink_to(path)
    for bad in (link, tmp_path, tmp_path / "absent.pem"):
        with pytest.raises(KeyFileError):
            key_files.load(bad, PASSPHRASE)


def test_a_pipe_does_not_hang(tmp_path):
    import os

    path = tmp_path / "pipe"
    os.mkfifo(path, 0o600)
    with pytest.raises(KeyFileError, match="regular"):
        key_files.load(path, PASSPHRASE)


def test_an_unencrypted_file_is_refused_unless_it_is_imported():
    signer = keys.generate(KeyKind.ED25519)
    pem = private(signer).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(KeyFileError, match="not encrypted"):
        key_files.decrypt(pem, PASSPHRASE, what="k")
    assert keys.signer_of(key_files.decrypt(pem, None, what="k", allow_plain=True)).public_key == signer.public_key


@pytest.mark.parametrize("passphrase", [b"wrong horse battery", b"", None])
def test_a_wrong_or_absent_passphrase_is_told(stored, passphrase):
    path, _ = stored
    with pytest.raises(PassphraseError):
        key_files.load(path, passphrase)


def test_a_short_passphrase_is_refused():
    with pytest.raises(PassphraseError):
        key_files.encrypt(private(keys.generate(KeyKind.ED25519)), b"short")


DAMAGED = {
    "empty": lambda pem: b"",
    "truncated": lambda pem: pem[:80],
    "no-end": lambda pem: pem[: len(pem) // 2],
    "public": lambda pem: b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    "text": lambda pem: b"hello",
    "binary": lambda pem: bytes(range(256)),
    "huge": lambda pem: pem * 1000,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_a_sentence_and_stays(stored, name):
    path, _ = stored
    bad = DAMAGED[name](path.read_bytes())
    path.write_bytes(bad)
    with pytest.raises((KeyFileError, PassphraseError)) as caught:
        key_files.load(path, PASSPHRASE)
    assert caught.value.code in {"local/key", "local/passphrase"}
    assert path.read_bytes() == bad


@cache
def weak_keys():
    return {
        "rsa-1024": rsa.generate_private_key(65537, 1024),
        "p-384": ec.generate_private_key(ec.SECP384R1()),
        "ed448": ed448.Ed448PrivateKey.generate(),
        "ml-dsa-44": mldsa.MLDSA44PrivateKey.generate(),
    }


@pytest.mark.parametrize("name", weak_keys())
def test_weak_and_unknown_kinds_are_refused_however_they_arrive(name):
    pem = weak_keys()[name].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSPHRASE))
    with pytest.raises(KeyFileError):
        key_files.decrypt(pem, PASSPHRASE, what="k")


@pytest.mark.parametrize("bits", [1024, 2047, 8193])
def test_rsa_lengths_out_of_bounds_are_not_generated(bits):
    with pytest.raises(KeyFileError):
        keys.generate(KeyKind.RSA_PSS, rsa_bits=bits)


def test_a_key_is_never_overwritten(stored):
    path, _ = stored
    before = path.read_bytes()
    with pytest.raises(ConflictError):
        key_files.store(RealDisk(), path, b"other")
    assert path.read_bytes() == before


def test_a_private_file_that_is_not_the_records_is_refused(stored, tmp_path):
    _, record = stored
    other = keys.generate(KeyKind.ED25519)
    with pytest.raises(KeyFileError, match="not the one"):
        load_signer(KeyRecord("release", other.public_key, record.uri, NOW), GivenSecrets(PASSPHRASE), base=tmp_path)


@pytest.mark.parametrize("uri", ["ftp:x", "x", ""])
def test_unknown_schemes_are_refused(stored, uri):
    _, record = stored
    with pytest.raises(KeyFileError):
        load_signer(KeyRecord("release", record.key, uri, NOW), GivenSecrets(PASSPHRASE))


def test_secrets_that_were_not_given_say_so():
    for ask in (GivenSecrets().passphrase, GivenSecrets().pin):
        with pytest.raises(PassphraseError):
            ask("k")


def test_secrets_do_not_appear_in_reprs():
    assert "horse" not in repr(GivenSecrets(PASSPHRASE, "1234"))
    assert "1234" not in repr(GivenSecrets(PASSPHRASE, "1234"))


def test_a_record_with_an_expiry_reads_back():
    signer = keys.generate(KeyKind.ED25519)
    record = KeyRecord("k", signer.public_key, "file:k.pem", NOW, NOW + timedelta(days=365))
    assert keys.read_record(repository.json_text(record.to_json()), what="k") == record


RECORD_CHANGES = {
    "other-keyid": {"keyid": "0" * 64},
    "no-key": {"key": None},
    "key-a-list": {"key": []},
    "unknown-scheme": {"key": {"keytype": "ed25519", "scheme": "none", "keyval": {"public": "00"}}},
    "bad-hex": {"key": {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": "zz"}}},
    "no-public": {"key": {"keytype": "ed25519", "scheme": "ed25519", "keyval": {}}},
    "bad-pem": {"key": {"keytype": "rsa", "scheme": "rsassa-pss-sha256", "keyval": {"public": "x"}}},
    "path-as-name": {"name": "../x"},
    "other-uri": {"uri": "http://x"},
    "no-time": {"created_at": "now"},
}


@pytest.mark.parametrize("name", RECORD_CHANGES)
def test_a_strange_record_is_refused(name):
    record = KeyRecord("k", keys.generate(KeyKind.ED25519).public_key, "file:k.pem", NOW)
    with pytest.raises(FirmamentError) as caught:
        keys.read_record(repository.json_text(record.to_json() | RECORD_CHANGES[name]), what="k")
    assert isinstance(caught.value, MalformedError | KeyFileError)


def test_a_huge_record_is_refused():
    with pytest.raises(TooLargeError):
        keys.read_record(b" " * 100_000, what="k")


def test_public_pem_is_what_openssl_calls_it(stored, tmp_path):
    path, record = stored
    out = subprocess.run(
        ["openssl", "pkey", "-in", str(path), "-passin", f"pass:{PASSPHRASE.decode()}", "-pubout"],
        check=True,
        capture_output=True,
    ).stdout
    assert keys.public_pem(record.key) == out
    assert Path(path).exists()


def test_a_kind_that_is_not_used_here_is_refused_though_tuf_knows_it():
    from securesystemslib.signer import CryptoSigner

    key = CryptoSigner.generate_ecdsa(scheme="ecdsa-sha2-nistp384").public_key
    with pytest.raises(KeyFileError):
        keys.kind_of(key)
    with pytest.raises(KeyFileError):
        keys.read_key(key.to_dict(), keyid=key.keyid, what="k")


def test_another_passphrase_is_tried_until_there_is_none(stored, tmp_path):
    """Keys with passphrases of their own: the terminal asks again."""

    answers = [b"wrong again", PASSPHRASE]

    class Asking(GivenSecrets):
        def another_passphrase(self, name):
            return answers.pop(0) if answers else None

    _, record = stored
    assert load_signer(record, Asking(b"wrong"), base=tmp_path).public_key == record.key
    answers[:] = [b"wrong again"]
    with pytest.raises(PassphraseError):
        load_signer(record, Asking(b"wrong"), base=tmp_path)
