"""Signing in and out, forms of other sites, and forms that outlive a session."""

from playwright.sync_api import expect
from support.server_world import PASSWORD

from .conftest import COOKIE


def test_signing_in_leads_where_one_wanted_to_go(world, open_page):
    page = open_page(world.server.url, "/keys", role=None, may_say=("401",))
    page.get_by_label("Name").fill("viewer")
    page.get_by_label("Password").fill("wrong password")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("Name, password or code is wrong")
    expect(page.get_by_label("Name")).to_have_value("viewer")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Keys & expiry")).to_be_visible()
    (cookie,) = [cookie for cookie in page.context.cookies() if cookie["name"] == COOKIE]
    assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"], cookie["path"]) == (True, True, "Lax", "/")
    page.get_by_role("button", name="Sign out").first.click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.goto(world.server.url + "/keys")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    token = world.client(cookie["value"])
    assert token.ask("GET", "/api/v1/me").status == 401  # not only forgotten by the browser


def test_a_form_outlives_the_session(world, open_page):
    page = open_page(world.server.url, "/settings/tokens", role="admin", may_say=("401",))
    page.context.clear_cookies()
    page.context.add_cookies([{"name": COOKIE, "value": "fmo_ended", "url": world.server.url, "secure": True}])
    page.get_by_label("What for").fill("a label that took long to write")
    page.get_by_role("button", name="Make it").click()
    expect(page.get_by_role("alert")).to_contain_text("what you had filled in is kept")
    page.get_by_label("Name").fill("admin")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Send it now").click()
    expect(page.get_by_role("heading", name="Your new token")).to_be_visible()


def test_a_form_of_another_site_is_refused(world):
    with_cookie = {"cookie": f"{COOKIE}={world.admin.token}", "content-type": "application/x-www-form-urlencoded"}
    host = f"localhost:{world.server.port}"
    for headers, status in (
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({}, 403),
        ({"origin": f"https://{host}"}, 303),
        ({"sec-fetch-site": "same-origin"}, 303),
    ):
        answer = world.client("").ask("POST", "/choose", b"theme=dark&back=/", headers={**with_cookie, **headers})
        assert (headers, answer.status) == (headers, status)


def test_no_page_is_kept_by_anybody(world):
    answer = world.client("").ask("GET", "/", headers={"cookie": f"{COOKIE}={world.admin.token}"})
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "__Host" not in world.server.log.read_text()
    assert world.admin.token not in world.server.log.read_text()
