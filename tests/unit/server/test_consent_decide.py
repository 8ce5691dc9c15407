"""What consent means for an offer: every combination, and the promises to owners."""

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmament.core.consent import STRICTNESS, Mode, Window
from firmament.core.manifest import UpdateClass
from firmament.errors import MalformedError
from firmament.server.consent.decide import Standing, decide
from firmament.server.consent.model import Answers, Level, Rule, Ruling, Word

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SECURITY, FEATURE = UpdateClass.SECURITY, UpdateClass.FEATURE
NIGHT = Window.parse("02:00-04:00")


def ruling(mode, **changes):
    return Ruling(Rule(mode, NIGHT if mode is Mode.WINDOW else None), **changes)


def said(word, *, ago=timedelta(hours=1), **changes):
    return Answers(word, NOW - ago, first_asked_at=NOW - ago, **changes)


EVERYTHING = list(itertools.product(Mode, [None, *Word], [None, 1], UpdateClass, [False, True]))


@pytest.mark.parametrize(("mode", "word", "opted_out", "update_class", "is_writing"), EVERYTHING)
def test_every_combination_has_a_verdict_that_does_not_contradict_itself(
    mode, word, opted_out, update_class, is_writing
):
    verdict = decide(ruling(mode, opted_out_at=opted_out), update_class, said(word), NOW, is_writing=is_writing)
    assert verdict.sentence
    assert not verdict.sentence.endswith(".")
    if verdict.may_install:
        assert verdict.may_offer
        assert verdict.until is None
        assert verdict.standing in {Standing.NOT_NEEDED, Standing.AGREED}
    if is_writing:
        assert verdict.may_install
        return
    if word is Word.SKIP:
        assert (verdict.standing, verdict.may_offer) == (Standing.DECLINED, False)
    elif word in {Word.NOW, Word.TONIGHT}:
        assert verdict.standing is Standing.AGREED
    elif opted_out:
        assert (verdict.standing, verdict.may_offer, verdict.may_install) == (Standing.OPTED_OUT, True, False)
    elif word is Word.WITHDRAWN:
        assert not verdict.may_install
    elif mode in {Mode.ASK, Mode.MANUAL}:
        assert not verdict.may_install  # silence never means yes


def test_skipping_is_for_one_version_and_opting_out_for_all():
    assert decide(ruling(Mode.AUTOMATIC), SECURITY, Answers(), NOW).may_install
    assert not decide(ruling(Mode.AUTOMATIC, opted_out_at=1), SECURITY, Answers(), NOW).may_install
    # Whoever opted out can still say yes to one.
    assert decide(ruling(Mode.AUTOMATIC, opted_out_at=1), SECURITY, said(Word.NOW), NOW).may_install


@pytest.mark.parametrize("operator", Mode)
@pytest.mark.parametrize("owner", Mode)
def test_the_stricter_rule_holds_and_the_owners_where_they_are_equal(operator, owner):
    both = Ruling(Rule(operator, level=Level.TENANT), Rule(owner, level=Level.OWNER))
    assert STRICTNESS[both.holding.mode] == max(STRICTNESS[operator], STRICTNESS[owner])
    if operator is owner:
        assert both.holding.level is Level.OWNER
    assert Ruling(Rule(operator)).holding.mode is operator


def test_a_window_is_on_the_devices_own_clock():
    local = ruling(Mode.WINDOW, zone=ZoneInfo("Asia/Tokyo"))
    at_night = datetime(2026, 11, 20, 17, 30, tzinfo=UTC)  # 02:30 in Tokyo
    assert decide(local, FEATURE, Answers(), at_night).may_install
    closed = decide(local, FEATURE, Answers(), NOW)
    assert not closed.may_install
    assert closed.may_offer
    assert closed.until == datetime(2026, 11, 20, 17, tzinfo=UTC)


def test_tonight_waits_until_the_device_says():
    until = NOW + timedelta(hours=5)
    waiting = decide(ruling(Mode.ASK), FEATURE, said(Word.TONIGHT, until=until), NOW)
    assert (waiting.may_install, waiting.until) == (False, until)
    assert decide(ruling(Mode.ASK), FEATURE, said(Word.TONIGHT, until=until), until).may_install


def test_a_security_update_is_put_off_three_times_and_says_so_the_last_time():
    for times in (1, 2, 3):
        verdict = decide(ruling(Mode.ASK), SECURITY, said(Word.LATER, postponements=times), NOW)
        assert verdict.standing is Standing.POSTPONED
        assert verdict.is_last_postponement == (times == 3)
    assert "cannot be put off again" in verdict.sentence
    fourth = decide(ruling(Mode.ASK), SECURITY, said(Word.LATER, postponements=4), NOW)
    assert (fourth.standing, fourth.may_install) == (Standing.ASKED, False)
    assert decide(ruling(Mode.AUTOMATIC), SECURITY, said(Word.LATER, postponements=4), NOW).may_install
    assert decide(ruling(Mode.ASK), FEATURE, said(Word.LATER, postponements=40), NOW).standing is Standing.POSTPONED


def test_a_security_update_is_put_off_for_fourteen_days_at_most():
    far = NOW + 90 * DAY
    answers = Answers(Word.LATER, NOW, until=far, first_asked_at=NOW, postponements=1)
    verdict = decide(ruling(Mode.ASK), SECURITY, answers, NOW)
    assert (verdict.until, verdict.is_last_postponement) == (NOW + 14 * DAY, True)
    assert decide(ruling(Mode.ASK), SECURITY, answers, NOW + 14 * DAY).standing is Standing.ASKED
    assert decide(ruling(Mode.ASK), FEATURE, answers, NOW).until == far


def test_later_without_a_time_is_a_day():
    verdict = decide(ruling(Mode.ASK), FEATURE, said(Word.LATER, ago=timedelta(0), postponements=1), NOW)
    assert verdict.until == NOW + DAY
    assert decide(ruling(Mode.ASK), FEATURE, said(Word.LATER, ago=DAY, postponements=1), NOW).standing is Standing.ASKED


@given(
    mode=st.sampled_from(Mode),
    word=st.sampled_from([None, *Word]),
    times=st.integers(0, 5),
    until_s=st.none() | st.integers(-(10**6), 10**7),
    update_class=st.sampled_from(UpdateClass),
)
def test_a_postponed_security_update_never_waits_longer_than_its_limit(mode, word, times, until_s, update_class):
    until = None if until_s is None else NOW + timedelta(seconds=until_s)
    answers = Answers(word, NOW, until=until, first_asked_at=NOW, postponements=times)
    verdict = decide(ruling(mode), update_class, answers, NOW)
    if verdict.standing is Standing.POSTPONED and update_class is SECURITY:
        assert times <= 3
        assert verdict.until <= NOW + 14 * DAY
    if word not in {Word.NOW, Word.TONIGHT} and mode in {Mode.ASK, Mode.MANUAL}:
        assert not verdict.may_install


@pytest.mark.parametrize("text", ["", "02:00", "24:00-01:00", "02:00-02:00", "02:00-04:60", "2:00-4:00"])
def test_windows_that_are_none(text):
    with pytest.raises(MalformedError):
        Window.parse(text)


def test_a_window_may_pass_midnight_and_reads_what_it_writes():
    window = Window.parse("23:00-01:30")
    assert str(window) == "23:00-01:30"
    assert window.is_open(datetime(2026, 11, 20, 0, 30, tzinfo=UTC), UTC)
    assert not window.is_open(NOW, UTC)
