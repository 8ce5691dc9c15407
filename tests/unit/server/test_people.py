"""Roles, tenants, tokens and locks, against a real database file."""

from datetime import UTC, datetime, timedelta

import pytest

from firmament.errors import (
    ConflictError,
    FirmamentError,
    ForbiddenError,
    MalformedError,
    NotFoundError,
    SecondPersonError,
    UnauthenticatedError,
)
from firmament.server import events, products
from firmament.server.attempts import service as attempts
from firmament.server.events import Event
from firmament.server.inventory import search
from firmament.server.inventory import service as inventory
from firmament.server.inventory import store as inventory_store
from firmament.server.people import service as people
from firmament.server.people.passwords import NO_HASH, hash_password, verify_password
from firmament.server.releases import store as releases
from firmament.server.scope import ALLOWED, SERVER_WIDE, Action, Role, Scope, console, of_device

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
ADMIN = console("test")


@pytest.fixture
def db(connection):
    return connection


def test_every_role_has_a_row_and_admin_may_everything():
    assert set(ALLOWED) == set(Role)
    assert ALLOWED[Role.ADMIN] == set(Action)
    for role in Role:
        assert Action.READ in ALLOWED[role]
    for action in (Action.MANAGE_PEOPLE, Action.TRUST_FIRST_ROOT):
        assert [role for role in Role if action in ALLOWED[role]] == [Role.ADMIN]


def test_devices_and_the_server_have_no_operator_permission():
    for action in Action:
        with pytest.raises(ForbiddenError):
            of_device(1, "d").require(action)


def test_what_touches_every_tenant_is_for_the_first_tenants_people():
    for action in SERVER_WIDE:
        assert ADMIN.may(action)
        other = Scope(2, "person:alice", Role.ADMIN)
        assert not other.may(action)
        with pytest.raises(ForbiddenError):
            other.require(action)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("action", Action)
def test_may_says_what_require_does(role, action):
    for tenant in (1, 2):
        scope = Scope(tenant, "person:alice", role)
        if scope.may(action):
            scope.require(action)
        else:
            with pytest.raises(ForbiddenError):
                scope.require(action)


def test_nobody_is_their_own_second_person():
    bob = Scope(1, "person:bob", Role.APPROVER)
    bob.require_second_person("person:alice")
    with pytest.raises(SecondPersonError) as refused:
        bob.require_second_person("person:bob")
    assert refused.value.code == "access/second-person"


@pytest.mark.parametrize("kind", list(Event))
def test_events_are_named_subject_past_participle(kind):
    subject, _, verb = kind.value.partition(".")
    assert subject.replace("-", "").isalpha()
    assert verb.endswith(("ed", "wn"))


def sign_in(db, *, right=True, now=NOW, name="alice"):
    return people.open_session(db, people.credentials(db, name), is_right=right, label="s", now=now)


@pytest.fixture
def alice(db):
    people.add_person(db, ADMIN, name="alice", role=Role.RELEASER, password_hash="x", now=NOW)


def test_names_are_unique_and_well_formed(db, alice):
    with pytest.raises(ConflictError):
        people.add_person(db, ADMIN, name="alice", role=Role.VIEWER, password_hash="x", now=NOW)
    for name in ("", "Alice", "a b", "../x", "a" * 65):
        with pytest.raises(MalformedError):
            people.add_person(db, ADMIN, name=name, role=Role.VIEWER, password_hash="x", now=NOW)


def test_guessing_locks_for_longer_each_time_but_never_for_long(db, alice):
    for _ in range(4):
        assert sign_in(db, right=False) is None
    assert sign_in(db) is not None  # a right one starts over
    for _ in range(5):
        assert sign_in(db, right=False) is None
    assert sign_in(db) is None
    later = NOW + timedelta(seconds=61)
    assert sign_in(db, right=False, now=later) is None
    assert sign_in(db, now=later + timedelta(seconds=61)) is None
    for step in range(40):
        later += timedelta(hours=2)
        assert sign_in(db, right=False, now=later) is None, step
    assert sign_in(db, now=later + timedelta(hours=1, seconds=1)) is not None


def test_unknown_and_disabled_names_get_the_same_answer(db, alice):
    assert sign_in(db, name="nobody") is None
    people.disable_person(db, ADMIN, name="alice", now=NOW)
    assert sign_in(db) is None
    with pytest.raises(NotFoundError):
        people.disable_person(db, ADMIN, name="nobody", now=NOW)


def test_a_token_speaks_for_its_owner_until_it_expires(db, alice):
    issued = sign_in(db)
    scope = people.scope_of_token(db, issued.token, NOW)
    assert (scope.actor, scope.role, scope.product) == ("person:alice", Role.RELEASER, None)
    with pytest.raises(UnauthenticatedError):
        people.scope_of_token(db, issued.token, NOW + people.SESSION_LIFETIME)
    with pytest.raises(UnauthenticatedError):
        people.scope_of_token(db, issued.token + "x", NOW)


def test_an_owner_who_was_demoted_takes_the_tokens_along(db, alice):
    issued = sign_in(db)
    db.execute("UPDATE person SET role = 'viewer'")
    with pytest.raises(UnauthenticatedError):
        people.scope_of_token(db, issued.token, NOW)


def test_passwords_are_argon2id_and_have_bounds():
    hashed = hash_password("correct horse battery")
    assert hashed.startswith("$argon2id$")
    assert verify_password(hashed, "correct horse battery")
    assert not verify_password(hashed, "wrong horse battery")
    assert not verify_password(NO_HASH, "anything at all")
    assert not verify_password("damaged", "anything at all")
    for password in ("short", "x" * 257):
        with pytest.raises(MalformedError):
            hash_password(password)


def test_62_one_tenant_never_sees_another(db):
    """Every query of a second administrator, in another tenant, finds nothing of the first."""
    products.ensure_product(db, ADMIN, "thermo", NOW)
    db.execute(
        "INSERT INTO device(tenant_id, uid, product_id, hardware, serial, identity_keyid, identity_key, "
        "hpke_public_key, bucket, enrolled_at) VALUES (1, 'd1', 1, 'rpi4', '', 'k', ?, ?, 0, 0)",
        (b"\0", b"\0"),
    )
    db.execute(
        "INSERT INTO release(tenant_id, product_id, version, sequence_number, target, length_bytes, digest, manifest, "
        "published_at) VALUES (1, 1, '1.0', 1, 't', 1, 'sha256:00', '{}', 0)"
    )
    people.add_person(db, ADMIN, name="alice", role=Role.VIEWER, password_hash="x", now=NOW)
    other = Scope(2, "person:mallory", Role.ADMIN)
    assert products.list_products(db, other) == []
    assert search.find_devices(db, other, query="", after=0, limit=10, now=NOW) == []
    assert search.count_devices(db, other, "", NOW).count == 0
    assert releases.list_releases(db, other, product=None) == []
    assert releases.histories(db, other) == {}
    assert people.list_people(db, other) == []
    assert events.list_events(db, other, subject=None, after=0, limit=10) == []
    refusals = (
        lambda: inventory_store.get_device(db, other, "d1"),
        lambda: attempts.list_attempts(db, other, "d1"),
        lambda: attempts.unassign(db, other, device_id="d1", now=NOW),
        lambda: attempts.assign(db, other, device_id="d1", product="thermo", version="1.0", now=NOW),
        lambda: inventory.set_disabled(db, other, "d1", disabled=True, now=NOW),
        lambda: releases.get_release(db, other, product="thermo", version="1.0"),
        lambda: releases.promote(db, other, product="thermo", version="1.0", channel="stable", now=NOW),
        lambda: people.disable_person(db, other, name="alice", now=NOW),
    )
    for ask in refusals:
        with pytest.raises(NotFoundError):
            ask()


def test_one_products_token_never_sees_another_product(db):
    products.ensure_product(db, ADMIN, "thermo", NOW)
    limited = Scope(1, "person:bob", Role.ADMIN, "pump")
    assert products.list_products(db, limited) == []
    assert search.find_devices(db, limited, query="product=thermo", after=0, limit=10, now=NOW) == []
    for ask in (
        lambda: products.ensure_product(db, limited, "thermo", NOW),
        lambda: releases.list_releases(db, limited, product="thermo"),
        lambda: events.list_events(db, limited, subject=None, after=0, limit=10),
    ):
        with pytest.raises(FirmamentError) as refused:
            ask()
        assert refused.value.code == "request/forbidden"
