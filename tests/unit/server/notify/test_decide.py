"""When what goes out, and what it says."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmament.server.notify.decide import (
    Open,
    Rules,
    Severity,
    decide,
    expiry_news,
    expiry_step,
    is_quiet,
)
from firmament.server.notify.news import ROLLOUT_STATES, news_of
from firmament.server.rollouts.machine import RolloutState

RULES = Rules()
MIDNIGHT = int(datetime(2026, 11, 20, tzinfo=UTC).timestamp())
HALT = {
    "wave": 3,
    "failed": 73,
    "finished": 3529,
    "limit_ratio": "0.02",
    "silent": 3,
    "not_started": 95386,
    "in_flight": 85,
    "updated": 3456,
    "release": "gateway-x2/2.14.0",
}


def critical(**changes):
    return Open(**{"row_id": 1, "severity": Severity.CRITICAL, "title": "HALTED", "body": "b", "at": 0, **changes})


def news(**changes):
    return Open(**{"row_id": 2, "severity": Severity.INFO, "title": "done", "body": "b", "at": 0, **changes})


def test_critical_news_goes_at_once_also_at_night():
    quiet = Rules(quiet_from=0, quiet_until=24 * 60 - 1)
    assert [send.title for send in decide([critical()], 0, quiet)] == ["HALTED"]
    assert decide([news()], 600, quiet) == []


def test_other_news_waits_for_more_and_is_told_together():
    assert decide([news()], 29, RULES) == []
    sends = decide([news(), news(row_id=3, at=20, severity=Severity.WARNING, title="paused")], 30, RULES)
    assert [(send.ids, send.title, send.severity) for send in sends] == [((2, 3), "done and 1 more", Severity.WARNING)]


def test_repeats_say_still_and_for_how_long_until_somebody_acknowledges():
    told = critical(sent_at=0, escalated_at=900)
    assert decide([told], 7199, RULES) == []
    [send] = decide([told], 7200, RULES)
    assert (send.title, send.is_repeat) == ("still HALTED, 2 h", True)
    assert decide([critical(sent_at=7200, escalated_at=900)], 14399, RULES) == []
    assert decide([critical(sent_at=7200, escalated_at=900)], 14400, RULES)[0].title == "still HALTED, 4 h"
    assert decide([critical(sent_at=0, escalated_at=900, acknowledged_at=10)], 10**6, RULES) == []


def test_nobody_in_fifteen_minutes_is_an_escalation_once():
    assert decide([critical(sent_at=0)], 899, RULES) == []
    [send] = decide([critical(sent_at=0)], 900, RULES)
    assert (send.title, send.is_escalation) == ("not acknowledged: HALTED", True)
    assert decide([critical(sent_at=0, escalated_at=900)], 1000, RULES) == []
    assert decide([critical(sent_at=0, acknowledged_at=5)], 900, RULES) == []


@given(st.integers(0, 2**31), st.integers(0, 1439), st.integers(0, 1439))
def test_quiet_hours_may_cross_midnight_and_cover_exactly_their_minutes(now, begin, end):
    minute = now // 60 % 1440
    inside = minute in {(begin + offset) % 1440 for offset in range((end - begin) % 1440)}
    assert is_quiet(now, Rules(quiet_from=begin, quiet_until=end)) == inside


def test_quiet_hours_are_in_the_zone_that_was_named():
    """From ten in the evening in Lisbon: at nine UTC in summer, at ten in winter."""
    rules = Rules(quiet_from=22 * 60, quiet_until=6 * 60, zone=ZoneInfo("Europe/Lisbon"))
    for month, hour in ((7, 21), (1, 22)):
        begins = datetime(2026, month, 10, hour, tzinfo=UTC)
        at = [int((begins + timedelta(minutes=minutes)).timestamp()) for minutes in (-1, 0, 8 * 60 - 1, 8 * 60)]
        assert [is_quiet(moment, rules) for moment in at] == [False, True, True, False]


OPEN = st.builds(
    Open,
    row_id=st.integers(1, 99),
    severity=st.sampled_from(Severity),
    title=st.just("t"),
    body=st.just("b"),
    at=st.integers(0, 10**5),
    sent_at=st.none() | st.integers(0, 10**5),
    escalated_at=st.none() | st.integers(0, 10**5),
    acknowledged_at=st.none() | st.integers(0, 10**5),
)


@given(st.lists(OPEN, max_size=8, unique_by=lambda each: each.row_id), st.integers(0, 10**6))
def test_each_state_is_told_once_and_an_acknowledged_one_never_again(found, now):
    sends = decide(found, now, RULES)
    told = [row_id for send in sends if not send.is_escalation for row_id in send.ids]
    assert len(told) == len(set(told))
    by_id = {each.row_id: each for each in found}
    for send in sends:
        for row_id in send.ids:
            each = by_id[row_id]
            assert each.sent_at is None or (each.severity is Severity.CRITICAL and each.acknowledged_at is None)


@pytest.mark.parametrize(
    ("days", "step"),
    [(61, None), (60, 60), (31, 60), (30, 30), (8, 14), (7, 7), (3, 3), (2, 3), (1, 1), (0, 0), (-4, -4)],
)
def test_expiries_are_told_at_60_30_14_7_3_1_days_and_daily_after(days, step):
    assert expiry_step(days) == step


def test_an_expiry_says_what_happens_if_nobody_does_anything():
    told = expiry_news("role thermo", days_left=1, step=1, consequence="devices refuse.", link="https://x/keys", at=5)
    assert told.body == "role thermo expires in 1 day. If you do nothing: devices refuse. https://x/keys"
    assert told.severity is Severity.CRITICAL
    assert "has expired" in expiry_news("r", days_left=-1, step=-1, consequence="c", link="", at=0).title


def event(kind, subject="r-42", **facts):
    at = int((datetime(2026, 11, 20, 3, 12, tzinfo=UTC) + timedelta(seconds=8)).timestamp())
    return {"id": 7, "kind": kind, "at": at, "actor": "person:alice", "subject": subject, "facts": facts}


def test_a_stop_says_rate_limit_sample_groups_common_factor_actions_and_link():
    rollout = {
        "halt": {
            "common": {"attribute": "hardware", "value": "C", "share": 0.863},
            "went_back_online": 70,
            "in_flight_done_by": MIDNIGHT + 3 * 3600 + 24 * 60,
            "next_actions": [
                {"action": "revert", "sentence": "Brings 3 456 devices back.", "is_possible": True},
                {"action": "resume", "sentence": "Not now.", "is_possible": False},
            ],
        }
    }
    told = news_of(event("rollout.halted", **HALT), rollout, base_url="https://ota.example/")
    assert told.severity is Severity.CRITICAL
    assert told.subject == "rollout:r-42"
    assert told.body == (
        "HALTED rollout r-42 gateway-x2→2.14.0 at 03:12 UTC. Wave 3: 73/3529 failed (2.1 %, limit 2 %). "
        "86 % are hardware=C. 95 386 not started (safe). 85 in flight, done by 03:24 UTC. 3 456 updated. "
        "70 went back and are online. 3 not called back. "
        "Nothing more happens until you act: https://ota.example/rollouts/r-42"
        "\n\nYou can:\n- revert: Brings 3 456 devices back."
    )
    # Before the minimum sample: the numbers say why nobody waited for it.
    early = {**HALT, "code": "rollout/cannot-pass", "failed": 9, "finished": 59, "limit_ratio": "0.1", "possible": 84}
    assert (
        "Wave 3: 9 failed of 84, 8 may (limit 10 %): it cannot pass whatever the others do; 59 had finished. "
        in news_of(event("rollout.halted", **early), None, base_url="").body
    )
    # The event alone is enough when the rollout cannot be read any more.
    assert "73/3529 failed (2.1 %, limit 2 %)" in news_of(event("rollout.halted", **HALT), None, base_url="").body


@pytest.mark.parametrize("state", RolloutState)
def test_each_state_of_a_rollout_is_told_at_most_once(state):
    told = news_of(event("rollout.moved", state=state.value, was="draft", release="a/1"), None, base_url="https://x")
    assert (told is not None) == (state.value in ROLLOUT_STATES)
    if told is not None:
        assert told.body.startswith("rollout r-42 a/1 ")
        assert "https://x/rollouts/r-42" in told.body


def test_what_happens_to_one_device_is_never_news():
    for kind in ("attempt.moved", "device.enrolled", "report.refused"):
        assert news_of(event(kind), None, base_url="") is None
    assert news_of(event("rollout.moved", state="running", was="holding"), None, base_url="") is None


def test_a_broken_chain_is_news():
    told = news_of(event("audit.refused", code="trust/chain-broken", problem="It does not go on"), None, base_url="")
    assert (told.severity, told.subject) == (Severity.CRITICAL, "audit")
