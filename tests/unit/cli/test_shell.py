"""Completion scripts and manual pages, made from the commands themselves and tried with the real programs."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support import documents

BIN = Path(sys.executable).parent


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, **options)


@pytest.mark.parametrize("program", ["firmament", "firmament-agent"])
def test_bash_completes_with_the_printed_script(program, tmp_path):
    script = run(BIN / program, "completion", "bash").stdout
    typed = {"firmament": "release pub", "firmament-agent": "hist"}[program]
    words = " ".join([program, *typed.split()])
    count = len(words.split()) - 1
    asked = f"{script}\nCOMP_WORDS=({words}); COMP_CWORD={count}; _{program.replace('-', '_')}_completion {program}\n"
    done = run("bash", "-c", asked + 'printf "%s\\n" "${COMPREPLY[@]}"', env={"PATH": f"{BIN}:/usr/bin:/bin"})
    assert done.stdout.split() == [{"firmament": "publish", "firmament-agent": "history"}[program]]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script(shell):
    made = documents.loads(run(BIN / "firmament", "completion", shell, "--json").stdout)
    assert f"_FIRMAMENT_COMPLETE={shell}_complete" in made["script"]


def test_every_page_is_clean_for_groff(tmp_path):
    assert shutil.which("groff"), "scripts/debian.sh installs it"
    for program in ("firmament", "firmament-agent"):
        run(BIN / program, "man", "--out", tmp_path)
    pages = sorted(tmp_path.glob("*.1"))
    assert {"firmament.1", "firmament-release-publish.1", "firmament-agent-status.1"} <= {page.name for page in pages}
    shipped = Path(__file__).parents[3] / "docs/man"
    assert {page.name for page in shipped.iterdir()} == {page.name for page in pages}, "run: make docs"
    done = run("groff", "-man", "-ww", "-z", *pages)
    assert done.stderr == ""
    shown = run("groff", "-man", "-Tascii", "-P-c", tmp_path / "firmament-release-publish.1").stdout
    text = re.sub(r".\x08", "", shown)  # bold is a letter struck twice
    for expected in ("NAME", "SYNOPSIS", "firmament release publish", "--dry-run", "EXIT STATUS", "SEE ALSO"):
        assert expected in text


def test_the_wheel_brings_the_manual_and_the_commands(tmp_path):
    """As `pip install` finds them: share/man/man1 and bin; the pages are those of `make docs`."""
    root = Path(__file__).parents[3]
    run(sys.executable, "-c", f"from hatchling.build import build_wheel; build_wheel({str(tmp_path)!r})", cwd=root)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
        (entries,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "firmament-agent = firmament.cli.start:agent" in files.read(entries).decode()
    data = next(name for name in names if ".data/" in name).partition("/")[0]
    kept = {f"{data}/data/share/man/man1/{page.name}" for page in (root / "docs/man").glob("*.1")}
    assert len(kept) > 100
    assert kept == {name for name in names if "/share/" in name}


def test_one_page_goes_to_the_pager():
    page = run(BIN / "firmament-agent", "man", "status").stdout
    said = documents.loads(run(BIN / "firmament-agent", "man", "status", "--json").stdout)
    assert said["pages"] == {"firmament-agent-status": page.removesuffix("\n")}
    assert page.startswith('.TH "FIRMAMENT-AGENT-STATUS" "1"')


def test_a_device_gets_its_unit_and_a_skeleton_of_its_settings(tmp_path):
    made = documents.loads(run(BIN / "firmament-agent", "install-service", "--root", tmp_path, "--json").stdout)
    assert {Path(file["path"]).name for file in made["files"]} >= {"firmament-agent.service", "agent.toml"}
    assert all(Path(file["path"]).exists() for file in made["files"])


def test_a_demo_that_is_not_there_needs_no_end(tmp_path):
    assert documents.loads(run(BIN / "firmament", "demo", "--stop", tmp_path, "--json").stdout)["ended"] == 0


def test_notes_are_checked_before_they_are_signed(tmp_path):
    (tmp_path / "en.md").write_text("Fixes readings.\n")
    (tmp_path / "de.md").write_text("# **Neu**\n" + "x" * 200)
    run(BIN / "firmament", "release", "notes", "lint", f"en={tmp_path}/en.md")
    done = subprocess.run(
        [BIN / "firmament", "release", "notes", "lint", f"de={tmp_path}/de.md", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    problems = " ".join(documents.loads(done.stdout)["problems"])
    for expected in ("markup", "longer than 160", "English"):
        assert expected in problems
