"""Keys on a real PKCS#11 token: SoftHSM2, set up with its own tool."""

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from firmament.errors import DependencyMissingError, KeyFileError, PassphraseError, TokenDeviceError
from firmament.trust import hsm, keys, repository
from firmament.trust.hsm import TokenKey
from firmament.trust.keys import KeyKind, KeyRecord
from firmament.trust.roles import RoleKeys
from firmament.trust.signers import GivenSecrets, load_signer

LIBRARIES = [Path("/usr/lib/softhsm/libsofthsm2.so"), Path("/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so")]
LIBRARY = next((path for path in LIBRARIES if path.exists()), None)
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SECRETS = GivenSecrets(b"", "1234")

pytestmark = pytest.mark.skipif(
    LIBRARY is None or shutil.which("softhsm2-util") is None, reason="SoftHSM2 is not installed (make packages)"
)


@pytest.fixture(scope="module")
def token(tmp_path_factory):
    """One token for the module: the PKCS#11 library reads its settings once per process."""
    directory = tmp_path_factory.mktemp("hsm")
    (directory / "tokens").mkdir()
    (directory / "softhsm2.conf").write_text(f"directories.tokendir = {directory}/tokens\nlog.level = ERROR\n")
    before = dict(os.environ)
    os.environ |= {"SOFTHSM2_CONF": str(directory / "softhsm2.conf"), hsm.LIBRARY_VARIABLE: str(LIBRARY)}
    for label in ("author", "other"):
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", "1234", "--so-pin", "12345678"],
            check=True,
            capture_output=True,
        )
    yield "author"
    os.environ.clear()
    os.environ.update(before)


def pkcs11_tool(*arguments):
    login = ["--module", str(LIBRARY), "--token-label", "author", "--login", "--pin", "1234"]
    return subprocess.run(["pkcs11-tool", *login, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def record(token):
    where = TokenKey("release=1;x", token)  # characters that the URI must encode
    return KeyRecord("release", hsm.generate(where, "1234"), where.uri, NOW)


def test_the_uri_reads_back(record, token):
    assert record.uri == "hsm:label=release%3D1%3Bx;token=author"
    assert hsm.parse_uri(record.uri) == TokenKey("release=1;x", token)
    assert record.kind is KeyKind.ECDSA_P256


def test_a_key_made_on_the_token_signs_a_role(record):
    signer = load_signer(record, SECRETS)
    signature = signer.sign(b"data")
    record.key.verify_signature(signature, b"data")
    targets = repository.sign(repository.make_targets(version=1, expires_at=NOW, products={}), signer)
    root = repository.make_root(
        version=1,
        expires_at=NOW,
        roles={role: RoleKeys((record.key,), 1) for role in ("root", "targets", "snapshot", "timestamp")},
    )
    repository.verify(root.signed, "targets", targets)


def test_pkcs11_tools_see_the_same_key(record):
    """An independent program lists the label, and says that the private key never leaves."""
    listing = pkcs11_tool("-O")
    assert "release=1;x" in listing
    assert "never extractable" in listing


def test_a_key_made_by_another_tool_is_found(token):
    pkcs11_tool("--keypairgen", "--key-type", "EC:prime256v1", "--label", "foreign", "--id", "07")
    where = TokenKey("foreign", token)
    found = KeyRecord("foreign", hsm.public_key(where), where.uri, NOW)
    found.key.verify_signature(load_signer(found, SECRETS).sign(b"data"), b"data")


def test_a_wrong_pin_is_told(record):
    signer = load_signer(record, GivenSecrets(b"", "9999"))
    with pytest.raises(PassphraseError) as caught:
        signer.sign(b"data")
    assert "9999" not in str(caught.value)


def test_no_pin_is_told(record):
    with pytest.raises(PassphraseError):
        load_signer(record, GivenSecrets()).sign(b"data")


def test_a_key_or_token_that_is_not_here_is_told(record, token):
    for where in (TokenKey("absent", token), TokenKey("release=1;x", "absent")):
        with pytest.raises(TokenDeviceError):
            load_signer(KeyRecord("release", record.key, where.uri, NOW), SECRETS)


def test_the_token_must_hold_the_key_of_the_record(record):
    other = keys.generate(KeyKind.ECDSA_P256).public_key
    with pytest.raises(KeyFileError, match="another key"):
        load_signer(KeyRecord("release", other, record.uri, NOW), SECRETS)


def test_a_label_is_used_once(record, token):
    with pytest.raises(KeyFileError, match="already"):
        hsm.generate(TokenKey("release=1;x", token), "1234")


def test_other_curves_are_refused(token):
    pkcs11_tool("--keypairgen", "--key-type", "EC:secp384r1", "--label", "p384", "--id", "08")
    with pytest.raises(KeyFileError):
        hsm.public_key(TokenKey("p384", token))


@pytest.mark.parametrize(
    "uri", ["hsm:", "hsm:label=x", "hsm:token=x", "hsm:label=;token=x", "hsm:label=a;label=b;token=c", "hsm:2?label=x"]
)
def test_uris_that_are_not_well_formed_are_refused(uri):
    with pytest.raises(KeyFileError):
        hsm.parse_uri(uri)


def test_without_the_library_a_setting_is_named(record, monkeypatch):
    monkeypatch.delenv(hsm.LIBRARY_VARIABLE)
    with pytest.raises(TokenDeviceError) as caught:
        load_signer(record, SECRETS)
    assert caught.value.facts["variable"] == "PYKCS11LIB"


def test_two_keys_of_one_label_are_not_guessed_between(token):
    for identifier in ("21", "22"):
        pkcs11_tool("--keypairgen", "--key-type", "EC:prime256v1", "--label", "twin", "--id", identifier)
    with pytest.raises(TokenDeviceError, match="exactly one"):
        hsm.public_key(TokenKey("twin", token))


def test_without_the_package_the_extra_is_named(record, monkeypatch):
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(DependencyMissingError) as caught:
        load_signer(record, SECRETS)
    assert caught.value.facts["install"] == "firmament[hsm]"


def test_a_library_that_is_none_is_told(record, monkeypatch, tmp_path):
    monkeypatch.setenv(hsm.LIBRARY_VARIABLE, str(tmp_path / "absent.so"))
    with pytest.raises(TokenDeviceError):
        hsm.public_key(TokenKey("release=1;x", "author"))


def test_a_token_signer_knows_its_key_and_is_made_here_only(record):
    signer = load_signer(record, SECRETS)
    assert signer.public_key == record.key
    with pytest.raises(NotImplementedError):
        hsm.TokenSigner.from_priv_key_uri(record.uri, record.key)
