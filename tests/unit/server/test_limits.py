"""Token buckets, byte ranges and reply versions: small pure things with properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmament.errors import RateLimitedError
from firmament.server.http.ranges import ByteRange, Unsatisfiable, allows_range, names_etag, parse_range
from firmament.server.limits import TokenBuckets
from firmament.server.versions import BLOCK_S, ReplyVersions

STEPS = st.lists(st.floats(min_value=0, max_value=30), min_size=1, max_size=60)


@given(STEPS, st.floats(min_value=0.1, max_value=10), st.integers(min_value=1, max_value=10))
def test_never_more_than_burst_and_rate_allow(steps, rate, burst):
    buckets = TokenBuckets(rate_per_s=rate, burst=burst)
    now, taken = 0.0, 0
    for step in steps:
        now += step
        if buckets.take("key", now) == 0:
            taken += 1
        assert taken <= burst + rate * now + 1e-6


@given(st.floats(min_value=0.1, max_value=10), st.integers(min_value=1, max_value=5))
def test_waiting_as_long_as_told_is_enough(rate, burst):
    buckets = TokenBuckets(rate_per_s=rate, burst=burst)
    for _ in range(burst):
        assert buckets.take("key", 0) == 0
    wait = buckets.take("key", 0)
    assert wait > 0
    assert buckets.take("key", wait * 1.000001) == 0


def test_a_clock_that_steps_back_gives_nothing_away():
    buckets = TokenBuckets(rate_per_s=1, burst=1)
    assert buckets.take("key", 100) == 0
    assert buckets.take("key", 50) > 0
    assert buckets.take("key", 100.5) > 0


def test_memory_has_a_ceiling_and_the_least_used_goes():
    buckets = TokenBuckets(rate_per_s=0.001, burst=1, max_keys=3)
    for key in "abc":
        buckets.take(key, 0)
    assert buckets.take("a", 1) > 0
    buckets.take("d", 1)
    assert len(buckets) == 3
    assert buckets.take("a", 1) > 0  # used lately: still remembered


def test_a_refusal_says_when_to_come_back():
    buckets = TokenBuckets(rate_per_s=0.5, burst=1)
    buckets.require("key", 0, what="polls")
    with pytest.raises(RateLimitedError) as refused:
        buckets.require("key", 0, what="polls")
    assert refused.value.facts["retry_after_s"] >= 2


@given(st.text(max_size=40), st.integers(min_value=0, max_value=10_000))
def test_any_range_header_gives_a_part_of_the_file_or_nothing(text, total):
    try:
        part = parse_range(text, total)
    except Unsatisfiable:
        return
    if part is not None:
        assert 0 <= part.offset < part.offset + part.length_bytes <= total


@given(
    st.integers(min_value=0, max_value=999),
    st.integers(min_value=0, max_value=2000),
    st.integers(min_value=1, max_value=1000),
)
def test_ranges_mean_what_the_rfc_says(first, last, total):
    data = bytes(index % 251 for index in range(total))
    for text, expected in (
        (f"bytes={first}-", data[first:]),
        (f"bytes={first}-{last}", data[first : last + 1] if last >= first else None),
        (f"bytes=-{last}", data[-last:] if last else b""),
    ):
        try:
            part = parse_range(text, total)
        except Unsatisfiable:
            assert expected == b""
            continue
        got = None if part is None else data[part.offset : part.offset + part.length_bytes]
        assert got == expected


@pytest.mark.parametrize("text", [None, "", "bytes=", "bytes=-", "bytes=a-b", "bytes=1-2,4-5", "items=0-1", "bytes=5-2", "bytes=" + "9" * 200 + "-"])  # fmt: skip
def test_what_is_not_one_range_is_the_whole(text):
    assert parse_range(text, 100) is None


def test_a_suffix_longer_than_the_file_is_the_file():
    assert parse_range("bytes=-500", 100) == ByteRange(0, 100)


def test_entity_tags():
    assert names_etag('"a", W/"b"', '"b"')
    assert names_etag("*", '"b"')
    assert not names_etag('"a"', '"b"')
    assert not names_etag(None, '"b"')
    assert allows_range(None, '"b"')
    assert allows_range('"b"', '"b"')
    assert not allows_range("Fri, 20 Nov 2026 12:00:00 GMT", '"b"')


class Machine:
    """A server that starts, answers, and stops or crashes, with a clock that may be wrong."""

    def __init__(self):
        self.stored = 0
        self.writes = 0
        self.start()

    def start(self):
        self.versions = ReplyVersions(self.stored)

    def answer(self, device, now):
        for _ in range(2):
            number = self.versions.next(device, now)
            if number is not None:
                assert number <= self.stored
                return number
            self.stored = self.versions.wanted_horizon(now)
            self.writes += 1
            self.versions.stored(self.stored)
        raise AssertionError("no number after the horizon was stored")

    def stop(self):
        self.stored = self.versions.last()


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("poll"), st.sampled_from("ab")),
        st.tuples(st.just("time"), st.integers(min_value=-100, max_value=200)),
        st.tuples(st.just("crash"), st.none()),
        st.tuples(st.just("stop"), st.none()),
    ),
    max_size=60,
)


@given(ACTIONS)
def test_no_device_ever_sees_a_version_fall_or_repeat(actions):
    machine, now, seen = Machine(), 1_790_000_000, {}
    for action, value in actions:
        if action == "poll":
            number = machine.answer(value, now)
            assert number > seen.get(value, 0)
            seen[value] = number
        elif action == "time":
            now += value
        else:
            if action == "stop":
                machine.stop()
            machine.start()


def test_numbers_stay_with_the_clock_and_writes_are_rare():
    machine, now = Machine(), 1_790_000_000
    for second in range(600):
        for device in range(50):
            assert machine.answer(f"device-{device}", now + second) - (now + second) <= 1
    assert machine.writes <= 600 / BLOCK_S + 2


def test_a_clean_restart_does_not_run_ahead():
    machine, now = Machine(), 1_790_000_000
    for second in range(0, 100, 2):
        machine.answer("a", now + second)
        machine.stop()
        machine.start()
    assert machine.answer("a", now + 101) == now + 101
