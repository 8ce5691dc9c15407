"""Dealing targets out: exact waves whatever chance does, in small transactions, resumable after each of them."""

import asyncio
import random
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rollout_world import OPERATOR, rollout_world

from firmament.core.clock import SystemClock
from firmament.server.database.opening import open_database
from firmament.server.rollouts import loops, pace, plan, store
from firmament.server.rollouts.deal import LOTS, choose_moves, differences, shuffle, thresholds
from firmament.server.rollouts.model import Policy, WaveSpec, wave_sizes
from firmament.server.rollouts.pace import FEWEST, FIRST, MOST, Pace, run_round

DEVICES = 240
REST = WaveSpec("everyone", percent=100.0)
SPECS = st.lists(
    st.one_of(
        st.integers(1, 40).map(lambda n: WaveSpec("some", count=n)),
        st.integers(0, 6).map(lambda n: WaveSpec("named", devices=tuple(str(uuid.uuid4()) for _ in range(n + 1)))),
    ),
    max_size=5,
)


@pytest.fixture(scope="module")
def fleet(database_kind, tmp_path_factory):
    with rollout_world(tmp_path_factory.mktemp("fill"), kind=database_kind, devices=DEVICES) as made:
        made.release("2.0", 2)
        made.kind = database_kind
        yield made


def sizes(world, rollout_id):
    return [wave["size"] for wave in world.rollout(rollout_id)["waves"]]


def record(world, rollout_id):
    return store.get_rollout(world.db, OPERATOR, rollout_id)


def fill(world, rollout_id, rows):
    while not record(world, rollout_id).is_filled:
        world.submit(lambda connection: loops.tick(connection, world.now, rows()))
        world.check_counters()


def end(world, rollout_id):
    world.act(rollout_id, "abort", reason="the test is over")
    world.tick()


def excluded(world, rollout_id):
    rows = world.db.execute(
        "SELECT rule, n FROM rollout_excluded WHERE rollout_id = ?", (record(world, rollout_id).row_id,)
    )
    return {row["rule"]: row["n"] for row in rows}


def test_waves_are_exact_whatever_the_chunks_and_the_plan_says_the_same(fleet):
    chosen = [fleet.devices[number].device_id for number in (3, 77, 200)]
    waves = (
        WaveSpec("few", count=5),
        WaveSpec("mine", devices=tuple(chosen)),
        WaveSpec("ten", percent=10.0),
        WaveSpec("half", percent=50.0),
        REST,
    )
    planned = plan.make_plan(
        fleet.db, OPERATOR, release="thermo/2.0", selector="", policy=Policy(waves=waves), now=fleet.now
    )
    assert [wave["count"] for wave in planned["waves"]] == [5, 3, 16, 96, 120]
    chance = random.Random(9)
    for rows in (lambda: 1000, lambda: 50, lambda: chance.randrange(50, 90)):
        rollout_id = fleet.create(policy=Policy(waves=waves))
        fill(fleet, rollout_id, rows)
        assert sizes(fleet, rollout_id) == [5, 3, 16, 96, 120]
        mine = fleet.db.execute(
            "SELECT d.uid FROM rollout_target t JOIN device d ON d.id = t.device_id WHERE t.rollout_id = ? "
            "AND t.wave = 2 ORDER BY d.id",
            (record(fleet, rollout_id).row_id,),
        )
        assert [row["uid"] for row in mine] == chosen
        end(fleet, rollout_id)


def test_who_is_left_out_is_counted_once_and_a_fleet_that_changed_since_the_plan_has_exact_waves(fleet):
    rollout_id = fleet.create(policy=Policy(waves=(WaveSpec("ten", percent=10.0), REST)))
    first = fleet.devices[:100]
    for device in first:
        fleet.db.execute("UPDATE device SET sequence_number = 2 WHERE id = ?", (device.row_id,))
    other = fleet.create(selector=f"id = {fleet.devices[150].device_id}")
    fill(fleet, rollout_id, lambda: 60)
    assert excluded(fleet, rollout_id) == {"newer": 100}
    assert record(fleet, rollout_id).total == 140
    assert sizes(fleet, rollout_id) == [14, 126]
    fill(fleet, other, lambda: 60)
    assert excluded(fleet, other) == {"free": 1}
    for device in first:
        fleet.db.execute("UPDATE device SET sequence_number = 1 WHERE id = ?", (device.row_id,))
    end(fleet, other)
    end(fleet, rollout_id)


def test_a_fill_that_is_cut_off_anywhere_goes_on_where_it_was(fleet):
    """A crash takes the whole transaction back: rows, counters, who is left out and the cursor."""
    rollout_id = fleet.create(policy=Policy(waves=(WaveSpec("few", count=7), REST)))

    class Crash(BaseException):
        """Not an Exception: nothing on the way may survive it."""

    def cut_off(connection):
        loops.tick(connection, fleet.now, 50)
        raise Crash

    while not record(fleet, rollout_id).is_filled:
        before = record(fleet, rollout_id)
        with pytest.raises(Crash):
            fleet.submit(cut_off)
        assert record(fleet, rollout_id) == before
        fleet.check_counters()
        fleet.submit(lambda connection: loops.tick(connection, fleet.now, 50))
    assert sizes(fleet, rollout_id) == [7, DEVICES - 7]
    end(fleet, rollout_id)


def test_one_transaction_writes_no_more_targets_than_it_was_told_however_many_rollouts_are_filled(fleet):
    half = len(fleet.devices) // 2
    middle = fleet.devices[half].row_id
    fleet.db.execute("UPDATE device SET version = '0.9' WHERE id >= ?", (middle,))
    made = [fleet.create(selector='version = "1.0"'), fleet.create(selector='version = "0.9"')]

    def written():
        return fleet.db.execute("SELECT COUNT(*) AS n FROM rollout_target").fetchone()["n"]

    while not all(record(fleet, rollout_id).is_filled for rollout_id in made):
        before = written()
        fleet.submit(lambda connection: loops.tick(connection, fleet.now, 100))
        assert written() - before <= 100
    fleet.db.execute("UPDATE device SET version = '1.0' WHERE id >= ?", (middle,))
    for rollout_id in made:
        end(fleet, rollout_id)


def test_opening_a_wave_reads_rows_by_an_index_and_none_of_the_waves_targets(fleet):
    """Also the health of updated devices is asked of as many rows as the sample has, never of all."""
    rollout_id = fleet.create(policy=Policy(waves=(WaveSpec("few", count=7), REST)))
    fill(fleet, rollout_id, lambda: 1000)
    asked = []

    class Listener:
        def __init__(self, connection):
            self.connection = connection

        def execute(self, sql, parameters=()):
            asked.append(sql)
            return self.connection.execute(sql, parameters)

        def executemany(self, sql, parameters):
            asked.append(sql)
            return self.connection.executemany(sql, parameters)

        def __getattr__(self, name):
            return getattr(self.connection, name)

    fleet.submit(lambda connection: loops.tick(Listener(connection), fleet.now, 1000))
    assert record(fleet, rollout_id).state.value == "running"
    of_targets = [sql for sql in asked if "rollout_target" in sql]
    assert [sql for sql in of_targets if "deadline IS NOT NULL" not in sql] == []
    assert len(asked) < 30
    end(fleet, rollout_id)


def test_health_is_asked_of_a_sample_that_an_index_finds(fleet):
    if fleet.kind == "postgresql":
        # PostgreSQL scans a table this small whatever there is; without that choice it takes an index too.
        fleet.db.execute("SET enable_seqscan = off")
        fleet.db.execute("SET enable_bitmapscan = off")
        fleet.db.execute("SET enable_sort = off")
        for sample in (loops.UPDATED_LAST, loops.WAITING_LONGEST):
            steps = [row["QUERY PLAN"] for row in fleet.db.execute(f"EXPLAIN {sample}", (1, 5))]
            assert any("using ix_rollout_target_" in step for step in steps), steps
        fleet.db.execute("RESET ALL")
        return
    for sample in (loops.UPDATED_LAST, loops.WAITING_LONGEST):
        steps = [row["detail"] for row in fleet.db.execute(f"EXPLAIN QUERY PLAN {sample}", (1, 5))]
        assert any("USING INDEX ix_rollout_target_" in step for step in steps), steps
        assert not any("SCAN rollout_target" in step or "TEMP B-TREE" in step for step in steps), steps


@given(SPECS, st.integers(0, 3), st.integers(0, 300), st.randoms(use_true_random=False))
def test_sizes_add_up_and_every_named_device_is_in_its_own_wave(specs, percents, total, chance):
    waves = [*specs, *(WaveSpec("part", percent=10.0 * (number + 1)) for number in range(percents)), REST]
    named = [chance.randrange(len(wave.devices) + 1) for wave in waves]
    total = max(total, sum(named))
    found = wave_sizes(waves, total, named)
    assert sum(found) == total
    assert all(size >= 0 for size in found)
    assert all(size == n for size, wave, n in zip(found, waves, named, strict=True) if wave.devices)


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=6),
    st.integers(1, 400),
    st.randoms(use_true_random=False),
)
def test_thresholds_keep_close_to_the_wanted_shares_and_moves_make_them_exact(wanted, chunk, chance):
    total = sum(wanted)
    dealt = [0] * len(wanted)
    while (left := total - sum(dealt)) > 0:
        coming = min(chunk, left)
        ends = thresholds(wanted, dealt, coming=coming, total=total)
        assert ends == sorted(ends)
        assert all(0 <= end <= LOTS for end in ends)
        for _ in range(coming):
            lot = chance.randrange(LOTS)
            dealt[next((number for number, end in enumerate(ends) if lot < end), len(ends))] += 1
    have = dict(enumerate(dealt, 1))
    rows = [(row, wave) for row, wave in enumerate(wave for wave, n in have.items() for _ in range(n))]
    for _, was, to in choose_moves(rows, differences(have, wanted)):
        have[was] -= 1
        have[to] += 1
    assert differences(have, wanted) == {}


@given(st.uuids())
def test_lots_are_a_permutation_of_the_buckets(name):
    factor, shift = shuffle(str(name))
    assert len({(bucket * factor + shift) % 10_000 for bucket in range(10_000)}) == 10_000


def test_the_pace_follows_the_disk():
    found = Pace()
    assert found.rows == FIRST
    for _ in range(20):
        found.lasted(found.rows * 1e-6)
    assert found.rows == MOST
    found.lasted(1.0)
    assert found.rows == MOST * 0.025
    found.lasted(10.0)
    assert found.rows == FEWEST
    found.lasted(0.0)
    assert found.rows == FEWEST * 1.5
    found.rows = MOST
    found.begin()
    assert found.rows == FIRST
    found.rows = FEWEST
    found.begin()
    assert found.rows == FEWEST


def test_a_round_does_everything_in_chunks_of_the_pace(fleet, monkeypatch):
    rollout_id = fleet.create(policy=Policy(waves=(WaveSpec("few", count=7), REST)))
    monkeypatch.setattr(pace, "FIRST", 60)
    monkeypatch.setattr(pace, "GROWS", 1.0)
    found = Pace()

    async def play():
        database = open_database(fleet.target, SystemClock())
        try:
            await run_round(database, SystemClock(), found)
            return await database.scan(lambda connection: store.get_rollout(connection, OPERATOR, rollout_id))
        finally:
            await database.end()
            database.close()

    seen = asyncio.run(play())
    assert found.rows <= FEWEST  # grown no further than the disk allows
    assert seen.state.value == "running"
    end(fleet, rollout_id)
