"""3. A hundred thousand devices: pages stay quick, and the browser never gets more than a hundred rows.

Three things are held, none of which a busy machine can change for long: the steps that SQLite takes for a page (counted
in the real server, support/counted), its statements, and the rows in the page. The promise itself, 300 ms of the
server's time, is held on the processor's clock, where the best of a few counts.
"""

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect
from support.databases import fresh_database
from support.many_devices import fill
from support.server_world import World

from .addresses import ADDRESSES
from .conftest import COOKIE, MANY_LOGINS

COUNTED = Path(__file__).parents[1] / "support/counted"
DEVICES = 100_000
BUDGET_S = 0.3
"""The promise: of the server's time on a processor, which does not grow when the machine is busy."""
TRIES = 8
# The best counts: the first may count what is then kept for some seconds, and a shared core is a slower one.
STEPS = 6_000_000
"""Of SQLite's machine, for one page: 60 for each device. 100 to 160 ms where a core was shared with three others."""
STATEMENTS = 40
ROWS = 100
PLAN = "/rollouts/new?release=thermo%2F2.14.0"
PLAN_STEPS = 8_000_000
"""A plan looks at every device five times: who, who not by which rule, what they run, whom to ask."""
PAGES = (
    "/devices",
    "/devices?size=100",
    "/devices?q=TH-09",
    "/devices?q=TH-099999",
    "/devices?q=nothing-like-it",
    "/devices?version=2.9.3",
    "/devices?product=thermo&version=2.14.0",
    "/devices?q=tag%3Dbeta",
    "/devices?q=site%3Dporto-03+and+seen%3C2h",
    "/devices?q=hardware%3Drev-c+and+not+tag%3Dbeta",
    "/devices?preset=silent",
    "/devices?preset=attention",
    "/devices?group=field",
    "/",
    "/devices?preset=pinned",
    "/releases",
    "/releases/thermo/2.14.0",
    *sorted(route for route in ADDRESSES if "{" not in route and route not in {"/", "/devices", "/releases"}),
)


pytestmark = pytest.mark.one_database("sqlite", because="it counts the steps of SQLite, the same on every machine")


@pytest.fixture(scope="module")
def big(tmp_path_factory, database_kind):
    directory = tmp_path_factory.mktemp("big")
    counted = {"PYTHONPATH": str(COUNTED), "COUNTED_SQL": str(directory / "sql")}
    made = World(directory / "world", env={**MANY_LOGINS, **counted}, database=fresh_database(database_kind)).begin()
    made.publish_release("thermo", "2.14.0", 6, b"x" * 1000)
    made.publish_release("pump", "2.14.0", 6, b"x" * 1000)
    made.server.stop()
    fill(made.server.directory, DEVICES)
    made.server.start()
    assert made.admin.ask("PUT", "/api/v1/groups/field", {"query": "site=porto-03"}).status == 204
    made.counted = (directory / "sql").open()
    yield made
    made.counted.close()
    made.close()


def ask(world, path):
    headers = {"cookie": f"{COOKIE}={world.admin.token}"}
    answer = world.client("").ask("GET", path, headers=headers)
    assert answer.status == 200, (path, answer.status)
    return answer.body.decode()


def rows(html):
    inside = html.partition("<main")[2].partition("</main>")[0]
    return max(len(re.findall(r"<tr\b", inside)) - inside.count("<thead>"), len(re.findall(r"<li\b", inside)))


def used_s(world):
    """What the server process has used of the processors so far."""
    fields = Path(f"/proc/{world.server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def costs(world, path):
    """What a page costs: its rows, SQLite's steps, statements, the processor's time. The server's own loops add to it."""
    world.counted.read()
    began_s = used_s(world)
    html = ask(world, path)
    took_s = used_s(world) - began_s
    lines = world.counted.read().splitlines()
    steps = lines.count("+")
    return rows(html), 1000 * steps, len(lines) - steps, took_s


@pytest.mark.parametrize("path", PAGES)
def test_3_a_page_takes_less_than_its_budget_and_has_few_rows(big, path):
    tried = []
    for _ in range(TRIES):
        tried.append(costs(big, path))
        shown, *least = map(min, zip(*tried, strict=True))
        if least[0] <= STEPS and least[1] <= STATEMENTS and least[2] < BUDGET_S:
            break
    assert shown <= ROWS
    assert least[0] <= STEPS
    assert least[1] <= STATEMENTS
    assert least[2] < BUDGET_S


def test_3_a_plan_for_all_of_them_looks_at_each_a_few_times(big):
    shown, steps, statements, _ = min((costs(big, PLAN) for _ in range(2)), key=lambda found: found[1])
    assert shown <= ROWS
    assert steps <= PLAN_STEPS
    assert statements <= STATEMENTS


def test_3_groups_do_not_make_the_list_dearer(big):
    """Each is a query over the fleet; the list of devices only names them."""
    _, steps, _, _ = costs(big, "/devices")
    for number in range(8):
        assert big.admin.ask("PUT", f"/api/v1/groups/g{number}", {"query": "site=oslo-07"}).status == 204
    assert costs(big, "/devices")[1] < steps + 100_000


def test_3_the_last_page_is_as_quick_as_the_first(big):
    page = "/devices?size=100"
    html = ask(big, page)
    for _ in range(3):
        following = re.search(r'id="next"[^>]*href="([^"]+)"', html)[1].replace("&amp;", "&")
        html = ask(big, following)
    last = big.server.rows("SELECT MAX(id) AS id FROM device")[0]["id"]
    began_s = used_s(big)
    html = ask(big, f"/devices?size=100&cursor={last - 50}")
    assert rows(html) == 50
    assert used_s(big) - began_s < BUDGET_S


def test_3_a_device_of_many_is_found_and_shown(big, browser):
    context = browser.new_context(ignore_https_errors=True)
    context.add_cookies([{"name": COOKIE, "value": big.admin.token, "url": big.server.url, "secure": True}])
    page = context.new_page()
    page.goto(big.server.url + "/devices")
    expect(page.get_by_text("10 000+").first).to_be_visible()
    page.get_by_role("searchbox").fill("TH-099999")
    expect(page.locator("#match")).to_have_text("1 match")
    page.locator("tbody a").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("TH-099999")
    context.close()


def test_3_one_device_is_as_quick_and_the_versions_of_thirty_days_are_drawn(big, browser):
    device = big.server.rows("SELECT uid FROM device ORDER BY id DESC LIMIT 1")[0]["uid"]
    for path in (f"/devices/{device}", f"/devices/{device}/why"):
        began_s = used_s(big)
        ask(big, path)
        assert used_s(big) - began_s < BUDGET_S
    html = ask(big, "/")
    assert "Devices by version, day by day" in html
    chart = html[html.index('id="r-history"') :]
    assert f"{DEVICES // 1000}k" in chart  # the scale
    assert "thermo 2.13.4" in chart
    assert (
        len(re.findall(r"<tr>", chart.partition('id="history-table"')[2].partition("</table>")[0])) == 1 + 30
    )  # day by day, beside the chart


def test_3_an_export_is_streamed_page_by_page(big):
    html = ask(big, "/devices.csv?q=version%3D2.14.0+and+tag%3Dbeta")
    lines = html.strip().split("\r\n")
    assert lines[0].startswith("device_id,serial,product")
    assert (
        len(lines) - 1
        == big.server.rows(
            "SELECT COUNT(*) AS n FROM device d JOIN device_tag t ON t.device_id = d.id WHERE d.version = '2.14.0'"
        )[0]["n"]
    )
