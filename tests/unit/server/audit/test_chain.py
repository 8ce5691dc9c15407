"""Events are sealed by the transaction that wrote them, one chain a tenant."""

import asyncio
import contextlib
import json
import sqlite3
from datetime import UTC, datetime

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

from firmament.core.clock import SystemClock
from firmament.errors import ConflictError
from firmament.server.audit import chain
from firmament.server.database.connection import SqliteEngine, connect
from firmament.server.database.migrate import MIGRATIONS, migrate
from firmament.server.database.opening import command_database, open_database
from firmament.server.database.writer import Writer
from firmament.server.events import Event, Wanted, append, find_events, list_events
from firmament.server.scope import FIRST_TENANT, Role, Scope
from firmament.trust.audit import GENESIS, event_digest, extend

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SCOPE = Scope(FIRST_TENANT, "person:alice", Role.ADMIN)
OTHER = Scope(2, "person:bob", Role.ADMIN)


@pytest.fixture
def path(tmp_path):
    migrate(tmp_path / "db" / "firmament.db")
    return tmp_path / "db" / "firmament.db"


@pytest.fixture
def db(target):
    """Commands on a migrated database: SQLite, then PostgreSQL."""
    with command_database(target) as commands:
        yield commands


def write(connection, number=1, *, scope=SCOPE, event=Event.PRODUCT_ADDED, subject="thermo"):
    for index in range(number):
        append(connection, scope, event, NOW, subject=subject, index=index)


def require_whole(connection, tenant_id):
    """Recompute the chain from its beginning; return its length."""
    found, number = GENESIS, 0
    for row in connection.execute("SELECT * FROM event WHERE tenant_id = ? ORDER BY number", (tenant_id,)):
        number += 1
        assert row["number"] == number
        found = extend(found, event_digest(chain.value_of(row, tenant_id=tenant_id, number=number)))
        assert bytes(row["hash"]) == found
    assert chain.head(connection, tenant_id) == (number, found)
    return number


def test_a_transaction_seals_what_it_wrote(db):
    db.transact(lambda connection: write(connection, 3))
    db.transact(lambda connection: (write(connection, 2), write(connection, 1, scope=OTHER)))
    assert (require_whole(db.connection, 1), require_whole(db.connection, 2)) == (5, 1)
    assert db.connection.execute("SELECT count(*) AS n FROM event_unsealed").fetchone()["n"] == 0


def test_without_a_transaction_each_event_is_sealed_at_once(db):
    write(db.connection, 2)
    assert require_whole(db.connection, 1) == 2


def test_a_transaction_that_fails_leaves_no_gap(db):
    write(db.connection)

    def fails(connection):
        write(connection, 3)
        raise ConflictError("No")

    with pytest.raises(ConflictError):
        db.transact(fails)
    db.transact(write)
    assert require_whole(db.connection, 1) == 2


def test_a_failed_job_takes_its_events_with_it_and_no_others(path):
    def fails(connection):
        write(connection, 3)
        raise ConflictError("No")

    async def story(writer):
        jobs = [writer.submit(job) for job in (write, fails, write)]
        return await asyncio.gather(*jobs, return_exceptions=True)

    with contextlib.closing(Writer(SqliteEngine(path))) as writer:
        results = asyncio.run(story(writer))
    assert [type(result) for result in results] == [type(None), ConflictError, type(None)]
    with contextlib.closing(connect(path, read_only=True)) as connection:
        assert require_whole(connection, 1) == 2


def test_sealed_events_refuse_every_change(db):
    write(db.connection)
    for statement in ("UPDATE event SET hash = hash", "DELETE FROM event", "UPDATE event SET number = 7"):
        with pytest.raises((sqlite3.IntegrityError, psycopg.errors.CheckViolation, ConflictError), match="append-only"):
            db.connection.execute(statement)


def test_events_are_found_by_subject_kind_actor_and_time(db):
    write(db.connection, 2)
    write(db.connection, 1, event=Event.DEVICE_ENROLLED, subject="device-1")
    write(db.connection, 1, event=Event.DEVICE_DISABLED, subject="device-1")
    found = list_events(db.connection, SCOPE, subject=None, after=1, limit=10)
    assert [event["id"] for event in found] == [2, 3, 4]

    def numbers(**wanted):
        return [event["id"] for event in find_events(db.connection, SCOPE, Wanted(**wanted))]

    assert numbers(kind="device.") == [3, 4]
    assert numbers(kind="device.disabled") == [4]
    assert numbers(kind="nothing.") == []
    assert numbers(subject="thermo") == [1, 2]
    assert numbers(actor="person:nobody") == []
    assert numbers(since=int(NOW.timestamp()), until=int(NOW.timestamp()) + 1) == [1, 2, 3, 4]
    assert numbers(until=int(NOW.timestamp())) == []
    newest = find_events(db.connection, SCOPE, Wanted(), newest=True, limit=2)
    assert [event["id"] for event in newest] == [4, 3]
    assert [event["id"] for event in find_events(db.connection, SCOPE, Wanted(), newest=True, after=3)] == [2, 1]
    assert find_events(db.connection, OTHER, Wanted()) == []


def test_the_migration_seals_what_earlier_releases_wrote(tmp_path):
    path = tmp_path / "firmament.db"
    engine = create_engine(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0005")
        for number in range(5):
            connection.execute(
                text(
                    "INSERT INTO event(tenant_id, at, kind, actor, subject, facts) "
                    "VALUES (:tenant, 1, 'product.added', 'server', '', :facts)"
                ),
                {"tenant": 1 + number % 2, "facts": json.dumps({"n": number}, separators=(",", ":")).encode()},
            )
        connection.commit()
    engine.dispose()
    migrate(path)
    with contextlib.closing(connect(path)) as connection:
        assert (require_whole(connection, 1), require_whole(connection, 2)) == (3, 2)
        write(connection)
        assert require_whole(connection, 1) == 4


def test_replicas_that_write_at_the_same_time_make_one_chain(target):
    """Two servers on one database, bursts of jobs that share commits, some of which fail."""

    def fails(connection):
        write(connection, 2)
        raise ConflictError("No")

    async def replica(database, number):
        jobs = [database.submit(fails if index % 7 == 3 else write) for index in range(60)]
        results = await asyncio.gather(*jobs, return_exceptions=True)
        return sum(not isinstance(result, ConflictError) for result in results)

    async def story():
        # SQLite has one server; PostgreSQL has as many as there are replicas.
        count = 1 if hasattr(target, "exists") else 2
        databases = [open_database(target, SystemClock()) for _ in range(count)]
        try:
            return sum(await asyncio.gather(*(replica(each, number) for number, each in enumerate(databases))))
        finally:
            for each in databases:
                each.close()

    written = asyncio.run(story())
    with command_database(target, read_only=True) as commands:
        assert require_whole(commands.connection, 1) == written
