"""Take the pictures of the console from real runs (part of `make pictures`); look at each before committing.

A real server, a crowd of virtual devices that halts a rollout, and a database with a hundred
thousand devices. `PICTURES` is the table.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from support.databases import fresh_database  # noqa: E402
from support.many_devices import fill  # noqa: E402 - a neighbour
from support.server_world import World  # noqa: E402

from firmament.core.digest import Digest  # noqa: E402
from firmament.sim.crowd.device import CrowdDevice  # noqa: E402

FOLDER = ROOT / "docs/pictures"
CHROMIUM = "/usr/bin/chromium-headless-shell"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
CROWD = 120
DEVICES = 100_000
LUCKLESS, AT_ONCE = 3, 3
NOTES = {"en": "Fixes meter readings that stop after 49 days.\nRestart, about two minutes.", "pt": "Corrige leituras."}
BILLS = {
    "1.0": {"zlib": "1.2.13", "curl": "8.5.0", "mbedtls": "3.5.1", "jq": "1.6"},
    "2.0": {"zlib": "1.3.1", "curl": "8.5.0", "mbedtls": "3.6.2", "dtc": "1.7.0"},
}
WIDE, TALL, PHONE = (1440, 900), (1440, 1230), (390, 844)
PICTURES = (
    # file, path, scheme, size, what is pressed first
    ("console-rollout-light.png", "{rollout}", "light", TALL, ""),
    ("console-rollout-dark.png", "{rollout}", "dark", TALL, ""),
    ("console-rollout-phone.png", "{rollout}", "dark", PHONE, ""),
    ("console-revert.png", "{rollout}", "dark", WIDE, "#b-revert"),
    ("console-overview.png", "/", "light", WIDE, ""),
    ("console-devices.png", "/devices", "light", WIDE, ""),
    ("console-device.png", "{failed}", "light", WIDE, "#b-more"),
    ("console-pin.png", "{failed}/pin", "dark", PHONE, ""),
    ("console-why.png", "{failed}/why?release=meter/2.0", "dark", WIDE, ""),
    ("console-new-rollout.png", "/rollouts/new?release=thermo/2.14.0", "light", WIDE, ""),
    ("console-release.png", "/releases/meter/2.0", "dark", WIDE, ""),
    ("console-keys.png", "/keys", "light", WIDE, ""),
    ("console-rehearsal.png", "/keys/rehearsal", "light", WIDE, ""),
    ("console-second-factor.png", "/settings/second-factor", "dark", PHONE, "main form button"),
)


def bill(parts: dict[str, str]) -> bytes:
    """Return a bill of materials."""
    components = [{"type": "library", "name": name, "version": version} for name, version in parts.items()]
    return json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}).encode()


def prepare(directory: Path) -> tuple[World, dict[str, str], list[CrowdDevice]]:
    """Return a world with a rollout that stopped by itself, and where its pages are."""
    many = {"FIRMAMENT_SERVER_ENROLMENT_BURST": "1000", "FIRMAMENT_SERVER_ADDRESS_BURST": "100000"}
    world = World(directory, env=many, database=fresh_database("sqlite"))
    world.author.products = ("thermo", "pump", "meter")
    world.author.__post_init__()
    world.begin()
    for product in ("thermo", "pump"):
        image = random.Random(product).randbytes(3_400_000)
        world.publish_release(product, "2.14.0", 6, image, hardware=("rev-a", "rev-b", "rev-c"))
    for version, number in (("1.0", 1), ("2.0", 2)):
        changes: dict[str, Any] = {} if number == 1 else {"notes": NOTES, "revertible_to": 1}
        parts = bill(BILLS[version])
        world.publish_release(
            "meter", version, number, version.encode() * 60_000, hardware=("rev-b", "rev-c"),
            sbom_digest=Digest.of(parts), **changes,
        )  # fmt: skip
        world.admin.ask("PUT", f"/api/v1/sbom/meter/{version}", parts)
    world.server.stop()
    fill(world.server.directory, DEVICES)
    world.server.start()
    token = world.enrolment_token("meter", uses=CROWD)
    crowd = []
    for number in range(CROWD):
        hardware = "rev-c" if number % LUCKLESS == 1 else "rev-b"
        fails = (lambda _: "slot/health") if hardware == "rev-c" else (lambda _: "")
        device = CrowdDevice(
            world.server.url, world.server.ca, "meter", hardware, f"ME-{number + 1:04}", random.Random(number), fails
        )
        device.enrol(token)
        device.live()
        crowd.append(device)
    bench = [device.device_id for device in crowd if device.hardware == "rev-b"][:8]
    body = {
        "name": "meter to 2.0", "release": "meter/2.0", "note": "Meters in the field stop counting after 49 days.",
        "waves": [{"name": "canary", "devices": bench}, {"name": "60 %", "percent": 60},
                  {"name": "everyone", "percent": 100}],
        "gate": {"limit_ratio": "0.25", "min_finished": 35},
    }  # fmt: skip
    made = world.admin.ask("POST", "/api/v1/rollouts", body)
    path = f"/rollouts/{made.json['rollout_id']}"
    order = random.Random(1)
    while world.admin.ask("GET", "/api/v1" + path).json["state"] not in {"halted", "finished"}:
        for device in order.sample(crowd, len(crowd) // AT_ONCE):
            device.live()
    failed = world.admin.ask("GET", "/api/v1" + path + "/targets", fields={"status": "failed"}).json["targets"][0]
    return world, {"rollout": path, "failed": f"/devices/{failed['device_id']}"}, crowd


def main() -> None:
    wanted = sys.argv[1:]
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="firmament-pictures-") as directory, sync_playwright() as playwright:
        world, places, crowd = prepare(Path(directory))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for name, path, scheme, (width, height), press in PICTURES:
            if wanted and name not in wanted:
                continue
            context = browser.new_context(
                ignore_https_errors=True, color_scheme=scheme, viewport={"width": width, "height": height},
                device_scale_factor=2 if (width, height) == PHONE else 1,
            )  # fmt: skip
            url = world.server.url
            context.add_cookies([{"name": "__Host-firmament", "value": world.admin.token, "url": url, "secure": True}])
            page = context.new_page()
            page.goto(url + path.format(**places), wait_until="load")
            if press:
                page.locator(press).click()
                page.locator("dialog[open], #secret, details[open]").first.wait_for()
            time.sleep(1.5)
            page.screenshot(path=str(FOLDER / name))
            print(name, (FOLDER / name).stat().st_size, "bytes")
            context.close()
        browser.close()
        for device in crowd:
            device.close()
        world.close()


if __name__ == "__main__":
    main()
