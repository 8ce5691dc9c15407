"""Consent, windows, preconditions, polling: every "not now" has a reason, and none is a failure."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from zoneinfo import ZoneInfo

import pytest

from firmament.agent.policy import (
    FIRST_BACKOFF_S,
    MAX_BACKOFF_S,
    MAX_POLL_INTERVAL_S,
    MIN_POLL_INTERVAL_S,
    Answer,
    Consent,
    Found,
    Metered,
    Policy,
    Step,
    Surroundings,
    backoff_s,
    decide,
    next_poll_s,
    time_zone,
)
from firmament.core.consent import Mode, Window
from firmament.core.fields import Fields
from firmament.core.manifest import Preconditions, UpdateClass
from firmament.errors import (
    MalformedError,
    OutsideWindowError,
    PreconditionError,
    SettingError,
    WaitingForConsentError,
)
from firmament.sim.disk import SimDisk

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")
NIGHT = Window.parse("02:00-04:00")
FINE = Found(free_bytes=10**9, battery_percent=100, mains_power=True, unmetered_link=True)


def verdict(policy=None, *, step=Step.FETCH, consent=None, now=NOON, found=FINE, wanted=None, kind=UpdateClass.FEATURE):
    return decide(
        policy or Policy(),
        step=step,
        update_class=kind,
        preconditions=wanted or Preconditions(),
        consent=consent,
        found=found,
        now=now,
    )


def test_automatic_goes_at_once():
    assert verdict().is_met


@pytest.mark.parametrize("mode", [Mode.ASK, Mode.MANUAL])
def test_ask_and_manual_wait_until_somebody_says_so(mode):
    policy = Policy(feature=mode)
    found = verdict(policy)
    assert isinstance(found.error, WaitingForConsentError)
    assert found.again_at is None
    assert verdict(policy, consent=Consent(Answer.NOW, NOON)).is_met


def test_the_rule_follows_the_class():
    policy = Policy(security=Mode.AUTOMATIC, feature=Mode.ASK)
    assert verdict(policy, kind=UpdateClass.SECURITY).is_met
    assert not verdict(policy, kind=UpdateClass.FEATURE).is_met


def test_later_is_respected_for_a_day_and_then_the_owner_is_asked_again():
    policy = Policy(feature=Mode.ASK)
    later = Consent(Answer.LATER, NOON)
    early = verdict(policy, consent=later, now=NOON + timedelta(hours=23))
    assert early.again_at == NOON + timedelta(hours=24)
    after = verdict(policy, consent=later, now=NOON + timedelta(hours=25))
    assert isinstance(after.error, WaitingForConsentError)
    assert after.again_at is None
    assert verdict(Policy(), consent=later, now=NOON + timedelta(hours=25)).is_met


def test_a_closed_window_tells_when_it_opens_and_now_overrides_it():
    policy = Policy(feature=Mode.WINDOW, window=NIGHT)
    found = verdict(policy)
    assert isinstance(found.error, OutsideWindowError)
    assert found.again_at == datetime(2026, 11, 21, 2, tzinfo=UTC)
    assert verdict(policy, now=found.again_at).is_met
    assert not verdict(policy, now=datetime(2026, 11, 21, 4, tzinfo=UTC)).is_met
    assert verdict(policy, consent=Consent(Answer.NOW, NOON)).is_met


def test_a_download_may_begin_early_but_never_the_restart():
    policy = Policy(feature=Mode.WINDOW, window=NIGHT, fetches_outside_window=True)
    assert verdict(policy, step=Step.FETCH).is_met
    assert not verdict(policy, step=Step.RESTART).is_met


def test_tonight_means_the_window_or_the_small_hours():
    tonight = Consent(Answer.TONIGHT, NOON)
    assert verdict(Policy(feature=Mode.ASK), consent=tonight).again_at == datetime(2026, 11, 21, 2, tzinfo=UTC)
    late = Policy(feature=Mode.ASK, window=Window.parse("22:30-23:00"))
    assert verdict(late, consent=tonight).again_at == datetime(2026, 11, 20, 22, 30, tzinfo=UTC)
    assert verdict(late, consent=tonight, now=datetime(2026, 11, 20, 22, 45, tzinfo=UTC)).is_met


def test_a_window_may_pass_midnight():
    window = Window.parse("22:00-04:00")
    assert window.is_open(datetime(2026, 1, 1, 23, tzinfo=UTC), UTC)
    assert window.is_open(datetime(2026, 1, 1, 3, 59, tzinfo=UTC), UTC)
    assert not window.is_open(datetime(2026, 1, 1, 4, tzinfo=UTC), UTC)
    assert str(window) == "22:00-04:00"


def test_windows_follow_the_wall_clock_across_daylight_saving_time():
    """29 March 2026, 02:00 becomes 03:00 in Berlin; 25 October, 03:00 becomes 02:00."""
    gap = Window.parse("02:00-03:00")
    before = datetime(2026, 3, 28, 12, tzinfo=UTC)
    assert gap.opens_at(before, BERLIN) == datetime(2026, 3, 30, 0, tzinfo=UTC), "skipped on the day of the gap"
    longer = Window.parse("02:30-04:00")
    assert longer.opens_at(before, BERLIN) == datetime(2026, 3, 29, 1, tzinfo=UTC), "opens when the gap is over"
    twice = [datetime(2026, 10, 25, hour, 30, tzinfo=UTC) for hour in (0, 1)]
    assert [gap.is_open(moment, BERLIN) for moment in twice] == [True, True]
    assert [moment.astimezone(BERLIN).hour for moment in twice] == [2, 2]
    summer = datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert gap.opens_at(summer, BERLIN) == datetime(2026, 7, 2, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("wanted", "found", "word"),
    [
        (Preconditions(free_bytes=2), Found(1, 100, True, True), "space"),
        (Preconditions(battery_percent=30), Found(9, 29, True, True), "battery"),
        (Preconditions(battery_percent=30), Found(9, None, True, True), "battery"),
        (Preconditions(mains_power=True), Found(9, 100, False, True), "mains"),
        (Preconditions(unmetered_link=True), Found(9, 100, True, False), "metered"),
    ],
)
def test_preconditions_wait(wanted, found, word):
    missing = verdict(wanted=wanted, found=found)
    assert isinstance(missing.error, PreconditionError)
    assert word in missing.error.problem
    assert verdict(wanted=wanted, found=FINE).is_met


@pytest.mark.parametrize("rule", Metered)
@pytest.mark.parametrize("update_class", UpdateClass)
@pytest.mark.parametrize("step", Step)
@pytest.mark.parametrize("is_metered", [True, False])
def test_the_owner_says_what_may_travel_over_a_metered_link(rule, update_class, step, is_metered):
    found = Found(9, 100, True, not is_metered)
    may = (
        step is Step.RESTART
        or not is_metered
        or {Metered.ANY: True, Metered.SECURITY: update_class is UpdateClass.SECURITY, Metered.NONE: False}[rule]
    )
    policy = Policy(metered=rule)
    # "now" is consent to the update, not to what the link costs.
    for consent in (None, Consent(Answer.NOW, NOON)):
        assert verdict(policy, found=found, kind=update_class, step=step, consent=consent).is_met is may


def test_the_owners_own_minimum_counts_too_and_now_does_not_override_it():
    policy = Policy(min_battery_percent=50)
    low = Found(9, 40, True, True)
    assert not verdict(policy, found=low, consent=Consent(Answer.NOW, NOON)).is_met


def test_space_and_link_matter_for_the_download_only():
    wanted = Preconditions(free_bytes=100, unmetered_link=True)
    assert verdict(wanted=wanted, found=Found(1, 100, True, False), step=Step.RESTART).is_met


BATTERY, POWER, METERED = Path("/sys/battery"), Path("/sys/ac"), Path("/run/metered")


def look(**files):
    disk = SimDisk(capacity_bytes=5000)
    for path, text in files.items():
        disk.put({"battery": BATTERY, "power": POWER, "metered": METERED}[path], text)
    policy = Policy(battery_file=BATTERY, power_file=POWER, metered_file=METERED)
    return Surroundings(disk, policy, storage=Path("/")).look()


def test_surroundings_read_files_in_the_manner_of_sysfs():
    found = look(battery=b"87\n", power=b"1\n", metered=b"0\n")
    assert found == Found(free_bytes=5000 - 7, battery_percent=87, mains_power=True, unmetered_link=True)
    assert not look(battery=b"87\n", power=b"0\n", metered=b"1\n").mains_power


@pytest.mark.parametrize("rubbish", [b"", b"lots", b"9999999", b"\xff", b"1" * 5000])
def test_what_cannot_be_read_is_not_met(rubbish):
    found = look(battery=rubbish, power=rubbish, metered=rubbish)
    assert (found.battery_percent, found.mains_power, found.unmetered_link) == (None, False, False)
    assert look().battery_percent is None


def test_what_is_not_configured_is_not_a_condition():
    found = Surroundings(SimDisk(), Policy(), storage=Path("/")).look()
    assert (found.battery_percent, found.mains_power, found.unmetered_link) == (100, True, True)


def test_polls_keep_to_our_bounds_whatever_the_server_wishes():
    chance = Random(1)
    policy = Policy(poll_interval_s=600)
    assert 540 <= next_poll_s(policy, 0, chance) <= 660
    assert 270 <= next_poll_s(policy, 300, chance) <= 330
    assert next_poll_s(policy, 1, chance) >= MIN_POLL_INTERVAL_S * 0.9
    assert next_poll_s(policy, 10**9, chance) <= MAX_POLL_INTERVAL_S * 1.1
    assert len({next_poll_s(policy, 0, chance) for _ in range(10)}) == 10


def test_backoff_grows_to_a_bound_and_is_never_no_wait():
    chance = Random(1)
    for failures in (1, 2, 5, 20, 10_000):
        for _ in range(50):
            assert FIRST_BACKOFF_S / 2 <= backoff_s(failures, chance) <= MAX_BACKOFF_S
    assert max(backoff_s(1, chance) for _ in range(100)) <= FIRST_BACKOFF_S


def read(**values):
    return Policy.from_fields(Fields(values, what="policy"))


def test_settings():
    policy = read(mode="ask", security="automatic", window="02:00-04:00", timezone="Europe/Berlin", poll_interval_s=60)
    assert (policy.security, policy.feature) == (Mode.AUTOMATIC, Mode.ASK)
    assert (policy.window, policy.zone, policy.poll_interval_s) == (NIGHT, BERLIN, 60)
    assert read(battery_file="/sys/b").battery_file == Path("/sys/b")
    assert read(timezone="UTC") == Policy(zone=ZoneInfo("UTC"))


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"mode": "window"}, SettingError),
        ({"window": "2-4"}, MalformedError),
        ({"window": "02:00-02:00"}, MalformedError),
        ({"window": "25:00-26:00"}, MalformedError),
        ({"timezone": "Mars/Olympus"}, SettingError),
        ({"timezone": "../../etc/passwd"}, SettingError),
        ({"mode": "sometimes"}, MalformedError),
        ({"poll_interval_s": 1}, MalformedError),
    ],
)
def test_settings_that_cannot_be_meant(values, error):
    with pytest.raises(error):
        read(**values)


def test_the_devices_own_zone(tmp_path):
    assert time_zone("", local_time=tmp_path / "missing") is UTC
    rubbish = tmp_path / "localtime"
    rubbish.write_bytes(b"rubbish")
    with pytest.raises(SettingError):
        time_zone("", local_time=rubbish)


def test_consent_survives_the_journal():
    consent = Consent(Answer.TONIGHT, NOON)
    assert Consent.from_fields(Fields(consent.to_json(), what="consent")) == consent
