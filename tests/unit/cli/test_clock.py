"""Nothing is signed by a machine that believes it is 1970: it would have expired before it is published."""

from datetime import UTC, datetime

import pytest

from firmament.cli import workspace
from firmament.core.clock import FixedClock
from firmament.errors import ClockError


def test_a_clock_that_cannot_be_right_is_refused(monkeypatch):
    monkeypatch.setattr(workspace, "CLOCK", FixedClock(datetime(1970, 1, 1, tzinfo=UTC)))
    with pytest.raises(ClockError, match=r"clock cannot be right \(now=1970-01-01T00:00:00Z\)"):
        workspace.now()


def test_times_are_signed_to_the_second(monkeypatch):
    monkeypatch.setattr(workspace, "CLOCK", FixedClock(datetime(2026, 11, 20, 1, 2, 3, 456, tzinfo=UTC)))
    assert workspace.now() == datetime(2026, 11, 20, 1, 2, 3, tzinfo=UTC)
