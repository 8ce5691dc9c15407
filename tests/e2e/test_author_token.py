"""An author whose release key is on a hardware token: SoftHSM2, through the commands a person types."""

import os
import subprocess
from pathlib import Path

import pytest
from support import documents
from support.server_world import run_command

LIBRARY = Path("/usr/lib/softhsm/libsofthsm2.so")

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="SoftHSM2 is not installed (make packages)")


@pytest.fixture
def env(tmp_path, monkeypatch):
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path}/tokens\nlog.level = ERROR\n")
    for name, text in {"passphrase": "correct horse battery", "pin": "1234", "wrong": "9999"}.items():
        (tmp_path / name).write_text(f"{text}\n")
        (tmp_path / name).chmod(0o600)
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "main.py").write_text("print(1)\n")
    found = {
        "SOFTHSM2_CONF": str(tmp_path / "softhsm2.conf"),
        "PYKCS11LIB": str(LIBRARY),
        "FIRMAMENT_PASSPHRASE_FILE": str(tmp_path / "passphrase"),
        "FIRMAMENT_PIN_FILE": str(tmp_path / "pin"),
        "FIRMAMENT_WORKSPACE": str(tmp_path / "ws"),
        "FIRMAMENT_JSON": "1",
    }
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", "author", "--pin", "1234", "--so-pin", "12345678"],
        check=True,
        capture_output=True,
        env={**os.environ, **found},
    )
    monkeypatch.chdir(tmp_path)
    return found


def test_a_release_is_signed_by_a_token_and_a_file_together(env, tmp_path):
    """ECDSA on the token and ML-DSA in a file are one hybrid pair; neither is enough alone."""

    def run(*arguments, check=True, **changes):
        done = run_command(*arguments, check=False, env=env | changes)
        assert (done.returncode == 0) == check, done.stderr
        return documents.loads(done.stdout if check else done.stderr)

    run("init", "ws", "--product", "thermo")
    made = run("key", "generate", "token-key", "--kind", "ecdsa-p256", "--token", "author")
    assert made["uri"] == "hsm:label=token-key;token=author"
    assert not (tmp_path / "ws/keys/token-key.pem").exists()
    run("key", "rotate", "thermo", "--old", "thermo-ed25519", "--new", "token-key")
    run("release", "build", "app", "--version", "1.0", "--hardware", "rpi4")
    wrong = run("release", "sign", "thermo/1.0", check=False, FIRMAMENT_PIN_FILE=str(tmp_path / "wrong"))
    assert wrong["code"] == "local/passphrase"
    assert run("release", "sign", "thermo/1.0", "--key", "token-key")["complete"] is False
    assert run("release", "sign", "thermo/1.0", "--key", "thermo-ml-dsa")["complete"] is True
    run("release", "publish", "--directory", "pub")
    found = run("release", "verify", "thermo/1.0", "--directory", "pub", "--offline", "pub/metadata/1.root.json")
    assert found["verified"] is True
    again = run("key", "import", "same", "hsm:label=token-key;token=author", check=False)
    assert again["code"] == "request/conflict"
