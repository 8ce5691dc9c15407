"""The chart of versions over time: columns from counts, and where the bars stand."""

from firmament.console import charts
from firmament.console.views.overview import KINDS, over_time

DAY = 86_400
TODAY = 20_000 * DAY


def day(ago, **counts):
    versions = [{"product": "thermo", "version": name, "count": count} for name, count in counts.items()]
    return {"at": TODAY - ago * DAY, "total": sum(counts.values()), "versions": versions}


def test_versions_are_columns_the_most_frequent_today_first_and_the_rest_is_one():
    found = over_time([day(1, a=90, b=10), day(0, a=1, b=80, c=5, d=4, e=3, f=2, g=1)])
    assert found.names == ("thermo b", "thermo c", "thermo d", "thermo e", "thermo f")
    assert len(found.names) == KINDS
    assert found.rows == ((TODAY - DAY, (10, 0, 0, 0, 0, 90)), (TODAY, (80, 5, 4, 3, 2, 2)))
    assert found.chart.top == 100


def test_a_version_that_nobody_runs_any_more_comes_last():
    assert over_time([day(2, old=5), day(0, new=5)]).names == ("thermo new", "thermo old")


def test_no_day_is_no_chart():
    assert over_time([]).chart is None
    assert over_time([day(0)]).chart is None


def test_a_day_without_a_server_is_a_gap_and_today_is_at_the_right():
    chart = charts.days([(TODAY - 29 * DAY, [("v0", 50)]), (TODAY, [("v0", 100)])], TODAY, 30)
    first, last = chart.bars
    assert first.x < charts.LEFT + 3
    assert last.x + last.width > charts.WIDTH - charts.RIGHT - 3
    full, half = last.parts[0], first.parts[0]
    assert full[1] == charts.TOP
    assert half[2] == full[2] / 2
    assert [tick.value for tick in chart.ticks] == [0, 50, 100]


def test_what_is_older_than_the_scale_is_not_drawn():
    chart = charts.days([(TODAY - 40 * DAY, [("v0", 1)]), (TODAY, [("v0", 1)])], TODAY, 30)
    assert [bar.at for bar in chart.bars] == [TODAY]
