"""The owner's page of a real daemon, over plain HTTP and in a real browser; and the hooks beside it."""

import http.client
import re
import stat
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect, sync_playwright
from support.agent_device import Device, until
from support.databases import fresh_database
from support.server_world import World

from firmament.agent.page import MAX_WRONG, OneTimeCode
from firmament.agent.page_text import WORDS
from firmament.core.clock import FixedClock
from firmament.core.manifest import UpdateClass

HOOKS = Path(__file__).parents[2] / "examples/hooks"
NOTES = {"en": "Fixes <b>readings</b> & more.", "de": "Werte stimmen."}
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory, database_kind):
    made = World(tmp_path_factory.mktemp("world"), database=fresh_database(database_kind)).begin()
    made.number = 1
    yield made
    made.close()


@pytest.fixture
def offered(tmp_path, world):
    """A device with a page, hooks, and a security update that waits for its owner."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "on_offer").write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$FIRMAMENT_PAGE_CODE" "$FIRMAMENT_TEXT" > {tmp_path}/shown\n'
    )
    (hooks / "on_offer").chmod(0o755)
    device = Device(
        tmp_path, world, policy='mode = "ask"',
        extra=f'[page]\nlisten = "127.0.0.1:0"\n[owner]\nlanguage = "en"\n[hooks]\ndirectory = "{hooks}"\n',
    ).provision()  # fmt: skip
    world.number += 1
    device.version = f"1.{world.number}"
    world.publish_release(
        "thermo", device.version, world.number, b"x" * 100_000, notes=NOTES, update_class=UpdateClass.SECURITY
    )
    world.assign(device, f"thermo/{device.version}")
    with device.daemon():
        until(lambda: device.run("status").get("state") == "waiting")
        until((tmp_path / "shown").exists)
        yield device


def page_of(device):
    return device.run("page", code=0)


def ask(url, method="GET", path="/", body=None, **headers):
    host, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    sent = {"Host": f"{host}:{port}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if body is not None:
        sent |= {"Content-Type": "application/x-www-form-urlencoded"}
    connection.request(method, path, body=body, headers=sent)
    answer = connection.getresponse()
    answer.text = answer.read().decode()
    connection.close()
    return answer


def say(device, action, code=None, **headers):
    found = page_of(device)
    body = urlencode({"action": action, "code": found["code"] if code is None else code})
    answer = ask(found["url"], "POST", "/answer", body, **headers)
    return answer.getheader("Location", ""), answer.status


def test_the_page_shows_the_offer_and_no_script_can_run(offered):
    answer = ask(page_of(offered)["url"])
    assert answer.status == 200
    for name, value in SECURITY_HEADERS.items():
        assert answer.getheader(name) == value
    assert f"Update to {offered.version}?" in answer.text
    assert "Fixes &lt;b&gt;readings&lt;/b&gt; &amp; more." in answer.text
    assert "<script" not in answer.text
    assert "style=" not in answer.text
    assert page_of(offered)["code"] not in answer.text, "the code is on the device, not on the page"


def test_an_answer_needs_the_code_of_the_device_and_uses_it_up(offered):
    assert say(offered, "now", code="000000")[0] in {"/?said=wrong-code", "/?said=locked"}
    assert offered.run("status")["consent"]["answer"] is None
    code = page_of(offered)["code"]
    assert say(offered, "later")[0] == "/?said=said"
    assert page_of(offered)["code"] != code
    assert say(offered, "now", code=code)[0] == "/?said=wrong-code"
    assert offered.run("status")["consent"]["answer"] == "later"
    assert say(offered, "tonight")[0] == "/?said=said"
    assert say(offered, "withdraw")[0] == "/?said=said"
    assert say(offered, "opt-out")[0] == "/?said=said"
    assert offered.run("status")["consent"]["opted_out"]
    assert say(offered, "opt-in")[0] == "/?said=said"
    assert say(offered, "now") == ("/?said=said", 303)
    assert until(lambda: offered.run("status")["attempt"]["consent"])["answer"] == "now"


def test_the_hook_was_given_text_and_code_for_a_display(offered):
    code, *text = (offered.directory / "shown").read_text().splitlines()
    assert re.fullmatch(r"\d{6}", code)
    assert text[0] == f"Update to {offered.version}?"
    assert say(offered, "skip", code=code)[0] == "/?said=said"
    assert offered.run("history")["attempts"][-1]["status"] == "declined"


def test_another_site_can_answer_nothing_even_with_the_code(offered):
    for headers, status in (
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1:1"}, 421),
    ):
        assert say(offered, "now", **headers)[1] == status
    assert offered.run("status")["consent"]["answer"] is None


def test_nonsense_is_refused(offered):
    url = page_of(offered)["url"]
    assert ask(url, path="/etc/passwd").status == 404
    assert ask(url, "POST", "/", "x=1").status == 400
    assert ask(url, "POST", "/answer", "x" * 5000).status == 400
    assert ask(url, "PUT", "/", "x").status == 501
    assert ask(url, "GET", "/?said=%3Cscript%3E").text.count("message") == ask(url).text.count("message")
    assert say(offered, "explode")[0] == "/?said=refused"
    assert offered.run("status")["state"] == "waiting"


def test_guessing_is_locked_out_for_longer_and_longer():
    clock = FixedClock(datetime(2026, 11, 20, tzinfo=UTC))
    code = OneTimeCode(clock)
    for lock_s in (60, 120, 240):
        before = code.value
        wrong = "000000" if before != "000000" else "000001"
        assert [code.use(wrong) for _ in range(MAX_WRONG)] == ["wrong-code"] * (MAX_WRONG - 1) + ["locked"]
        clock.advance(lock_s - 1)
        assert code.use(code.value) == "locked"
        clock.advance(1)
    assert code.use(code.value) == ""


def test_every_language_has_every_word():
    assert {frozenset(found) for found in WORDS.values()} == {frozenset(WORDS["en"])}


def test_in_a_browser_enter_answers_nothing_and_the_console_stays_clean(offered):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium-headless-shell",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 390, "height": 844})
        messages = []
        page.on("console", lambda message: messages.append(message.text))
        page.goto(page_of(offered)["url"])
        expect(page.get_by_role("heading", name=f"Update to {offered.version}?")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        field = page.get_by_label("Code shown on the device").first
        field.fill(page_of(offered)["code"])
        field.press("Enter")
        assert offered.run("status")["consent"]["answer"] is None
        page.get_by_role("button", name="Ask me later").click()
        expect(page.get_by_role("status")).to_have_text("Your answer was taken.")
        assert messages == []
        browser.close()
    assert offered.run("status")["consent"]["answer"] == "later"


# --- the example hooks ---------------------------------------------------------------------


@pytest.mark.parametrize("event", ["on_offer", "on_progress", "on_restart_in", "on_done", "on_failed"])
def test_the_lamp_and_the_display_work_for_every_event(tmp_path, event):
    environment = {
        "PATH": "/usr/bin:/bin", "FIRMAMENT_EVENT": event, "FIRMAMENT_RELEASE": "thermo/1.1; rm -rf /", "FIRMAMENT_PERCENT": "42",
        "FIRMAMENT_MESSAGE": "$(reboot)", "FIRMAMENT_PAGE_CODE": "123456", "LED": str(tmp_path), "LCD": str(tmp_path / "lcd"),
    }  # fmt: skip
    for hook in ("led", "lcd"):
        subprocess.run([HOOKS / hook], env=environment, check=True, timeout=10)
    assert (tmp_path / "trigger").read_text() in {"timer", "none"}
    lines = (tmp_path / "lcd").read_text().splitlines()
    assert [len(line) for line in lines] == [16, 16]
    if event == "on_offer":
        assert lines[1].strip() == "Code 123456"


def test_the_desktop_message(tmp_path):
    record = tmp_path / "notify"
    record.write_text(f'#!/bin/sh\nprintf "%s|" "$@" > {tmp_path}/said\n')
    record.chmod(0o755)
    runuser = tmp_path / "runuser"
    runuser.write_text('#!/bin/sh\nshift 3\nexec "$@"\n')
    runuser.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "FIRMAMENT_EVENT": "on_failed", "FIRMAMENT_RELEASE": "thermo/1.1",
        "FIRMAMENT_MESSAGE": "no health", "DESKTOP_USER": "root", "NOTIFY_SEND": str(record),
    }  # fmt: skip
    subprocess.run([HOOKS / "desktop"], env=environment, check=True, timeout=10)
    assert (tmp_path / "said").read_text() == "Update|The update failed; the device runs as before. no health|"


def test_every_example_would_be_run_by_the_agent():
    for hook in HOOKS.iterdir():
        mode = hook.stat().st_mode
        assert mode & stat.S_IXUSR
        assert not mode & (stat.S_IWGRP | stat.S_IWOTH)
