"""One server, one browser and one world of devices for all tests of the console.

They end with the last of these tests: a browser's event loop would stay in the process, where
`asyncio.run` then refuses to start.
"""

import contextlib
import json
import random
import time
from pathlib import Path

import axe_playwright_python
import pytest
from playwright.sync_api import expect, sync_playwright
from support.databases import fresh_database
from support.server_world import Device, World

from firmament.core.digest import Digest
from firmament.sim.crowd.device import CrowdDevice

CHROMIUM = "/usr/bin/chromium-headless-shell"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ROLES = ("viewer", "operator", "releaser", "approver")
MANY_LOGINS = {"FIRMAMENT_SERVER_LOGINS_PER_MINUTE": "6000", "FIRMAMENT_SERVER_LOGIN_BURST": "1000"}
COOKIE = "__Host-firmament"
SCHEMES = ("light", "dark")
expect.set_options(timeout=15_000)  # the machine may be busy
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="package")
def database_kind(request):
    """As everywhere, but one world serves all files."""
    return request.param


@pytest.fixture(scope="package")
def world(tmp_path_factory, database_kind):
    """A server with people of every role, two products, releases and some devices."""
    made = World(tmp_path_factory.mktemp("console"), env=MANY_LOGINS, database=fresh_database(database_kind))
    for role in ROLES:
        made.add_person(role, role)
    made.author.products = ("thermo", "pump", "valve")
    made.author.__post_init__()
    assert made.publish(made.author.first()).status == 200
    made.publish_release("thermo", "1.0", 1, b"1" * 250_000)
    made.publish_release(
        "thermo", "1.1", 2, b"2" * 240_000, notes={"en": "Fixes <b>meter</b> readings.", "pt": "Corrige."}
    )
    body = {"product": "thermo", "expires_in_s": 3600, "uses": 10}
    token = made.admin.ask("POST", "/api/v1/enrolment-tokens", body).json["token"]
    for number in range(3):
        device = Device(made.directory / f"device-{number}")
        assert device.enrol(made.server, token).status == 200
        device.poll(version="1.0", sequence_number=1)
        made.devices.append(device)
    yield made
    made.close()


@pytest.fixture(scope="package")
def browser():
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="package")
def tokens(world):
    """A session of each role."""
    found = {role: world.sign_in(role).token for role in ROLES}
    return {**found, "admin": world.admin.token}


@pytest.fixture
def open_page(browser, tokens):
    """Open pages as somebody; the test fails when the browser has said a word about any of them."""
    contexts, said = [], []

    def make(url, path="/", *, role="admin", may_say=(), goto=True, **options):
        context = browser.new_context(ignore_https_errors=True, **{"viewport": DESKTOP, **options})
        contexts.append(context)
        if role:
            context.add_cookies([{"name": COOKIE, "value": tokens[role], "url": url, "secure": True}])
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        if goto:
            page.goto(url + path, wait_until="domcontentloaded")
        page.may_say = may_say
        return page

    yield make
    allowed = [word for context in contexts for page in context.pages for word in getattr(page, "may_say", ())]
    for context in contexts:
        with contextlib.suppress(Exception):
            context.close()
    assert [text for text in said if not any(word in text for word in allowed)] == []


AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()


COLOURS = {"runOnly": ["color-contrast", "link-in-text-block"]}
"""What a scheme can change; everything else hangs on the size."""


def violations(page, *, is_like_another=False):
    """What axe finds in both schemes and both sizes, and what scrolls sideways, in short: one load of the page.

    The browser's own hand puts axe into the page, so that the page keeps its policy. `is_like_another`: drawn by a
    template that was looked at whole; one scheme and the narrow size are enough.
    """
    wrong, usual = [], page.viewport_size
    page.evaluate(AXE)
    for size in (PHONE,) if is_like_another else (DESKTOP, PHONE):
        page.set_viewport_size(size)
        if page.evaluate("document.documentElement.scrollWidth") > size["width"]:
            wrong.append(f"{size['width']}: scrolls sideways")
        for scheme, rules in (("light", {}),) if is_like_another else (("light", {}), ("dark", COLOURS)):
            page.emulate_media(color_scheme=scheme)
            found = page.evaluate("rules => axe.run(document, {resultTypes: ['violations'], ...rules})", rules)
            wrong += [
                f"{size['width']} {scheme} {item['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
                for item in found["violations"]
                for node in item["nodes"][:3]
            ]
    page.set_viewport_size(usual)
    return wrong


# --- a rollout that stopped by itself -------------------------------------------------------


def bill(**parts):
    """A bill of materials, as bytes."""
    components = [{"type": "library", "name": name, "version": version} for name, version in parts.items()]
    return json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}).encode()


class Rollout:
    """A crowd of devices, and a rollout of 2.0 that is bad for one hardware revision."""

    def __init__(self, world, devices=40):
        self.world = world
        notes = {"en": "Fixes meter readings that stop after 49 days.", "pt": "Corrige leituras."}
        old, new = bill(zlib="1.2", curl="8.1", jq="1.6"), bill(zlib="1.3", curl="8.1", dtc="1.7")
        kinds = ("rev-b", "rev-c")
        world.publish_release("pump", "1.0", 1, b"p1" * 60_000, hardware=kinds, sbom_digest=Digest.of(old))
        world.publish_release(
            "pump", "2.0", 2, b"p2" * 60_000, hardware=kinds, revertible_to=1, notes=notes, sbom_digest=Digest.of(new)
        )
        for version, data in (("1.0", old), ("2.0", new)):
            answer = world.admin.ask("PUT", f"/api/v1/sbom/pump/{version}", data)
            assert answer.status < 300, answer.body
        token = world.enrolment_token("pump", uses=devices)
        self.devices = [
            CrowdDevice(
                world.server.url, world.server.ca, "pump", "rev-c" if number % 3 == 0 else "rev-b", f"PU-{number:04}",
                random.Random(number), (lambda version: "slot/health") if number % 3 == 0 else (lambda version: ""),
            )
            for number in range(devices)
        ]  # fmt: skip
        for device in self.devices:
            device.enrol(token)
            device.live()
        body = {
            "name": "pump to 2.0", "release": "pump/2.0",
            "waves": [{"name": "canary", "devices": [d.device_id for d in self.devices if d.hardware == "rev-b"][:2]},
                      {"name": "everyone", "percent": 100}],
            "gate": {"limit_ratio": "0.28", "min_finished": 36},
        }  # fmt: skip
        made = world.admin.ask("POST", "/api/v1/rollouts", body)
        assert made.status == 201, made.body
        self.rollout_id = made.json["rollout_id"]
        self.path = f"/rollouts/{self.rollout_id}"

    def show(self):
        answer = self.world.admin.ask("GET", "/api/v1" + self.path)
        while answer.status == 429:  # the whole crowd shares this address's limit
            time.sleep(0.2)
            answer = self.world.admin.ask("GET", "/api/v1" + self.path)
        assert answer.status == 200, answer.body
        return answer.json

    def live_until(self, *states, seconds=90):
        deadline = time.monotonic() + seconds
        while self.show()["state"] not in states:
            for number, device in enumerate(self.devices):
                device.live()
                if number % 4 == 3 and self.show()["state"] in states:
                    break
            assert time.monotonic() < deadline, self.show()
        return self.show()


@pytest.fixture(scope="package")
def rollout(world):
    """Running, nobody has acted yet."""
    made = Rollout(world)
    yield made
    for device in made.devices:
        device.close()


@pytest.fixture(scope="package")
def halted(rollout):
    """Stopped by itself."""
    rollout.live_until("halted")
    return rollout


RULE = {"level": "group", "subject": "lab", "update_class": "feature", "mode": "ask"}


@pytest.fixture(scope="package")
def places(halted, world):
    """Something for every address to show."""
    admin = world.admin
    for method, path, body in (
        ("PUT", "/api/v1/filters/sick", {"query": "hardware=rpi4"}),
        ("PUT", "/api/v1/groups/lab", {"query": "hardware=rpi4"}),
        ("PUT", "/api/v1/consent/policy", RULE),
        ("POST", "/api/v1/tokens", {"role": "viewer", "expires_in_s": 3600, "label": "a picture frame"}),
        ("POST", "/api/v1/notifications/outlets", {"name": "on-call", "kind": "smtp", "target": "a@example.org"}),
    ):
        answer = admin.ask(method, path, body)
        assert answer.status < 300, (path, answer.body)
    failed = admin.ask("GET", f"/api/v1{halted.path}/targets", fields={"status": "failed"}).json["targets"][0]
    return {
        "device": world.devices[0].device_id,
        "failed": failed["device_id"],
        "rollout": halted.path,
        "session": admin.ask("GET", "/api/v1/me/sessions").json["sessions"][0]["session_id"],
        "token": admin.ask("GET", "/api/v1/tokens").json["tokens"][0]["token_id"],
    }
