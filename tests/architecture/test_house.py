"""Rules of the house that a machine can check: printing, tests per part, words that must not be there."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

import firmament

SOURCE = Path(firmament.__file__).parent
ROOT = Path(__file__).parents[2]
MAY_PRINT = {"cli"}


def parts():
    return sorted(
        {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")} - {"__init__"}
    )


def has_code(part):
    """Whether more than an empty package is there."""
    directory = SOURCE / part
    return not directory.is_dir() or any(p.name != "__init__.py" for p in directory.rglob("*.py"))


def tracked_files():
    """Every text file a clone or a source archive has."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    names = listed.stdout.decode().split("\0") if listed.returncode == 0 else []
    paths = [ROOT / name for name in names if name] or [
        p
        for top in ("src", "tests", "docs", "scripts")
        for p in (ROOT / top).rglob("*")
        if "__pycache__" not in p.parts
    ]
    for path in paths:
        if path.is_file():
            try:
                yield path.relative_to(ROOT), path.read_text()
            except UnicodeDecodeError:
                continue


def prints(tree):
    """Line numbers where something is printed or written to a standard stream."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "print" or re.fullmatch(r"sys\.(__)?std(out|err)(__)?(\.buffer)?\.write(lines)?", name):
                yield node.lineno


def test_only_the_command_line_prints():
    found = [
        f"{path.relative_to(SOURCE)}:{line}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path.relative_to(SOURCE).parts[0] not in MAY_PRINT
        for line in prints(ast.parse(path.read_text()))
    ]
    allowed = re.compile(r"sim/demo|sim/sweep|sim/__main__")  # programs of their own: what they print is their result
    assert [where for where in found if not allowed.match(where)] == []


@pytest.mark.parametrize(
    "text", ["print('x')", "import sys\nsys.stdout.write('x')", "import sys\nsys.stderr.buffer.write(b'x')"]
)
def test_the_printing_rule_finds_what_it_should(text):
    assert len(list(prints(ast.parse(text)))) == 1


@pytest.mark.parametrize("part", parts())
def test_every_part_has_tests(part):
    if not has_code(part):
        pytest.skip("nothing in it yet")
    places = [ROOT / "tests/unit" / part, ROOT / f"tests/unit/test_{part}.py"]
    assert any(place.is_file() or (place.is_dir() and any(place.rglob("test_*.py"))) for place in places)


FORBIDDEN = [
    r"/home/(user|admin|ubuntu|dev)/",
    r"pypi\.org|pythonhosted\.org|test\.pypi|registry\.npmjs|ghcr\.io|docker\.io",
    r"#\s?TODO|TODO:|FIXME|XXX(?!X)",
    "cl" + "aude|anth" + "ropic|chat" + "gpt|open" + r"ai\b|co" + "pilot|language " + r"model|\bLL" + r"M\b",
    r"\bAI" + r"[- ](generated|written|assistant|agent)",
    r"(?i)\bseed[s]?/|seed 00\d|mission row",
]
NOT_PROSE = {"requirements.lock", "requirements-device.lock", "requirements-build.lock"}


def forbidden_in(text):
    return [match.group() for rule in FORBIDDEN for match in re.finditer(rule, text)]


def test_no_tracked_file_says_what_concerns_nobody_else():
    found = [
        f"{path}: {words}"
        for path, text in tracked_files()
        if path.name not in NOT_PROSE and path != Path(__file__).relative_to(ROOT) and (words := forbidden_in(text))
    ]
    assert found == []


def test_locks_record_no_download_address():
    for name in NOT_PROSE:
        text = (ROOT / name).read_text()
        assert "--hash=sha256:" in text
        assert not re.search(r"https?://|--index-url|--find-links", text)


def test_no_file_has_a_private_key():
    marker = "-----BEGIN " + "PRIVATE KEY-----"
    body = re.compile(re.escape(marker) + r"\s+[A-Za-z0-9+/]{40}")
    assert [str(path) for path, text in tracked_files() if body.search(text)] == []


def test_docs_name_no_path_of_one_machine():
    found = [
        f"{path}: {match.group()}"
        for path, text in tracked_files()
        if path.suffix == ".md"
        for match in re.finditer(r"(?<![\w.])/tmp/[\w.-]+|/root/[\w.-]+", text)
    ]
    assert found == []
