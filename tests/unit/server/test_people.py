"""Roles, tenants, tokens and locks, against a real database file."""

from datetime import UTC, datetime, timedelta

import pyotp
import pytest

from firmament.durable import RealDisk
from firmament.errors import (
    ConflictError,
    CorruptStateError,
    FirmamentError,
    ForbiddenError,
    KeyFileError,
    MalformedError,
    NotFoundError,
    SecondFactorError,
    SecondPersonError,
    UnauthenticatedError,
)
from firmament.server import events, products
from firmament.server.attempts import service as attempts
from firmament.server.database.schema import metadata
from firmament.server.events import Event
from firmament.server.inventory import search
from firmament.server.inventory import service as inventory
from firmament.server.inventory import store as inventory_store
from firmament.server.people import second_factor, tenants, tokens
from firmament.server.people import service as people
from firmament.server.people.passwords import NO_HASH, hash_password, verify_password
from firmament.server.people.service import Refusal
from firmament.server.people.sessions import (
    CONSOLE_IDLE,
    SESSION_LIFETIME,
    Kind,
    Opened,
    cookie,
    list_sessions,
    no_cookie,
    revoke_session,
    revoke_sessions,
    scope_of_session,
    touch,
)
from firmament.server.people.vault import Vault, load_vault
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


VAULT = Vault(bytes(32))


def sign_in(db, *, right=True, now=NOW, name="alice", code=None, kind=Kind.COMMAND):
    answer = people.sign_in(
        db,
        VAULT,
        people.credentials(db, name),
        is_right=right,
        code=code,
        kind=kind,
        address="192.0.2.1",
        client="test",
        now=now,
    )
    return answer if isinstance(answer, Opened) else None if answer is Refusal.WRONG else answer


def scope_of(db, opened, now=NOW, **changes):
    return scope_of_session(db, opened.secret, now, **changes).scope


def token(db, scope, now=NOW, **changes):
    given = {"role": Role.VIEWER, "product": None, "lifetime": timedelta(days=1), "label": "ci"}
    return tokens.issue_token(db, scope, now=now, **{**given, **changes})


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


def test_a_session_speaks_for_its_person_until_it_expires(db, alice):
    opened = sign_in(db)
    assert opened.secret.startswith("fms_")
    scope = scope_of(db, opened)
    assert (scope.actor, scope.role, scope.product) == ("person:alice", Role.RELEASER, None)
    for secret, now in ((opened.secret, NOW + SESSION_LIFETIME), (opened.secret + "x", NOW)):
        with pytest.raises(UnauthenticatedError):
            scope_of_session(db, secret, now)


def test_a_session_follows_its_person_at_once(db, alice):
    opened = sign_in(db)
    people.change_person(db, ADMIN, name="alice", role=Role.VIEWER, now=NOW)
    assert scope_of(db, opened).role is Role.VIEWER
    people.change_person(db, ADMIN, name="alice", is_disabled=True, now=NOW)
    people.change_person(db, ADMIN, name="alice", is_disabled=False, now=NOW)
    with pytest.raises(UnauthenticatedError):
        scope_of(db, opened)  # ended for good, also for somebody who is let in again


def test_a_console_session_ends_when_it_is_idle_and_a_commands_does_not(db, alice):
    browser, command = sign_in(db, kind=Kind.CONSOLE), sign_in(db)
    later = NOW + CONSOLE_IDLE
    touch(db, scope_of_session(db, browser.secret, NOW).session_id, later)
    assert scope_of(db, browser, later + CONSOLE_IDLE - timedelta(seconds=1))
    with pytest.raises(UnauthenticatedError):
        scope_of(db, browser, later + CONSOLE_IDLE)
    assert scope_of(db, command, later + CONSOLE_IDLE)


def test_sessions_are_listed_and_ended_by_their_person_only(db, alice):
    people.add_person(db, ADMIN, name="bob", role=Role.ADMIN, password_hash="x", now=NOW)
    first, second, bobs = sign_in(db), sign_in(db), sign_in(db, name="bob")
    one = scope_of_session(db, first.secret, NOW)
    listed = list_sessions(db, one.scope, one.person_id, NOW)
    assert [(item["address"], item["client"], item["kind"]) for item in listed] == [
        ("192.0.2.1", "test", "command")
    ] * 2
    bob = scope_of_session(db, bobs.secret, NOW)
    with pytest.raises(NotFoundError):
        revoke_session(db, one.scope, person_id=one.person_id, session_id=bob.session_id, now=NOW)
    assert revoke_sessions(db, one.scope, person_id=one.person_id, subject="alice", now=NOW, keep=one.session_id) == 1
    with pytest.raises(UnauthenticatedError):
        scope_of(db, second)
    assert scope_of(db, first)
    assert scope_of(db, bobs)


def test_the_cookie_is_out_of_reach_of_scripts_other_sites_and_plain_http():
    text = cookie("fms_x")
    assert text.startswith("__Host-firmament=fms_x; Path=/; ")
    assert {"Secure", "HttpOnly", "SameSite=Lax"} <= set(text.split("; "))
    assert "Max-Age=0" in no_cookie()


def test_nothing_that_signs_in_is_stored_as_it_is(db, alice):
    opened = sign_in(db)
    issued = token(db, opened.scope)
    enrolled = add_factor(db)
    dump = "\n".join(
        value.hex().upper() if isinstance(value, bytes) else str(value)
        for table in metadata.tables
        for row in db.execute(f"SELECT * FROM {table}").fetchall()
        for value in dict(row).values()
    )
    assert "alice" in dump
    for secret in (opened.secret, issued.token, enrolled.secret, *enrolled.codes):
        assert secret not in dump
        assert secret.encode().hex().upper() not in dump


class Factor:
    def __init__(self, secret, codes):
        self.secret, self.codes = secret, codes

    def code(self, now):
        return pyotp.TOTP(self.secret).at(now)


def add_factor(db, name="alice", now=NOW):
    person_id = people.credentials(db, name).person_id
    scope = Scope(1, f"person:{name}", Role.RELEASER)
    begun = second_factor.begin(db, scope, VAULT, person_id=person_id, account=f"{name}@main", now=now)
    assert begun.uri.startswith("otpauth://totp/Firmament:")
    code = pyotp.TOTP(begun.secret).at(now)
    return Factor(begun.secret, second_factor.confirm(db, scope, VAULT, person_id=person_id, code=code, now=now))


def test_a_second_factor_is_asked_for_and_each_code_counts_once(db, alice):
    factor = add_factor(db)
    later = NOW + timedelta(minutes=5)
    assert sign_in(db, now=later) is Refusal.CODE_MISSING
    assert sign_in(db, now=later, code="000000") is None
    code = factor.code(later)
    assert sign_in(db, now=later, code=code) is not None
    assert sign_in(db, now=later, code=code) is None
    # The code before it is not younger than the last one used.
    assert sign_in(db, now=later, code=factor.code(later - timedelta(seconds=30))) is None
    assert sign_in(db, now=later, code=factor.code(later + timedelta(seconds=30))) is not None
    assert sign_in(db, now=later, code=factor.code(later + timedelta(seconds=60))) is None


def test_the_code_that_enrolled_does_not_sign_in_as_well(db, alice):
    factor = add_factor(db)
    assert sign_in(db, code=factor.code(NOW)) is None


def test_a_recovery_code_works_once_and_wrong_codes_lock(db, alice):
    factor = add_factor(db)
    assert len(set(factor.codes)) == 10
    assert sign_in(db, code=factor.codes[0].upper()) is not None
    assert sign_in(db, code=factor.codes[0]) is None
    for _ in range(4):
        assert sign_in(db, code="123456") is None
    assert sign_in(db, code=factor.codes[1]) is None  # locked


def test_a_second_factor_counts_only_when_it_was_proven_and_is_removed_by_proof(db, alice):
    person_id = people.credentials(db, "alice").person_id
    scope = Scope(1, "person:alice", Role.RELEASER)
    second_factor.begin(db, scope, VAULT, person_id=person_id, account="alice", now=NOW)
    assert isinstance(sign_in(db), Opened)
    with pytest.raises(SecondFactorError):
        second_factor.confirm(db, scope, VAULT, person_id=person_id, code="000000", now=NOW)
    factor = add_factor(db)
    with pytest.raises(ConflictError):
        add_factor(db)
    with pytest.raises(SecondFactorError):
        people.remove_own_factor(db, scope, VAULT, person_id=person_id, code="000000", now=NOW)
    people.remove_own_factor(db, scope, VAULT, person_id=person_id, code=factor.codes[3], now=NOW)
    assert isinstance(sign_in(db), Opened)


def test_roles_that_need_a_second_factor_can_only_enrol_one(db, alice):
    opened = sign_in(db)
    need = frozenset({Role.RELEASER})
    with pytest.raises(SecondFactorError):
        scope_of(db, opened, needs_factor=need)
    assert scope_of(db, opened, needs_factor=need, is_enrolling=True)
    factor = add_factor(db)
    later = NOW + timedelta(minutes=5)
    proven = sign_in(db, now=later, code=factor.code(later))
    assert scope_of(db, proven, later, needs_factor=need)


def test_a_sealed_secret_is_for_one_person_and_one_key():
    sealed = VAULT.seal(b"secret", purpose="totp:1")
    assert VAULT.open(sealed, purpose="totp:1") == b"secret"
    for vault, data, purpose in (
        (VAULT, sealed, "totp:2"),
        (Vault(b"1" * 32), sealed, "totp:1"),
        (VAULT, sealed[:-1], "totp:1"),
        (VAULT, b"", "totp:1"),
    ):
        with pytest.raises(CorruptStateError):
            vault.open(data, purpose=purpose)


def test_the_key_that_seals_is_made_once_and_is_private(tmp_path):
    path = tmp_path / "people" / "sealing.key"
    sealed = load_vault(RealDisk(), path).seal(b"x", purpose="p")
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_vault(RealDisk(), path).open(sealed, purpose="p") == b"x"
    path.chmod(0o640)
    with pytest.raises(KeyFileError):
        load_vault(RealDisk(), path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(KeyFileError):
        load_vault(RealDisk(), path)


def test_tokens_are_listed_with_their_last_use_and_revoked(db, alice):
    people.add_person(db, ADMIN, name="bob", role=Role.ADMIN, password_hash="x", now=NOW)
    scope, bob = sign_in(db).scope, sign_in(db, name="bob").scope
    issued = token(db, scope)
    found = tokens.find_token(db, issued.token, NOW)
    assert found.is_due
    tokens.touch_token(db, found.token_id, "192.0.2.7", NOW)
    assert not tokens.find_token(db, issued.token, NOW).is_due
    (listed,) = tokens.list_tokens(db, scope, NOW)
    assert (listed["label"], listed["last_used_at"], listed["last_address"]) == (
        "ci",
        int(NOW.timestamp()),
        "192.0.2.7",
    )
    assert tokens.list_tokens(db, bob, NOW) == []
    assert len(tokens.list_tokens(db, bob, NOW, everybody=True)) == 1
    with pytest.raises(ForbiddenError):
        tokens.list_tokens(db, scope, NOW, everybody=True)
    bobs = tokens.find_token(db, token(db, bob).token, NOW)
    with pytest.raises(NotFoundError):
        tokens.revoke_token(db, scope, token_id=bobs.token_id, now=NOW)
    tokens.revoke_token(db, bob, token_id=found.token_id, now=NOW)
    with pytest.raises(UnauthenticatedError):
        tokens.find_token(db, issued.token, NOW)


def test_an_owner_who_was_demoted_takes_the_tokens_along(db, alice):
    issued = token(db, sign_in(db).scope, role=Role.RELEASER)
    assert tokens.find_token(db, issued.token, NOW).scope.role is Role.RELEASER
    with pytest.raises(UnauthenticatedError):
        tokens.find_token(db, issued.token, NOW + timedelta(days=1))
    people.change_person(db, ADMIN, name="alice", role=Role.VIEWER, now=NOW)
    with pytest.raises(UnauthenticatedError):
        tokens.find_token(db, issued.token, NOW)


def test_nobody_changes_their_own_role(db, alice):
    people.add_person(db, ADMIN, name="bob", role=Role.ADMIN, password_hash="x", now=NOW)
    with pytest.raises(ConflictError):
        people.change_person(db, sign_in(db, name="bob").scope, name="bob", is_disabled=True, now=NOW)


def test_another_password_ends_the_other_sessions(db, alice):
    kept, other = sign_in(db), sign_in(db)
    found = scope_of_session(db, kept.secret, NOW)
    people.set_password(
        db,
        found.scope,
        person_id=found.person_id,
        subject="alice",
        password_hash="y",
        now=NOW,
        keep_session=found.session_id,
    )
    assert people.password_hash_of(db, found.person_id) == "y"
    assert scope_of(db, kept)
    with pytest.raises(UnauthenticatedError):
        scope_of(db, other)


def test_tenants_have_their_own_names_and_are_made_by_the_first(db, alice):
    tenants.add_tenant(db, ADMIN, name="acme", now=NOW)
    acme = tenants.inside(db, ADMIN, "acme")
    people.add_person(db, acme, name="alice", role=Role.ADMIN, password_hash="z", now=NOW)
    assert people.credentials(db, "alice").hashed == people.credentials(db, "alice@main").hashed == "x"
    assert people.credentials(db, "alice@acme").hashed == "z"
    assert people.credentials(db, "alice@nobody").person_id is None
    theirs = sign_in(db, name="alice@acme")
    assert (theirs.scope.tenant_id, people.tenant_name(db, theirs.scope)) == (acme.tenant_id, "acme")
    for ask in (
        lambda: tenants.list_tenants(db, theirs.scope),
        lambda: tenants.add_tenant(db, theirs.scope, name="more", now=NOW),
        lambda: tenants.set_tenant_disabled(db, theirs.scope, name="main", is_disabled=True, now=NOW),
        lambda: tenants.give_product(db, theirs.scope, tenant="acme", product="thermo", now=NOW),
    ):
        with pytest.raises(ForbiddenError):
            ask()
    with pytest.raises(ConflictError):
        tenants.add_tenant(db, ADMIN, name="acme", now=NOW)
    with pytest.raises(ConflictError):
        tenants.set_tenant_disabled(db, ADMIN, name="main", is_disabled=True, now=NOW)
    issued = token(db, theirs.scope)
    tenants.set_tenant_disabled(db, ADMIN, name="acme", is_disabled=True, now=NOW)
    assert sign_in(db, name="alice@acme") is None
    with pytest.raises(UnauthenticatedError):
        scope_of(db, theirs)
    with pytest.raises(UnauthenticatedError):
        tokens.find_token(db, issued.token, NOW)
    assert [(row["name"], row["people"], row["disabled"]) for row in tenants.list_tenants(db, ADMIN)] == [
        ("main", 1, False),
        ("acme", 1, True),
    ]


def test_a_product_is_one_tenants_and_a_foreign_one_looks_like_none(db):
    products.ensure_product(db, ADMIN, "thermo", NOW)  # one tenant: made by the way
    tenants.add_tenant(db, ADMIN, name="acme", now=NOW)
    acme = tenants.inside(db, ADMIN, "acme")
    refusals = []
    for name in ("thermo", "nobodys"):
        with pytest.raises(NotFoundError) as refused:
            products.ensure_product(db, acme, name, NOW)
        refusals.append(refused.value.problem)
    assert refusals[0] == refusals[1]
    tenants.give_product(db, ADMIN, tenant="acme", product="pump", now=NOW)
    tenants.give_product(db, ADMIN, tenant="acme", product="pump", now=NOW)
    assert products.list_products(db, acme) == ["pump"]
    assert products.ensure_product(db, acme, "pump", NOW)
    with pytest.raises(ConflictError):
        tenants.give_product(db, ADMIN, tenant="main", product="pump", now=NOW)


def test_passwords_are_argon2id_and_have_bounds():
    hashed = hash_password("correct horse battery")
    assert hashed.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
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
    assert releases.list_releases(db, other, product="thermo") == []
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
