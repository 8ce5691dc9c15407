"""The acceptance checks of the console about one rollout, numbered as in the design: each in a real browser."""

import re
import signal
import time

from playwright.sync_api import expect

from firmament.console.live import HEARTBEAT_S


def wait_for(holds, seconds=30):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_2_a_rollout_is_decided_without_javascript(halted, world, open_page):
    page = open_page(world.server.url, halted.path, java_script_enabled=False)
    page.get_by_role("link", name="Acknowledge").click()
    page.get_by_role("button", name="Acknowledge").click()
    expect(page.get_by_text("Acknowledged by admin")).to_be_visible()


def test_4_twelve_tabs_share_one_stream(halted, world, open_page):
    first = open_page(world.server.url, halted.path)
    pages = [first, *(first.context.new_page() for _ in range(11))]
    for page in pages[1:]:
        page.set_default_timeout(15_000)
        page.goto(world.server.url + halted.path, wait_until="domcontentloaded")
    for page in pages:
        expect(page.locator("#halt-title")).to_be_visible()
    assert pages[-1].evaluate("fetch('/keys').then(answer => answer.status)") == 200  # a socket is free


def test_4_numbers_are_labelled_when_the_server_dies_and_live_again_after(halted, world, open_page):
    page = open_page(world.server.url, halted.path, may_say=("ERR_", "Failed to load"))
    expect(page.locator(".head .live")).to_have_attribute("data-state", "live")
    page.wait_for_timeout(1500)
    world.server.stop(signal.SIGKILL)
    expect(page.locator("#stale")).to_be_visible(timeout=20_000)
    expect(page.locator("#stale-text")).to_contain_text(re.compile(r"No update for \d+ s"))
    expect(page.locator(".head .live")).to_have_attribute("data-state", "old")
    world.restart(signal.SIGKILL)
    expect(page.locator("#stale")).to_be_hidden(timeout=30_000)
    expect(page.locator(".head .live")).to_have_attribute("data-state", "live")


def test_4_a_stop_takes_seconds_while_people_watch(halted, world, open_page):
    page = open_page(world.server.url, halted.path, may_say=("ERR_", "Failed to load"))
    expect(page.locator("#halt-title")).to_be_visible()
    page.wait_for_timeout(1000)
    began = time.monotonic()
    assert world.restart() == 0
    assert time.monotonic() - began < 20


def test_5_the_halt_is_said_in_words_and_counts(halted, world, open_page):
    shown = halted.show()
    page = open_page(world.server.url, halted.path)
    alert = page.get_by_role("alert")
    expect(alert).to_have_count(1)  # a screen reader hears it once
    text = alert.inner_text().replace("\u00a0", " ")
    halt = shown["halt"]
    assert halt["sentence"].split(". ")[0].replace("\u00a0", " ") in text
    rule = {  # whichever of the two stopped it first
        "rollout/failures": ("the limit is 28 %", "counts from 36 devices on"),
        "rollout/cannot-pass": ("the limit of 28 % allows", "it cannot pass whatever the others do"),
    }[halt["code"]]
    for words in (
        f"{halt['failed']} of {halt['finished']}", *rule, "not started, safe",
        "in flight", "updated and healthy", "called back", "If nobody acts: nothing more happens", "rev-c",
    ):  # fmt: skip
        assert words in text
    first = page.locator("#r-halt").evaluate(
        "element => element.compareDocumentPosition(document.getElementById('r-acts')) & 4"
    )
    assert first  # before the buttons
    page.locator("#r-halt").evaluate("element => { window.kept = element.firstElementChild }")
    page.wait_for_timeout(int(HEARTBEAT_S * 1000) + 1500)
    assert page.evaluate("window.kept.isConnected")  # not said again with every beat


def test_7_no_button_without_its_consequence_and_none_destructive_has_the_focus(halted, world, open_page):
    page = open_page(world.server.url, halted.path)
    for name in ("resume", "revert", "abort"):
        page.locator(f"#b-{name}").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        expect(dialog.locator("p").first).not_to_be_empty()
        assert page.evaluate("document.activeElement.id") == "ask-keep"
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        expect(page.locator(f"#b-{name}")).to_be_focused()


def test_7_the_keyboard_alone_leads_from_the_overview_to_the_abort(halted, world, open_page):
    page = open_page(world.server.url, "/")
    page.locator("#need-1").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#halt-title")).to_be_visible()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "b-abort":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.get_by_role("button", name="Abort")).to_be_visible()
    page.keyboard.press("Enter")  # the harmless answer has the focus
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert halted.show()["state"] == "halted"


def test_7_a_refusal_names_the_missing_role(halted, world, open_page):
    page = open_page(world.server.url, halted.path, role="viewer")
    expect(page.locator("#b-abort")).to_have_attribute("aria-disabled", "true")
    expect(page.get_by_text(re.compile("Needs the role .*; you are signed in as viewer")).first).to_be_visible()


def test_7_devices_of_a_rollout_say_why(halted, world, open_page):
    page = open_page(world.server.url, halted.path + "/targets?status=failed")
    page.get_by_role("link", name=re.compile("Why not")).first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("PU-")
    expect(page.locator(".rules li").first).to_be_visible()


def test_a_rollout_is_planned_and_made_in_the_console(halted, world, open_page):
    page = open_page(world.server.url, "/rollouts/new?release=thermo%2F1.1")
    expect(page.locator("#plan")).to_contain_text("3 devices")
    page.get_by_label("Query").fill("hardware=none")
    expect(page.locator("#plan")).to_contain_text("0 devices")
    expect(page.locator("#b-create")).to_be_disabled()
    page.get_by_label("Query").fill("hardware=rpi4")
    expect(page.locator("#plan")).to_contain_text("3 devices")
    page.get_by_label("Name").fill("made by hand")
    page.locator("#b-create").click()
    expect(page.get_by_role("heading", name=re.compile("made by hand"))).to_be_visible()
    path = page.url.removeprefix(world.server.url)
    wait_for(lambda: "open" in [wave["state"] for wave in world.admin.ask("GET", f"/api/v1{path}").json["waves"]])
    page.reload()  # what is decided is decided on what the page shows: not while the server still deals the devices out
    page.locator("#b-abort").click()
    page.get_by_role("button", name="Abort").click()
    expect(page.get_by_text("Aborted").first).to_be_visible()


def test_what_was_decided_happens(halted, world, open_page):
    page = open_page(world.server.url, halted.path)
    page.locator("#b-revert").click()
    page.get_by_role("dialog").get_by_label("Reason").fill("revision C does not come up")
    page.get_by_role("dialog").get_by_role("button", name=re.compile("Go back")).click()
    expect(page.get_by_role("status").first).to_contain_text("Going back")
    halted.live_until("reverted")
    expect(page.locator("#r-head")).to_contain_text("Went back", timeout=15_000)  # without a reload
    events = world.admin.ask("GET", f"/api/v1/audit/events?newest=1&subject={halted.rollout_id}").json["events"]
    assert any("revision C does not come up" in str(event["facts"]) for event in events)


# The others have modules of their own: 1 test_demo.py, 2 test_pages.py, 3 test_many_devices.py, 6 and 9 test_consent.py,
# 10 test_pictures.py; 8 is about commands: tests/unit/cli, tests/contract.
