"""Schema, migrations, and the writer that groups commits, on both databases."""

import asyncio
import contextlib
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from support.databases import cluster, opened

from firmament.core.clock import SystemClock
from firmament.errors import ConflictError, CorruptStateError, OverloadedError, ReadOnlyError
from firmament.server.database import writer as writers
from firmament.server.database.connection import SqliteEngine, mapped_database_errors
from firmament.server.database.migrate import HEAD, MIGRATIONS, _postgres_engine, _sqlite_engine, migrate, revision
from firmament.server.database.opening import command_database, open_database
from firmament.server.database.postgres_sql import mapped_postgres_errors
from firmament.server.database.schema import metadata
from firmament.server.database.writer import Writer


def sqlalchemy_engine(target):
    return _sqlite_engine(target) if isinstance(target, Path) else _postgres_engine(target)


@pytest.fixture
def database(target):
    with contextlib.closing(open_database(target, SystemClock())) as database:
        yield database


def mapped(target):
    return mapped_database_errors() if isinstance(target, Path) else mapped_postgres_errors()


def test_migrations_lead_to_exactly_the_schema(target):
    engine = sqlalchemy_engine(target)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_both_databases_have_the_same_tables_columns_and_unique_keys(target):
    engine = sqlalchemy_engine(target)
    found = sa.inspect(engine)
    for table in metadata.sorted_tables:
        assert [column["name"] for column in found.get_columns(table.name)] == [c.name for c in table.columns]
        made = {tuple(key["column_names"]) for key in found.get_unique_constraints(table.name)}
        wanted = {
            tuple(column.name for column in constraint.columns)
            for constraint in table.constraints
            if isinstance(constraint, sa.UniqueConstraint)
        }
        assert made >= wanted, table.name
        indexes = {index["name"]: index for index in found.get_indexes(table.name)}
        for index in table.indexes:
            assert indexes[index.name]["unique"] == index.unique
            is_partial = bool(
                {"sqlite_where", "postgresql_where"} & set(indexes[index.name].get("dialect_options", {}))
            )
            assert is_partial == (index.dialect_options["sqlite"]["where"] is not None), index.name
    engine.dispose()


def test_head_is_the_newest_migration():
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_migrating_again_changes_nothing(target):
    migrate(target)
    assert revision(target) == HEAD


def test_a_new_file_is_private_and_migrating_again_leaves_each_byte(tmp_path):
    path = tmp_path / "db" / "firmament.db"
    migrate(path)
    before = path.read_bytes()
    migrate(path)
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_migration_that_fails_leaves_the_revision_before_and_is_done_again(tmp_path):
    path = tmp_path / "x.db"
    path.touch()
    with opened(path) as connection:  # in the way of the last statement of revision 0011
        connection.execute("CREATE TABLE ix_version_day_tenant_day (x)")
    with pytest.raises(CorruptStateError):
        migrate(path)
    assert revision(path) == "0010"
    with opened(path) as connection:
        assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'version_day'").fetchall()
        connection.execute("DROP TABLE ix_version_day_tenant_day")
    migrate(path)
    assert revision(path) == HEAD


def test_servers_that_start_together_migrate_once():
    found = cluster()
    target = found.target(found.create("together"))
    problems = []

    def start():
        try:
            migrate(target)
        except Exception as error:  # noqa: BLE001 - shown below
            problems.append(error)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert revision(target) == HEAD


def test_a_database_of_a_newer_release_is_left_alone(target):
    with opened(target) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(CorruptStateError):
        migrate(target)


def test_what_is_no_database_is_an_error_of_ours(tmp_path):
    (tmp_path / "x.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(CorruptStateError):
        migrate(tmp_path / "x.db")


def test_every_table_a_person_can_ask_about_has_a_tenant():
    of_a_device = {"device_seen", "report"}
    of_all = {"replica", "repository_file"}  # servers, and the one repository that tenants share (ADR-0016)
    for table in metadata.sorted_tables:
        if table.name not in of_a_device | of_all | {"number", "tenant", "token_use", "outside_sign_in"}:
            assert "tenant_id" in table.columns, table.name


def test_events_cannot_be_changed_or_removed(target, connection):
    connection.execute(
        "INSERT INTO event(tenant_id, number, at, kind, actor, subject, facts, hash) "
        "VALUES (1, 1, 1, 'a.b', 'x', '', ?, ?)",
        (b"{}", b"h"),
    )
    for statement in ("UPDATE event SET kind = 'c.d'", "DELETE FROM event"):
        with pytest.raises(ConflictError, match="append-only"), mapped(target):
            connection.execute(statement)


def add(name):
    def job(connection):
        connection.execute("INSERT INTO product(tenant_id, name, created_at) VALUES (1, ?, 1)", (name,))
        return name

    return job


def list_names(connection):
    return [row["name"] for row in connection.execute("SELECT name FROM product ORDER BY id")]


def names(target):
    with command_database(target, read_only=True) as database:
        return database.read(list_names)


def run(database, story):
    async def whole():
        try:
            return await story()
        finally:
            await database.end()

    return asyncio.run(whole())


def test_an_answer_means_that_it_is_committed(target, database):
    async def story():
        assert await database.submit(add("one")) == "one"
        assert names(target) == ["one"]
        assert await database.read(list_names) == ["one"]

    run(database, story)


class Held:
    """The writer, busy until it is let go."""

    def __init__(self, database):
        self.blocked, self.go = threading.Event(), threading.Event()
        self.database = database

    async def __aenter__(self):
        self.task = asyncio.create_task(self.database.submit(self.hold))
        await asyncio.to_thread(self.blocked.wait, 10)
        return self

    def hold(self, _):
        self.blocked.set()
        self.go.wait(10)

    async def __aexit__(self, *_):
        self.go.set()
        await self.task


def test_a_burst_shares_commits_and_one_failure_takes_no_other_with_it(target, database, monkeypatch):
    commits = []
    engine = database._writer.engine
    commit = engine.commit
    monkeypatch.setattr(engine, "commit", lambda: (commits.append(1), commit()))

    async def story():
        async with Held(database):
            jobs = [asyncio.create_task(database.submit(add(name))) for name in ("a", "b", "a", "c")]
            await asyncio.sleep(0)
        return await asyncio.gather(*jobs, return_exceptions=True)

    results = run(database, story)
    assert [type(result) for result in results] == [str, str, ConflictError, str]
    assert names(target) == ["a", "b", "c"]
    assert len(commits) == 2


def count_each(sizes, poison=None):
    """A job for many items: each item's name goes in; "no" is answered with an error, the poison makes it raise."""

    def job(connection, items):
        sizes.append(len(items))
        for item in items:
            if item == poison:
                raise ValueError(item)
        connection.change_many(
            "INSERT INTO product(tenant_id, name, created_at) SELECT tenant_id, name, created_at FROM given",
            "tenant_id bigint, name text, created_at bigint",
            [(1, item, 0) for item in items if item != "no"],
        )
        return [ConflictError("No") if item == "no" else item.upper() for item in items]

    return job


def test_what_many_submit_for_one_job_runs_once_and_each_has_an_answer_of_its_own(target, database):
    sizes = []
    job, other = count_each(sizes), count_each(sizes)

    async def story():
        async with Held(database):
            waiting = [asyncio.create_task(database.submit_among(job, item)) for item in ("a", "no", "b")]
            waiting += [asyncio.create_task(database.submit(add("c")))]
            waiting += [
                asyncio.create_task(database.submit_among(kind, item)) for kind, item in ((other, "d"), (job, "e"))
            ]
            await asyncio.sleep(0)
        return await asyncio.gather(*waiting, return_exceptions=True)

    results = run(database, story)
    assert [getattr(result, "code", result) for result in results] == ["A", ConflictError.code, "B", "c", "D", "E"]
    assert sizes == [4, 1]
    assert names(target) == ["a", "b", "e", "c", "d"]


def test_one_that_a_set_cannot_take_costs_the_others_nothing(target, database):
    sizes = []
    job = count_each(sizes, poison="x")

    async def story():
        async with Held(database):
            waiting = [asyncio.create_task(database.submit_among(job, item)) for item in "abcdxfgh"]
            await asyncio.sleep(0)
        return await asyncio.gather(*waiting, return_exceptions=True)

    results = run(database, story)
    assert [str(result) for result in results] == ["A", "B", "C", "D", "x", "F", "G", "H"]
    assert isinstance(results[4], ValueError)
    assert names(target) == list("abcdfgh")
    assert sum(sizes) == 8 + 4 + 4 + 2 + 2 + 1 + 1, "halved around the one, not taken one by one"


HARD = ["plain", "", 'quo"te', "back\\slash", "{a,b}", "NULL", "null", "é\n\t'", " ", "%s ? :x $1"]


def test_rows_that_are_given_arrive_as_they_are_on_both_databases(target):
    columns = "place bigint, word text, data bytea"
    given = [(place, word, word.encode() + b"\0\xff") for place, word in enumerate(HARD)] + [(-(2**63), None, None)]
    with command_database(target) as commands:
        found = commands.read(
            lambda connection: connection.find_many("SELECT place, word, data FROM given WHERE 1 = 1", columns, given)
        )
        none = commands.read(lambda connection: connection.find_many("SELECT place FROM given", "place bigint", []))
        nothing = commands.transact(
            lambda connection: connection.change_many(
                "UPDATE number SET value = given.value FROM given WHERE number.name = given.name",
                "name text, value bigint",
                [],
            )
        )
    rows = [(row["place"], row["word"], row["data"] if row["data"] is None else bytes(row["data"])) for row in found]
    assert sorted(rows) == sorted(given)
    assert (none, nothing) == ([], 0)


def test_too_much_waiting_is_refused(target, database, monkeypatch):
    small = Writer.__new__(Writer)
    monkeypatch.setattr(writers, "MAX_QUEUED_JOBS", 1)
    small.__init__(database._writer.engine)

    async def story():
        held = Held(small)
        async with held:
            waiting = asyncio.create_task(small.submit(add("waits")))
            await asyncio.sleep(0)
            with pytest.raises(OverloadedError) as caught:
                await small.submit(add("too many"))
            assert caught.value.facts["retry_after_s"] == 1
        await waiting

    run(database, story)
    small._jobs.put(None)
    small._thread.join()
    assert names(target) == ["waits"]


def test_closing_commits_what_waits(target):
    database = open_database(target, SystemClock())

    async def story():
        for name in "abc":
            asyncio.ensure_future(database.submit(add(name))).add_done_callback(lambda task: task.exception())
        await asyncio.sleep(0)

    run(database, story)
    database.close()
    assert names(target) == ["a", "b", "c"]


def test_a_failed_command_leaves_nothing(target):
    def job(writing):
        add("half")(writing)
        raise OverloadedError("stop")

    with command_database(target) as database, pytest.raises(OverloadedError):
        database.transact(job)
    assert names(target) == []


def test_readers_cannot_change_anything(target, database):
    async def story():
        with pytest.raises(ReadOnlyError):
            await database.read(add("sneaky"))

    run(database, story)
    assert names(target) == []


def test_look_ups_answer_each_with_its_own_row(database):
    query = "SELECT name AS look_up_key, id, name FROM product WHERE name = ?"

    async def story():
        for name in ("a", "b"):
            await database.submit(add(name))
        keys = ["a", "b", "nobody", "a", *(f"x{n}" for n in range(600))]
        found = await asyncio.gather(*(database.look_up(query, key) for key in keys))
        assert [row and row["name"] for row in found] == ["a", "b", None, "a", *[None] * 600]

    run(database, story)


def test_values_come_back_as_they_went_in(connection):
    facts = bytes(range(256))
    connection.execute(
        "INSERT INTO event(tenant_id, number, at, kind, actor, subject, facts, hash) VALUES (?, 1, ?, ?, ?, ?, ?, ?)",
        (True, 2**40, "what? 100%", "'?' \"%s\"", "größer ✓", facts, b""),
    )
    row = connection.execute(
        "SELECT *, 'a?b%c' AS \"odd?\" FROM event -- really?\nWHERE at = ? AND kind LIKE '%?%'"
        " AND (CAST(? AS TEXT) IS NULL OR kind = ?)",
        (2**40, None, None),
    ).fetchone()
    assert (row["tenant_id"], row["at"], row["kind"]) == (1, 2**40, "what? 100%")
    assert (row["actor"], row["subject"], bytes(row["facts"])) == ("'?' \"%s\"", "größer ✓", facts)
    assert row["odd?"] == "a?b%c"


def test_many_rows_at_once(connection):
    connection.executemany(
        "INSERT INTO number(name, value) VALUES (?, ?) ON CONFLICT(name) DO UPDATE SET value = excluded.value",
        ((f"n{n % 500}", n) for n in range(1000)),
    )
    row = connection.execute("SELECT count(*) AS n, min(value) AS low, max(value) AS high FROM number").fetchone()
    assert (row["n"], row["low"], row["high"]) == (500, 500, 999)


def test_an_engine_rolls_back_what_was_marked(tmp_path):
    migrate(tmp_path / "x.db")
    with contextlib.closing(SqliteEngine(tmp_path / "x.db")) as engine:
        connection = engine.begin()
        engine.mark()
        add("kept")(connection)
        engine.mark()
        add("gone")(connection)
        engine.fall_back()
        engine.commit()
        assert list_names(engine.connection) == ["kept"]
