"""People: second factor from the first scan to the sign-in, passwords, roles, sessions, tokens."""

import pyotp
import pytest
from playwright.sync_api import expect
from support.databases import fresh_database
from support.server_world import PASSWORD, World

from .conftest import COOKIE, violations

NEW = "another horse battery"


@pytest.fixture(scope="module")
def strict(tmp_path_factory, database_kind):
    """A server where operators must have a second factor."""
    env = {"FIRMAMENT_SERVER_SECOND_FACTOR_ROLES": "operator", "FIRMAMENT_SERVER_LOGIN_BURST": "100"}
    made = World(tmp_path_factory.mktemp("strict"), env=env, database=fresh_database(database_kind))
    made.add_person("olga", "operator")
    made.add_person("nina", "viewer")
    yield made
    made.close()


def sign_in(page, name, password=PASSWORD, code=""):
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_label("Code").fill(code)
    page.get_by_role("button", name="Sign in").click()


def test_a_role_that_needs_a_second_factor_is_led_to_one_and_signs_in_with_it(strict, open_page):
    page = open_page(strict.server.url, "/devices", role=None, may_say=("401", "400"))
    sign_in(page, "olga")
    expect(page.get_by_text("The role operator needs a second factor here")).to_be_visible()
    page.goto(strict.server.url + "/audit")
    expect(page.get_by_role("heading", name="Set up a second factor")).to_be_visible()  # nothing else is open
    assert violations(page) == []
    page.get_by_role("button", name="Show the secret").click()
    secret = page.locator("#secret").inner_text()
    assert f"secret={secret}" in page.get_by_role("link", name="open it").get_attribute("href")
    expect(page.get_by_role("img", name="Code for the camera")).to_be_visible()
    assert violations(page) == []
    page.get_by_label("Code it shows now").fill("000000")
    page.get_by_role("button", name="Prove it").click()
    expect(page.get_by_role("alert")).to_contain_text("The code is wrong")
    expect(page.locator("#secret")).to_have_text(secret)  # not to be scanned again
    page.get_by_label("Code it shows now").fill(pyotp.TOTP(secret).now())
    page.get_by_role("button", name="Prove it").click()
    codes = page.locator("#codes").inner_text().split()
    assert len(codes) == 10
    assert violations(page) == []
    page.get_by_role("button", name="Sign in again").click()
    sign_in(page, "olga")
    expect(page.get_by_role("alert")).to_contain_text("Enter the code of your authenticator as well")
    sign_in(page, "olga", code=codes[0])
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    page.goto(strict.server.url + "/settings")
    expect(page.get_by_text("Set up: signing in asks for a code")).to_be_visible()
    page.locator("#b-factor").click()
    page.get_by_label("Code of the authenticator").fill(codes[1])
    page.get_by_role("dialog").get_by_role("button", name="Remove it").click()
    expect(page.get_by_role("status").first).to_contain_text("The second factor is removed")
    page.get_by_role("button", name="Sign out").first.click()
    sign_in(page, "olga")
    expect(page.get_by_text("The role operator needs a second factor here")).to_be_visible()


def test_a_console_session_is_one_that_ends_when_nobody_uses_it(strict, open_page):
    page = open_page(strict.server.url, "/", role=None)
    sign_in(page, "nina")
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    kinds = strict.server.rows(
        "SELECT s.kind FROM person_session s JOIN person p ON p.id = s.person_id WHERE p.name = 'nina'"
    )
    assert kinds[-1]["kind"] == "console"


def test_a_password_is_changed_and_the_other_sessions_end(strict, open_page):
    other = strict.sign_in("nina")
    page = open_page(strict.server.url, "/settings", role=None, may_say=("400",))
    sign_in(page, "nina")
    for old, new, again, told in (
        (PASSWORD, NEW, NEW + "x", "The two new passwords differ"),
        ("wrong password", NEW, NEW, "The old password is wrong"),
    ):
        page.get_by_label("Password now").fill(old)
        page.get_by_label("New password").fill(new)
        page.get_by_label("The new one again").fill(again)
        page.get_by_role("button", name="Change it").click()
        expect(page.get_by_role("alert")).to_contain_text(told)
    page.get_by_label("Password now").fill(PASSWORD)
    page.get_by_label("New password").fill(NEW)
    page.get_by_label("The new one again").fill(NEW)
    page.get_by_role("button", name="Change it").click()
    expect(page.get_by_role("status").first).to_contain_text("The password is changed")
    assert other.ask("GET", "/api/v1/me").status == 401


def test_an_administrator_changes_a_role_a_password_and_lets_in_again(strict, open_page):
    page = open_page(strict.server.url, goto=False, role=None, may_say=("400", "401"))
    page.context.add_cookies([{"name": COOKIE, "value": strict.admin.token, "url": strict.server.url, "secure": True}])
    page.goto(strict.server.url + "/settings/people")
    row = page.get_by_role("row", name="nina")
    row.get_by_role("link", name="Role").click()
    page.get_by_role("dialog").get_by_label("Role").select_option("approver")
    page.get_by_role("dialog").get_by_role("button", name="Change").click()
    expect(row).to_contain_text("approver")
    row.get_by_role("link", name="Password").click()
    page.get_by_role("dialog").get_by_role("textbox", name="New password").fill("short")
    page.get_by_role("dialog").get_by_role("button", name="Set it").click()
    expect(page.get_by_role("alert")).to_contain_text("length is out of range")
    page.get_by_role("textbox", name="New password").fill(PASSWORD)
    page.get_by_role("button", name="Set it").click()
    expect(page.get_by_role("status").first).to_contain_text("The password is set")
    strict.sign_in("nina")
    row.get_by_role("link", name="Refuse").click()
    page.get_by_role("dialog").get_by_role("button", name="Refuse").click()
    row.get_by_role("link", name="Let in").click()
    page.get_by_role("dialog").get_by_role("button", name="Let in").click()
    expect(page.get_by_role("status").first).to_contain_text("may sign in again")
    strict.sign_in("nina")


def test_a_token_and_a_session_are_ended(strict, open_page):
    page = open_page(strict.server.url, goto=False, role=None)
    page.context.add_cookies([{"name": COOKIE, "value": strict.admin.token, "url": strict.server.url, "secure": True}])
    page.goto(strict.server.url + "/settings/tokens")
    page.get_by_label("What for").fill("a build machine")
    page.get_by_role("button", name="Make it").click()
    token = strict.client(page.locator("#new-token").inner_text())
    assert token.ask("GET", "/api/v1/me").status == 200
    page.get_by_role("row", name="a build machine").get_by_role("link", name="Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("status").first).to_contain_text("works no more")
    assert token.ask("GET", "/api/v1/me").status == 401
    other = strict.sign_in("admin")
    page.goto(strict.server.url + "/settings")
    page.get_by_role("link", name="End all others").click()
    page.get_by_role("dialog").get_by_role("button", name="End them").click()
    expect(page.get_by_role("status").first).to_contain_text("The session is ended")
    assert other.ask("GET", "/api/v1/me").status == 401
