"""Generated pages and blocks equal what the code says now, and every error code is documented and tested."""

import importlib.util
import re
from pathlib import Path

import pytest

from firmament.errors import error_classes

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
NOT_A_TEST_OF_ONE_ERROR = {"test_errors.py", "test_error_sentences.py", "strategies.py"}


@pytest.fixture(scope="module")
def docs():
    spec = importlib.util.spec_from_file_location("docs_script", ROOT / "scripts/docs.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_committed_pages_equal_the_generated_ones(docs, monkeypatch):
    for name in ("FIRMAMENT_JSON", "FIRMAMENT_PASSPHRASE_FILE", "FIRMAMENT_AGENT_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    differing = [
        str(path.relative_to(ROOT))
        for path, text in docs.build().items()
        if not path.exists() or path.read_text() != text
    ]
    assert differing == [], "run: make docs"


def test_every_block_is_known_and_closed(docs):
    for path in (ROOT / "docs").rglob("*.md"):
        text = path.read_text()
        begun = re.findall(r"<!-- begin generated ([a-z-]+) -->", text)
        assert len(begun) == len(docs.BLOCK.findall(text)) == text.count("<!-- end generated -->"), path
        assert set(begun) <= set(docs.BLOCKS), path


def test_the_install_machine_is_drawn_in_the_documents():
    from firmament.agent.machine import diagram

    assert diagram() in (ROOT / "docs/protocol/journal.md").read_text()


def test_every_error_code_is_documented(docs):
    page = (ROOT / "docs/reference/errors.md").read_text()
    assert [cls.code for cls in error_classes() if f"`{cls.code}`" not in page and cls.code != "firmament"] == []


def test_every_error_is_met_by_a_test():
    texts = [path.read_text() for path in TESTS.rglob("*.py") if path.name not in NOT_A_TEST_OF_ONE_ERROR]
    everything = "\n".join(texts)
    leaves = [cls for cls in error_classes() if not cls.__subclasses__()]
    missing = [
        cls.code
        for cls in leaves
        if not re.search(rf"\b{cls.__name__}\b", everything) and not re.search(rf"['\"]{cls.code}['\"]", everything)
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("(trust.md, case 25)", {"25"}),
        ("cases 24, 25 and 27", {"24", "25", "27"}),
        ("Cases 30-32", {"30", "31", "32"}),
        ("CASE = 7", {"7"}),
        ("in case of 5 errors", set()),
        ("# case 9: cache truncated", {"9"}),
        ("def test_07_08_freeze(stage):", {"7", "8"}),
        ("def test_11_12_root_skips", {"11", "12"}),
    ],
)
def test_how_tests_name_the_attacks_they_play(docs, text, numbers):
    assert docs.numbers_of_cases(text) == numbers


def test_every_attack_case_has_its_story(docs):
    lines = (ROOT / "docs/security/cases.txt").read_text().splitlines()
    assert [int(line.split(" | ")[0]) for line in lines] == list(range(1, len(lines) + 1))
    assert all(len(line.split(" | ")) in {3, 4} for line in lines)
    named = [place for line in lines for place in " ".join(line.split(" | ")[3:]).split()]
    assert [place for place in named if not (TESTS / place).is_file()] == []
    assert len(lines) >= 65
