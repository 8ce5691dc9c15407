"""An auditor against a real server: keeps a key and a checkpoint, and finds what its administrator did."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import documents
from support.databases import fresh_database, opened
from support.server_world import World, run_command, target_of

from firmament.cli.main import program


@pytest.fixture(scope="module")
def world(tmp_path_factory, database_kind):
    env = {"FIRMAMENT_SERVER_CHECKPOINT_EVERY_EVENTS": "5"}
    world = World(tmp_path_factory.mktemp("audit"), env=env, database=fresh_database(database_kind)).begin()
    world.publish_release("thermo", "1.0", 1, b"one" * 100)
    world.publish_release("thermo", "1.1", 2, b"two" * 100)
    yield world
    world.close()


@pytest.fixture
def auditor(world, tmp_path):
    """Runs `firmament` as somebody who may only read."""
    token = tmp_path / "token"
    token.write_text(world.token("operator").token + "\n")
    token.chmod(0o600)
    where = ["--server", world.server.url, "--ca", world.server.ca, "--token-file", token]

    def run(*arguments, server=True, as_json=True):
        words = [*arguments, *(where if server else []), *(["--json"] if as_json else [])]
        done = CliRunner().invoke(program, list(map(str, words)))
        if not as_json:
            return done.exit_code, done.stdout
        return done.exit_code, documents.loads(done.stdout or done.stderr.splitlines()[-1])

    return run


def test_events_are_shown_and_found(auditor, world):
    code, answer = auditor("audit", "search", "--kind", "release.", "--subject", "thermo/1.1")
    assert (code, [event["kind"] for event in answer["events"]]) == (0, ["release.published"])
    code, answer = auditor("audit", "tail", "-n", "3")
    assert len(answer["events"]) == 3
    assert auditor("audit", "search", "--since", "2999-01-01T00:00:00Z")[1]["events"] == []


def test_a_release_is_proved_to_be_in_the_log_and_the_log_only_grows(auditor, world, tmp_path):
    state, kept, key = tmp_path / "state", tmp_path / "proof", tmp_path / "key"
    assert auditor("audit", "key", "--out", key)[0] == 0
    code, answer = auditor("release", "verify-log", "--state", state, "--key", key)
    assert code == 0, answer
    size = answer["size"]
    code, answer = auditor("release", "proof", "thermo/1.1", "--key", key, "--out", kept)
    assert (code, answer["leaf"]["sequence_number"], answer["size"]) == (0, 2, size)
    world.publish_release("pump", f"1.{size}", 10 + size, b"three")
    assert auditor("release", "verify-log", "--state", state, "--key", key)[1]["seen_before"] == size
    # Later and elsewhere, with the file alone.
    assert auditor("release", "proof", "thermo/1.1", "--key", key, "--file", kept, server=False)[0] == 0
    code, answer = auditor("release", "proof", "thermo/1.0", "--key", key, "--file", kept, server=False)
    assert (code, answer["code"]) == (35, "trust/log-proof")
    assert auditor("release", "proof", "thermo/9.9", "--key", key)[1]["code"] == "request/not-found"


def test_66_an_administrator_rewrites_history_and_is_found(auditor, world, tmp_path):
    """Case 66: whoever holds server and database changes an event and writes the chain anew behind it."""
    key, export, checkpoints = tmp_path / "key", tmp_path / "export", tmp_path / "checkpoints"
    auditor("audit", "key", "--out", key)
    auditor("audit", "export", "--out", export)
    code, answer = auditor("audit", "verify", export, "--key", key, "--checkpoint", export, server=False)
    assert code == 0, answer
    assert answer["vouched_up_to"] == answer["last"] >= 5
    assert answer["checkpoints"] == answer["kept"]
    checkpoints.write_text(json.dumps(auditor("audit", "checkpoints")[1]))
    assert auditor("audit", "verify", "--key", key, "--checkpoint", checkpoints)[0] == 0

    lines_file = tmp_path / "checkpoints.jsonl"  # as docs/operate/audit.md keeps them
    lines_file.write_text(auditor("audit", "checkpoints", as_json=False)[1])
    assert len(lines_file.read_text().splitlines()) == answer["checkpoints"]
    code, text = auditor(
        "audit", "verify", export, "--key", key, "--checkpoint", lines_file, server=False, as_json=False
    )
    assert (code, "are whole and in order" in text) == (0, True)

    # 1. A change in the file that was taken away is named.
    lines = export.read_bytes().splitlines(keepends=True)
    forged = tmp_path / "forged"
    forged.write_bytes(b"".join([*lines[:3], lines[3].replace(b'"at":1', b'"at":2'), *lines[4:]]))
    code, answer = auditor("audit", "verify", forged, "--key", key, server=False)
    assert (code, answer["code"], answer["facts"]["event"]) == (34, "trust/chain-broken", 3)
    assert auditor("audit", "verify", export, "--key", key, "--part", server=False)[0] == 0

    # 2. The administrator stops the server, changes an event, and recomputes every hash after it.
    world.server.stop()
    rewrite(target_of(world.server.directory))
    world.server.start()
    world.admin.pool.clear()
    code, answer = auditor("audit", "verify", "--key", key, "--checkpoint", checkpoints)
    assert (code, answer["code"]) == (34, "trust/chain-broken")
    assert "written anew" in answer["facts"]["reason"]
    # 3. The signer refuses to vouch for that past, and says so for ever.
    refused = world.admin.ask("GET", "/api/v1/audit/events?kind=audit.refused").json["events"]
    assert [event["facts"]["code"] for event in refused] == ["trust/chain-broken"]

    # Whatever happens now is not bound to the past it signed: that would be a lie in the other direction.
    world.token("operator")
    assert auditor("audit", "verify", "--key", key)[1]["vouched_up_to"] == 0
    assert world.admin.ask("GET", "/api/v1/audit/checkpoints").json["checkpoints"] == []

    # 4. After a restore that is known, an administrator lets it go on; the event stays.
    world.server.stop()
    done = run_command("audit", "restart", "--directory", world.server.directory, "--reason", "restored", "--json")
    assert documents.loads(done.stdout)["number"] >= 5
    world.server.start()
    world.admin.pool.clear()
    code, answer = auditor("audit", "verify", "--key", key)
    assert code == 0, answer
    assert (code, answer["vouched_up_to"]) == (0, answer["last"])
    restarted = world.admin.ask("GET", "/api/v1/audit/events?kind=audit.restarted").json["events"]
    assert [event["facts"]["reason"] for event in restarted] == ["restored"]


TRIGGERS = {
    True: [f"{table}_refuses_{operation}" for table in ("event", "checkpoint") for operation in ("update", "delete")],
    False: ["event_refuses ON event", "checkpoint_refuses ON checkpoint"],
}


def rewrite(target):
    """What somebody with the database can do: drop the triggers, change event 2, seal everything again."""
    from firmament.server.audit.chain import value_of
    from firmament.trust.audit import GENESIS, event_digest, extend

    with opened(target) as connection:
        for trigger in TRIGGERS[isinstance(target, Path)]:
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute("DELETE FROM checkpoint")
        connection.execute("UPDATE event SET actor = 'person:somebody-else' WHERE number = 2")
        found = GENESIS
        for row in connection.execute("SELECT * FROM event WHERE tenant_id = 1 ORDER BY number").fetchall():
            found = extend(found, event_digest(value_of(row, tenant_id=1, number=row["number"])))
            connection.execute("UPDATE event SET hash = ? WHERE number = ?", (found, row["number"]))
        connection.execute("UPDATE chain_head SET hash = ?", (found,))
