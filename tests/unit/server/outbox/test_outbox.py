"""Where a webhook may go, when again, and what each port's implementations promise."""

import asyncio
import contextlib
import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmament.core.clock import FixedClock
from firmament.errors import (
    ConflictError,
    CorruptStateError,
    FirmamentError,
    ForbiddenError,
    MalformedError,
    NotFoundError,
    UnauthenticatedError,
    UnreachableError,
)
from firmament.server import metrics
from firmament.server.database.opening import command_database, open_database
from firmament.server.events import Event, Wanted, append, find_events
from firmament.server.outbox import store
from firmament.server.outbox.guard import is_public, judge, read_url
from firmament.server.outbox.model import (
    DISABLE_AFTER,
    MAX_WAIT_S,
    Answer,
    FailingSender,
    NullSender,
    OutletKind,
    Takes,
    wait_s,
)
from firmament.server.outbox.senders import BrokerSender, MailSender, WebhookSender, signature
from firmament.server.outbox.worker import Courier
from firmament.server.people.vault import Vault
from firmament.server.scope import FIRST_TENANT, Role, Scope

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SCOPE = Scope(FIRST_TENANT, "person:alice", Role.ADMIN)
OTHER = Scope(2, "person:bob", Role.ADMIN)
VAULT = Vault(bytes(32))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "2002:7f00:1::", "ff02::1", "2001:0:7f00:1::1", "no address",
    ],
)  # fmt: skip
def test_addresses_that_only_the_server_reaches_are_refused(address):
    assert not is_public(address)
    with pytest.raises(ForbiddenError):
        judge("https://name.example/", allowed=[], look_up=lambda _host, _port: ["93.184.216.34", address])


def test_a_public_address_and_an_allowed_network_are_connected_to_as_judged():
    asked = []

    def look_up(host, port):
        asked.append((host, port))
        return ["93.184.216.34"]

    place = judge("https://name.example:8443/a?b=c", allowed=[], look_up=look_up)
    assert (place.host, place.port, place.path, place.address) == ("name.example", 8443, "/a?b=c", "93.184.216.34")
    assert asked == [("name.example", 8443)], "looked up once: a second answer would not be judged"
    assert judge("https://x/", allowed=["10.1.0.0/16"], look_up=lambda *_: ["10.1.2.3"]).address == "10.1.2.3"
    with pytest.raises(UnreachableError):
        judge("https://x/", allowed=[], look_up=lambda *_: [])


@pytest.mark.parametrize(
    "url",
    ["", "http://x/", "https:///x", "https://a@b/", "https://x/#f", "https://x:99999/", "https://x/\n", "https://[/"],
)
def test_what_is_no_plain_https_address_is_refused(url):
    with pytest.raises(MalformedError):
        read_url(url)


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_an_error_of_ours(text):
    with contextlib.suppress(FirmamentError):
        read_url(text)


@given(st.integers(1, 100), st.integers())
def test_pauses_grow_are_spread_and_have_a_ceiling(failures, seed):
    pause = wait_s(failures, random.Random(seed))
    assert 2 <= pause <= MAX_WAIT_S
    longest = min(MAX_WAIT_S, 5 * 2 ** min(failures - 1, 16))
    assert longest // 2 <= pause <= longest


def test_the_signature_is_over_time_and_body():
    assert signature("k", 5, b"x") != signature("k", 6, b"x") != signature("k", 6, b"y")
    assert signature("k", 5, b"x").startswith("t=5,v1=")


@pytest.fixture
def path(target):
    """A migrated database: SQLite, then PostgreSQL."""
    return target


@contextlib.contextmanager
def opened(path):
    """Each statement a transaction of its own; `transact` for more."""
    with command_database(path) as commands:
        yield commands


def transact(commands, job):
    return commands.transact(job)


def add(connection, name="hook", *, scope=SCOPE, kind=OutletKind.WEBHOOK, target="https://example.org/", kinds=()):
    return store.add_outlet(
        connection,
        scope,
        name=name,
        kind=kind,
        takes=Takes.EVENTS,
        target=target,
        kinds=kinds,
        is_escalation=False,
        vault=VAULT,
        now=NOW,
    )


def happen(connection, number=1, *, scope=SCOPE, kind=Event.DEVICE_ENROLLED):
    for index in range(number):
        append(connection, scope, kind, NOW, subject=f"d{index}")


def run(path, sender, *, turns=1, clock=None):
    """Let a courier work `turns` times."""

    async def story():
        database = open_database(path, clock or FixedClock(NOW))
        courier = Courier(database, clock or FixedClock(NOW), {OutletKind.WEBHOOK: sender}, random.Random(1))
        try:
            for _ in range(turns):
                await courier.deliver_due()
        finally:
            database.close()
        return courier

    return asyncio.run(story())


def numbers(sender):
    return [parcel.number for _, parcel in sender.sent]


def test_events_are_delivered_once_in_order_also_by_a_new_process(path):
    sender = NullSender()
    with opened(path) as db:
        transact(db, add)
        transact(db, lambda connection: happen(connection, 3))
        transact(db, lambda connection: happen(connection, 2, kind=Event.DEVICE_DISABLED))
    run(path, sender)
    run(path, sender)
    assert numbers(sender) == [1, 2, 3, 4, 5, 6], "1 is that the outlet was added"


def test_only_wanted_kinds_are_delivered_and_the_rest_is_not_looked_at_again(path):
    sender = NullSender()
    with opened(path) as db:
        transact(db, lambda connection: add(connection, kinds=("device.disabled", "outlet.")))
        transact(db, lambda connection: happen(connection, 3))
        run(path, sender)
        assert numbers(sender) == [1]
        assert store.get_outlet(db.connection, SCOPE, "hook").cursor == 4


def test_a_failure_stops_at_its_event_and_goes_on_there(path):
    kept = NullSender()
    sender = FailingSender(kept, times=1)
    clock = FixedClock(NOW)
    with opened(path) as db:
        transact(db, add)
        transact(db, lambda connection: happen(connection, 2))
        run(path, sender, turns=2, clock=clock)
        assert numbers(kept) == [], "not tried again before its time"
        clock.advance(10)
        run(path, sender, clock=clock)
        assert numbers(kept) == [1, 2, 3]
        assert [entry["ok"] for entry in store.list_deliveries(db.connection, SCOPE, "hook", limit=9)] == [True] * 3 + [
            False
        ]


def test_after_so_many_failures_it_is_switched_off_and_that_is_an_event(path):
    clock = FixedClock(NOW)
    with opened(path) as db:
        transact(db, add)
        for _ in range(DISABLE_AFTER + 3):
            run(path, FailingSender(NullSender(), times=99), clock=clock)
            clock.advance(MAX_WAIT_S)
        outlet = store.get_outlet(db.connection, SCOPE, "hook")
        assert (outlet.failures, outlet.disabled_at is not None) == (DISABLE_AFTER, True)
        assert len(find_events(db.connection, SCOPE, Wanted(kind="outlet.disabled"))) == 1
        sender = NullSender()
        transact(db, lambda connection: store.enable(connection, SCOPE, "hook", NOW, replay_from=1))
        run(path, sender, clock=clock)
        assert numbers(sender) == [1, 2, 3]


def test_one_tenant_neither_sees_nor_gets_anothers(path):
    sender = NullSender()
    with opened(path) as db:
        transact(db, add)
        transact(db, lambda connection: happen(connection, 3, scope=OTHER))
        run(path, sender)
        assert numbers(sender) == [1]
        for call in (store.get_outlet, lambda c, s, n: store.remove_outlet(c, s, n, NOW)):
            with pytest.raises(NotFoundError):
                call(db.connection, OTHER, "hook")


def test_outlets_are_checked_when_they_are_made(path):
    with opened(path) as db:
        for kind, target in (
            (OutletKind.WEBHOOK, "http://example.org"),
            (OutletKind.SMTP, "nobody"),
            (OutletKind.SMTP, "a@b, c@d"),
            (OutletKind.MQTT, "a/#"),
            (OutletKind.MQTT, ""),
        ):
            with pytest.raises(MalformedError):
                add(db.connection, kind=kind, target=target)
        with pytest.raises(ForbiddenError):
            add(db.connection, scope=Scope(1, "person:x", Role.VIEWER))
        add(db.connection)
        with pytest.raises(ConflictError):
            add(db.connection)
        for replay_from in (0, 99):
            with pytest.raises(MalformedError):
                store.enable(db.connection, SCOPE, "hook", NOW, replay_from=replay_from)


def test_a_secret_is_sealed_at_rest_and_opens_only_for_its_own_outlet(path):
    with opened(path) as db:
        outlet, secret = add(db.connection)
        other, _ = add(db.connection, "other")
        stored = db.connection.execute("SELECT secret FROM outlet WHERE name = 'hook'").fetchone()["secret"]
    assert secret
    assert secret not in stored
    assert store.open_secret(VAULT, outlet) == secret
    for wrong, vault in (
        (replace(other, sealed_secret=stored), VAULT),
        (outlet, Vault(bytes([1]) * 32)),
        (replace(outlet, sealed_secret=secret), VAULT),
    ):
        with pytest.raises(CorruptStateError):
            store.open_secret(vault, wrong)


def test_senders_say_what_went_wrong_and_never_raise(path):
    clock = FixedClock(NOW)
    with opened(path) as db:
        outlet, _ = add(db.connection, target="https://127.0.0.1:1/")
        mail, _ = add(db.connection, "mail", kind=OutletKind.SMTP, target="a@b")
        topic, _ = add(db.connection, "topic", kind=OutletKind.MQTT, target="a/b")
        happen(db.connection)
        parcel = store.next_parcels(db.connection, outlet, 1)[0][0]

    def send(sender, to):
        answer = asyncio.run(sender.send(to, parcel))
        assert isinstance(answer, Answer)
        assert not answer.ok
        return answer.text

    assert send(WebhookSender(clock, VAULT, networks=[]), outlet).startswith("request/forbidden")
    assert "Error" in send(WebhookSender(clock, VAULT, networks=["127.0.0.0/8"]), outlet)
    assert send(MailSender(clock, url="", sender="x@y"), mail).startswith("local/setting")
    assert "Error" in send(MailSender(clock, url="smtp://127.0.0.1:1", sender="x@y"), mail)
    assert send(BrokerSender(clock, url=""), topic).startswith("local/setting")
    assert "Error" in send(BrokerSender(clock, url="mqtt://127.0.0.1:1"), topic)


def test_metrics_have_a_name_a_kind_and_few_series(path):
    with opened(path) as db:
        add(db.connection)
        samples = metrics.count(db.connection, int(NOW.timestamp()))
    text = metrics.write([("firmament_info", {"version": '1"\\\n'}, 1), *samples]).decode()
    assert 'firmament_info{version="1\\"\\\\\\n"} 1\n' in text
    assert "# TYPE firmament_audit_events_total counter\nfirmament_audit_events_total 1\n" in text
    for name, _, value in samples:
        assert name in metrics.HELP
        assert value >= 0


@pytest.mark.parametrize(
    ("token", "address", "authorization", "error"),
    [
        ("", "127.0.0.1", "", None),
        ("", "::1", "", None),
        ("", "192.0.2.1", "", ForbiddenError),
        ("", "", "Bearer x", ForbiddenError),
        ("x", "192.0.2.1", "Bearer x", None),
        ("x", "127.0.0.1", "", UnauthenticatedError),
        ("x", "127.0.0.1", "Bearer y", UnauthenticatedError),
        ("x", "127.0.0.1", "Basic x", UnauthenticatedError),
    ],
)
def test_metrics_are_read_here_or_with_the_token(token, address, authorization, error):
    with contextlib.nullcontext() if error is None else pytest.raises(error):
        metrics.require_reader(token=token, address=address, authorization=authorization)
