"""A set of reports leaves what the same reports leave one by one: rows, counters, limits, events and their chain."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from support.databases import KINDS
from support.rollout_world import ADMIN, OPERATOR, RolloutWorld

from firmament.core import canonical
from firmament.core.digest import Digest
from firmament.core.ids import AttemptId
from firmament.errors import ReplayError
from firmament.protocol.status import AttemptStatus
from firmament.protocol.v1.messages import Report
from firmament.server import device_link
from firmament.server.attempts import service as attempts
from firmament.server.attempts.taking import Told, take_reports
from firmament.server.audit.chain import seal
from firmament.server.inventory.store import ATTEMPT_QUERY
from firmament.server.rollouts.model import Caps, GatePolicy, OnStop, Policy, WaveSpec
from firmament.server.scope import of_device

DEVICES = 10
OTHER = 3
"""So many devices are in a later rollout of another release too."""
TABLES = (
    "report", "attempt", "device", "device_attribute", "rollout", "rollout_wave", "rollout_target", "rollout_counter",
    "rollout_reason", "rollout_limit", "device_failure", "event", "event_unsealed", "chain_head",
)  # fmt: skip
POLICIES = {
    "holds": Policy(
        waves=(WaveSpec("half", percent=50.0), WaveSpec("all", percent=100.0)),
        gate=GatePolicy(limit_ratio=0.3, min_finished=4),
        caps=Caps(per_site=9, total=9),
    ),
    "reverts": Policy(
        waves=(WaveSpec("all", percent=100.0),),
        gate=GatePolicy(limit_ratio=0.2, min_finished=3),
        on_stop=OnStop.REVERT,
        retry_budget=0,
    ),
    "patient": Policy(waves=(WaveSpec("all", percent=100.0),), gate=GatePolicy(limit_ratio=0.9, min_finished=50)),
}


def make_world(kind, directory, policy):
    """Devices at every stage of a rollout, some of which were given something else since."""
    world = RolloutWorld(directory, kind=kind)
    world.release("2.0", 2, revertible_to=1)
    world.release("3.0", 3)
    for number in range(DEVICES):
        world.add_device(site=f"site-{number % 2}")
    world.create(policy=policy, scope=ADMIN)
    world.tick()
    for device in world.devices:
        world.poll(device)
        world.poll(device)
    started = [device for device in world.devices if device.attempt_id is not None]
    assert len(started) >= 4, len(started)
    world.tell(started[0], "fetching")
    world.install(started[1])
    world.tell(started[2], "failed", code="transfer/interrupted")
    world.old = {device.device_id: device.attempt_id for device in started}
    for device in started[-OTHER:]:
        world.submit(
            lambda connection, device=device: attempts.assign(
                connection, OPERATOR, device_id=device.device_id, product="thermo", version="3.0", now=world.now
            )
        )
        world.poll(device)
    return world


@pytest.fixture(scope="module", params=KINDS)
def worlds(request):
    with tempfile.TemporaryDirectory() as directory:
        made = []
        for name, policy in POLICIES.items():
            place = Path(directory) / name
            place.mkdir()
            made.append(make_world(request.param, place, policy))
        yield made
        for world in made:
            world.close()


one_report = st.tuples(
    st.integers(0, DEVICES - 1),
    st.sampled_from(AttemptStatus),
    st.integers(20, 23),  # few numbers: they repeat, with the same content and with another
    st.sampled_from(["now", "now", "now", "before", "unknown", "nobody's"]),
    st.sampled_from(["", "slot/health", "transfer/interrupted", "policy/waiting-for-consent"]),
    st.sampled_from(["boot-1", "boot-2", ""]),
    st.booleans(),
)


def told(world, drawn):
    """A report with what the server knows about its device before anything of the set was taken."""
    index, status, number, which, code, boot, is_new = drawn
    device = world.devices[index]
    current, earlier = device.attempt_id, world.old.get(device.device_id)
    attempt_id = {"now": current or earlier, "before": earlier or current}.get(which)
    report = Report(
        device_id=device.device_id,
        report_number=number,
        attempt_id=AttemptId(attempt_id or f"00000000-0000-4000-9000-{index:012d}"),
        status=status,
        version="2.0" if is_new else "1.0",
        sequence_number=2 if is_new else 1,
        boot_id=boot,
        at=world.now,
        code=code,
    )
    return Told(fresh_session(world, report), report, canonical.encode(report.to_json()), world.now)


def fresh_session(world, report):
    device = next(device for device in world.devices if device.device_id == report.device_id)
    row = world.db.execute(ATTEMPT_QUERY, (report.attempt_id,)).fetchone()
    return device_link.Session(world._session(device).device, None if row is None else world._attempt(row))


def one_by_one(world, items):
    """As the server took reports before it took sets: row by row, each decided from what is stored."""
    answers = []
    for item in items:
        session = fresh_session(world, item.report)
        device = session.device
        try:
            is_new = attempts.accept(
                world.db, device, item.report.report_number, Digest.of(item.payload).value, item.now
            )
        except ReplayError as error:
            answers.append(error.facts)
            continue
        answers.append(None)
        if is_new:
            _, effects = device_link.on_report(session, item.report, item.payload)
            kept = [effect for effect in effects if not isinstance(effect, device_link.AcceptReport)]
            attempts.carry_out(world.db, of_device(device.tenant_id, device.device_id), device, kept, item.now)
        seal(world.db)
    return answers


def together(world, items, sizes):
    answers, start = [], 0
    for size in [*sizes, len(items)]:
        answers += [error and error.facts for error in take_reports(world.db, items[start : start + size])]
        seal(world.db)
        start += size
    return answers


def left_by(world, act):
    """What an act leaves in every table; the database is as before afterwards."""
    world.db.execute("BEGIN")
    try:
        answers = act()
        rows = {
            table: sorted(
                (
                    {
                        name: bytes(value) if isinstance(value, memoryview) else value
                        for name, value in dict(row).items()
                    }
                    for row in world.db.execute(f"SELECT * FROM {table}")
                ),
                key=repr,
            )
            for table in TABLES
        }
    finally:
        world.db.execute("ROLLBACK")
    return answers, rows


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    which=st.integers(0, len(POLICIES) - 1),
    drawn=st.lists(one_report, min_size=1, max_size=30),
    sizes=st.lists(st.integers(1, 12), max_size=3),
)
def test_a_set_leaves_what_its_reports_leave_one_by_one(worlds, which, drawn, sizes):
    world = worlds[which]
    items = [told(world, one) for one in drawn]
    expected_answers, expected = left_by(world, lambda: one_by_one(world, items))
    answers, rows = left_by(world, lambda: together(world, items, sizes))
    assert answers == expected_answers
    for table in TABLES:
        assert rows[table] == expected[table], table
    for row in rows["event"]:
        event(row["kind"])


def test_a_stop_in_the_middle_of_a_set_is_where_it_would_have_been(worlds):
    world = worlds[1]
    failing = [
        (index, AttemptStatus.REVERTED, 30, "before", "slot/health", "boot-1", False) for index in range(3, DEVICES)
    ]
    then = [(0, AttemptStatus.CONFIRMED, 31, "now", "", "boot-2", True)]
    items = [told(world, one) for one in failing + then]
    answers, rows = left_by(world, lambda: together(world, items, []))
    assert (answers, rows) == left_by(world, lambda: one_by_one(world, items))
    kinds = [row["kind"] for row in sorted(rows["event"], key=lambda row: row["number"])]
    stop = kinds.index("rollout.halted")
    assert "attempt.moved" in kinds[stop:], "reports came after the stop"
    assert sum(row["status"] == "reverting" for row in rows["rollout_target"]) == 1, "who was updated then goes back"
