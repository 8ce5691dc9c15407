"""docs/operate/people.md by its commands: sessions, password, second factor, tokens, tenants, consent rules."""

import os
import subprocess

import pyotp
import pytest
from support import documents, programs
from support.databases import fresh_database
from support.server_world import PASSWORD, World, add_operator

NEW = "a longer horse battery"


@pytest.fixture(scope="module")
def world(tmp_path_factory, database_kind):
    env = {"FIRMAMENT_SERVER_LOGIN_BURST": "100"}
    made = World(tmp_path_factory.mktemp("people"), env=env, database=fresh_database(database_kind)).begin()
    made.device()
    yield made
    made.close()


@pytest.fixture
def firmament(world, tmp_path):
    """Run `firmament` as somebody with a home of their own; what it prints as JSON."""

    def run(*arguments, home="ada", code=0):
        place = tmp_path / home
        place.mkdir(exist_ok=True)
        for name, secret in (("old", PASSWORD), ("new", NEW)):
            (place / name).write_text(secret + "\n")
            (place / name).chmod(0o600)
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FIRMAMENT_")},
            "HOME": str(place),
            "XDG_CONFIG_HOME": str(place / "config"),
            "XDG_STATE_HOME": str(place / "state"),
            "FIRMAMENT_SERVER": world.server.url,
            "FIRMAMENT_CA": str(world.server.ca),
        }
        done = programs.run(["firmament", *arguments, "--json"], env=env, cwd=place, stdin=subprocess.DEVNULL)
        assert done.returncode == code, done.stdout + done.stderr
        return documents.loads(done.stdout or done.stderr.splitlines()[-1])

    return run


def test_sessions_are_listed_and_ended_and_a_new_password_ends_the_others(firmament, world):
    add_operator(world.server.directory, "ada", "admin")
    for home in ("ada", "other"):
        firmament("operator", "login", "ada", "--password-file", "old", home=home)
    listed = firmament("operator", "sessions", "list")["sessions"]
    assert [(one["kind"], one["current"]) for one in listed] == [("command", False), ("command", True)]
    firmament("operator", "sessions", "revoke", listed[0]["session_id"])
    assert firmament("operator", "sessions", "list", home="other", code=85)["code"] == "request/unauthenticated"
    firmament("operator", "login", "ada", "--password-file", "old", home="other")
    firmament("operator", "sessions", "revoke", "--others")
    firmament("operator", "sessions", "list", home="other", code=85)
    firmament("operator", "login", "ada", "--password-file", "old", home="other")
    firmament("operator", "password", "--old-file", "old", "--new-file", "new")
    firmament("operator", "sessions", "list", home="other", code=85)
    assert len(firmament("operator", "sessions", "list")["sessions"]) == 1


def test_a_second_factor_is_begun_confirmed_asked_for_and_removed(firmament, world):
    add_operator(world.server.directory, "tom", "operator")
    firmament("operator", "login", "tom", "--password-file", "old", home="tom")
    secret = firmament("operator", "totp", "begin", home="tom")["secret"]
    codes = firmament("operator", "totp", "confirm", pyotp.TOTP(secret).now(), home="tom")["recovery_codes"]
    assert len(set(codes)) == 10
    login = ("operator", "login", "tom", "--password-file", "old")
    assert firmament(*login, home="tom", code=111)["code"] == "access/second-factor"
    firmament(*login, "--code", codes[0], home="tom")
    firmament(*login, "--code", codes[0], home="tom", code=85)
    firmament("operator", "totp", "remove", codes[1], home="tom")
    firmament(*login, home="tom")
    # Somebody who lost everything is helped by an administrator.
    firmament(
        "operator",
        "totp",
        "confirm",
        pyotp.TOTP(firmament("operator", "totp", "begin", home="tom")["secret"]).now(),
        home="tom",
    )
    assert world.admin.ask("DELETE", "/api/v1/people/tom/second-factor").status == 204
    firmament(*login, home="tom")


def test_tokens_for_machines_say_their_last_use_and_end(firmament, world):
    add_operator(world.server.directory, "rita", "releaser")
    firmament("operator", "login", "rita", "--password-file", "old", home="rita")
    token = ("operator", "token", "--role", "releaser", "--product", "thermo", "--hours", "720", "--label", "ci")
    made = firmament(*token, home="rita")["token"]
    assert world.client(made).ask("GET", "/api/v1/me").json["product"] == "thermo"
    (listed,) = firmament("operator", "tokens", "list", home="rita")["tokens"]
    assert (listed["label"], listed["last_address"]) == ("ci", "127.0.0.1")
    assert world.client(made).ask("POST", "/api/v1/me/password", {"old": PASSWORD, "new": NEW}).status == 403
    firmament("operator", "tokens", "revoke", listed["token_id"], home="rita")
    assert world.client(made).ask("GET", "/api/v1/me").status == 401
    firmament("operator", "logout", home="rita")
    firmament("whoami", home="rita", code=85)


def test_a_tenant_is_made_filled_and_disabled_by_the_first_ones_administrators(firmament, world):
    add_operator(world.server.directory, "root", "admin")
    firmament("operator", "login", "root", "--password-file", "old", home="root")
    firmament("operator", "tenant", "add", "acme", home="root")
    person = ("operator", "tenant", "person", "acme", "alice", "--role", "admin", "--password-file", "old")
    firmament(*person, home="root")
    firmament("operator", "tenant", "product", "acme", "pump", home="root")
    firmament("operator", "login", "alice@acme", "--password-file", "old", home="alice")
    assert firmament("whoami", home="alice")["tenant"] == "acme"
    assert firmament("device", "list", home="alice")["devices"] == []
    assert firmament("operator", "tenant", "list", home="alice", code=86)["code"] == "request/forbidden"
    firmament("operator", "tenant", "disable", "acme", home="root")
    firmament("whoami", home="alice", code=85)
    firmament("operator", "tenant", "enable", "acme", home="root")
    listed = {one["name"]: one for one in firmament("operator", "tenant", "list", home="root")["tenants"]}
    assert (listed["acme"]["people"], listed["acme"]["products"], listed["acme"]["disabled"]) == (1, 1, False)
    firmament("operator", "login", "alice@acme", "--password-file", "old", home="alice")


def test_which_updates_ask_their_owner(firmament, world):
    add_operator(world.server.directory, "olga", "operator")
    firmament("operator", "login", "olga", "--password-file", "old", home="olga")
    firmament("group", "create", "kiosks", "-q", "hardware=rpi4", home="olga")
    consent = ("consent", "policy")
    firmament(*consent, "set", "--class", "feature", "ask", home="olga")
    window = ("set", "--class", "security", "--group", "kiosks", "window", "--window", "02:00-04:00")
    firmament(*consent, *window, home="olga")
    (device,) = firmament("device", "list", home="olga")["devices"]
    shown = firmament(*consent, "show", device["device_id"], home="olga")
    holding = [
        (name, shown[name]["holding"]["mode"], shown[name]["holding"]["level"]) for name in ("security", "feature")
    ]
    assert holding == [("security", "window", "group"), ("feature", "ask", "tenant")]
    assert len(firmament(*consent, "show", home="olga")["rules"]) == 2
    firmament(*consent, "clear", "--class", "feature", home="olga")
    world.publish_release("thermo", "1.1", 2, b"x", notes={"en": "Better."})
    report = firmament("consent", "report", "thermo/1.1", home="olga")
    assert report["asked"] == report["agreed"] + report["postponed"] + report["declined"] + report["no_answer"] == 0
