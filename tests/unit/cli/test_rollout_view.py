"""Rollouts as text: what a halt means, in words and counts; and options read as people write them."""

import click
import pytest

from firmament.cli.rollout import read_waves, seconds
from firmament.cli.rollout_view import (
    BAR_WIDTH,
    action_lines,
    bar,
    consent_text,
    list_rows,
    number,
    plan_lines,
    rollout_lines,
)

COMMON = {"attribute": "hw", "value": "C", "share": 0.86, "lift": 2.1, "p": 0.0001, "failed": 50}
GATE = {"limit_ratio": 0.02, "min_finished": 200, "silence_floor_s": 3600, "health": True}


def wave(number_, name, state, size, finished, failed):
    ratio = failed / finished if finished >= 30 else None
    return {
        "number": number_, "name": name, "state": state, "size": size, "counts": {}, "finished": finished,
        "failed": failed, "failure_ratio": ratio, "opened_at": None, "closed_at": None, "hold_until": None,
    }  # fmt: skip


ROLLOUT = {
    "rollout_id": "42", "name": "Autumn", "release": "gateway-x2/2.14.0", "state": "halted", "state_since": 1_790_000_000,
    "state_reason": {"code": "stop/failure-rate", "message": "Stopped in wave 3", "facts": {}},
    "policy": {"gate": GATE},
    "waves": [
        wave(1, "canary", "done", 50, 50, 0), wave(2, "1 %", "done", 950, 950, 9),
        wave(3, "10 %", "halted", 9000, 3529, 73), wave(4, "everyone", "waiting", 90_000, 0, 0),
    ],
    "counts": {"waiting": 95_386, "in-flight": 85, "updated": 4447, "failed": 79, "silent": 3},
    "total": 100_000,
    "halt": {
        "at": 1_790_000_000, "wave": 3, "code": "stop/failure-rate", "sentence": "Stopped in wave 3: 2.1 % failed, the limit is 2 %. 95 386 not started, safe; 4 447 updated.",
        "failed": 73, "finished": 3529, "limit_ratio": 0.02, "min_finished": 200, "went_back_online": 70, "silent": 3,
        "not_started": 95_386, "in_flight": 85, "in_flight_done_by": 1_790_000_720, "updated": 4447, "common": COMMON,
        "next_actions": [], "acknowledged_by": None,
    },
}  # fmt: skip
REASONS = [
    {"code": "slot/health", "message": "Health", "count": 50, "share": 0.6, "common": COMMON, "sample": []},
    {"code": "transfer/slow", "message": "Slow \x1b[31m", "count": 9, "share": 0.1, "common": None, "sample": []},
]


def test_a_halt_says_how_bad_why_and_what_happens():
    text = "\n".join(rollout_lines(ROLLOUT, REASONS))
    for said in (
        "Rollout 42  gateway-x2/2.14.0  halted",
        "2.1 % failed, the limit is 2 %.",
        "95 386 not started, safe; 4 447 updated.",
        "The 85 in flight are done by 2026-09-21",
        "86 % are hw C",
        "If nobody acts, nothing more happens.",
        "Halts above 2 % failed, after at least 200 finished.",
        "3 529/9 000",
        "■ halted",
    ):
        assert said in text, text
    assert all(len(line) <= 110 for line in text.splitlines())


def test_colours_are_added_to_words_never_instead_of_them():
    painted = []
    rollout_lines(ROLLOUT, [], paint=lambda text, color: painted.append((text, color)) or text)
    assert ("halted", "red") in painted


@pytest.mark.parametrize(
    ("size", "finished", "failed", "expected"),
    [
        (0, 0, 0, "╌" * 24),
        (100, 100, 0, "━" * 24),
        (1000, 1000, 1, "━" * 23 + "x"),
        (9000, 3529, 73, "━" * 8 + "x" + "╌" * 15),
    ],
)
def test_a_failure_is_never_rounded_out_of_the_bar(size, finished, failed, expected):
    drawn = bar({"size": size, "finished": finished, "failed": failed})
    assert drawn == expected
    assert len(drawn) == BAR_WIDTH


def test_a_plan_is_the_table_of_the_console():
    plan = {
        "release": "gateway-x2/2.14.0", "matching": 55_556, "count": 55_012, "policy": {"gate": GATE},
        "excluded": [{"rule": "pinned", "count": 411, "sentence": "pinned", "hint": "", "sample": []}],
        "waves": [{"number": 1, "name": "canary", "count": 50}, {"number": 2, "name": "everyone", "count": 54_962}],
        "sources": [{"version": "2.13.4", "count": 55_012, "payload_bytes": 18_400_000, "is_delta": True}],
        "bytes_with_deltas": 1_100_000_000_000, "bytes_whole": 7_800_000_000_000,
        "consent": {"automatic": 51_610, "ask": 3402, "window": 0, "manual": 0},
        "blockers": [], "warnings": [{"code": "w", "message": "A key expires in 24 days.", "hint": "Renew it."}],
        "needs_approval": True,
    }  # fmt: skip
    text = "\n".join(plan_lines(plan))
    for said in ("55 012 would get it", "411 pinned", "canary (50)", "Blockers   none", "24 days. Renew it.", "18.4 MB each (delta)",
                 "a second person has to agree", "51 610 automatic, 3 402 ask their owner"):  # fmt: skip
        assert said in text, text
    assert consent_text({"automatic": 0}) == "none"


def test_an_action_says_what_it_needs():
    lines = action_lines(
        {
            "sentence": "4447 updated devices go back.", "count": 4447, "counts": {"slot": 4102, "none": 0},
            "needs_reason": True, "needs_second_person": True, "is_possible": False, "why_not": "It is over",
        }
    )  # fmt: skip
    assert lines == [
        "4447 updated devices go back.", "      4 102  slot", "It needs a reason: --reason TEXT.",
        "A second person has to agree.", "Not possible: It is over.",
    ]  # fmt: skip


def test_a_list_counts_those_that_did_not_call_back_as_failed():
    assert list_rows([ROLLOUT])[0][4:] == (4447, 82, 100_000)
    assert number(1_000_000) == "1 000 000"


def test_waves_as_people_write_them():
    assert read_waves("50, 1%, 2.5%, all") == [
        {"name": "canary", "count": 50},
        {"name": "1 %", "percent": 1},
        {"name": "2.5 %", "percent": "2.5"},
        {"name": "everyone", "percent": 100},
    ]
    assert read_waves("") == []
    with pytest.raises(click.BadParameter):
        read_waves("half")


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86_400)])
def test_times(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "h", "2 h", "-1m", "2w"])
def test_what_is_no_time(text):
    with pytest.raises(click.BadParameter):
        seconds(text)
