from pathlib import Path

import pytest

from firmament.payload.choose import Bounds, Trial, choose, trial, trials
from firmament.payload.methods import METHODS


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, Path]:
    old = b"".join(b"%d line\n" % number for number in range(9000))
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "new").write_bytes(old + b"end")
    return tmp_path / "old", tmp_path / "new"


def test_every_trial_was_applied_and_the_smallest_is_kept(world, tmp_path):
    old, new = world
    seen: list[Trial] = []
    keys = ["refdelta/1", "xz/1"]
    found = trials(new, [old], tmp_path, methods=keys, workers=2, progress=seen.append)
    assert {one.method for one in found} == set(keys) == {one.method for one in seen}
    assert all(one.problem is None and one.payload.stat().st_size == one.length_bytes > 0 for one in found)
    kept = choose(found)
    assert [one.method for one in kept] == ["xz/1", "refdelta/1"]


def test_a_trial_that_takes_too_long_is_ended(world, tmp_path):
    found = trial("refdelta/1", world[0], world[1], tmp_path / "out", bounds=Bounds(time_s=0.01))
    assert found.problem == "it took too long"
    assert not (tmp_path / "out").exists()


def test_a_trial_that_takes_too_much_memory_fails_alone(world, tmp_path):
    (tmp_path / "big").write_bytes(bytes(200_000_000))
    found = trial("whole/1", None, tmp_path / "big", tmp_path / "out", bounds=Bounds(memory_bytes=150_000_000))
    assert found.problem is not None
    assert not (tmp_path / "out").exists()


def test_a_method_that_makes_another_image_is_found(world, tmp_path):
    found = trial("whole/1", None, tmp_path / "absent", tmp_path / "out")
    assert found.problem is not None
    assert "FileNotFoundError" in found.problem


def row(method: str, length: int, precursor: str | None = "old", problem: str | None = None) -> Trial:
    return Trial(method, Path(precursor) if precursor else None, Path("out"), length, 0, 0, problem)


def test_deltas_that_do_not_pay_are_dropped():
    found = [row("xz/1", 1000, None), row("whole/1", 3000, None), row("refdelta/1", 950), row("hdiff/1", 960)]
    assert [one.method for one in choose(found)] == ["xz/1"]


def test_beside_a_librarys_delta_one_that_needs_none_is_kept():
    found = [row("xz/1", 1000, None), row("refdelta/1", 120), row("hdiff/1", 100), row("bsdiff/1", 90, problem="x")]
    assert [one.method for one in choose(found)] == ["xz/1", "hdiff/1", "refdelta/1"]
    assert METHODS["hdiff/1"].library is not None


def test_each_precursor_gets_its_own():
    found = [row("xz/1", 1000, None), row("refdelta/1", 120), row("refdelta/1", 300, "older")]
    assert [(one.precursor and one.precursor.name, one.length_bytes) for one in choose(found)] == [
        (None, 1000),
        ("old", 120),
        ("older", 300),
    ]
