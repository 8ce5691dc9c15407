"""What only PostgreSQL can do: go away in the middle, be shared, and be named by an address."""

import asyncio
import contextlib
import threading
import time
from pathlib import Path

import psycopg
import pytest
from psycopg import errors as postgres_errors
from support.databases import Cluster, cluster, opened

from firmament.core.clock import SystemClock
from firmament.errors import (
    ConflictError,
    CorruptStateError,
    DiskFullError,
    FileError,
    FirmamentError,
    MalformedError,
    OverloadedError,
    ReadOnlyError,
    SettingError,
)
from firmament.server.database.opening import command_database, open_database
from firmament.server.database.postgres_sql import mapped, translate
from firmament.server.database.target import PostgresTarget, database_target
from firmament.server.layout import Layout
from firmament.server.settings import ServerSettings

KEY = "SELECT name AS look_up_key, value FROM number WHERE name = ?"


@pytest.fixture(scope="module")
def durable():
    made = Cluster(fsync=True)
    yield made
    made.stop()


def count(name):
    def job(connection):
        connection.execute(
            "INSERT INTO number(name, value) VALUES (?, 1) ON CONFLICT(name) DO UPDATE SET value = number.value + 1",
            (name,),
        )

    return job


def value(connection, name):
    row = connection.execute(KEY, (name,)).fetchone()
    return 0 if row is None else row["value"]


def test_what_was_acknowledged_survives_a_kill_and_the_server_comes_back_by_itself(durable):
    target = durable.target(durable.fresh())
    counts = {"acknowledged": 0, "looked-up": 0, "read": 0}
    refused = []

    async def story(database):
        is_over = False

        async def repeat(name, ask):
            while not is_over:
                try:
                    await ask()
                    counts[name] += 1
                except FirmamentError as error:
                    refused.append(error)
                    await asyncio.sleep(0.02)

        async def all_of_them_go_on():
            before = dict(counts)
            while any(counts[name] < before[name] + 30 for name in counts):  # noqa: ASYNC110 - several counters
                await asyncio.sleep(0.01)

        workers = [asyncio.create_task(repeat("acknowledged", lambda: database.submit(count("n")))) for _ in range(3)]
        workers.append(asyncio.create_task(repeat("looked-up", lambda: database.look_up(KEY, "n"))))
        workers.append(asyncio.create_task(repeat("read", lambda: database.read(lambda link: value(link, "n")))))
        for _ in range(2):
            await all_of_them_go_on()
            durable.kill()
            await asyncio.sleep(0.3)
            durable.start()  # not in a thread: PostgreSQL dies with the thread that started it
        await all_of_them_go_on()
        is_over = True
        await asyncio.gather(*workers)
        assert (await database.look_up(KEY, "n"))["value"] >= counts["acknowledged"]
        await database.end()

    with contextlib.closing(open_database(target, SystemClock())) as database:
        asyncio.run(story(database))
    assert refused
    assert {type(error) for error in refused} == {OverloadedError}
    assert all(error.facts["retry_after_s"] > 0 for error in refused)
    with command_database(target, read_only=True) as reading:
        stored = reading.read(lambda connection: value(connection, "n"))
    # Each kill may leave the changes of one commit stored and not acknowledged, never the other way.
    assert counts["acknowledged"] <= stored <= counts["acknowledged"] + 2 * 3


def test_two_servers_that_look_and_then_change_do_not_cross():
    target = cluster().target(cluster().fresh())

    def add_one(connection):
        before = value(connection, "n")
        time.sleep(0.001)
        connection.execute("DELETE FROM number WHERE name = 'n'")
        connection.execute("INSERT INTO number(name, value) VALUES ('n', ?)", (before + 1,))

    async def story(database):
        await asyncio.gather(*(database.submit(add_one) for _ in range(50)))
        await database.end()

    def serve():
        with contextlib.closing(open_database(target, SystemClock())) as database:
            asyncio.run(story(database))

    threads = [threading.Thread(target=serve) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with opened(target) as connection:
        assert value(connection, "n") == 150


def test_a_database_that_is_not_there_is_said_at_start():
    target = PostgresTarget("postgresql://firmament@127.0.0.1:1/x", "secret")
    with pytest.raises(OverloadedError) as caught:
        open_database(target, SystemClock())
    assert "secret" not in str(caught.value)
    with pytest.raises(OverloadedError), command_database(target):
        pass


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT ?", "SELECT %s"),
        ("SELECT '?' , \"?\", ? -- ?\n, ?", "SELECT '?' , \"?\", %s -- ?\n, %s"),
        ("SELECT 'it''s ?' || ?", "SELECT 'it''s ?' || %s"),
        ("a LIKE '%x' AND b % 2 = ?", "a LIKE '%%x' AND b %% 2 = %s"),
    ],
)
def test_question_marks_are_parameters_only_where_sql_says_so(sql, expected):
    assert translate(sql) == expected


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (postgres_errors.DiskFull(), DiskFullError),
        (postgres_errors.ReadOnlySqlTransaction(), ReadOnlyError),
        (postgres_errors.UniqueViolation(), ConflictError),
        (postgres_errors.ForeignKeyViolation(), ConflictError),
        (postgres_errors.SerializationFailure(), OverloadedError),
        (postgres_errors.QueryCanceled(), OverloadedError),
        (postgres_errors.AdminShutdown(), OverloadedError),
        (postgres_errors.CannotConnectNow(), OverloadedError),
        (postgres_errors.NumericValueOutOfRange(), MalformedError),
        (postgres_errors.UndefinedTable(), CorruptStateError),
        (psycopg.InterfaceError(), OverloadedError),
    ],
)
def test_every_error_of_the_driver_is_one_of_ours(error, kind):
    assert type(mapped(error)) is kind


def test_every_class_of_the_driver_is_mapped():
    for found in vars(postgres_errors).values():
        if isinstance(found, type) and issubclass(found, psycopg.Error):
            assert isinstance(mapped(found()), FirmamentError)


def test_settings_name_the_database_and_keep_the_password_apart(tmp_path):
    layout = Layout(tmp_path)
    assert database_target(layout, ServerSettings()) == layout.database
    (tmp_path / "password").write_text("hush\n")
    settings = ServerSettings(database="postgresql://ota@db.example/ota", database_password_file="password")
    found = database_target(layout, settings)
    assert (found.url, found.password) == ("postgresql://ota@db.example/ota", "hush")
    assert "hush" not in f"{found} {found!r}"
    for wrong in ("postgresql://ota:hush@db/ota", "postgresql://db/ota?password=hush", "mysql://db/ota", "http://[x"):
        with pytest.raises(SettingError) as caught:
            database_target(layout, ServerSettings(database=wrong))
        assert "hush" not in str(caught.value)
    with pytest.raises(FileError):
        database_target(layout, ServerSettings(database="postgresql://db/ota", database_password_file="none"))
    assert isinstance(database_target(layout, ServerSettings()), Path)
