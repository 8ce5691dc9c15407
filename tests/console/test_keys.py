"""Keys: the numbers of this server in the steps to the next root, and the practice that the page shows, played."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect


@pytest.mark.one_database("sqlite", because="the practice is played with files on the reader's machine")
def test_a_root_is_replaced_as_the_page_says(world, open_page, tmp_path):
    page = open_page(world.server.url, "/keys")
    page.get_by_role("link", name="Replace a root").click()
    expect(page.locator("main")).to_contain_text("2 of 3 keys")
    expect(page.locator("main")).to_contain_text("1 key")
    expect(page.locator("main")).to_contain_text("Devices refuse everything of the author")
    expect(page.locator("#cmd-step-1")).to_contain_text("--out root-2.ceremony")
    page.get_by_role("link", name="Director").click()
    expect(page.locator("#cmd-step-1")).to_contain_text("--repository director")
    script = page.locator("#cmd-practice").inner_text().replace("sign root-2.ceremony", "sign root-2.ceremony --yes")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FIRMAMENT_")}
    environment |= {"FIRMAMENT_PASSPHRASE_FILE": str(world.password_file), "HOME": str(tmp_path)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("next\t")]
    assert "\troot\t" in line  # the new key has its say
