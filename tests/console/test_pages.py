"""Every page: whole, clean under its policy, within the rules of accessibility, on a phone, without JavaScript."""

import re
import time

import pytest
from playwright.sync_api import expect

from .addresses import ADDRESSES, WITHOUT_SIGNING_IN, forms, pages
from .conftest import violations

WITH_A_STEP_BEFORE = {"/settings/second-factor/confirm"}
"""Forms that a page shows only after another form was sent; each has a test of its own."""
WHERE_TO = "found => found.map(one => one.getAttribute('formaction') ?? one.getAttribute('action'))"


def test_every_page_of_the_table_of_routes_is_looked_at():
    assert set(ADDRESSES) | set(WITHOUT_SIGNING_IN) == pages()


@pytest.mark.one_database(
    "sqlite", because="how a page looks does not hang on the database; every page is opened on both below"
)
@pytest.mark.parametrize("route", sorted(ADDRESSES))
def test_2_every_page_is_clean_accessible_and_fits(world, open_page, places, route):
    page = open_page(world.server.url, goto=False)
    wrong = []
    is_one_question = route.endswith(("{change}", "{action}"))
    for number, address in enumerate(ADDRESSES[route]):
        path = address.format(**places)
        answer = page.goto(world.server.url + path, wait_until="load")
        assert (path, answer.status) == (path, 200)
        assert "require-trusted-types-for" in answer.headers["content-security-policy"]
        wrong += [f"{path}: {what}" for what in violations(page, is_like_another=is_one_question and number > 0)]
    assert wrong == []


@pytest.mark.one_database(
    "sqlite", because="how a page looks does not hang on the database; every page is opened on both below"
)
@pytest.mark.parametrize("route", sorted(WITHOUT_SIGNING_IN))
def test_2_pages_before_signing_in_are_clean_accessible_and_fit(world, open_page, route):
    page = open_page(world.server.url, role=None, goto=False)
    for path in WITHOUT_SIGNING_IN[route]:
        page.goto(world.server.url + path, wait_until="load")
        assert violations(page) == []


@pytest.mark.one_database(
    "sqlite", because="how a page looks does not hang on the database; every page is opened on both below"
)
def test_2_every_page_says_nothing_to_the_console_also_to_who_may_only_look(world, open_page, places):
    page = open_page(world.server.url, role="viewer", goto=False, may_say=("403", "404"))
    for addresses in ADDRESSES.values():
        path = addresses[0].format(**places)
        answer = page.goto(world.server.url + path, wait_until="load")
        assert answer.status in {200, 403, 404}, path  # a token or session of somebody else is not there
        expect(page.locator("h1").first).to_be_visible()


def test_2_every_page_works_without_javascript_and_every_form_has_a_page(world, open_page, places):
    page = open_page(world.server.url, java_script_enabled=False, goto=False)
    sent_to = set()
    for address in (one for addresses in ADDRESSES.values() for one in addresses):
        assert page.goto(world.server.url + address.format(**places), wait_until="domcontentloaded").status == 200
        expect(page.locator("h1").first).to_be_visible()
        sent_to |= set(page.locator("form[method=post], [formaction]").evaluate_all(WHERE_TO))
    takes = {view: re.compile(re.sub(r"\{\w+\}", "[^/]+", view)) for view in forms()}
    unknown = {action for action in sent_to if not any(path.fullmatch(action) for path in takes.values())}
    assert unknown == set()  # no button that leads nowhere
    unused = {view for view, path in takes.items() if not any(path.fullmatch(action) for action in sent_to)}
    assert unused == {"/login"} | WITH_A_STEP_BEFORE


def test_2_things_are_done_without_javascript(world, open_page):
    page = open_page(world.server.url, java_script_enabled=False, goto=False)
    page.goto(world.server.url + "/devices")
    page.get_by_role("searchbox").fill("hardware=rpi4")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#match")).to_have_text("3 match")
    page.goto(world.server.url + "/devices/" + world.devices[0].device_id)
    page.locator("#b-more").click()
    page.get_by_role("link", name="Refuse…").click()
    page.get_by_role("button", name="Refuse the device").click()
    expect(page.get_by_role("status").first).to_contain_text("refused from now on")
    page.locator("#b-more").click()
    page.get_by_role("link", name="Accept again…").click()
    page.get_by_role("button", name="Accept the device").click()


def test_what_is_not_there_says_so_with_a_request_id(world, open_page):
    page = open_page(world.server.url, "/nowhere", may_say=("404",))
    expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()
    assert page.goto(world.server.url + "/devices/00000000-0000-0000-0000-000000000000").status == 404
    request_id = page.locator("code").first.inner_text()
    assert request_id in world.server.log.read_text()


def test_what_a_role_may_not_do_stays_visible_with_the_reason(world, open_page):
    page = open_page(world.server.url, "/devices/" + world.devices[0].device_id, role="viewer")
    page.locator("#b-more").click()
    button = page.locator("#b-disable")
    expect(button).to_have_attribute("aria-disabled", "true")
    expect(page.get_by_text("Needs the role operator; you are signed in as viewer.").first).to_be_visible()


def test_a_query_that_cannot_be_read_shows_the_place(world, open_page):
    page = open_page(world.server.url, "/devices?q=" + "product%3Dthermo+and+colour%3Dred")
    expect(page.locator(".query-problem mark")).to_have_text("colour")
    expect(page.get_by_role("alert")).to_contain_text("Character 20")
    expect(page.get_by_role("alert")).to_contain_text("Expected")


def test_typing_filters_in_place_and_the_address_follows(world, open_page):
    page = open_page(world.server.url, "/devices")
    page.keyboard.press("/")
    page.keyboard.type("hardware=none")
    expect(page.get_by_text("No device matches")).to_be_visible()
    page.get_by_role("searchbox").fill("hardware=rpi4")
    expect(page.locator("#match")).to_have_text("3 match")
    assert "q=hardware%3Drpi4" in page.url


def test_the_theme_and_the_keys_are_kept_by_the_server(world, open_page):
    page = open_page(world.server.url, "/settings")
    page.get_by_role("button", name="Dark", exact=True).click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.get_by_role("button", name="Off", exact=True).click()
    page.goto(world.server.url + "/devices")
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).not_to_be_focused()


def test_keys_lead_through_the_console(world, open_page):
    page = open_page(world.server.url, "/")
    page.keyboard.press("g")
    page.keyboard.press("d")
    expect(page.get_by_role("heading", name="Devices", exact=True)).to_be_visible()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Attempts")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Control+k")
    page.keyboard.type("keys")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Keys & expiry")).to_be_visible()


def test_notes_of_a_release_are_text(world, open_page):
    page = open_page(world.server.url, "/releases/thermo/1.1")
    expect(page.get_by_text("Fixes <b>meter</b> readings.").first).to_be_visible()


def test_a_release_says_which_parts_changed(halted, world, open_page):
    page = open_page(world.server.url, "/releases/pump/2.0")
    expect(page.locator("#sbom-diff")).to_have_text("Since 1.0: 1 part added, 1 removed, 1 changed")
    page.get_by_text("Which ones").click()
    expect(page.get_by_role("row", name="zlib 1.2 1.3")).to_be_visible()


def test_each_card_fails_alone(world, open_page):
    world.server.change("ALTER TABLE version_day RENAME TO version_day_away")
    try:
        page = open_page(world.server.url, "/")
        card = page.locator("#r-history")
        expect(card).to_contain_text("The rest of this page is not affected")
        expect(card.get_by_role("link", name="Try again")).to_be_visible()
        expect(card.locator("code")).not_to_be_empty()
        expect(page.locator("#r-versions")).to_contain_text("thermo")
        assert violations(page) == []
    finally:
        world.server.change("ALTER TABLE version_day_away RENAME TO version_day")
    today = int(time.time()) // 86_400
    world.server.change(
        "INSERT INTO version_day(tenant_id, product_id, day, version, devices) VALUES (1, 1, ?, '1.0', 3) "
        "ON CONFLICT DO NOTHING", today,
    )  # fmt: skip
    page.reload(wait_until="load")
    expect(page.locator("#r-history svg")).to_be_visible()
    page.get_by_text("Every day").click()
    expect(page.locator("#history-table tbody tr")).to_have_count(1)  # today


def test_columns_are_chosen_and_views_come_and_go(world, open_page):
    page = open_page(world.server.url, "/devices")
    heads = page.locator("thead th")
    expect(heads).to_have_text(["Serial", "Product", "Site", "Version", "State", "Tags", "Seen"])
    page.get_by_text("Columns", exact=True).click()
    for name in ("Site", "State", "Tags"):
        page.get_by_label(name, exact=True).uncheck()
    page.get_by_label("Sequence").check()
    page.get_by_role("button", name="Show these").click()
    expect(heads).to_have_text(["Serial", "Product", "Version", "Sequence", "Seen"])
    page.get_by_role("searchbox").fill("product=thermo and hardware=rpi4")
    expect(page.locator("#match")).to_have_text("3 match")
    page.get_by_label("Name of the view").fill("thermos")
    page.get_by_role("button", name="Save view").click()
    expect(page.get_by_role("link", name="thermos")).to_be_visible()
    page.locator("#b-remove-view").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove the view").click()
    expect(page.get_by_role("status").first).to_contain_text("removed")
    expect(page.get_by_role("link", name="thermos")).to_have_count(0)


def test_a_device_is_kept_out_of_rollouts_with_a_reason(world, open_page):
    device = world.devices[2].device_id
    page = open_page(world.server.url, f"/devices/{device}")
    page.locator("#b-more").click()
    page.locator("#b-quarantine").click()
    page.get_by_role("dialog").get_by_label("Reason").fill("on the bench of Ines")
    page.get_by_role("dialog").get_by_role("button", name="Put into quarantine").click()
    expect(page.locator("#r-head")).to_contain_text("No rollout touches it: on the bench of Ines")
    page.goto(f"{world.server.url}/devices/{device}/why")
    expect(page.locator(".rules")).to_contain_text("in quarantine")
    page.goto(f"{world.server.url}/devices/{device}")
    page.locator("#b-more").click()
    page.locator("#b-release").click()
    page.get_by_role("dialog").get_by_role("button", name="Release it").click()
    expect(page.get_by_role("status").first).to_contain_text("out of quarantine")


@pytest.mark.parametrize(
    ("verb", "button", "shown", "listed"),
    [("pin", "Pin it", "It stays on", "Pinned"), ("mute", "Mute it", "Its alarms wake nobody", "Muted")],
)
def test_a_device_is_marked_with_a_reason(verb, button, shown, listed, world, open_page):
    device = world.devices[1].device_id
    page = open_page(world.server.url, f"/devices/{device}")
    page.locator("#b-more").click()
    page.locator(f"#b-{verb}").click()
    page.get_by_role("dialog").get_by_label("Reason").fill("audit of Ines")
    page.get_by_role("dialog").get_by_role("button", name=button).click()
    expect(page.locator("#r-head")).to_contain_text(shown)
    expect(page.locator("#r-head")).to_contain_text("audit of Ines")
    page.goto(f"{world.server.url}/devices?preset={listed.lower()}")
    expect(page.locator("#match")).to_have_text("1 match")
    page.goto(f"{world.server.url}/devices/{device}")
    page.locator("#b-more").click()
    page.locator(f"#b-un{verb}").click()
    page.get_by_role("dialog").get_by_role("button", name=f"Un{verb} it").click()
    expect(page.locator("#r-head")).not_to_contain_text("audit of Ines")


def test_a_failed_release_may_be_offered_again_when_somebody_says_so(places, world, open_page):
    page = open_page(world.server.url, f"/devices/{places['failed']}")
    page.locator("#b-retry").click()
    page.get_by_role("dialog").get_by_role("button", name="Forget the failures").click()
    expect(page.get_by_role("status").first).to_contain_text("may be offered to it again")
    expect(page.locator("#b-retry")).to_have_count(0)


def test_whom_to_tell_is_muted_told_again_and_removed(world, open_page):
    answer = world.admin.ask(
        "POST", "/api/v1/notifications/outlets", {"name": "night", "kind": "smtp", "target": "b@example.org"}
    )
    assert answer.status == 201, answer.body
    page = open_page(world.server.url, "/settings/notifications")
    row = page.get_by_role("row", name="night")
    row.get_by_role("link", name="Mute").click()
    page.get_by_role("dialog").get_by_label("For how long").select_option("8")
    page.get_by_role("dialog").get_by_role("button", name="Mute").click()
    expect(row).to_contain_text("Muted in")
    row.get_by_role("link", name="Unmute").click()
    page.get_by_role("dialog").get_by_role("button", name="Unmute").click()
    expect(row).to_contain_text("Works")
    row.get_by_role("link", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(row).to_have_count(0)
