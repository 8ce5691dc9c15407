"""A whole valid author's workspace for tests to break: cheap keys, a fixed clock, real files or a simulated disk."""

from datetime import UTC, datetime
from pathlib import Path

from firmament.durable import RealDisk
from firmament.release import build, compose, publish, setup, sign
from firmament.release.workspace import Workspace
from firmament.trust import keys
from firmament.trust.keys import KeyKind
from firmament.trust.signers import GivenSecrets

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
PASSPHRASE = b"correct horse battery"
SECRETS = GivenSecrets(PASSPHRASE, "1234")


def cheap_scrypt(monkeypatch):
    """Make key files cost nothing; the parameters are in the file, so reading follows."""
    monkeypatch.setattr("firmament.trust.key_files._SCRYPT_N", 16)
    monkeypatch.setattr("firmament.trust.key_files._SCRYPT_P", 1)
    monkeypatch.setattr("firmament.trust.secret_file.SCRYPT_N", 16)
    monkeypatch.setattr("firmament.trust.secret_file.SCRYPT_P", 1)


def make_workspace(directory, *, disk=None, product="thermo", online=None):
    return setup.quick_start(
        disk or RealDisk(), Path(directory), product=product, online=online, passphrase=PASSPHRASE, now=NOW
    )


def online_keys():
    """What a server's `init` writes, and its signers."""
    made = {
        "image": {role: keys.generate(KeyKind.ED25519) for role in ("snapshot", "timestamp")},
        "director": {role: keys.generate(KeyKind.ED25519) for role in ("targets", "snapshot", "timestamp")},
    }
    public = {
        part: {role: {"keyid": s.public_key.keyid, "key": s.public_key.to_dict()} for role, s in signers.items()}
        for part, signers in made.items()
    }
    return {"v": 1, **public}, made


def make_tree(directory, **files):
    """A small bundle source."""
    directory = Path(directory)
    (directory / "lib").mkdir(parents=True, exist_ok=True)
    (directory / "main.py").write_text("print('on')\n")
    (directory / "main.py").chmod(0o755)
    for name, text in files.items():
        (directory / "lib" / name).write_text(text)
    return directory


def build_release(workspace: Workspace, source, version, *, product="thermo", **options):
    draft = compose.compose(
        workspace,
        product=product,
        version=version,
        installer=options.pop("installer", None) or build.detect_installer(Path(source)),
        hardware=("rpi4",),
        now=NOW,
        **options,
    )
    return build.build(workspace.disk, Path(source), sign.built_directory(workspace, draft.release_id), draft)


def sign_release(workspace, release, *names, now=NOW):
    return sign.sign_release(workspace, release, keys=names, secrets=SECRETS, now=now)


def publish_local(workspace, *products, now=NOW):
    publish.publish_local(workspace, publish.plan(workspace, products), secrets=SECRETS, now=now)


def release(workspace, source, version, **options):
    """Build, sign and publish locally."""
    built = build_release(workspace, source, version, **options)
    sign_release(workspace, built.manifest.release_id)
    publish_local(workspace)
    return built.manifest
