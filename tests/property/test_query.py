"""For all trees: writing and reading give the tree back, and compiled SQL selects what the pure evaluator selects."""

import contextlib
import json
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.databases import fresh_target, opened

from firmament.core import canonical
from firmament.errors import MalformedError
from firmament.server.inventory import groups, search
from firmament.server.inventory.attributes import write_attributes
from firmament.server.inventory.evaluate import Facts, matches
from firmament.server.inventory.query import (
    FIELDS,
    OPERATORS,
    And,
    Compare,
    Everything,
    Has,
    In,
    Kind,
    Not,
    Or,
    parse,
    show,
)
from firmament.server.scope import console

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
NOW_S = int(NOW.timestamp())
ADMIN = console("test")
WORDS = (
    "a",
    "ab",
    "abc",
    "b",
    "in",
    "two words",
    'q"uo\\te',
    "é",
    "idle",
    "disabled",
    "assigned",
    "quarantined",
    "pinned",
    "Ab",
)
NUMBERS = (0, 1, 5, 41, 42)
AGES = (0, 10, 3600, 7200)

any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


def terms(text_fields, texts, numbers, ages):
    def build(name):
        kind = Kind.TEXT if name.startswith("attr.") else FIELDS[name]
        values = {Kind.TEXT: texts, Kind.NUMBER: numbers, Kind.AGE: ages}[kind]
        found = [
            st.builds(Compare, st.just(name), st.sampled_from(OPERATORS[kind]), values),
            st.builds(Has, st.just(name)),
        ]
        if kind is not Kind.AGE:
            found.append(st.builds(In, st.just(name), st.lists(values, min_size=1, max_size=3).map(tuple)))
        return st.one_of(found)

    return text_fields.flatmap(build)


def trees(term):
    def join(inner):
        def of(kind):
            fitting = inner.filter(lambda node: not isinstance(node, kind))
            return st.lists(fitting, min_size=2, max_size=3).map(lambda items: kind(tuple(items)))

        return st.one_of(st.builds(Not, inner), of(And), of(Or))

    return st.just(Everything()) | st.recursive(term, join, max_leaves=6)


free_names = st.sampled_from(sorted(FIELDS)) | any_text.map("attr.{}".format)
free_trees = trees(terms(free_names, any_text, st.integers(0, 2**63 - 1), st.integers(0, 10**8)))


@given(free_trees)
@example(Compare("attr. ", "=", "(,)"))
def test_writing_and_reading_give_the_tree_back(tree):
    assert parse(show(tree)) == tree


@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from(["tag", "=", "(", ")", "and", "not", "has", "in", '"', "x", ","])).map(" ".join)
)
def test_any_text_is_read_or_refused_with_a_position(text):
    with contextlib.suppress(MalformedError):
        tree = parse(text)
        assert parse(show(tree)) == tree
        return
    with pytest.raises(MalformedError) as refused:
        parse(text)
    facts = refused.value.facts
    assert 0 <= facts["position"] <= len(text)
    assert facts["found"]
    assert facts["expected"]


# --- SQL against the evaluator -----------------------------------------------------------------

names = st.sampled_from([*sorted(FIELDS), "attr.x", "attr.y z"])
words = st.sampled_from(WORDS)
closed_trees = trees(terms(names, words, st.sampled_from(NUMBERS), st.sampled_from(AGES)))
devices = st.fixed_dictionaries(
    {
        "serial": words | st.just(""),
        "hardware": st.sampled_from(["a", "b"]),
        "version": words | st.just(""),
        "sequence": st.sampled_from(NUMBERS),
        "bucket": st.sampled_from(NUMBERS),
        "disabled": st.booleans(),
        "age": st.none() | st.sampled_from(AGES),
        "tags": st.sets(words, max_size=3),
        "attributes": st.dictionaries(st.sampled_from(["x", "y z"]), words, max_size=2),
        "site": st.none() | words,
        "gateway": st.booleans(),
        "groups": st.sets(st.sampled_from(["a", "ab"])),
        "failure": st.none() | words,
        "attempt": st.none() | st.tuples(st.sampled_from(["assigned", "waiting"]), words | st.just("")),
        "quarantined": st.booleans(),
        "pinned": st.booleans(),
    }
)


@pytest.fixture(scope="module")
def db(database_kind, tmp_path_factory):
    with opened(fresh_target(database_kind, tmp_path_factory.mktemp("query"))) as connection:
        connection.execute("INSERT INTO product(id, tenant_id, name, created_at) VALUES (1, 1, 'a', 0)")
        connection.execute(
            "INSERT INTO release(id, tenant_id, product_id, version, sequence_number, target, length_bytes, digest, "
            "manifest, published_at) VALUES (1, 1, 1, '1', 1, 't', 1, 'd', ?, 0)",
            (b"m",),
        )
        for name, query in (("a", ""), ("ab", ""), ("b", "tag=ab or sequence>5")):
            groups.save_group(connection, ADMIN, name=name, query=query, now=NOW)
        for number, name in enumerate(WORDS, 1):
            connection.execute("INSERT INTO site(id, tenant_id, name, created_at) VALUES (?, 1, ?, 0)", (number, name))
        yield connection


def store(db, row_id, device):
    db.execute(
        "INSERT INTO device(id, tenant_id, uid, product_id, hardware, serial, identity_keyid, identity_key, "
        "hpke_public_key, bucket, disabled, enrolled_at, version, sequence_number) "
        "VALUES (?, 1, ?, 1, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?)",
        (
            row_id,
            f"d{row_id}",
            device["hardware"],
            device["serial"],
            f"k{row_id}",
            b"k",
            b"h%d" % row_id,
            device["bucket"],
            int(device["disabled"]),
            device["version"],
            device["sequence"],
        ),
    )
    write_attributes(db, 1, row_id, was="{}", now=canonical.encode(device["attributes"]).decode())
    if device["age"] is not None:
        db.execute(
            "INSERT INTO device_seen(device_id, last_seen, address) VALUES (?, ?, '')", (row_id, NOW_S - device["age"])
        )
    for tag in device["tags"]:
        db.execute("INSERT INTO device_tag(device_id, tag, tenant_id) VALUES (?, ?, 1)", (row_id, tag))
    site = WORDS.index(device["site"]) + 1 if device["site"] else None
    db.execute("INSERT INTO device_place VALUES (?, 1, ?, ?)", (row_id, site, 1 if device["gateway"] else None))
    for name in device["groups"]:
        db.execute("INSERT INTO device_group_member SELECT id, ?, 1 FROM device_group WHERE name = ?", (row_id, name))
    if device["failure"]:
        db.execute("INSERT INTO device_failure VALUES (?, 1, 1, ?, 0, 1)", (row_id, device["failure"]))
    if device["quarantined"]:
        db.execute("INSERT INTO device_quarantine VALUES (?, 1, '', '', 0)", (row_id,))
    if device["pinned"]:
        db.execute("INSERT INTO device_mark VALUES (?, 'pinned', 1, '', '', 0)", (row_id,))
    if device["attempt"]:
        db.execute(
            "INSERT INTO attempt(tenant_id, uid, device_id, release_id, state, code, created_at, updated_at) "
            "VALUES (1, ?, ?, 1, ?, ?, 0, 0)",
            (f"t{row_id}", row_id, *device["attempt"]),
        )


def facts_of(row_id, device):
    some = lambda *values: frozenset(value for value in values if value)  # noqa: E731 - a word for this table
    texts = {
        "id": some(f"d{row_id}"),
        "serial": some(device["serial"]),
        "product": some("a"),
        "hardware": some(device["hardware"]),
        "version": some(device["version"]),
        "tag": frozenset(device["tags"]),
        "site": some(device["site"]),
        "gateway": some("d1" if device["gateway"] else ""),
        "error": some(device["failure"], device["attempt"] and device["attempt"][1]),
        "state": some(
            device["attempt"][0] if device["attempt"] else "idle",
            device["disabled"] and "disabled",
            device["quarantined"] and "quarantined",
            device["pinned"] and "pinned",
        ),
        **{f"attr.{name}": some(value) for name, value in device["attributes"].items()},
    }
    in_b = "ab" in device["tags"] or device["sequence"] > 5
    texts["group"] = frozenset(device["groups"]) | some("b" if in_b else "")
    ages = {} if device["age"] is None else {"seen": device["age"]}
    return Facts(texts, {"sequence": device["sequence"], "bucket": device["bucket"]}, ages)


def unknown_group(node):
    match node:
        case Compare("group", "=" | "!=", value):
            return value not in {"a", "ab", "b"}
        case In("group", values):
            return not set(values) <= {"a", "ab", "b"}
        case Not(item):
            return unknown_group(item)
        case And(items) | Or(items):
            return any(unknown_group(item) for item in items)
    return False


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(fleet=st.lists(devices, min_size=1, max_size=5), tree=closed_trees.filter(lambda tree: not unknown_group(tree)))
def test_sql_selects_what_the_evaluator_selects(db, fleet, tree):
    db.execute("BEGIN")
    try:
        for row_id, device in enumerate(fleet, 1):
            store(db, row_id, device)
        wanted = [f"d{row_id}" for row_id, device in enumerate(fleet, 1) if matches(tree, facts_of(row_id, device))]
        found = search.find_devices(db, ADMIN, query=show(tree), after=0, limit=100, now=NOW)
        assert [record.device_id for record in found] == wanted, show(tree)
        assert search.count_devices(db, ADMIN, tree, NOW).count == len(wanted)
        for record, device in zip(
            search.find_devices(db, ADMIN, query="", after=0, limit=9, now=NOW), fleet, strict=True
        ):
            rows = db.execute("SELECT name, value FROM device_attribute WHERE device_id = ?", (record.row_id,))
            assert {row["name"]: row["value"] for row in rows} == device["attributes"]
            assert json.loads(record.attributes) == {}
    finally:
        db.execute("ROLLBACK")
