"""Whatever is done to an export, the verifier names the event; what nobody touched verifies."""

import copy
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from firmament.errors import ChainBrokenError, MalformedError, SignatureError
from firmament.server.audit.export import Exporter, Page
from firmament.trust import audit
from firmament.trust.audit import (
    GENESIS,
    Checkpoint,
    event_digest,
    event_value,
    export_header,
    extend,
    open_checkpoint,
    read_key,
    sign_checkpoint,
    verify_export,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key()

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
FACTS = st.dictionaries(TEXT, st.none() | st.booleans() | st.integers(-(2**60), 2**60) | TEXT, max_size=4)
EVENTS = st.lists(st.tuples(st.integers(0, 2**40), TEXT, TEXT, TEXT, FACTS), min_size=2, max_size=12)


def chain(events, *, tenant=1):
    """[(value, hash)], built as a server does."""
    found, sealed = GENESIS, []
    for number, (at, kind, actor, subject, facts) in enumerate(events, 1):
        value = event_value(tenant=tenant, number=number, at=at, kind=kind, actor=actor, subject=subject, facts=facts)
        found = extend(found, event_digest(value))
        sealed.append((value, found))
    return sealed


def checkpoint_at(sealed, number, *, key=KEY):
    value, found = sealed[number - 1]
    return Checkpoint(value["tenant"], number, found, at=1_800_000_000), sign_checkpoint(
        key, Checkpoint(value["tenant"], number, found, at=1_800_000_000)
    ).to_json()


def export(sealed, checkpoints=None, *, first=1):
    previous = sealed[first - 2][1] if first > 1 else GENESIS
    header = export_header(tenant=1, first=first, previous=previous, keyid=audit.keyid_of(PUBLIC))
    writer = Exporter(header)
    found = Page(sealed[first - 1 :], {number: envelope for number, (envelope,) in (checkpoints or {}).items()})
    return (writer.begin() + writer.lines(found) + writer.end()).splitlines(keepends=True)


@given(EVENTS, st.data())
def test_what_nobody_touched_verifies_whole_and_in_part(events, data):
    sealed = chain(events)
    number = data.draw(st.integers(1, len(sealed)))
    kept, envelope = checkpoint_at(sealed, number)
    found = verify_export(export(sealed, {number: [envelope]}), PUBLIC, kept=[kept])
    assert (found.ok, found.events, found.checkpoints, found.kept) == (True, len(sealed), 1, 1)
    assert found.vouched_up_to == number
    first = data.draw(st.integers(1, len(sealed)))
    part = verify_export(export(sealed, first=first), PUBLIC, kept=[kept])
    assert part.ok
    assert part.kept == (number >= first - 1)


@given(EVENTS, st.data())
def test_any_single_change_is_named(events, data):
    sealed = chain(events)
    lines = export(sealed)
    index = data.draw(st.integers(1, len(sealed)))
    line = json.loads(lines[index])
    field = data.draw(st.sampled_from(["at", "kind", "actor", "subject", "facts", "hash", "tenant", "number", "extra"]))
    event = line["event"]
    if field == "at":
        event["at"] += 1
    elif field == "facts":
        event["facts"] = {**event["facts"], "added": 1}
    elif field == "hash":
        line["hash"] = bytes(32).hex()
    elif field in {"tenant", "number"}:
        event[field] += 1
    elif field == "extra":
        event["extra"] = ""
    else:
        event[field] += "x"
    lines[index] = json.dumps(line).encode()
    found = verify_export(lines, PUBLIC)
    assert found.broken is not None
    assert found.broken.number == index
    with pytest.raises(ChainBrokenError):
        found.require()


@given(EVENTS, st.data())
def test_deleting_or_swapping_lines_is_named(events, data):
    lines = export(chain(events))
    index = data.draw(st.integers(1, len(lines) - 1))
    without = lines[:index] + lines[index + 1 :]
    assert not verify_export(without, PUBLIC).ok
    other = data.draw(st.integers(1, len(lines) - 1).filter(lambda number: number != index))
    swapped = list(lines)
    swapped[index], swapped[other] = swapped[other], swapped[index]
    found = verify_export(swapped, PUBLIC)
    assert found.broken.number == min(index, other)


@given(EVENTS, st.data())
def test_an_end_cut_off_and_sealed_anew_is_found_by_an_earlier_checkpoint(events, data):
    """Whoever holds the database can cut the chain and write a perfect one: only what was kept tells."""
    sealed = chain(events)
    cut = data.draw(st.integers(1, len(sealed) - 1))
    kept, _ = checkpoint_at(sealed, data.draw(st.integers(cut + 1, len(sealed))))
    lines = export(sealed[:cut])
    assert verify_export(lines, PUBLIC).ok
    found = verify_export(lines, PUBLIC, kept=[kept])
    assert found.broken.number == cut + 1
    assert verify_export(lines, PUBLIC, kept=[kept], is_whole=False).ok


@given(EVENTS, st.data())
def test_a_chain_written_anew_is_found_by_an_earlier_checkpoint(events, data):
    sealed = chain(events)
    number = data.draw(st.integers(1, len(sealed)))
    kept, envelope = checkpoint_at(sealed, number)
    forged = copy.deepcopy(events)
    changed = data.draw(st.integers(1, number))
    at, *rest = forged[changed - 1]
    forged[changed - 1] = (at + 1, *rest)
    lines = export(chain(forged))
    assert verify_export(lines, PUBLIC).ok
    assert verify_export(lines, PUBLIC, kept=[kept]).broken.number == number + 1
    assert not verify_export(export(chain(forged), {number: [envelope]}), PUBLIC).ok


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_any_bytes_give_a_finding_and_never_an_exception(lines):
    assert not verify_export(lines, PUBLIC).ok


def test_a_checkpoint_of_another_key_or_kind_is_refused():
    sealed = chain([(1, "a.b", "x", "", {}), (2, "a.c", "x", "", {})])
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    _, envelope = checkpoint_at(sealed, 1, key=stranger)
    with pytest.raises(SignatureError):
        open_checkpoint(envelope, PUBLIC)
    assert (
        verify_export(export(sealed, {1: [envelope]}), PUBLIC).broken.what == "The checkpoint is signed by another key"
    )
    _, good = checkpoint_at(sealed, 1)
    with pytest.raises(SignatureError):
        open_checkpoint({**good, "signature": "A" * 86 + "=="}, PUBLIC)
    with pytest.raises(MalformedError):
        open_checkpoint({**good, "payload_type": "application/vnd.firmament.report+json;v=1"}, PUBLIC)


def test_lines_in_wrong_places_are_findings():
    sealed = chain([(1, "a.b", "x", "", {}), (2, "a.c", "x", "", {})])
    lines = export(sealed)
    for wrong in (
        [],
        lines[:-1],
        [*lines, lines[1]],
        lines[1:],
        [lines[0], b'{"other":1}', *lines[1:]],
        [lines[0].replace(b"audit-export/1", b"audit-export/9"), *lines[1:]],
        [lines[0].replace(b'"previous":"00', b'"previous":"11'), *lines[1:]],
        [lines[0], sign_line(sealed), *lines[1:]],
    ):
        assert not verify_export(wrong, PUBLIC).ok


def sign_line(sealed):
    _, envelope = checkpoint_at(sealed, 2)
    return json.dumps({"checkpoint": envelope}).encode()


def test_the_key_is_read_from_hexadecimal_digits():
    assert audit.keyid_of(read_key(audit.raw_key(PUBLIC).hex() + "\n")) == audit.keyid_of(PUBLIC)
    with pytest.raises(MalformedError):
        read_key("no key")
