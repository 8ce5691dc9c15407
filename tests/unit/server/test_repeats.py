"""Idempotency keys on both databases: claimed once, marked with the change, fenced when taken over."""

from datetime import UTC, datetime, timedelta

import pytest

from firmament.errors import AnswerLostError, KeyBusyError, KeyReusedError
from firmament.server import repeats
from firmament.server.scope import Role, Scope

NOW = datetime(2026, 11, 1, tzinfo=UTC)
ALICE = Scope(1, "person:alice", Role.ADMIN)


def claim(connection, *, scope=ALICE, name="k", digest=b"d", after_s=0):
    return repeats.claim(connection, scope, name=name, digest=digest, now=NOW + timedelta(seconds=after_s))


def test_a_claim_is_held_by_one(connection):
    claim(connection)
    with pytest.raises(KeyBusyError) as caught:
        claim(connection, after_s=repeats.CLAIM_S - 1)
    assert caught.value.facts["retry_after_s"] == 1
    claim(connection, name="another key")
    claim(connection, scope=Scope(1, "person:bob", Role.ADMIN))
    claim(connection, scope=Scope(2, "person:alice", Role.ADMIN))
    with pytest.raises(KeyReusedError):
        claim(connection, digest=b"something else")


def test_a_kept_answer_is_given_until_it_expires(connection):
    held = claim(connection)
    repeats.mark(connection, held)
    repeats.keep(connection, held, status=201, sealed=b"sealed")
    for after_s in (0, repeats.KEPT_S - 1):
        assert claim(connection, after_s=after_s) == repeats.FirstAnswer(201, b"sealed")
    again = claim(connection, after_s=repeats.KEPT_S)
    assert isinstance(again, repeats.Claim)
    assert connection.execute("SELECT count(*) AS n FROM repeat").fetchone()["n"] == 1


def test_a_claim_left_behind_is_taken_over_and_its_maker_cannot_commit(connection):
    slow = claim(connection)
    quick = claim(connection, after_s=repeats.CLAIM_S)
    with pytest.raises(KeyBusyError):
        repeats.mark(connection, slow)
    repeats.keep(connection, slow, status=200, sealed=b"wrong")
    repeats.give_back(connection, slow)
    repeats.mark(connection, quick)
    repeats.keep(connection, quick, status=200, sealed=b"right")
    assert claim(connection, after_s=repeats.CLAIM_S + 1) == repeats.FirstAnswer(200, b"right")


def test_what_was_done_is_never_done_again(connection):
    held = claim(connection)
    repeats.mark(connection, held)
    repeats.give_back(connection, held)
    with pytest.raises(KeyBusyError):
        claim(connection, after_s=1)  # its answer may still come
    with pytest.raises(AnswerLostError):
        claim(connection, after_s=repeats.CLAIM_S)


def test_what_was_refused_is_free_again(connection):
    held = claim(connection)
    repeats.give_back(connection, held)
    assert isinstance(claim(connection, digest=b"corrected"), repeats.Claim)
