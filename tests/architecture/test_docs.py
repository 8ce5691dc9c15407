"""Documents: every link leads somewhere, every page can be reached, every decision is listed."""

import re
from pathlib import Path

import pytest

import firmament

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCE = Path(firmament.__file__).parent
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
ADRS = sorted(path for path in (DOCS / "adr").glob("[0-9]*.md"))
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
SECTIONS = ("## Context", "## Drivers", "## Options considered", "## Outcome", "### Consequences")


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(page):
    """The fragments GitHub and Sphinx give to headings."""
    headings = re.findall(
        r"^#{1,6} +(.+?) *#*$",
        re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL),
        re.MULTILINE,
    )
    slugs = [re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).lower()).replace(" ", "-") for heading in headings]
    explicit = re.findall(r'<a id="([^"]+)">', page.read_text())
    return {*slugs, *explicit}


def links(page):
    for match in LINK.finditer(without_code(page.read_text())):
        target = match.group(1) or match.group(2)
        if not re.match(r"[a-z]+:", target):
            yield target


def broken(page):
    for target in links(page):
        name, _, fragment = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists():
            yield f"{page.relative_to(ROOT)}: {target} leads nowhere"
        elif fragment and there.suffix == ".md" and fragment not in anchors(there):
            yield f"{page.relative_to(ROOT)}: {target} has no such heading"


def test_every_link_leads_somewhere():
    assert [problem for page in PAGES for problem in broken(page)] == []


def test_every_page_can_be_reached_from_the_map():
    reached, to_do = set(), [DOCS / "README.md"]
    while to_do:
        page = to_do.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        to_do += [
            (page.parent / target.partition("#")[0]).resolve() for target in links(page) if target.partition("#")[0]
        ]
    assert sorted(str(page.relative_to(ROOT)) for page in set(DOCS.rglob("*.md")) - reached) == []


def test_the_link_rule_finds_what_it_should(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "a.md"
    page.write_text("# One `x` two\n[a](b.md) [c](#one-x-two) [d](#no) `[e](f.md)` [g](https://h) ![i](j.png)\n")
    assert list(broken(page)) == [
        "a.md: b.md leads nowhere",
        "a.md: #no has no such heading",
        "a.md: j.png leads nowhere",
    ]


def test_decisions_are_numbered_without_a_gap():
    assert [int(path.name[:4]) for path in ADRS] == list(range(1, len(ADRS) + 1))
    assert len(ADRS) >= 10


@pytest.mark.parametrize("path", ADRS, ids=lambda path: path.stem)
def test_a_decision_has_the_form_of_one(path):
    text = path.read_text()
    assert re.fullmatch(r"\d{4}(-[a-z0-9]+)+\.md", path.name)
    assert re.match(rf"# ADR-{path.name[:4]}: [A-Z].+\n", text)
    assert re.search(r"^\* Status: (proposed|accepted|superseded by ADR-\d{4})$", text, re.MULTILINE)
    assert re.search(r"^\* Date: 20\d\d-\d\d-\d\d$", text, re.MULTILINE)
    positions = [text.find(f"\n{section}\n") for section in SECTIONS]
    assert all(position > 0 for position in positions), SECTIONS
    assert positions == sorted(positions)
    assert len(re.findall(r"^\* ", text[positions[2] : positions[3]], re.MULTILINE)) >= 2, "options, more than one"
    outcome = text[positions[3] :]
    assert "because" in outcome
    assert re.search(r"^\* Bad: ", outcome, re.MULTILINE), "a negative consequence"


def test_the_index_lists_every_decision():
    index = (DOCS / "adr/README.md").read_text()
    listed = re.findall(r"\]\((\d{4}-[a-z0-9-]+\.md)\)", index)
    assert listed == [path.name for path in ADRS]
    for path in ADRS:
        title = path.read_text().splitlines()[0].partition(": ")[2]
        assert title in index


def test_every_decision_that_is_named_exists():
    there = {path.name[:4] for path in ADRS}
    named = {
        (str(path.relative_to(ROOT)), number)
        for top in (SOURCE, ROOT / "tests", DOCS, ROOT / "scripts")
        for path in [*top.rglob("*.py"), *top.rglob("*.md")]
        for number in re.findall(r"ADR-(\d{4})", path.read_text())
    }
    assert sorted(where for where in named if where[1] not in there) == []


def test_the_changelog_puts_security_first():
    sections = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    assert sections
    for section in sections:
        headings = re.findall(r"^### (.+)$", section, re.MULTILINE)
        assert headings[:1] == ["Security"] or not headings, section.splitlines()[0]
