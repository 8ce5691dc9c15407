"""The query language: what it reads, and how exactly it says what it cannot read."""

import pytest

from firmament.errors import MalformedError, NotFoundError
from firmament.server.inventory.query import And, Compare, Everything, Has, In, Not, Or, parse, show
from firmament.server.inventory.query_sql import compile_query


@pytest.mark.parametrize(
    ("text", "tree", "shown"),
    [
        ("", Everything(), ""),
        ("  ", Everything(), ""),
        ("product=thermo", Compare("product", "=", "thermo"), "product=thermo"),
        ("sequence < 42", Compare("sequence", "<", 42), "sequence<42"),
        ("seen<2h", Compare("seen", "<", 7200), "seen<7200s"),
        ('tag in (beta, "two words")', In("tag", ("beta", "two words")), 'tag in (beta, "two words")'),
        ('attr."battery state"~"lo\\"w"', Compare("attr.battery state", "~", 'lo"w'), 'attr."battery state"~"lo\\"w"'),
        ("has attr.zone", Has("attr.zone"), "has attr.zone"),
        ('tag="and"', Compare("tag", "=", "and"), 'tag="and"'),
        (
            "a=1 or b=2".replace("a=1", "tag=a").replace("b=2", "tag=b AND not tag=c"),
            Or((Compare("tag", "=", "a"), And((Compare("tag", "=", "b"), Not(Compare("tag", "=", "c")))))),
            "tag=a or tag=b and not tag=c",
        ),
        (
            "(tag=a or tag=b) and (tag=c and tag=d)",
            And(
                (
                    Or((Compare("tag", "=", "a"), Compare("tag", "=", "b"))),
                    Compare("tag", "=", "c"),
                    Compare("tag", "=", "d"),
                )
            ),
            "(tag=a or tag=b) and tag=c and tag=d",
        ),
    ],
)
def test_what_is_read_and_how_it_is_written_back(text, tree, shown):
    assert parse(text) == tree
    assert show(tree) == shown
    assert parse(shown) == tree


@pytest.mark.parametrize(
    ("text", "position", "found", "expected"),
    [
        ("tag", 3, "the end", "= | != | ~ | in"),
        ("tag=", 4, "the end", "a value"),
        ("colour=red", 0, "colour", "id | serial | product | hardware | version | group"),
        ("tag=a tag=b", 6, "tag", "and | or | the end"),
        ("tag=a and", 9, "the end", "a field | not | has | ("),
        ("(tag=a", 6, "the end", "and | or | )"),
        ("tag=a)", 5, ")", "and | or | the end"),
        ("tag in beta", 7, "beta", "("),
        ("tag in (a b)", 10, "b", ", | )"),
        ('tag="open', 4, '"', "a closing quotation mark"),
        ("tag=a ; tag=b", 6, ";", "a word or a quoted text"),
        ('version<"2.0"', 7, "<", "versions are labels"),
        ("sequence=two", 9, "two", "a whole number"),
        ("sequence~4", 8, "~", "= | != | < | <= | > | >= | in"),
        ("seen<yesterday", 5, "yesterday", "an age such as 30s, 5m, 2h, 3d or 1w"),
        ("seen in (2h)", 5, "in", "< | <= | > | >="),
        ('tag=""', 4, '""', "a text that is not empty"),
        ("attr.=x", 0, "attr.", "attr.NAME"),
        ("has and", 4, "and", "a field"),
    ],
)
def test_what_cannot_be_read_names_the_position_and_what_fits_there(text, position, found, expected):
    with pytest.raises(MalformedError) as refused:
        parse(text)
    facts = refused.value.facts
    assert (facts["position"], facts["found"]) == (position, found)
    assert expected in facts["expected"]


@pytest.mark.parametrize(
    "text", ["(" * 40 + "tag=a" + ")" * 40, "not " * 40 + "tag=a", " or ".join(["tag=a"] * 201), "x" * 4001]
)
def test_a_query_made_to_exhaust_the_server_is_refused(text):
    with pytest.raises(MalformedError):
        parse(text)


def test_nothing_of_a_query_becomes_sql():
    evil = "x' OR '1'='1"
    sql = compile_query(parse(f'tag="{evil}" or attr."{evil}"="{evil}" or serial~"{evil}"'), now_s=0)
    assert evil not in sql.text
    assert sql.parameters.count(evil) == 4


def test_an_unknown_group_is_said_with_its_position():
    with pytest.raises(NotFoundError) as refused:
        compile_query(parse("tag=a and group=nobody"), now_s=0)
    assert refused.value.facts == {"group": "nobody", "position": 10}
