"""Clocks: wall time may jump, monotonic time never goes back."""

from datetime import UTC, datetime

from firmament.core.clock import Clock, FixedClock, SystemClock

START = datetime(2026, 11, 20, tzinfo=UTC)


def test_the_system_clock_is_aware_and_moves_forward():
    clock: Clock = SystemClock()
    assert clock.now().utcoffset().total_seconds() == 0
    before = clock.monotonic_s()
    clock.sleep(0.001)
    assert clock.monotonic_s() > before


def test_a_fixed_clock_moves_only_when_told():
    clock = FixedClock(START)
    assert clock.now() == clock.now() == START
    clock.sleep(1.5)
    clock.advance(0.5)
    assert (clock.now() - START).total_seconds() == clock.monotonic_s() == 2


def test_a_jump_of_wall_time_leaves_durations_alone():
    clock = FixedClock(START)
    clock.set(datetime(1970, 1, 1, tzinfo=UTC))
    assert clock.now().year == 1970
    assert clock.monotonic_s() == 0
