"""Schema, migrations, and the writer that groups commits."""

import asyncio
import contextlib
import sqlite3
import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from firmament.errors import ConflictError, CorruptStateError, OverloadedError
from firmament.server.database import connection as database
from firmament.server.database.connection import Writer, connect, transact
from firmament.server.database.migrate import HEAD, MIGRATIONS, migrate
from firmament.server.database.schema import metadata


@pytest.fixture
def path(tmp_path):
    migrate(tmp_path / "db" / "firmament.db")
    return tmp_path / "db" / "firmament.db"


def test_migrations_lead_to_exactly_the_schema(path):
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_head_is_the_newest_migration():
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_migrating_again_changes_nothing_and_the_file_is_private(path):
    before = path.read_bytes()
    migrate(path)
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_database_of_a_newer_release_is_left_alone(path):
    with contextlib.closing(connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(CorruptStateError):
        migrate(path)


def test_what_is_no_database_is_an_error_of_ours(tmp_path):
    (tmp_path / "x.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(CorruptStateError):
        migrate(tmp_path / "x.db")


def test_every_table_a_person_can_ask_about_has_a_tenant():
    of_a_device = {"device_seen", "report"}
    for table in metadata.sorted_tables:
        if table.name not in of_a_device | {"number", "tenant", "token_use", "outside_sign_in"}:
            assert "tenant_id" in table.columns, table.name


def test_events_cannot_be_changed_or_removed(path):
    with contextlib.closing(connect(path)) as connection:
        connection.execute(
            "INSERT INTO event(tenant_id, number, at, kind, actor, subject, facts, hash) VALUES (1, 1, 1, 'a.b', 'x', '', '{}', 'h')"
        )
        for statement in ("UPDATE event SET kind = 'c.d'", "DELETE FROM event"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)


def add(name):
    def job(connection):
        connection.execute("INSERT INTO product(tenant_id, name, created_at) VALUES (1, ?, 1)", (name,))
        return name

    return job


def names(path):
    with contextlib.closing(connect(path, read_only=True)) as connection:
        return [row["name"] for row in connection.execute("SELECT name FROM product ORDER BY id")]


def test_an_answer_means_that_it_is_committed(path):
    async def story(writer):
        assert await writer.submit(add("one")) == "one"
        assert names(path) == ["one"]

    with contextlib.closing(Writer(path)) as writer:
        asyncio.run(story(writer))


def test_a_burst_shares_commits_and_one_failure_takes_no_other_with_it(path):
    async def story(writer):
        blocked, go = threading.Event(), threading.Event()

        def hold(_):
            blocked.set()
            go.wait(10)

        holding = asyncio.create_task(writer.submit(hold))
        await asyncio.to_thread(blocked.wait, 10)
        jobs = [asyncio.create_task(writer.submit(add(name))) for name in ("a", "b", "a", "c")]
        await asyncio.sleep(0)
        go.set()
        await holding
        return await asyncio.gather(*jobs, return_exceptions=True)

    with contextlib.closing(Writer(path)) as writer:
        commits = []
        writer._connection.set_trace_callback(
            lambda statement: commits.append(statement) if statement == "COMMIT" else None
        )
        results = asyncio.run(story(writer))
        writer._connection.set_trace_callback(None)
    assert [type(result) for result in results] == [str, str, ConflictError, str]
    assert names(path) == ["a", "b", "c"]
    assert len(commits) == 2


def test_too_much_waiting_is_refused(path, monkeypatch):
    monkeypatch.setattr(database, "MAX_QUEUED_JOBS", 1)

    async def story(writer):
        blocked, go = threading.Event(), threading.Event()

        def hold(_):
            blocked.set()
            go.wait(10)

        holding = asyncio.create_task(writer.submit(hold))
        await asyncio.to_thread(blocked.wait, 10)
        waiting = asyncio.create_task(writer.submit(add("waits")))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await writer.submit(add("too many"))
        go.set()
        await holding
        await waiting

    with contextlib.closing(Writer(path)) as writer:
        asyncio.run(story(writer))
    assert names(path) == ["waits"]


def test_closing_commits_what_waits(path):
    async def story(writer):
        for name in "abc":
            asyncio.ensure_future(writer.submit(add(name))).add_done_callback(lambda task: task.exception())
        await asyncio.sleep(0)

    writer = Writer(path)
    asyncio.run(story(writer))
    writer.close()
    assert names(path) == ["a", "b", "c"]


def test_a_failed_command_leaves_nothing(path):
    with contextlib.closing(connect(path)) as connection:

        def job(writing):
            add("half")(writing)
            raise OverloadedError("stop")

        with pytest.raises(OverloadedError):
            transact(connection, job)
    assert names(path) == []
