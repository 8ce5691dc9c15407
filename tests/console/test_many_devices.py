"""3. A hundred thousand devices: pages stay quick, and the browser never gets more than a hundred rows."""

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect
from support.many_devices import fill
from support.server_world import World

from .conftest import COOKIE, MANY_LOGINS

DEVICES = 100_000
BUDGET_S = 0.3
"""The promise: of the server's time on a processor, which does not grow when the machine is busy."""
TRIES = 8
# The best counts: the first may count what is then kept for some seconds, and a shared core is a slower one.
PAGES = (
    "/devices",
    "/devices?size=100",
    "/devices?q=TH-09",
    "/devices?q=TH-099999",
    "/devices?q=nothing-like-it",
    "/devices?version=2.9.3",
    "/devices?product=thermo&version=2.14.0",
    "/devices?q=tag%3Dpinned",
    "/devices?q=site%3Dporto-03+and+seen%3C2h",
    "/devices?q=hardware%3Drev-c+and+not+tag%3Dpinned",
    "/devices?preset=silent",
    "/devices?preset=attention",
    "/devices?group=field",
    "/",
    "/rollouts/new?release=thermo%2F2.14.0",
    "/releases",
    "/releases/thermo/2.14.0",
)


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("big"), env=MANY_LOGINS).begin()
    made.publish_release("thermo", "2.14.0", 6, b"x" * 1000)
    made.publish_release("pump", "2.14.0", 6, b"x" * 1000)
    made.server.stop()
    fill(made.server.directory, DEVICES)
    made.server.start()
    assert made.admin.ask("PUT", "/api/v1/groups/field", {"query": "site=porto-03"}).status == 204
    yield made
    made.close()


def ask(world, path):
    headers = {"cookie": f"{COOKIE}={world.admin.token}"}
    answer = world.client("").ask("GET", path, headers=headers)
    assert answer.status == 200, (path, answer.status)
    return answer.body.decode()


def rows(html):
    return len(re.findall(r"<tr>", html)) - len(re.findall(r"<thead>", html))


def used_s(world):
    """What the server process has used of the processors so far."""
    fields = Path(f"/proc/{world.server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("path", PAGES)
def test_3_a_page_takes_less_than_its_budget_and_has_few_rows(big, path):
    took = []
    for _ in range(TRIES):
        began_s = used_s(big)
        html = ask(big, path)
        took.append(used_s(big) - began_s)
        assert rows(html) <= 100
        if took[-1] < BUDGET_S:
            break
    assert min(took) < BUDGET_S, took


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
    html = ask(big, "/devices.csv?q=version%3D2.14.0+and+tag%3Dpinned")
    lines = html.strip().split("\r\n")
    assert lines[0].startswith("device_id,serial,product")
    assert (
        len(lines) - 1
        == big.server.rows(
            "SELECT COUNT(*) AS n FROM device d JOIN device_tag t ON t.device_id = d.id WHERE d.version = '2.14.0'"
        )[0]["n"]
    )
