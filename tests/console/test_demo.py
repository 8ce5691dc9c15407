"""1. Installed by pip without node or npm, `firmament demo --console` shows a live rollout that stops by itself."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect

ROOT = Path(__file__).parents[2]
PROMISE_S = 60
"""From the begin of the installation to the stop: of the processors' time, because the machine may be busy."""


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """A PATH with git and nothing else: no node, no npm, no compiler."""
    folder = tmp_path_factory.mktemp("tools")
    (folder / "git").symlink_to(shutil.which("git"))
    return folder


def used_s():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_1_from_pip_install_to_a_rollout_that_stopped_by_itself(tools, tmp_path, browser):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FIRMAMENT_", "PYTHON"))}
    environment |= {"PATH": str(tools), "HOME": str(tmp_path)}
    assert shutil.which("node", path=environment["PATH"]) is None
    began_s = used_s()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True, env=environment)
    installed = Path(sysconfig.get_path("purelib", vars={"base": tmp_path / "venv", "platbase": tmp_path / "venv"}))
    # What it depends on is here already, and so is the build tool: only the package itself is made and put in.
    (installed / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", tmp_path / "venv/bin/python", "install", "--quiet", "--no-deps",
         "--no-build-isolation", "--ignore-installed", f"git+file://{ROOT}"],
        check=True, env=environment,
    )  # fmt: skip
    assert (installed / "firmament/console/static/console.js").is_file()
    command = tmp_path / "venv/bin/firmament"
    with (tmp_path / "said").open("w") as said:
        demo = subprocess.Popen(
            [command, "demo", "--console", "--devices", "20"], cwd=tmp_path, env=environment, stdout=said, stderr=said
        )
    try:
        told = wait_for_console(tmp_path / "said", demo)
        context = browser.new_context(ignore_https_errors=True)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(re.search(r"Console: +(\S+)", told)[1])
        page.get_by_label("Name").fill(re.search(r"Sign in: +(\S+)", told)[1])
        page.get_by_label("Password").fill(re.search(r"password: +(\S+)", told)[1])
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator(".head .live")).to_have_attribute("data-state", "live")
        expect(page.locator("#halt-title")).to_be_visible()  # without a reload, by itself
        expect(page.locator("#r-halt")).to_contain_text("in wave 2")
        context.close()
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(timeout=60)
    assert used_s() - began_s < PROMISE_S


def wait_for_console(said, demo):
    deadline = time.monotonic() + 120
    while "CA:" not in (told := said.read_text()):
        assert demo.poll() is None, told
        assert time.monotonic() < deadline, told
        time.sleep(0.1)
    return told
