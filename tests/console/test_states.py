"""The states a page can be in, as tables over all pages: nothing there yet, a role that may only look, a database that
fails, a stream that stopped. Loading has no state of its own: the first answer of every page has its data."""

import contextlib
import re

import pytest
from playwright.sync_api import expect
from support.databases import fresh_database
from support.server_world import World

from .addresses import ADDRESSES
from .conftest import COOKIE, MANY_LOGINS

NOTHING = {
    "/": "On your own machine, where releases are made",
    "/devices": "No device yet",
    "/devices?q=hardware%3Dx": "No device matches",
    "/devices/enrol": "There is no product yet",
    "/rollouts": "No rollout yet",
    "/rollouts?state=finished": "None in this state",
    "/rollouts/new": "There is no release yet",
    "/releases": "No release yet",
    "/keys": "No root is trusted yet",
    "/keys/rehearsal": "No root is trusted yet",
    "/audit?subject=nothing": "Nothing is recorded about this",
    "/settings/notifications": "Nobody is told",
    "/settings/consent": "No rule of yours",
}
"""What a new server says on each page that lists something, with the next thing to do."""
FAILS = {
    "/": "rollout",
    "/devices": "device",
    "/devices/enrol": "product",
    "/devices/{device_id}": "device",
    "/devices/{device_id}/why": "release",
    "/devices/{device_id}/assign": "release",
    "/devices/{device_id}/{change}": "device",
    "/rollouts": "rollout",
    "/rollouts/new": "release",
    "/rollouts/{rollout_id}": "rollout_target",
    "/rollouts/{rollout_id}/targets": "rollout_target",
    "/rollouts/{rollout_id}/{action}": "rollout",
    "/releases": "release",
    "/releases/{product}/{version}": "release",
    "/releases/{product}/{version}/promote": "release",
    "/audit": "event",
    "/keys": "product",
    "/keys/rehearsal": "product",
    "/settings": "person_session",
    "/settings/people": "second_factor",
    "/settings/tokens": "token",
    "/settings/notifications": "outlet",
    "/settings/consent": "consent_rule",
}
"""The table that is taken away from under each page that asks the database."""


def ask(world, path, token):
    return world.client("").ask("GET", path, headers={"cookie": f"{COOKIE}={token}"} if token else {})


def text_of(html):
    inside = html.partition("<main")[2].partition("</main>")[0]
    return " ".join(re.sub(r"<[^>]+>", " ", inside).split())


@contextlib.contextmanager
def without(world, table):
    world.server.change(f"ALTER TABLE {table} RENAME TO {table}_away")
    try:
        yield
    finally:
        world.server.change(f"ALTER TABLE {table}_away RENAME TO {table}")


def test_nothing_there_yet_is_said_with_the_next_step(tmp_path, database_kind):
    world = World(tmp_path, env=MANY_LOGINS, database=fresh_database(database_kind))
    try:
        said = {path: ask(world, path, world.admin.token) for path in NOTHING}
        for path, answer in said.items():
            html = answer.body.decode()
            assert answer.status == 200, path
            assert NOTHING[path] in text_of(html), (path, text_of(html))
            assert not re.search(r"<tbody[^>]*>\s*</tbody>", html), f"{path} has an empty table"
    finally:
        world.close()


NO_QUESTION = {
    "/devices/views/remove",
    "/settings/about",
    "/settings/consent/remove",
    "/settings/notifications/{name}/{change}",
    "/settings/people/{name}/{change}",
    "/settings/second-factor",
    "/settings/second-factor/remove",
    "/settings/sessions/{session_id}/end",
    "/settings/tokens/{token_id}/revoke",
}
"""Pages that ask the database nothing but who is signed in."""


def test_every_page_is_in_one_of_the_tables():
    assert set(FAILS) | NO_QUESTION == set(ADDRESSES)
    assert set(FAILS) & NO_QUESTION == set()


@pytest.mark.parametrize("table", sorted({*FAILS.values()}))
def test_a_database_that_fails_is_said_and_never_looks_like_nothing(world, places, tokens, table):
    """What failed, what still holds, the request's id; on the page or on the card that asked."""
    routes = [route for route, needs in FAILS.items() if needs == table]
    with without(world, table):
        found = {route: ask(world, ADDRESSES[route][0].format(**places), tokens["admin"]) for route in routes}
    for route, answer in found.items():
        html = answer.body.decode()
        text = text_of(html)
        assert "The database cannot be used" in text, (route, text)
        if answer.status == 200:
            assert "The rest of this page is not affected. Request" in text, (route, text)
        else:
            assert answer.status == 500
            assert "Devices are not affected" in html, route
            assert "under request" in html, route
        assert "Try again" in html, route
        assert "Traceback" not in html
        said = [words for words in NOTHING.values() if words in text]
        assert said == [], f"{route} says so though it does not know"
        assert not re.search(r"<tbody[^>]*>\s*</tbody>", html), f"{route} has an empty table"
    assert ask(world, "/", tokens["admin"]).status == 200, "it heals by itself"


@pytest.mark.parametrize("role", ["viewer", "approver"])
def test_what_a_role_may_not_do_is_shown_with_the_role_that_may(world, places, tokens, role):
    """Visible, not usable, with the reason: a page that is not for the role says so, a button on a page names the role."""
    explained = 0
    for addresses in ADDRESSES.values():
        path = addresses[0].format(**places)
        answer = ask(world, path, tokens[role])
        html = answer.body.decode()
        assert answer.status in {200, 403, 404}, path  # a session or token of somebody else is not there
        if answer.status == 403:
            assert "Your role may not see or do this" in html, path
        for control in re.findall(r'<(?:span|button)[^>]*aria-disabled="true"[^>]*>.{0,900}', html, re.DOTALL):
            assert "Needs the role" in control, (path, control)
            explained += 1
        enabled = set(re.findall(r'href="([^"]+)" data-ask', html))
        for link in sorted(enabled):
            asked = ask(world, link.replace("&amp;", "&"), tokens[role])
            assert asked.status == 200, link
            assert "Needs the role" not in asked.body.decode(), f"{path}: {link} looks possible and is not"
    assert explained >= 5


def test_every_live_page_says_when_its_numbers_are_old(halted, world, open_page):
    """A stream that never answers: the bar at the top, the age in words, and the mark that was green is not."""
    live = ["/", "/rollouts", halted.path, f"/devices/{halted.devices[0].device_id}"]
    first = open_page(world.server.url, goto=False, may_say=("ERR_FAILED", "Failed to load"))
    first.context.route("**/events?*", lambda route: route.abort())
    pages = [first, *(first.context.new_page() for _ in live[1:])]
    for page, path in zip(pages, live, strict=True):
        served = page.goto(world.server.url + path, wait_until="domcontentloaded")
        # As it was sent: on a busy machine its numbers may be old by the time that somebody looks.
        assert 'id="stale" role="status" hidden>' in served.text()
    for page in pages:
        expect(page.locator("#stale")).to_be_visible(timeout=20_000)
        expect(page.locator("#stale-text")).to_contain_text(re.compile(r"No update for \d+ s"))
        assert page.locator(".live[data-state=live]").count() == 0
