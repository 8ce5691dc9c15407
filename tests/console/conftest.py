"""One server, one browser and one world of devices for all tests of the console."""

import contextlib
import random
import time

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright
from support.server_world import Device, World

from firmament.sim.crowd.device import CrowdDevice

CHROMIUM = "/usr/bin/chromium"
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
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A server with people of every role, two products, releases and some devices."""
    made = World(tmp_path_factory.mktemp("console"), env=MANY_LOGINS)
    for role in ROLES:
        made.add_person(role, role)
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


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="session")
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


def violations(page):
    """What axe finds, in short."""
    found = Axe().run(page).response["violations"]
    return [
        f"{item['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
        for item in found
        for node in item["nodes"][:3]
    ]


# --- a rollout that stopped by itself -------------------------------------------------------


class Rollout:
    """A crowd of devices, and a rollout of 2.0 that is bad for one hardware revision."""

    def __init__(self, world, devices=40):
        self.world = world
        notes = {"en": "Fixes meter readings that stop after 49 days.", "pt": "Corrige leituras."}
        world.publish_release("pump", "1.0", 1, b"p1" * 60_000, hardware=("rev-b", "rev-c"))
        world.publish_release(
            "pump", "2.0", 2, b"p2" * 60_000, hardware=("rev-b", "rev-c"), revertible_to=1, notes=notes
        )
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
            for device in self.devices:
                device.live()
                if self.show()["state"] in states:
                    break
            assert time.monotonic() < deadline, self.show()
        return self.show()


@pytest.fixture(scope="session")
def rollout(world):
    """Running, nobody has acted yet."""
    made = Rollout(world)
    yield made
    for device in made.devices:
        device.close()


@pytest.fixture(scope="session")
def halted(rollout):
    """Stopped by itself."""
    rollout.live_until("halted")
    return rollout
