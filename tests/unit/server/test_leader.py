"""One of several servers leads, and whoever was replaced changes nothing more: on a real PostgreSQL."""

import asyncio
import contextlib

import psycopg
import pytest
from support.databases import fresh_target, opened

from firmament.core.clock import FixedClock, SystemClock
from firmament.errors import LockedError
from firmament.server import seen, versions
from firmament.server.database.leader_lock import LeaderLock
from firmament.server.database.opening import open_database
from firmament.server.leader import LEASE_S, FencedDatabase, Leadership, acting, peers
from firmament.server.releases import shared
from firmament.server.releases.model import Published

pytestmark = pytest.mark.one_database("postgresql", because="a server on SQLite leads alone")


@pytest.fixture(scope="module")
def shared_target(tmp_path_factory, database_kind):
    return fresh_target(database_kind, tmp_path_factory.mktemp("leader"))


@contextlib.contextmanager
def locks(target, *names):
    made = [LeaderLock(target, SystemClock(), name) for name in names]
    try:
        yield made
    finally:
        for lock in made:
            lock.leave()


def test_one_leads_and_the_next_follows_when_it_leaves(shared_target):
    with locks(shared_target, "a", "b") as (first, second):
        epoch = first.beat(1).epoch
        assert epoch is not None
        assert (second.beat(2).epoch, first.beat(1).epoch) == (None, epoch)
        with opened(shared_target) as connection:
            found = peers(connection)
        assert [(one["id"], one["leads_since"] is not None) for one in found] == [("a", True), ("b", False)]
        first.leave()
        assert second.beat(2).epoch == epoch + 1
        with opened(shared_target) as connection:
            assert [one["id"] for one in peers(connection)] == ["b"]


def test_a_leader_whose_session_ended_knows_it_at_its_next_beat(shared_target):
    with locks(shared_target, "a", "b") as (first, second):
        epoch = first.beat(1).epoch
        with psycopg.connect(shared_target.url, password=shared_target.password, autocommit=True) as superuser:
            superuser.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid() "
                "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
        assert second.beat(2).epoch == epoch + 1
        leadership = Leadership(first, SystemClock())
        asyncio.run(leadership.beat())  # the broken session; the next beat makes a new one
        assert leadership.role == "follower"
        assert first.beat(1).epoch is None


def test_what_an_earlier_leader_still_wants_is_refused(shared_target):
    async def play():
        database = FencedDatabase(open_database(shared_target, SystemClock()))
        try:
            with locks(shared_target, "a", "b") as (first, second):
                old = first.beat(1).epoch
                with acting(old):
                    await database.submit(lambda connection: versions.write_horizon(connection, 5))
                first.leave()
                new = second.beat(2).epoch
                with acting(old), pytest.raises(LockedError):
                    await database.submit(lambda connection: versions.write_horizon(connection, 6))
                assert await database.read(versions.read_horizon) == 5
                with acting(new):
                    await database.submit(lambda connection: versions.write_horizon(connection, 7))
                # A request of a person is nobody's leading.
                await database.submit(lambda connection: versions.write_horizon(connection, 8))
        finally:
            await database.end()
            database.close()

    asyncio.run(play())


def test_a_leader_that_hears_nothing_stops_by_itself():
    class Silent:
        def beat(self, port):
            from firmament.server.database.leader_lock import Standing

            return Standing(7)

        def leave(self):
            pass

    clock = FixedClock(SystemClock().now())
    leadership = Leadership(Silent(), clock)
    asyncio.run(leadership.beat())
    assert (leadership.epoch, leadership.role) == (7, "leader")
    clock.sleep(LEASE_S + 1)
    assert (leadership.epoch, leadership.role, leadership.led_s) == (None, "follower", 0)


def test_alone_on_a_database_a_server_always_leads():
    leadership = Leadership(None, SystemClock())
    asyncio.run(leadership.beat())
    assert (leadership.epoch, leadership.role) == (0, "leader")


def test_of_two_generations_made_from_one_only_the_first_is_served(shared_target):
    with opened(shared_target) as connection:
        before = shared.number(connection)
        first = Published(before + 1, {"1.root.json": b"a"}, {})
        second = Published(before + 1, {"1.root.json": b"b"}, {})
        assert shared.commit(connection, first, instead_of=before)
        assert not shared.commit(connection, second, instead_of=before)
        found = connection.execute("SELECT data FROM repository_file WHERE name = '1.root.json'").fetchone()
        assert (bytes(found["data"]), shared.number(connection)) == (b"a", before + 1)


def test_a_horizon_of_a_shared_database_never_falls(connection):
    versions.raise_horizon(connection, 100)
    versions.raise_horizon(connection, 60)
    assert versions.read_horizon(connection) == 100


def test_a_start_beside_others_does_not_run_ahead_unless_the_clock_was_put_back():
    assert versions.first_floor(1090, 1000, is_shared=True) == 0
    assert versions.first_floor(90_000, 1000, is_shared=True) == 90_000
    assert versions.first_floor(1090, 1000, is_shared=False) == 1090


def test_an_older_sight_of_a_device_does_not_replace_a_newer_one(connection):
    connection.execute("INSERT INTO product(tenant_id, name, created_at) VALUES (1, 'seen', 0)")
    connection.execute(
        "INSERT INTO device(tenant_id, uid, product_id, hardware, serial, identity_keyid, identity_key, "
        "hpke_public_key, bucket, enrolled_at) SELECT 1, 'seen', id, 'x', '', 'k', ?, ?, 0, 0 FROM product",
        (b"k", b"h"),
    )
    row_id = connection.execute("SELECT id FROM device WHERE uid = 'seen'").fetchone()["id"]
    for at, address in ((1000, "a"), (1060, "b"), (1050, "c"), (1120, "d")):
        seen.write_seen(connection, [(row_id, at, address, at)])
    found = connection.execute("SELECT last_seen, address, last_poll, interval_s FROM device_seen").fetchone()
    assert tuple(found[name] for name in ("last_seen", "address", "last_poll", "interval_s")) == (1120, "d", 1120, 60)
