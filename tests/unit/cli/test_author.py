"""The author's commands end to end, as typed: init, key, ceremony, product, release."""

import fcntl
import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from support import authoring, documents

from firmament.cli import workspace as shared
from firmament.cli.main import program
from firmament.core.clock import FixedClock

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def bench(tmp_path, monkeypatch):
    """An author's directory with a passphrase file and a clock that stands still."""
    authoring.cheap_scrypt(monkeypatch)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "passphrase"
    path.write_text("correct horse battery\n")
    path.chmod(0o600)
    clock = FixedClock(NOW)
    monkeypatch.setattr(shared, "CLOCK", clock)
    for name in ("SERVER", "TOKEN", "TOKEN_FILE", "CA", "WORKSPACE", "JSON"):
        monkeypatch.delenv(f"FIRMAMENT_{name}", raising=False)
    monkeypatch.setenv("FIRMAMENT_PASSPHRASE_FILE", str(path))
    authoring.make_tree(tmp_path / "app", x="1")
    return clock


def run(*arguments, code=0):
    result = CliRunner().invoke(program, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, f"{arguments}\n{result.stdout}\n{result.stderr}"
    return result


def ask(*arguments, code=0):
    """The JSON document of a command."""
    return documents.loads(run(*arguments, "--json", code=code).stdout)


def refusal(*arguments):
    """Exit code and error of a command that must fail."""
    result = CliRunner().invoke(program, [*map(str, arguments), "--json"])
    assert result.exit_code not in {0, 1, 2}, result.stderr
    return documents.loads(result.stderr) | {"exit": result.exit_code}


@pytest.fixture
def ws(tmp_path, monkeypatch):
    run("init", "ws", "--product", "thermo")
    monkeypatch.setenv("FIRMAMENT_WORKSPACE", str(tmp_path / "ws"))
    return tmp_path / "ws"


def release(version="1.0", *options):
    run("release", "build", "app", "--version", version, "--hardware", "rpi4", *options)
    run("release", "sign", f"thermo/{version}")
    return run("release", "publish", "--directory", "pub")


# --- init ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--memory-size", "4096"), "belong to --in-place"),
        (("--in-place", "--segment-size", "1000"), "power of two"),
        (("--in-place", "--segment-size", "4096", "--memory-size", "5000"), "whole number of segments"),
    ],
)
def test_the_flash_of_a_microcontroller_is_checked_first(options, said):
    done = CliRunner().invoke(program, ["release", "delta", "thermo", "1.3", "--from", "1.2", *options])
    assert done.exit_code == 2
    assert said in done.output


def test_init_says_what_it_gives_up_and_what_comes_next(tmp_path):
    result = run("init", "ws", "--product", "thermo")
    assert "one person" in result.stdout
    assert "one machine" in result.stdout
    assert result.stderr.startswith("Next: cd ws && firmament release build")
    assert (tmp_path / "ws" / "keys").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "ws" / "keys").glob("*.pem")} == {0o600}
    assert refusal("init", "ws", "--product", "thermo")["code"] == "request/conflict"


def test_init_with_a_servers_keys_makes_both_chains(tmp_path):
    public, _ = authoring.online_keys()
    Path("online-public.json").write_text(json.dumps(public))
    assert ask("init", "ws", "--product", "thermo", "--online", "online-public.json")["has_director"] is True
    assert (tmp_path / "ws/repository/metadata/1.root.json").exists()
    assert (tmp_path / "ws/director/metadata/1.root.json").exists()
    director = json.loads((tmp_path / "ws/director/metadata/1.root.json").read_text())
    assert director["signed"]["roles"]["targets"]["keyids"] == [public["director"]["targets"]["keyid"]]


INIT_REFUSALS = {
    "bad-product": (("init", "ws", "--product", "Thermo!"), "request/malformed"),
    "role-product": (("init", "ws", "--product", "targets"), "request/malformed"),
    "no-online-file": (("init", "ws", "--product", "t", "--online", "absent.json"), "local/file"),
    "bad-online-file": (("init", "ws", "--product", "t", "--online", "passphrase"), "request/malformed"),
    "in-a-file": (("init", "passphrase/ws", "--product", "t"), "local/file"),
}


@pytest.mark.parametrize("name", INIT_REFUSALS)
def test_init_refuses_and_leaves_nothing(name, tmp_path):
    arguments, code = INIT_REFUSALS[name]
    assert refusal(*arguments)["code"] == code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app", "passphrase"]


def test_a_command_outside_a_workspace_says_so():
    for arguments in (("key", "list"), ("release", "list"), ("product", "list")):
        found = refusal(*arguments)
        assert (found["code"], found["exit"]) == ("local/file", 102)
        assert "firmament init" in found["message"]


def test_one_command_changes_a_workspace_at_a_time(ws):
    with (ws / "firmament.toml").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = refusal("release", "build", "app", "--version", "1.0", "--hardware", "rpi4")
        assert (found["code"], found["exit"]) == ("state/locked", 72)
        assert ask("release", "list")["releases"] == []  # looking is always possible
    run("release", "build", "app", "--version", "1.0", "--hardware", "rpi4")


def test_a_damaged_setting_file_is_told(ws):
    (ws / "firmament.toml").write_text("[workspace\n")
    assert refusal("release", "list")["code"] == "local/setting"


# --- key -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa-p256", "ml-dsa-65", "rsa-pss"])
def test_keys_of_every_kind_are_made_listed_and_exported(ws, kind):
    made = ask("key", "generate", "spare", "--kind", kind, "--rsa-bits", "2048", "--expires", "365d")
    assert (made["kind"], made["expires_at"]) == (kind, "2027-11-20T12:00:00Z")
    listed = {key["name"]: key for key in ask("key", "list")["keys"]}
    assert listed["spare"]["keyid"] == made["keyid"]
    assert listed["root-ed25519"]["roles"] == ["root"]
    run("key", "export-public", "spare", "--out", "spare.pub.json")
    assert json.loads(Path("spare.pub.json").read_text())["keyid"] == made["keyid"]
    assert run("key", "export-public", "spare", "--pem").stdout.startswith("-----BEGIN PUBLIC KEY-----")
    assert refusal("key", "generate", "spare")["code"] == "request/conflict"


def test_openssl_keys_are_imported_and_encrypted(ws):
    subprocess.run(["openssl", "genrsa", "-out", "plain.pem", "2048"], check=True, capture_output=True)
    Path("plain.pem").chmod(0o600)
    assert refusal("key", "import", "old", "plain.pem")["code"] == "local/key"
    result = run("key", "import", "old", "plain.pem", "--unencrypted")
    assert "destroy it" in result.stderr
    assert b"ENCRYPTED" in (ws / "keys" / "old.pem").read_bytes()
    Path("plain.pem").chmod(0o644)
    assert "chmod 600" in refusal("key", "import", "other", "plain.pem", "--unencrypted")["message"]


def test_an_encrypted_key_with_its_own_passphrase_is_imported(ws):
    Path("other-pass").write_text("another horse\n")
    Path("other-pass").chmod(0o600)
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "file:other-pass", "-out", "k.pem"],
        check=True,
        capture_output=True,
    )
    Path("k.pem").chmod(0o600)
    assert refusal("key", "import", "mine", "k.pem")["code"] == "local/passphrase"
    assert ask("key", "import", "mine", "k.pem", "--source-passphrase-file", "other-pass")["kind"] == "ed25519"


KEY_REFUSALS = {
    "absent": (("key", "import", "x", "absent.pem"), "local/key"),
    "no-key": (("key", "import", "x", "passphrase"), "local/key"),
    "bad-name": (("key", "generate", "../x"), "request/malformed"),
    "weak": (("key", "generate", "x", "--kind", "rsa-pss", "--rsa-bits", "1024"), "local/key"),
    "unknown": (("key", "export-public", "nobody"), "request/not-found"),
    "unknown-role": (("key", "rotate", "nothing"), "request/not-found"),
    "unknown-revoke": (("key", "revoke", "root", "nobody"), "request/not-found"),
    "bad-uri": (("key", "import", "x", "hsm:nonsense"), "local/key"),
}


@pytest.mark.parametrize("name", KEY_REFUSALS)
def test_key_commands_refuse_and_change_nothing(ws, name):
    before = sorted(path.name for path in (ws / "keys").iterdir())
    arguments, code = KEY_REFUSALS[name]
    assert refusal(*arguments)["code"] == code
    assert sorted(path.name for path in (ws / "keys").iterdir()) == before


def test_a_wrong_passphrase_changes_nothing(ws, tmp_path, monkeypatch):
    (tmp_path / "wrong").write_text("wrong horse battery\n")
    (tmp_path / "wrong").chmod(0o600)
    monkeypatch.setenv("FIRMAMENT_PASSPHRASE_FILE", str(tmp_path / "wrong"))
    run("release", "build", "app", "--version", "1.0", "--hardware", "rpi4")
    found = refusal("release", "sign", "thermo/1.0")
    assert (found["code"], found["exit"]) == ("local/passphrase", 104)
    assert not list((ws / "drafts").iterdir())


def test_expiry_warns_a_timer(ws, bench):
    assert ask("key", "expiry", "--within", "7d")["soon"] == []
    found = ask("key", "expiry", "--within", "30d", code=3)
    assert set(found["soon"]) == {"snapshot", "timestamp"}
    bench.advance(86_400 * 31)
    assert "EXPIRED" in run("key", "expiry", code=3).stdout
    assert ask("release", "renew", "timestamp")["role"] == "timestamp"
    assert ask("key", "expiry")["soon"] == []
    assert "number of days" in run("key", "expiry", "--within", "x", code=2).stderr


def test_every_role_is_rotated_from_the_command_line(ws):
    release()
    for role in ("targets", "thermo", "root", "snapshot", "timestamp"):
        found = ask("key", "rotate", role)
        assert found["pending"] == []
        assert len(found["added"]) == len(found["removed"]) > 0
    run("release", "publish", "--directory", "pub")
    found = ask("release", "verify", "thermo/1.0", "--directory", "pub", "--offline", "pub/metadata/1.root.json")
    assert (found["verified"], found["root_version"]) == (True, 5)


def test_a_key_on_a_token_is_made_in_the_workspace(ws, monkeypatch):
    monkeypatch.delenv("PYKCS11LIB", raising=False)
    Path("pin").write_text("1234\n")
    Path("pin").chmod(0o600)
    assert refusal("key", "generate", "x", "--token", "author", "--pin-file", "pin")["code"] == "local/hsm"


# --- ceremony ------------------------------------------------------------------------------


def test_a_ceremony_of_two_custodians(ws, tmp_path, monkeypatch):
    """Anna has the keys of init; Bert brings a pair; afterwards both are needed."""
    run("init", "bert", "--product", "dummy")
    for kind in ("ed25519", "ml-dsa"):
        run("key", "export-public", f"root-{kind}", "-C", "bert", "--out", f"bert-{kind}.pub.json")
        run("key", "import", f"bert-{kind}", f"bert-{kind}.pub.json")
    trap = ["--add", "root=bert-ed25519", "--add", "root=bert-ml-dsa", "--out", "trap"]
    assert refusal("key", "ceremony", "start", *trap)["code"] == "trust/threshold-not-met"  # 2 of 4
    started = ask("key", "ceremony", "start", *trap[:4], "--threshold", "root=3", "--out", "next.root")
    assert started["missing"]
    shown = run("key", "ceremony", "show", "next.root").stdout
    assert "root: + bert-ed25519 ed25519" in shown
    assert "threshold 2 of 2 -> 3 of 4 (hybrid: at least 1 of each class)" in shown
    assert refusal("key", "ceremony", "finish", "next.root")["code"] == "trust/threshold-not-met"
    assert "consent" in run("key", "ceremony", "sign", "next.root", code=2).stderr
    run("key", "ceremony", "sign", "next.root", "--yes")
    found = refusal("key", "ceremony", "finish", "next.root")
    assert (found["facts"]["old"], found["facts"]["new"]) == ("2 of 2", "2 of 3")
    # Bert's own copy of Anna's root is what he trusts; his workspace holds another repository.
    found = refusal("key", "ceremony", "sign", "next.root", "-C", "bert", "--yes")
    assert found["code"] == "request/conflict"
    root = ws / "repository/metadata/1.root.json"
    run("key", "ceremony", "sign", "next.root", "-C", "bert", "--trusted-root", root, "--key", "root-ml-dsa", "--yes")
    run("key", "ceremony", "finish", "next.root")
    assert (ws / "repository/metadata/2.root.json").exists()
    release()
    run("release", "verify", "thermo/1.0", "--directory", "pub", "--offline", root)


CEREMONY_REFUSALS = {
    "absent": (("key", "ceremony", "show", "absent"), "local/file"),
    "no-ceremony": (("key", "ceremony", "show", "passphrase"), "request/malformed"),
    "no-director": (("key", "ceremony", "start", "--repository", "director", "--out", "x"), "request/not-found"),
    "unknown-key": (("key", "ceremony", "start", "--add", "root=nobody", "--out", "x"), "request/not-found"),
    "no-such-role": (("key", "ceremony", "start", "--threshold", "x=1", "--out", "x"), "request/malformed"),
    "too-high": (("key", "ceremony", "start", "--threshold", "root=9", "--out", "x"), "request/malformed"),
    "too-low": (("key", "ceremony", "start", "--threshold", "root=1", "--out", "x"), "trust/threshold-not-met"),
    "out-exists": (("key", "ceremony", "start", "--out", "passphrase"), "request/conflict"),
}


@pytest.mark.parametrize("name", CEREMONY_REFUSALS)
def test_ceremony_commands_refuse(ws, name):
    arguments, code = CEREMONY_REFUSALS[name]
    assert refusal(*arguments)["code"] == code
    assert not Path("x").exists()


def test_truncated_ceremony_files_are_refused(ws):
    run("key", "ceremony", "start", "--out", "next.root")
    data = Path("next.root").read_bytes()
    for cut in (0, 10, len(data) // 2, len(data) - 1):
        Path("next.root").write_bytes(data[:cut])
        assert refusal("key", "ceremony", "sign", "next.root", "--yes")["code"].startswith(("request/", "trust/"))


# --- release -------------------------------------------------------------------------------


def test_the_whole_way_from_a_tree_to_a_verified_directory(ws):
    built = run("release", "build", "app", "--version", "1.0", "--hardware", "rpi4")
    assert "Not signed yet (needs 2)." in built.stdout
    assert built.stderr == "Next: firmament release sign thermo/1.0\n"
    run("release", "sign", "thermo/1.0")
    dry = ask("release", "publish", "--directory", "pub", "--dry-run")
    assert (dry["added"], dry["dry_run"], Path("pub").exists()) == (["thermo/1.0"], True, False)
    assert "+ thermo/1.0" in run("release", "publish", "thermo/1.0", "--directory", "pub").stdout
    assert refusal("release", "publish")["code"] == "policy/nothing-to-do"
    found = ask("release", "verify", "thermo/1.0", "--directory", "pub", "--offline", "pub/metadata/1.root.json")
    assert found["verified"] is True
    assert ask("release", "show", "thermo/1.0")["state"] == "published"


def test_a_tampered_directory_is_not_verified(ws):
    release()
    payload = next(Path("pub/targets").rglob("*.tar"))
    payload.write_bytes(payload.read_bytes()[:-1] + b"x")
    found = refusal("release", "verify", "thermo/1.0", "--directory", "pub", "--offline", "pub/metadata/1.root.json")
    assert (found["code"], found["exit"]) == ("trust/digest-mismatch", 25)


def test_verify_does_not_let_a_directory_vouch_for_itself(ws):
    release()
    assert "--offline" in run("release", "verify", "thermo/1.0", "--directory", "pub", code=2).stderr


def test_verify_finds_the_release_of_a_file(ws):
    release()
    assert ask("release", "verify", ws / "releases/thermo-1.0/bundle.tar")["release"] == "thermo/1.0"
    assert refusal("release", "verify", "passphrase")["code"] == "trust/unknown-target"


def test_an_expired_repository_is_refused(ws, bench):
    release()
    bench.advance(timedelta(days=31).total_seconds())
    assert refusal("release", "verify", "thermo/1.0")["code"] == "trust/expired"


def test_list_diff_and_inspect(ws):
    release()
    authoring.make_tree("app", x="2", y="new")
    Path("notes.md").write_text("Faster.\n")
    release("1.1", "--class", "security", "--notes", "en=notes.md", "--battery", "50")
    states = {item["release"]: item["state"] for item in ask("release", "list")["releases"]}
    assert states == {"thermo/1.0": "published", "thermo/1.1": "published"}
    assert run("release", "list").stdout.splitlines()[0].startswith("RELEASE\tNUMBER")
    found = ask("release", "diff", "thermo/1.0", "thermo/1.1")
    assert found["files"] == {"added": ["lib/y"], "removed": [], "changed": ["lib/x"]}
    assert found["fields"]["class"] == ["feature", "security"]
    assert found["fields"]["notes"] == [{}, {"en": "Faster."}]
    shown = ask("release", "inspect", ws / "releases/thermo-1.1/bundle.tar")
    assert (shown["kind"], shown["members"]) == ("bundle", 4)
    for name, kind in (("1.root", "root"), ("1.targets", "targets"), ("2.snapshot", "snapshot")):
        assert ask("release", "inspect", ws / f"repository/metadata/{name}.json")["kind"] == kind
    assert ask("release", "inspect", ws / "releases/thermo-1.1/release.json")["release"] == "thermo/1.1"
    assert ask("release", "inspect", "passphrase")["kind"] == "file"
    Path("bad.json").write_text('{"signed":{"_type":"root"}}')
    assert "problem" in ask("release", "inspect", "bad.json")
    Path("gnu.tar").write_bytes(subprocess.run(["tar", "-c", "app"], check=True, capture_output=True).stdout)
    assert ask("release", "inspect", "gnu.tar")["kind"] in {"archive", "file"}


def test_withdraw_renew_and_products(ws):
    release()
    assert ask("product", "add", "pump")["targets_version"] == 2
    assert [item["name"] for item in ask("product", "list")["products"]] == ["pump", "thermo"]
    assert "--product" in refusal("release", "build", "app", "--version", "1.0", "--hardware", "h")["message"]
    assert ask("release", "withdraw", "thermo/1.0")["complete"] is True
    assert "(withdrawn)" in run("release", "publish", "--directory", "pub").stdout
    assert refusal("release", "verify", "thermo/1.0")["code"] == "trust/unknown-target"
    run("release", "renew", "thermo")
    run("release", "renew", "targets")
    run("release", "publish", "--directory", "pub")


def test_a_draft_travels_between_two_signers(ws, tmp_path):
    shutil.copytree(ws, tmp_path / "second", symlinks=True)
    run("release", "build", "app", "--version", "1.0", "--hardware", "rpi4")
    signed = ask("release", "sign", "thermo/1.0", "--key", "thermo-ed25519")
    assert (signed["complete"], len(signed["missing"])) == (False, 1)
    assert refusal("release", "publish", "--directory", "pub")["code"] == "trust/threshold-not-met"
    there = ["thermo/1.0", "--draft", signed["path"], "-C", "second", "--key", "thermo-ml-dsa"]
    refused = run("release", "sign", *there, code=2).stderr  # not built there: the digest is shown first
    assert ask("release", "show", "thermo/1.0")["manifest"]["image"]["digest"]["sha256"] in refused
    found = ask("release", "sign", *there, "--yes")
    assert found["complete"] is True
    run("release", "sign", "thermo/1.0", "--draft", found["path"], "--key", "thermo-ed25519")
    run("release", "publish", "--directory", "pub")


def test_a_carried_draft_cannot_smuggle_a_second_release_past_its_signer(ws, tmp_path):
    """The other signer's machine was taken over: the draft holds 1.0, as agreed, and something more."""
    shutil.copytree(ws, tmp_path / "taken", symlinks=True)
    for version in ("1.0", "6.6"):
        run("release", "build", "app", "--version", version, "--hardware", "rpi4", "-C", "taken")
        run("release", "sign", f"thermo/{version}", "--key", "thermo-ed25519", "-C", "taken", "--yes")
    shutil.copytree("taken/releases/thermo-1.0", ws / "releases/thermo-1.0")
    result = run("release", "sign", "thermo/1.0", "--draft", "taken/drafts/thermo.json", code=2)
    assert "+ thermo/6.6, sequence number 2" in result.stderr
    assert not json.loads((ws / "drafts/thermo.json").read_text())["signatures"][1:]


def test_legacy_files_verify_with_openssl(ws):
    release()
    run("key", "generate", "old-clients", "--kind", "rsa-pss", "--rsa-bits", "2048")
    Path("device.key").write_bytes(b"0123456789abcdef")
    Path("device.key").chmod(0o600)
    ask("release", "legacy", "thermo/1.0", "--key", "old-clients", "--out", "old", "--tag", "sensor-1=device.key")
    Path("key.pub").write_text(run("key", "export-public", "old-clients", "--pem").stdout)
    for name, signature in (("thermo-1.0-bundle.tar", "thermo-1.0-bundle.sig"), ("version.json", "version.json.sig")):
        done = subprocess.run(
            ["openssl", "dgst", "-sha256", "-verify", "key.pub", "-signature", f"old/{signature}", f"old/{name}"],
            check=True,
            capture_output=True,
        )
        assert done.stdout == b"Verified OK\n"
    tag = subprocess.run(
        ["openssl", "dgst", "-sha256", "-hmac", "0123456789abcdef", "-r", "old/version.json"],
        check=True,
        capture_output=True,
    ).stdout.split()[0]
    assert Path("old/version.json.sensor-1.hmac").read_bytes().strip() == tag
    view = json.loads(Path("old/version.json").read_text())
    assert (view["version"], view["firmware"], view["signature"]) == (
        "1.0",
        "thermo-1.0-bundle.tar",
        "thermo-1.0-bundle.sig",
    )


RELEASE_REFUSALS = {
    "no-source": (("release", "build", "absent", "--version", "1", "--hardware", "h"), "local/file"),
    "bad-version": (("release", "build", "app", "--version", "../1", "--hardware", "h"), "request/malformed"),
    "bad-hardware": (("release", "build", "app", "--version", "1", "--hardware", "h*"), "request/malformed"),
    "bad-product": (
        ("release", "build", "app", "--version", "1", "--hardware", "h", "--product", "x"),
        "request/not-found",
    ),
    "bad-number": (
        ("release", "build", "app", "--version", "1", "--hardware", "h", "--sequence-number", "0"),
        "trust/rollback",
    ),
    "no-notes": (
        ("release", "build", "app", "--version", "1", "--hardware", "h", "--notes", "en=absent"),
        "local/file",
    ),
    "sign-nothing": (("release", "sign", "thermo/9"), "request/not-found"),
    "sign-nonsense": (("release", "sign", "nonsense"), "request/malformed"),
    "withdraw-nothing": (("release", "withdraw", "thermo/9"), "request/not-found"),
    "show-nothing": (("release", "show", "thermo/9"), "request/not-found"),
    "verify-nothing": (("release", "verify", "thermo/9"), "trust/unknown-target"),
    "inspect-nothing": (("release", "inspect", "absent"), "local/file"),
    "publish-nothing": (("release", "publish", "thermo/9"), "policy/nothing-to-do"),
    "no-token": (("release", "publish", "--server", "https://127.0.0.1:1"), "request/unauthenticated"),
    "no-server": (("release", "promote", "thermo/1", "--channel", "stable"), "local/setting"),
}


@pytest.mark.parametrize("name", RELEASE_REFUSALS)
def test_release_commands_refuse_with_code_and_hint(ws, name):
    before = sorted(str(path) for path in ws.rglob("*"))
    arguments, code = RELEASE_REFUSALS[name]
    found = refusal(*arguments)
    assert found["code"] == code
    assert found["hint"].endswith(".")
    assert sorted(str(path) for path in ws.rglob("*")) == before


def test_no_command_takes_a_secret_as_an_argument():
    """Whoever may run `ps` would read it."""

    def walk(command, path):
        yield path, command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                if path == () and name not in {"init", "key", "product", "release"}:
                    continue
                found = command.get_command(context, name)
                assert found is not None
                yield from walk(found, (*path, name))

    secret = {"--passphrase", "--password", "--pin", "--secret"}
    seen = list(walk(program, ()))
    assert len(seen) > 25
    for path, command in seen:
        options = {option for parameter in command.params for option in parameter.opts}
        assert not options & secret, path
        if not isinstance(command, click.Group):
            assert "--json" in options, path
            assert command.help, path


def test_the_author_can_work_as_nobody_else_can_read(ws):
    """Nothing but the public records in keys/ is readable by others."""
    for path in (ws / "keys").glob("*.pem"):
        assert path.stat().st_mode & 0o077 == 0
    assert (ws / "keys").stat().st_mode & 0o077 == 0


@pytest.fixture
def boot_keys(tmp_path):
    """A boot loader's key pair and an application, as files."""
    key = ed25519.Ed25519PrivateKey.generate()
    private = serialization.PrivateFormat.PKCS8
    (tmp_path / "boot.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption())
    )
    (tmp_path / "boot.pub.pem").write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "zephyr.bin").write_bytes(bytes(range(256)) * 8)
    return key


MCU = ("release", "build", "zephyr.bin", "--mcuboot", "--hardware", "nrf52840")


def test_an_application_becomes_an_mcuboot_release(ws, boot_keys):
    made = ask(*MCU, "--mcuboot-key", "boot.pem", "--version", "1.2.3", "--dependency", "1:2.0.0")
    assert made["manifest"]["installer"] == "mcuboot"
    seen = ask("release", "inspect", f"{made['directory']}/image.bin")
    assert (seen["kind"], seen["version"], seen["dependencies"]) == ("mcuboot", "1.2.3+0", ["1:2.0.0+0"])
    assert seen["security_counter"] == made["manifest"]["sequence_number"]
    assert {"type": "security-counter", "length_bytes": 4, "is_protected": True} in seen["tlvs"]
    run("release", "sign", "thermo/1.2.3")


def test_the_boot_key_may_be_elsewhere(ws, boot_keys, tmp_path):
    public = ("--mcuboot-public-key", "boot.pub.pem", "--version", "1.2.3")
    ask(*MCU, *public, "--mcuboot-vector", "to-sign.bin")
    assert not (Path(ws) / "releases" / "thermo-1.2.3").exists()
    (tmp_path / "signature").write_bytes(boot_keys.sign((tmp_path / "to-sign.bin").read_bytes()))
    assert ask(*MCU, *public, "--mcuboot-signature", "signature")["manifest"]["version"] == "1.2.3"
    wrong = ("--mcuboot-public-key", "boot.pub.pem", "--version", "1.2.4", "--mcuboot-signature", "signature")
    assert refusal(*MCU, *wrong)["code"] == "trust/signature"
    assert refusal(*MCU, *public)["code"] == "request/malformed"
    assert refusal(*MCU, "--version", "1.2.3")["code"] == "request/malformed"
