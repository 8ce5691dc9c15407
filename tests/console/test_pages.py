"""Every page: whole, clean under its policy, within the rules of accessibility, on a phone, without JavaScript."""

import pytest
from playwright.sync_api import expect

from .conftest import DESKTOP, PHONE, SCHEMES, violations

PATHS = (
    "/",
    "/devices",
    "/devices?q=hardware%3Drpi4",
    "/devices?q=hardware%3D%3Drpi4",
    "/devices?q=nothing",
    "/devices/enrol",
    "/devices/{device}",
    "/devices/{device}/why",
    "/devices/{device}/disable",
    "/releases",
    "/releases/thermo/1.1",
    "/keys",
    "/audit",
    "/rollouts",
    "/rollouts/new",
    "/settings",
    "/settings/people",
    "/settings/tokens",
    "/settings/notifications",
    "/settings/consent",
    "/settings/about",
)


@pytest.fixture(scope="module")
def paths(world):
    return [path.replace("{device}", world.devices[0].device_id) for path in PATHS]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_page_keeps_the_rules_of_accessibility_and_fits(world, open_page, paths, scheme, size):
    page = open_page(world.server.url, role="admin", color_scheme=scheme, viewport=size, bypass_csp=True, goto=False)
    wrong = []
    for path in paths:
        answer = page.goto(world.server.url + path, wait_until="load")
        wrong += [f"{path}: {answer.status}"] if answer.status != 200 else []
        wrong += [f"{path}: {what}" for what in violations(page)]
        if page.evaluate("document.documentElement.scrollWidth") > size["width"]:
            wrong.append(f"{path}: scrolls sideways")
    assert wrong == []


@pytest.mark.parametrize("role", ["viewer", "admin"])
def test_every_page_works_under_its_policy_and_says_nothing_to_the_console(world, open_page, paths, role):
    page = open_page(world.server.url, role=role, goto=False)
    for path in paths:
        answer = page.goto(world.server.url + path, wait_until="load")
        assert "require-trusted-types-for" in answer.headers["content-security-policy"]
        expect(page.locator("h1, h2").first).to_be_visible()


def test_every_page_works_without_javascript(world, open_page, paths):
    page = open_page(world.server.url, java_script_enabled=False, goto=False)
    for path in paths:
        assert page.goto(world.server.url + path).status == 200
    page.goto(world.server.url + "/devices")
    page.get_by_role("searchbox").fill("hardware=rpi4")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#match")).to_have_text("3 match")
    page.goto(world.server.url + "/devices/" + world.devices[0].device_id)
    page.get_by_role("link", name="Refuse…").click()
    page.get_by_role("button", name="Refuse the device").click()
    expect(page.get_by_role("status").first).to_contain_text("refused from now on")
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
