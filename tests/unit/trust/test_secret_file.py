import json

import pytest
from support.authoring import PASSPHRASE, cheap_scrypt

from firmament.errors import MalformedError, PassphraseError
from firmament.trust import key_files, secret_file
from firmament.trust.signers import GivenSecrets

PURPOSE = "content keys of thermo/1.1"


class Guesses:
    """Passphrases tried one after the other, as a person types them."""

    def __init__(self, *passphrases):
        self.left = list(passphrases)

    def passphrase(self, name):
        assert name == PURPOSE
        return self.left.pop(0)

    def another_passphrase(self, name):
        assert name == PURPOSE
        return self.left.pop(0) if self.left else None

    def pin(self, name):
        raise AssertionError(name)


@pytest.fixture
def sealed(monkeypatch):
    cheap_scrypt(monkeypatch)
    return secret_file.seal(b"secret", PASSPHRASE, purpose=PURPOSE)


def test_the_cost_of_a_guess_is_that_of_a_key_file():
    assert (secret_file.SCRYPT_N, secret_file.SCRYPT_R, secret_file.SCRYPT_P) == (
        key_files._SCRYPT_N, key_files._SCRYPT_R, key_files._SCRYPT_P,
    )  # fmt: skip
    sealed = secret_file.seal(b"secret", PASSPHRASE, purpose=PURPOSE)
    assert secret_file.unseal(sealed, PASSPHRASE, purpose=PURPOSE) == b"secret"


def test_only_the_passphrase_and_the_purpose_open_it(sealed):
    assert b"secret" not in sealed
    assert secret_file.unseal(sealed, PASSPHRASE, purpose=PURPOSE) == b"secret"
    for passphrase, purpose in ((b"another passphrase", PURPOSE), (PASSPHRASE, PURPOSE + "0")):
        with pytest.raises(PassphraseError):
            secret_file.unseal(sealed, passphrase, purpose=purpose)
    with pytest.raises(PassphraseError):
        secret_file.seal(b"secret", b"short", purpose=PURPOSE)


def test_two_files_of_one_secret_differ(sealed):
    assert secret_file.seal(b"secret", PASSPHRASE, purpose=PURPOSE) != sealed


@pytest.mark.parametrize(("name", "value"), [("n", 2**30), ("p", 2), ("salt", "00"), ("r", 1)])
def test_a_file_does_not_decide_how_long_we_work(sealed, name, value):
    changed = json.loads(sealed)
    changed["scrypt"][name] = value
    with pytest.raises(MalformedError):
        secret_file.unseal(
            json.dumps(changed, separators=(",", ":"), sort_keys=True).encode(), PASSPHRASE, purpose=PURPOSE
        )


def test_passphrases_are_tried_until_one_opens_or_none_is_left(sealed):
    guesses = Guesses(b"first guess", b"second guess", PASSPHRASE)
    assert secret_file.open_file(sealed, guesses, purpose=PURPOSE) == b"secret"
    with pytest.raises(PassphraseError):
        secret_file.open_file(sealed, Guesses(b"first guess", b"second guess"), purpose=PURPOSE)
    assert secret_file.open_file(sealed, GivenSecrets(PASSPHRASE), purpose=PURPOSE) == b"secret"
