"""From events to messages on a database: once, with repeats and escalation, whatever crashes in between."""

import asyncio
import contextlib
import random
from datetime import UTC, datetime, timedelta

import pytest
from support.databases import fresh_database
from support.server_world import make_server

from firmament.core.clock import FixedClock
from firmament.durable import RealDisk
from firmament.errors import ForbiddenError, NotFoundError
from firmament.server.authority import load_certificate
from firmament.server.database.opening import command_database, open_database
from firmament.server.events import Event, Wanted, append, find_events
from firmament.server.layout import Layout
from firmament.server.notify import expiry, store
from firmament.server.notify.decide import Rules
from firmament.server.notify.expiry import Expiry
from firmament.server.notify.worker import Notifier
from firmament.server.outbox.model import FailingSender, NullSender, OutletKind, Takes
from firmament.server.outbox.store import add_outlet, mute
from firmament.server.outbox.worker import Courier
from firmament.server.people.vault import Vault
from firmament.server.scope import FIRST_TENANT, Role, Scope
from firmament.server.settings import ServerSettings

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SCOPE = Scope(FIRST_TENANT, "person:alice", Role.ADMIN)
OTHER = Scope(2, "person:bob", Role.ADMIN)
HALT = {
    "release": "thermo/2.0",
    "wave": 1,
    "failed": 3,
    "finished": 20,
    "limit_ratio": "0.1",
    "not_started": 77,
    "in_flight": 2,
    "updated": 15,
    "silent": 1,
}


class Story:
    """A database, a clock, one outlet for all and one for escalation."""

    def __init__(self, path):
        self.path, self.clock, self.sender = path, FixedClock(NOW), NullSender()
        self.stack = contextlib.ExitStack()
        self.commands = self.stack.enter_context(command_database(path))
        self.db = self.commands.connection
        for name, is_escalation in (("ops", False), ("boss", True)):
            self.commands.transact(
                lambda connection, name=name, is_escalation=is_escalation: add_outlet(
                    connection,
                    SCOPE,
                    name=name,
                    kind=OutletKind.SMTP,
                    takes=Takes.NOTIFICATIONS,
                    target="a@b",
                    kinds=(),
                    is_escalation=is_escalation,
                    vault=Vault(bytes(32)),
                    now=NOW,
                ),
            )
        self.turn()  # what happened before is not news

    def happen(self, kind, subject="r1", *, scope=SCOPE, **facts):
        self.commands.transact(
            lambda connection: append(connection, scope, kind, self.clock.now(), subject=subject, **facts)
        )

    def turn(self, sender=None):
        """One turn of the loop in a new process; return what was told: (outlet, title)."""

        async def work():
            database = open_database(self.path, self.clock)
            courier = Courier(database, self.clock, {OutletKind.SMTP: sender or self.sender}, random.Random(1))
            notifier = Notifier(
                database, self.clock, courier, random.Random(2), rules=Rules(), base_url="https://ota.example"
            )
            try:
                await notifier.run_once()
            finally:
                database.close()

        before = len(self.sender.sent)
        asyncio.run(work())
        return [(name, parcel.title) for name, parcel in self.sender.sent[before:]]


@pytest.fixture
def story(target):
    found = Story(target)
    with found.stack:
        yield found


def test_a_stop_is_told_once_repeated_escalated_and_ended(story):
    story.happen(Event.ROLLOUT_MOVED, state="halted", was="running", release="thermo/2.0")
    story.happen(Event.ROLLOUT_HALTED, **HALT)
    assert story.turn() == [("ops", "HALTED rollout r1 thermo→2.0")]
    assert "3/20 failed (15.0 %, limit 10 %)" in story.sender.sent[0][1].body
    assert story.turn() == []
    story.clock.advance(15 * 60)
    assert story.turn() == [("boss", "not acknowledged: HALTED rollout r1 thermo→2.0")]
    story.clock.advance(105 * 60)
    assert story.turn() == [("ops", "still HALTED rollout r1 thermo→2.0, 2 h")]
    story.happen(Event.ROLLOUT_MOVED, state="aborted", was="halted", release="thermo/2.0")
    story.clock.advance(24 * 3600)
    assert story.turn() == [("ops", "rollout r1 thermo/2.0 was aborted")]
    assert store.open_ones(story.db, FIRST_TENANT) == []


@pytest.mark.parametrize("where", ["here", "on the rollout's page"])
def test_who_acknowledges_is_left_alone(story, where):
    story.happen(Event.ROLLOUT_HALTED, **HALT)
    story.turn()
    [told] = store.list_notifications(story.db, SCOPE, before=0, limit=9)
    if where == "here":
        story.commands.transact(lambda connection: store.acknowledge(connection, SCOPE, told["id"], story.clock.now()))
        assert len(find_events(story.db, SCOPE, Wanted(kind="notification.acknowledged"))) == 1
    else:
        story.happen(Event.ROLLOUT_ACKNOWLEDGED)
    for _ in range(5):
        story.clock.advance(3 * 3600)
        assert story.turn() == []
    [seen] = store.list_notifications(story.db, SCOPE, before=0, limit=9)
    assert (seen["acknowledged_by"], seen["closed_at"]) == ("person:alice", None)


def test_a_stop_that_reverts_by_itself_is_told_and_not_repeated(story):
    story.happen(Event.ROLLOUT_HALTED, **HALT)
    story.happen(Event.ROLLOUT_MOVED, state="reverting", was="halted", release="thermo/2.0")
    assert story.turn() == [("ops", "HALTED rollout r1 thermo→2.0")]
    story.clock.advance(30)
    assert story.turn() == [("ops", "rollout r1 thermo/2.0 brings its updated devices back")]
    story.clock.advance(10 * 3600)
    assert story.turn() == []


def test_ten_thousand_devices_are_no_news(story):
    for number in range(50):
        story.happen(Event.ATTEMPT_MOVED, f"d{number}", state="failed", release="thermo/2.0")
    assert story.turn() == []


def test_a_message_that_is_not_taken_is_tried_again(story):
    story.happen(Event.ROLLOUT_HALTED, **HALT)
    failing = FailingSender(story.sender, times=1)
    assert story.turn(failing) == []
    assert story.turn(failing) == [], "not before its time"
    story.clock.advance(30)
    assert story.turn(failing) == [("ops", "HALTED rollout r1 thermo→2.0")]


def test_a_muted_outlet_is_told_nothing(story):
    until = int((NOW + timedelta(hours=1)).timestamp())
    story.commands.transact(lambda connection: mute(connection, SCOPE, "ops", until, NOW))
    story.happen(Event.ROLLOUT_HALTED, **HALT)
    assert story.turn() == []


def test_one_tenant_is_not_told_of_another(story):
    story.happen(Event.ROLLOUT_CREATED, scope=OTHER)
    story.turn()
    story.happen(Event.ROLLOUT_HALTED, scope=OTHER, **HALT)
    assert story.turn() == []
    [told] = store.list_notifications(story.db, OTHER, before=0, limit=9)
    for scope, error in ((SCOPE, NotFoundError), (Scope(2, "person:x", Role.VIEWER), ForbiddenError)):
        with pytest.raises(error):
            store.acknowledge(story.db, scope, told["id"], NOW)


@pytest.mark.one_database("sqlite", because="certificates are files")
def test_certificates_are_among_what_expires(tmp_path, database_kind):
    """The server's own certificate is renewed at a start, so it is news only once a start would renew it."""
    layout, disk = Layout(make_server(tmp_path / "server", fresh_database(database_kind))), RealDisk()
    own = load_certificate(disk, layout.tls / "server.pem").not_valid_after_utc
    names = [
        [item.name for item in expiry.of_certificates(disk, layout, ServerSettings(), own - timedelta(days=left))]
        for left in (60, 20)
    ]
    assert names == [["device CA", "server CA"], ["device CA", "server CA", "server certificate"]]
    given = ServerSettings(certificate="tls/server.pem", certificate_key="tls/server.key")
    found = expiry.of_certificates(disk, layout, given, own - timedelta(days=60))
    assert [(item.name, item.expires) for item in found][1:] == [("server certificate", own)]
    assert "until the certificate is replaced" in found[1].consequence


def test_an_expiry_is_told_at_each_step_and_ends_when_it_is_renewed(story):
    expires = NOW + timedelta(days=31)
    counts = []
    for day in range(33):
        now = NOW + timedelta(days=day)
        items = [Expiry("image root", expires, "devices refuse updates.")]
        counts.append(
            story.commands.transact(
                lambda connection, items=items, now=now: expiry.tell(connection, 1, items, now, base_url="")
            )
        )
    told = [day for day, count in enumerate(counts) if count]
    assert [31 - day for day in told] == [31, 30, 14, 7, 3, 1, 0, -1]
    renewed = [Expiry("image root", NOW + timedelta(days=400), "")]
    story.commands.transact(
        lambda connection: expiry.tell(connection, 1, renewed, NOW + timedelta(days=34), base_url="")
    )
    assert store.open_ones(story.db, FIRST_TENANT) == []
