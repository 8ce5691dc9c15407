"""A comment that says where a number comes from names a page, and a section of it, that a clone has."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PLACES = [
    *(ROOT / "src").rglob("*.py"),
    *(ROOT / "tests").rglob("*.py"),
    *(ROOT / "scripts").glob("*"),
    ROOT / "pyproject.toml",
    ROOT / "Makefile",
]
REFERENCE = re.compile(r"(?<![\w/.-])((?:[\w-]+/)*[a-z][\w-]*\.md)(?:,? (§\d+(?:\.\d+)*|decision \d+|\d\.\d))?")
EXAMPLES = {"a.md", "b.md", "de.md", "en.md", "f.md", "notes.md", "protocol.md", "hashlib.md"}


def pages():
    found = {}
    for path in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]:
        found.setdefault(path.name, []).append(path)
    return found


def problem(name, section):
    """What is wrong with a reference, None if nothing is."""
    places = [path for path in (ROOT / name, DOCS / name) if path.exists()] if "/" in name else pages().get(name, [])
    if not places:
        return f"{name} is not in docs/"
    if section is None:
        return None
    texts = "\n".join(path.read_text() for path in places)
    if section.startswith("decision"):
        found = re.search(rf"^\| {section.split()[1]} \|", texts, re.MULTILINE)
    else:
        found = re.search(rf"^#+ {re.escape(section)}\b", texts, re.MULTILINE)
    return None if found else f"{name} has no {section}"


def test_every_page_and_section_that_a_comment_names_exists():
    found = [
        f"{path.relative_to(ROOT)}: {what}"
        for path in PLACES
        if path.is_file() and path.suffix != ".pyc" and path != Path(__file__)
        for match in REFERENCE.finditer(path.read_text(errors="replace"))
        if match[1] not in EXAMPLES
        and not re.search(r"https?://\S*$", path.read_text(errors="replace")[: match.start()][-80:])
        if (what := problem(match[1], match[2]))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("name", "section", "what"),
    [
        ("trust.md", "§5", None),
        ("trust.md", "§55", "trust.md has no §55"),
        ("trust.md", "§1.4", None),
        ("house.md", "2.5", None),
        ("architecture.md", "decision 8", None),
        ("architecture.md", "decision 88", "architecture.md has no decision 88"),
        ("docs/protocol/journal.md", None, None),
        ("nowhere.md", None, "nowhere.md is not in docs/"),
    ],
)
def test_the_rule_finds_what_it_should(name, section, what):
    assert problem(name, section) == what
