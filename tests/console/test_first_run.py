"""From an empty server to the first confirmed device, by the commands that the console shows, and no other."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect
from support.databases import fresh_database
from support.server_world import World

from .conftest import COOKIE, MANY_LOGINS


@pytest.fixture(scope="module")
def empty(tmp_path_factory, database_kind):
    made = World(tmp_path_factory.mktemp("empty"), env=MANY_LOGINS, database=fresh_database(database_kind))
    yield made
    made.close()


def shell(folder, script, world):
    """Run what a person would paste, as the console shows it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FIRMAMENT_")}
    environment |= {
        "FIRMAMENT_PASSWORD_FILE": str(world.password_file),
        "FIRMAMENT_PASSPHRASE_FILE": str(world.password_file),
    }
    environment |= {"XDG_CONFIG_HOME": str(folder / "config"), "HOME": str(folder)}
    binaries = Path(sys.executable).parent
    with (folder / "said").open("w") as said:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{script}\njobs -p > background"],
            cwd=folder,
            env={**environment, "PATH": f"{binaries}:{environment['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=said,  # a pipe would wait for the agent in the background
            stderr=subprocess.STDOUT,
            check=False,
            timeout=120,
        )
    assert done.returncode == 0, f"{script}\n{(folder / 'said').read_text()}"
    return [int(number) for number in (folder / "background").read_text().split()]


def test_a_new_user_gets_to_the_first_confirmed_device(empty, browser, tmp_path, request):
    for name in ("tls/ca.pem", "online-public.json"):  # what the page asks to copy
        shutil.copy(empty.server.directory / name, tmp_path)
    context = browser.new_context(ignore_https_errors=True)
    context.add_cookies([{"name": COOKIE, "value": empty.admin.token, "url": empty.server.url, "secure": True}])
    page = context.new_page()
    page.goto(empty.server.url + "/")
    export = page.locator("#cmd-keys").inner_text().split("\n")[0]
    shell(tmp_path, page.locator("#cmd-keys").inner_text(), empty)
    shell(tmp_path, export + "\n" + page.locator("#cmd-release").inner_text(), empty)
    page.reload()
    expect(page.locator("#first-run .is-done")).to_have_count(2)
    go_on = page.locator("#cmd-go-on").inner_text()
    agents = shell(tmp_path, export + "\n" + page.locator("#cmd-device").inner_text(), empty)
    request.addfinalizer(lambda: [os.kill(number, signal.SIGTERM) for number in agents])
    page.goto(empty.server.url + "/devices")
    assert "No device" not in page.content(), page.locator("main").inner_text()
    page.locator("tbody a").first.click()
    expect(page.get_by_role("heading", name="Attempts")).to_be_visible()
    page.locator("#b-assign").click()
    page.get_by_role("dialog").get_by_role("button", name="Offer it").click()
    expect(page.get_by_role("status").first).to_contain_text("assigned")
    deadline = time.monotonic() + 60
    while not (tmp_path / "device/agent.sock").exists():  # a person is slower than this
        assert time.monotonic() < deadline, (tmp_path / "agent.log").read_text()
        time.sleep(0.1)
    shell(tmp_path, go_on, empty)
    expect(page.locator("#r-timeline")).to_contain_text("Updated", timeout=60_000)  # live
    context.close()
