"""Rules and answers on a real database: who set what, who said what, and that counts always add up."""

import itertools
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from hypothesis import given, settings
from hypothesis import strategies as st
from support.databases import fresh_target, opened

from firmament.core.consent import Mode, Window
from firmament.core.manifest import UpdateClass
from firmament.errors import ConflictError, ForbiddenError, MalformedError, NotFoundError, ReplayError, SignatureError
from firmament.protocol.status import ConsentAnswer
from firmament.protocol.v1.envelope import CONSENT_TYPE, REPORT_TYPE, Envelope, pre_authentication_encoding
from firmament.protocol.v1.messages import ConsentEvent
from firmament.server.consent import answers, rules
from firmament.server.consent.decide import Standing
from firmament.server.consent.model import Level
from firmament.server.inventory import groups
from firmament.server.inventory.attributes import write_attributes
from firmament.server.inventory.search import condition
from firmament.server.reports import open_consent_event
from firmament.server.scope import Role, Scope, console, of_device
from firmament.trust.device_keys import IdentityKey

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
ADMIN = console("test")
SECURITY, FEATURE = UpdateClass.SECURITY, UpdateClass.FEATURE
UIDS = [f"00000000-0000-4000-8000-{number:012d}" for number in range(6)]
ATTEMPTS = [f"10000000-0000-4000-8000-{number:012d}" for number in range(6)]
FOREIGN = UIDS[5]


@pytest.fixture(scope="module")
def filled(database_kind, tmp_path_factory):
    with opened(fresh_target(database_kind, tmp_path_factory.mktemp("consent"))) as db:
        db.execute("INSERT INTO tenant(name, created_by, created_at) VALUES ('acme', 'x', 0)")
        for tenant, product in ((1, "thermo"), (2, "pump")):
            db.execute("INSERT INTO product(tenant_id, name, created_at) VALUES (?, ?, 0)", (tenant, product))
            db.execute(
                "INSERT INTO release(tenant_id, product_id, version, sequence_number, target, length_bytes, digest, "
                "manifest, published_at) VALUES (?, ?, '1.0', 1, 't', 1, 'sha256:00', ?, 0)",
                (tenant, tenant, b"m"),
            )
        for number, uid in enumerate(UIDS):
            tenant = 2 if uid == FOREIGN else 1
            db.execute(
                "INSERT INTO device(tenant_id, uid, product_id, hardware, serial, identity_keyid, identity_key, "
                "hpke_public_key, bucket, enrolled_at) VALUES (?, ?, ?, 'rpi4', '', ?, ?, ?, 0, 0)",
                (tenant, uid, tenant, uid, b"k", uid.encode()),
            )
            db.execute(
                "INSERT INTO attempt(tenant_id, uid, device_id, release_id, state, created_at, updated_at) "
                "VALUES (?, ?, ?, ?, 'offered', 0, 0)",
                (tenant, ATTEMPTS[number], number + 1, tenant),
            )
        yield db


@pytest.fixture
def db(filled):
    filled.execute("BEGIN")
    yield filled
    filled.execute("ROLLBACK")


def device(number):
    return SimpleNamespace(
        row_id=number + 1,
        tenant_id=2 if UIDS[number] == FOREIGN else 1,
        device_id=UIDS[number],
        product="pump" if UIDS[number] == FOREIGN else "thermo",
    )


def said(answer, *, number=1, who=0, at=NOW, **changes):
    about_all = answer in answers.ABOUT_ALL
    given = {
        "device_id": UIDS[who],
        "consent_number": number,
        "answer": answer,
        "at": at,
        "actor": "uid:1000",
        "via": "menu",
        "attempt_id": None if about_all else ATTEMPTS[who],
        "release_id": "" if about_all else "thermo/1.0",
        "update_class": None if about_all else SECURITY,
        "text_digest": "sha256:" + "0" * 64,
        "language": "pt",
    }
    return ConsentEvent(**{**given, **changes})


def take(db, event, *, who=0, now=NOW):
    envelope = Envelope(json.dumps(event.to_json()).encode(), CONSENT_TYPE, "0" * 64, b"signature")
    answers.take_event(db, of_device(1, UIDS[who]), device(who), event, envelope, now)


def put(db, mode, *, level=Level.TENANT, subject="", update_class=SECURITY, scope=ADMIN, window=None):
    rules.set_rule(
        db, scope, level=level, subject=subject, update_class=update_class, mode=mode, window=window, now=NOW
    )


def ruling(db, number=0, update_class=SECURITY):
    return rules.rulings(db, ADMIN, [number + 1], update_class, NOW)[number + 1]


def report(db, *, now=NOW, **changes):
    return answers.report(db, ADMIN, now=now, **{"release": None, **changes})


# --- rules ---------------------------------------------------------------------------------


def test_the_most_specific_rule_holds_and_says_whose_it_is(db):
    assert ruling(db).holding.level is Level.BUILT_IN
    put(db, Mode.ASK)
    groups.save_group(db, ADMIN, name="kiosks A", query='hardware = "rpi4"', now=NOW)
    assert (ruling(db).holding.level, ruling(db).holding.set_by) == (Level.TENANT, "console:test")
    put(db, Mode.WINDOW, level=Level.GROUP, subject="kiosks A", window=Window.parse("02:00-04:00"))
    assert (ruling(db).holding.level, ruling(db).holding.subject) == (Level.GROUP, "kiosks A")
    put(db, Mode.MANUAL, level=Level.DEVICE, subject=UIDS[0])
    assert (ruling(db).holding.level, ruling(db).holding.mode) == (Level.DEVICE, Mode.MANUAL)
    assert ruling(db, 1).holding.mode is Mode.WINDOW
    assert ruling(db, update_class=FEATURE).holding.level is Level.BUILT_IN
    assert [(row["level"], row["mode"], row["window"]) for row in rules.list_rules(db, ADMIN)] == [
        ("tenant", "ask", None),
        ("group", "window", "02:00-04:00"),
        ("device", "manual", None),
    ]
    where = condition(db, ADMIN, "", NOW)
    assert rules.count_modes(db, ADMIN, where, SECURITY, NOW) == {"automatic": 0, "window": 4, "ask": 0, "manual": 1}
    rules.clear_rule(db, ADMIN, level=Level.DEVICE, subject=UIDS[0], update_class=SECURITY, now=NOW)
    assert ruling(db).holding.level is Level.GROUP
    groups.delete_group(db, ADMIN, name="kiosks A", now=NOW)
    assert ruling(db).holding.level is Level.TENANT


def test_of_two_groups_the_stricter_rule_holds(db):
    for name, mode in (("a", Mode.MANUAL), ("b", Mode.ASK)):
        groups.save_group(db, ADMIN, name=name, query='hardware = "rpi4"', now=NOW)
        put(db, mode, level=Level.GROUP, subject=name)
    assert ruling(db).holding.mode is Mode.MANUAL


def test_the_owners_own_rule_is_laid_over_and_their_zone_counts(db):
    told = {"policy.security": "window", "policy.window": "23:00-23:30", "zone": "Asia/Tokyo"}
    write_attributes(db, 1, 1, was="{}", now=json.dumps(told))
    found = ruling(db)
    assert (found.holding.level, str(found.holding.window), str(found.zone)) == (
        Level.OWNER,
        "23:00-23:30",
        "Asia/Tokyo",
    )
    put(db, Mode.ASK)
    assert ruling(db).holding.level is Level.TENANT
    for nonsense in ({"policy.security": "never"}, {"policy.security": "window"}, {"zone": "Moon/Crater"}):
        write_attributes(db, 1, 1, was=json.dumps(told), now=json.dumps(nonsense))
        assert ruling(db).owner is None
        told = nonsense


def test_rules_that_cannot_be(db):
    for change in (
        {"mode": Mode.WINDOW},
        {"mode": Mode.ASK, "window": Window.parse("02:00-04:00")},
        {"mode": Mode.ASK, "subject": "x"},
        {"mode": Mode.ASK, "level": Level.OWNER},
    ):
        with pytest.raises(MalformedError):
            put(db, **change)
    for change in ({"level": Level.GROUP, "subject": "none"}, {"level": Level.DEVICE, "subject": FOREIGN}):
        with pytest.raises(NotFoundError):
            put(db, Mode.ASK, **change)
    with pytest.raises(NotFoundError):
        rules.clear_rule(db, ADMIN, level=Level.TENANT, subject="", update_class=SECURITY, now=NOW)
    for scope in (Scope(1, "person:v", Role.VIEWER), Scope(1, "person:o", Role.OPERATOR, "thermo")):
        with pytest.raises(ForbiddenError):
            put(db, Mode.ASK, scope=scope)


def test_another_tenants_rules_and_devices_are_not_there(db):
    put(db, Mode.MANUAL)
    other = Scope(2, "person:m", Role.ADMIN)
    assert rules.list_rules(db, other) == []
    assert rules.rulings(db, other, [1, 6], SECURITY, NOW)[6].holding.level is Level.BUILT_IN
    assert 1 not in rules.rulings(db, other, [1, 6], SECURITY, NOW)
    take(db, said(ConsentAnswer.NOW))
    assert answers.report(db, other, release=None, now=NOW)["asked"] == 0
    assert answers.list_answers(db, other, device_id=UIDS[0], after=0, limit=9) == []
    with pytest.raises(NotFoundError):
        answers.report(db, other, release="thermo/1.0", now=NOW)


# --- answers -------------------------------------------------------------------------------


def test_an_answer_is_kept_with_all_that_makes_it_evidence(db):
    take(db, said(ConsentAnswer.ASKED))
    take(db, said(ConsentAnswer.TONIGHT, number=2, until=NOW + timedelta(hours=14)))
    listed = answers.list_answers(db, ADMIN, device_id=UIDS[0], after=0, limit=9)
    assert [(row["answer"], row["actor"], row["language"], row["text_digest"][:7]) for row in listed] == [
        ("asked", "uid:1000", "pt", "sha256:"),
        ("tonight", "uid:1000", "pt", "sha256:"),
    ]
    row = db.execute("SELECT payload, signature FROM consent_event WHERE number = 2").fetchone()
    assert json.loads(row["payload"])["answer"] == "tonight"
    assert row["signature"] == b"signature"
    (verdict,) = answers.verdicts(db, ADMIN, [1], release_row=1, update_class=SECURITY, now=NOW).values()
    assert (verdict.standing, verdict.may_install) == (Standing.AGREED, False)


def test_the_same_number_again_changes_nothing_and_another_word_is_refused(db):
    for _ in range(2):
        take(db, said(ConsentAnswer.NOW))
    assert report(db)["agreed"] == 1
    with pytest.raises(ReplayError):
        take(db, said(ConsentAnswer.SKIP))


def test_49_nobody_answers_for_another_device(db):
    with pytest.raises(ForbiddenError):
        take(db, said(ConsentAnswer.NOW, who=1), who=0)
    with pytest.raises(ForbiddenError):
        take(db, said(ConsentAnswer.NOW, attempt_id=ATTEMPTS[1]))


def test_49_only_the_devices_own_key_signs_its_answers():
    key, other = IdentityKey.generate(), IdentityKey.generate()
    payload = json.dumps(said(ConsentAnswer.NOW).to_json()).encode()

    def envelope(signer, kind=CONSENT_TYPE, signed=CONSENT_TYPE):
        signature = signer.sign(pre_authentication_encoding(signed, payload))
        return Envelope(payload, kind, key.keyid, signature).to_json()

    registered = {
        "identity_key": load_pem_private_key(key.pem, None)
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "keyid": key.keyid,
    }
    event, _ = open_consent_event(envelope(key), **registered)
    assert event.answer is ConsentAnswer.NOW
    for bad in (envelope(other), envelope(key, signed=REPORT_TYPE)):
        with pytest.raises(SignatureError):
            open_consent_event(bad, **registered)
    with pytest.raises(MalformedError):
        open_consent_event(envelope(key, kind=REPORT_TYPE), **registered)


def test_an_answer_can_be_withdrawn(db):
    put(db, Mode.ASK)
    take(db, said(ConsentAnswer.NOW))
    take(db, said(ConsentAnswer.WITHDRAWN, number=2))
    (verdict,) = answers.verdicts(db, ADMIN, [1], release_row=1, update_class=SECURITY, now=NOW).values()
    assert (verdict.standing, verdict.may_install) == (Standing.ASKED, False)
    assert report(db)["no_answer"] == 1


def test_opting_out_wins_over_every_rule_until_they_opt_in(db):
    put(db, Mode.AUTOMATIC)
    take(db, said(ConsentAnswer.OPT_OUT))
    (verdict,) = answers.verdicts(db, ADMIN, [1], release_row=1, update_class=SECURITY, now=NOW).values()
    assert (verdict.standing, verdict.may_install) == (Standing.OPTED_OUT, False)
    where = condition(db, ADMIN, "", NOW)
    assert rules.count_modes(db, ADMIN, where, SECURITY, NOW)["ask"] == 1
    assert report(db)["opted_out"] == 1
    take(db, said(ConsentAnswer.OPT_IN, number=3))
    take(db, said(ConsentAnswer.OPT_OUT, number=2))  # arrives late: the newest number counts
    assert ruling(db).opted_out_at is None


def test_a_clock_that_is_wrong_neither_ends_nor_stretches_a_limit(db):
    for number, at in enumerate((datetime(1970, 1, 1, tzinfo=UTC), NOW + timedelta(days=900)), 1):
        take(db, said(ConsentAnswer.LATER, number=number, at=at))
    (found,) = answers.of_release(db, ADMIN, [1], 1).values()
    assert (found.at, found.first_asked_at, found.postponements) == (NOW, NOW, 2)


def test_an_attempt_that_was_forgotten_is_known_by_its_release(db):
    unknown = "20000000-0000-4000-8000-000000000000"
    take(db, said(ConsentAnswer.NOW, attempt_id=unknown))
    take(db, said(ConsentAnswer.NOW, number=2, attempt_id=unknown, release_id="pump/1.0"))
    assert report(db)["asked"] == 1


def test_the_report_says_until_when(db):
    take(db, said(ConsentAnswer.LATER, until=NOW + timedelta(hours=2)))
    take(db, said(ConsentAnswer.LATER, who=1, until=NOW + timedelta(hours=5)), who=1)
    (one,) = report(db, release="thermo/1.0")["releases"]
    base = int(NOW.timestamp())
    assert one["postponed_until"] == {"first": base + 7200, "last": base + 18000}
    assert report(db, now=NOW + timedelta(hours=3))["postponed"] == 1
    assert report(db, now=NOW + timedelta(hours=3))["no_answer"] == 1


WORDS = [word for word in ConsentAnswer if word not in answers.ABOUT_ALL]


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 4), st.sampled_from(WORDS), st.none() | st.integers(-9, 99)), max_size=14),
    seed=st.randoms(use_true_random=False),
    hours=st.integers(0, 60),
)
def test_the_counts_always_add_up_to_the_number_asked_and_no_failure_is_counted(filled, steps, seed, hours):
    numbers = itertools.count(1)
    told = [
        (who, said(word, who=who, number=next(numbers), until=None if h is None else NOW + timedelta(hours=h)))
        for who, word, h in steps
    ]
    filled.execute("BEGIN")
    try:
        before = filled.execute("SELECT id, state, active, code FROM attempt ORDER BY id").fetchall()
        seed.shuffle(told)  # the order of arrival does not matter
        for who, event in told:
            take(filled, event, who=who)
        found = report(filled, now=NOW + timedelta(hours=hours))
        after = filled.execute("SELECT id, state, active, code FROM attempt ORDER BY id").fetchall()
        latest = {who: event.answer for who, event in sorted(told, key=lambda item: item[1].consent_number)}
    finally:
        filled.execute("ROLLBACK")
    assert found["asked"] == len(latest)
    assert found["asked"] == found["agreed"] + found["postponed"] + found["declined"] + found["no_answer"]
    assert found["declined"] == sum(word is ConsentAnswer.SKIP for word in latest.values())
    assert [tuple(row) for row in before] == [tuple(row) for row in after]


def test_a_release_without_notes_cannot_be_asked_about():
    silent, telling = SimpleNamespace(notes={}), SimpleNamespace(notes={"de": "Schneller."})
    assert answers.missing_notes(silent, asking=0) is None
    assert answers.missing_notes(telling, asking=3) is None
    assert answers.missing_notes(silent, asking=3)["code"] == "consent/no-notes"
    assert answers.missing_notes(SimpleNamespace(notes={"de": "  "}), asking=1) is not None


# --- what devices are asked at least, and notes ----------------------------------------------


def at_least(db, number=0, update_class=SECURITY):
    return rules.asked_at_least(db, of_device(1, UIDS[number]), number + 1, update_class, NOW)


def test_only_asking_and_manual_reach_the_device_and_only_the_operators_rule(db):
    assert at_least(db) is Mode.AUTOMATIC
    write_attributes(db, 1, 1, was="{}", now='{"policy.security":"manual"}')
    assert at_least(db) is Mode.AUTOMATIC, "its owner's rule is the device's own"
    put(db, Mode.WINDOW, window=Window.parse("02:00-04:00"))
    assert at_least(db) is Mode.AUTOMATIC, "the server itself waits for the window"
    put(db, Mode.ASK)
    put(db, Mode.MANUAL, level=Level.DEVICE, subject=UIDS[1])
    assert (at_least(db), at_least(db, 1)) == (Mode.ASK, Mode.MANUAL)
    assert at_least(db, update_class=FEATURE) is Mode.AUTOMATIC


def release(**notes):
    return SimpleNamespace(notes=notes, product="thermo", update_class=SECURITY, release_id="thermo/1.0")


def test_where_owners_are_asked_a_release_needs_notes_for_them(db):
    answers.require_notes(db, ADMIN, release(), NOW)
    write_attributes(db, 1, 1, was="{}", now='{"policy.security":"ask"}')
    with pytest.raises(ConflictError, match="1 device asks its owner"):
        answers.require_notes(db, ADMIN, release(), NOW)
    with pytest.raises(ConflictError) as refused:
        answers.require_notes(db, ADMIN, release(en=" "), NOW, device_row=1)
    assert refused.value.facts["code"] == "consent/no-notes"
    answers.require_notes(db, ADMIN, release(), NOW, device_row=2)
    answers.require_notes(db, ADMIN, release(en="Better."), NOW)
    put(db, Mode.ASK)
    with pytest.raises(ConflictError, match="5 devices ask their owner"):
        answers.require_notes(db, ADMIN, release(), NOW)
    put(db, Mode.AUTOMATIC)
    write_attributes(db, 1, 1, was='{"policy.security":"ask"}', now="{}")
    take(db, said(ConsentAnswer.OPT_OUT))
    with pytest.raises(ConflictError):
        answers.require_notes(db, ADMIN, release(), NOW)
