"""Backup, restore on another machine, move to PostgreSQL: devices notice nothing, and nothing goes back."""

import json
import os
import shutil

import pytest
from support import documents
from support.databases import cluster, fresh_database, fresh_target
from support.server_world import Client, RunningServer, World, run_command, sha256, target_of

from firmament.errors import ConflictError, DigestMismatchError, MalformedError, PassphraseError
from firmament.server.database.opening import command_database
from firmament.server.keep import tables
from firmament.server.keep.sealed_file import FRAME_BYTES, SealedReader, SealedWriter

DATA = os.urandom(300_000)


@pytest.fixture
def world(tmp_path, database_kind):
    made = World(tmp_path / "world", database=fresh_database(database_kind)).begin()
    made.publish_release("thermo", "1.1", 2, DATA)
    yield made
    made.close()


@pytest.fixture
def passphrase(tmp_path):
    file = tmp_path / "passphrase"
    file.write_text("only for this backup")
    file.chmod(0o600)
    return file


def timestamp_version(answer):
    return json.loads(answer.json["timestamp"])["signed"]["version"]


def test_a_backup_taken_while_it_runs_is_the_same_server_on_another_machine(world, passphrase, tmp_path, database_kind):
    device = world.device()
    attempt = world.assign(device, "thermo/1.1")
    device.poll()
    assert device.tell(attempt, "fetching").status == 200
    file = tmp_path / "backup"
    made = run_command(
        "server", "backup", file, "-d", world.server.directory, "--passphrase-file", passphrase, "--json"
    )
    assert documents.loads(made.stdout)["length_bytes"] == file.stat().st_size
    assert file.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE KEY" not in file.read_bytes()
    assert device.tell(attempt, "verified").status == 200  # after the backup: the restored server has not heard it
    last = timestamp_version(device.poll())
    world.server.stop()
    shutil.rmtree(world.server.directory)  # the machine is gone

    place = tmp_path / "elsewhere"
    named = fresh_database(database_kind)
    env = {f"FIRMAMENT_SERVER_{name.upper()}": value for name, value in named.items()}
    back = run_command("server", "restore", file, place, "--passphrase-file", passphrase, "--json", env=env)
    assert documents.loads(back.stdout)["rows"] == documents.loads(made.stdout)["rows"]
    again = run_command("server", "restore", file, place, "--passphrase-file", passphrase, env=env, check=False)
    assert "request/conflict" in again.stderr
    assert run_command("server", "doctor", "-d", place, env=env, check=False).returncode == 0
    restored = RunningServer(place, env=env).start()
    try:
        device.connect(restored)
        answer = device.poll()
        assert answer.status == 200
        assert timestamp_version(answer) > last
        got = device.client.ask("GET", f"/v1/image/targets/thermo/1.1/{sha256(DATA)}.firmware.img")
        assert (got.status, got.body) == (200, DATA)
        for status in ("verified", "staged"):
            assert device.tell(attempt, status).status == 200
        with Client(restored, token=world.admin.token) as admin:
            shown = admin.ask("GET", f"/api/v1/devices/{device.device_id}/attempts").json["attempts"][0]
            assert (shown["attempt_id"], shown["status"]) == (attempt, "staged")
            answer = admin.ask("POST", "/api/v1/enrolment-tokens", {"product": "thermo", "expires_in_s": 60})
            assert answer.status == 201  # new rows get new ids
    finally:
        restored.stop()


@pytest.mark.one_database("sqlite", because="it moves from there to PostgreSQL")
def test_a_server_moves_to_postgresql_and_every_row_is_compared(tmp_path, database_kind):
    world = World(tmp_path / "world", database=fresh_database(database_kind)).begin()
    try:
        world.publish_release("thermo", "1.1", 2, DATA)
        device = world.device()
        attempt = world.assign(device, "thermo/1.1")
        last = timestamp_version(device.poll())
        directory = world.server.directory
        found = cluster()
        url = found.url(found.create("moved"))
        arguments = ("server", "move", url, "--password-file", found.directory / "password", "-d", directory)
        running = run_command(*arguments, check=False)
        assert "state/locked" in running.stderr
        world.server.stop()
        with tables.snapshot(target_of(directory)) as connection:
            expected = tables.digests(connection)
        moved = documents.loads(run_command(*arguments, "--json").stdout)
        assert moved["rows"] == sum(count for count, _ in expected.values())
        assert str(target_of(directory)) == url
        with tables.snapshot(target_of(directory)) as connection:
            assert tables.digests(connection) == expected
        world.server.start()
        device.connect(world.server)
        assert timestamp_version(device.poll()) > last
        assert device.tell(attempt, "fetching").status == 200
        with Client(world.server, token=world.admin.token) as admin:
            shown = admin.ask("GET", f"/api/v1/devices/{device.device_id}/attempts").json["attempts"][0]
            assert shown["status"] == "fetching"
    finally:
        world.close()


def test_a_copy_that_differs_in_one_byte_is_found(tmp_path, database_kind):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = fresh_target("sqlite", tmp_path / "one"), fresh_target(database_kind, tmp_path / "two")
    with command_database(one) as database:
        database.transact(lambda writing: writing.execute("INSERT INTO number(name, value) VALUES ('n', 7)"))
    with tables.snapshot(one) as connection:
        expected = tables.digests(connection)
    with command_database(two) as database:
        database.transact(lambda writing: writing.execute("INSERT INTO number(name, value) VALUES ('n', 8)"))
    with tables.snapshot(two) as connection, pytest.raises(DigestMismatchError):
        tables.require_same(expected, tables.digests(connection))
    with pytest.raises(ConflictError):
        tables.require_empty(two)


@pytest.mark.parametrize("length", [0, 1, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES + 5])
def test_a_sealed_file_is_whole_or_refused(tmp_path, length):
    data, path = os.urandom(length), tmp_path / "x"
    with path.open("wb") as file:
        writer = SealedWriter(file, b"right")
        writer.write(data)
        writer.finish()
    sealed = path.read_bytes()

    def opened(content, passphrase=b"right"):
        path.write_bytes(content)
        with path.open("rb") as file:
            return SealedReader(file, passphrase).read()

    assert opened(sealed) == data
    with pytest.raises(PassphraseError):
        opened(sealed, b"wrong")
    flipped = bytearray(sealed)
    flipped[-1] ^= 1
    first = 21 + 4 + int.from_bytes(sealed[21:25])
    for wrong in (sealed[:-1], sealed[:10], sealed + b"x", bytes(flipped), b"FMBK2" + sealed[5:]):
        with pytest.raises((MalformedError, PassphraseError)):
            opened(wrong)
    if first < len(sealed):  # cut at a frame's end
        with pytest.raises(MalformedError):
            opened(sealed[:first])
