"""The fuzzer of scripts/fuzz.py: a short run over every decoder, and proof that it finds what is planted."""

import logging
import random
from pathlib import Path

import pytest

from firmament.errors import MalformedError

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    import fuzz
    import fuzz_targets

    return fuzz, fuzz_targets


def test_every_decoder_survives_a_short_run(scripts):
    fuzz, fuzz_targets = scripts
    chosen = fuzz_targets.targets()
    counts, findings = fuzz.fuzz(chosen, random.Random(7), seconds=60, executions=60)
    assert [(finding.target, finding.what) for finding in findings] == []
    assert len(chosen) >= 25
    assert all(counts[target.name] > 60 for target in chosen)


def planted(data: bytes) -> None:
    if b"ab" not in data:
        raise MalformedError("No")
    if data.startswith(b"ab\xff"):
        raise KeyError("planted")
    if b"slow" in data:
        sum(range(10**8))


def test_it_finds_a_planted_mistake_and_makes_it_small(scripts):
    fuzz, fuzz_targets = scripts
    target = fuzz_targets.Target("planted", planted, (b"abcdefgh" * 8,), (b"\xff",))
    counts, findings = fuzz.fuzz([target], random.Random(1), seconds=30, executions=20_000)
    (finding,) = findings
    assert finding.what.startswith("KeyError: 'planted' at test_fuzz.py:")
    assert finding.data == b"ab\xff"
    assert counts["planted"] == 20_001


def test_a_seed_that_fails_is_a_finding(scripts):
    fuzz, fuzz_targets = scripts
    target = fuzz_targets.Target("planted", planted, (b"ab\xff",))
    assert len(fuzz.fuzz([target], random.Random(1), seconds=0)[1]) == 1


def test_the_same_seed_gives_the_same_inputs(scripts):
    fuzz, fuzz_targets = scripts
    runs = []
    for _ in range(2):
        seen = []
        target = fuzz_targets.Target("seen", seen.append, (b'{"a":[1,"x"]}',), (b"t",))
        fuzz.fuzz([target], random.Random(5), seconds=30, executions=300)
        runs.append(seen)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 120


@pytest.mark.slow
def test_a_slow_input_is_a_finding(scripts, monkeypatch):
    fuzz, fuzz_targets = scripts
    monkeypatch.setattr(fuzz, "SLOW_S", 0.2)
    target = fuzz_targets.Target("slow", planted, (b"slow ab",))
    (finding,) = fuzz.fuzz([target], random.Random(1), seconds=0)[1]
    assert "processor time" in finding.what
