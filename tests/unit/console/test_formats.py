"""Numbers, times and lengths as people read them."""

from datetime import UTC, datetime

import pytest

from firmament.console import charts, formats, guard, words
from firmament.console.views.keys import marks, months
from firmament.console.views.overview import badges, expiring, needs
from firmament.console.visit import Card, Me

NOW = datetime(2026, 11, 26, 3, 12, 8, tzinfo=UTC)
NOW_S = int(NOW.timestamp())


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (formats.number(95386), "95 386"),
        (formats.number(None), "\u2013"),
        (formats.short_number(100_000), "100k"),
        (formats.short_number(1_250_000), "1.2M"),
        (formats.short_number(4447), "4 447"),
        (formats.percent(0.0207), "2.1 %"),
        (formats.limit_percent(0.02), "2 %"),
        (formats.limit_percent(0.025), "2.5 %"),
        (formats.share(3, 10), "3 of 10"),
        (formats.share(30, 100), "30.0 %"),
        (formats.length(18_400_000), "18.4 MB"),
        (formats.length(999), "999 B"),
        (formats.length(2.6e12), "2.6 TB"),
        (formats.duration(147), "2 min 27 s"),
        (formats.duration(12_000), "3 h 20 min"),
        (formats.duration(1_000_000), "11 d"),
        (formats.ago(NOW_S - 12, NOW), "12 s ago"),
        (formats.ago(NOW_S + 86_400 * 24, NOW), "in 24 d"),
        (formats.ago(None, NOW), "never"),
        (formats.absolute(NOW_S), "26 Nov 2026, 03:12:08 UTC"),
        (formats.clock_time(NOW_S, NOW), "03:12:08"),
        (formats.clock_time(NOW_S - 86_400, NOW), "25 Nov 03:12"),
        (formats.plural(1, "device"), "1 device"),
        (formats.plural(4447, "device"), "4 447 devices"),
        (formats.short_digest("sha256:" + "ab" * 32), "abababab…ababab"),
    ],
)
def test_people_read(found, expected):
    assert found.replace(formats.NBSP, " ") == expected


def test_few_devices_are_counted_not_rated():
    assert formats.share(1, formats.FEW - 1) == "1 of 29"
    assert "%" in formats.share(1, formats.FEW)


def test_a_bar_never_overflows_and_shows_what_is_there():
    parts = charts.stacked([("ok", 99_990), ("bad", 1), ("run", 9)], 100_000)
    assert [part.key for part in parts] == ["ok", "bad", "run"]
    assert all(part.x + part.width <= 100.01 for part in parts)
    assert charts.stacked([("ok", 1)], 0) == ()
    assert min(part.width for part in charts.stacked([("bad", 1), ("ok", 5000)], 100_000)) >= 0.6


def test_a_line_has_its_limit_inside():
    line = charts.line([0.0, 0.01, 0.021], 0.02)
    assert charts.TOP <= line.limit_y <= charts.HEIGHT - charts.BOTTOM
    assert line.last_y < line.limit_y  # above the limit is higher up
    assert 2 <= len(line.ticks) <= 6
    assert charts.line([], 0.02) is None
    assert charts.line([0.5], 0.02).last_x == line.last_x  # a single value is the newest one


@pytest.mark.parametrize(
    "value", ["//evil.example", "/\\evil.example", "https://evil.example/", "javascript:x", "", "/a\nb"]
)
def test_a_way_back_stays_on_this_console(value):
    assert guard.local_path(value) == "/"
    assert guard.local_path("/rollouts/42?said=done") == "/rollouts/42?said=done"


def test_an_unknown_state_is_shown_by_its_name():
    assert words.look(words.ROLLOUT, "half-open").text == "Half open"
    assert words.look(words.ROLLOUT, "").text == "Unknown"


ME = Me("mara", "viewer", None, "1", frozenset({"read"}), {"stop": ("operator", "approver", "admin"), "x": ("admin",)})


def test_a_refusal_names_the_missing_role():
    assert ME.why_not("read") == ""
    assert ME.why_not("stop") == "Needs the role operator or approver; you are signed in as viewer."
    assert "the role admin" in ME.why_not("x")


def role(name="thermo", days=30, *, online=False):
    return {"repository": "image", "role": name, "expires_at": NOW_S + days * 86_400, "is_online": online}


def test_roles_that_end_are_said_in_time():
    roles = [role("a", 70), role("b", 13), role("c", -1), role("timestamp", 2, online=True)]
    assert [found["role"] for found in expiring(roles, NOW, 60 * 86_400)] == ["c", "b"]
    assert [mark.tone for mark in marks(roles, NOW)] == ["bad", "bad", "ok"]
    assert 11 <= len(months(NOW)) <= 12


def halted(**changes):
    return {
        "rollout_id": "42", "name": "thermo 2", "release": "thermo/2", "state": "halted", "total": 100,
        "created_by": "person:mara", "created_at": NOW_S, "counts": {"silent": 3},
        "halt": {"sentence": "Stopped in wave 3."}, **changes,
    }  # fmt: skip


class Everything:
    rollouts = Card([halted(), halted(state="awaiting-approval"), halted(state="running")])
    trust = Card({"roles": [role(days=3)]})
    devices = Card({"count": 100_000, "is_capped": False})


def test_what_needs_somebody_is_listed():
    found = needs(Everything, NOW)
    assert [need.label for need in found] == ["Decide", "Review", "See which", "What to do"]
    made = badges(Everything, NOW)
    assert made["/"] == 4
    assert made["/rollouts"] == 3
    assert "/" in made["alarms"]
    assert made["expiring"]["tone"] == "warn"


def test_one_part_that_failed_takes_nothing_else_with_it():
    class Broken(Everything):
        rollouts = Card(error=object())
        trust = Card(error=object())

    assert needs(Broken, NOW) == []
    assert badges(Broken, NOW)["/devices"] == "100k"
