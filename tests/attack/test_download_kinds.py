"""The attacks of test_download.py, 30 to 38, on a delta and on a sealed payload: both are stored before they count.

A delta has the whole image beside it, and the attacker treats both alike; a sealed payload has its
chunk list, which he holds as well.
"""

import time

import pytest
from attack.payloads import EXTRA, delta_and_whole, publish, sealed_whole
from attack.test_download import interrupted, is_target, raw
from support.world import Answer

from firmament.agent.stored import NAME
from firmament.errors import (
    DigestMismatchError,
    EncodingError,
    LengthExceededError,
    RedirectError,
    SlowError,
    TruncatedError,
)

KINDS = {"delta": delta_and_whole, "sealed": sealed_whole}


@pytest.fixture(params=KINDS)
def kind(stage, request):
    """The release is published and assigned, travelling in this way."""
    publish(stage, KINDS[request.param]())
    return request.param


def nothing_foreign(stage, ran) -> None:
    """Whatever happened, what starts is the old version, or the new one to the byte."""
    assert stage.victim.installed in {"1.0", "1.1"}
    if stage.victim.installed == "1.1":
        assert ran.exit_code == 0
        for name, data in EXTRA.items():
            assert (stage.victim.app / "current" / name).read_bytes() == data
    stage.told.append({"code": ran.code or "(nothing foreign installed)", "asked": stage.server.asked[-3:]})


def installs(stage) -> None:
    stage.server.send = stage.world.tap = None
    ran = stage.victim.run("all", "--yes")
    assert ran.exit_code == 0, ran.err
    assert stage.victim.installed == "1.1"
    nothing_foreign(stage, ran)


def test_30_endless_target(stage, kind):
    """The payload never ends."""

    def endless(handler, path, answer):
        return is_target(path) and raw(handler, 200, {}, answer.body, *[b"x" * 65_536] * 10_000)

    stage.server.send = endless
    stage.refused(LengthExceededError)


def test_31_slow_drip(stage, kind):
    """A byte now and then keeps the connection alive for ever; the minimum rate ends it."""
    stage.victim.configure(min_rate_bytes_per_s=2000, rate_window_s=1)

    def drip(handler, path, answer):
        if not is_target(path):
            return False
        raw(handler, answer.status, {"Content-Length": len(answer.body), **answer.headers})
        for offset in range(200):
            handler.wfile.write(answer.body[offset : offset + 1])
            handler.wfile.flush()
            time.sleep(0.05)
        return True

    stage.server.send = drip
    stage.refused(SlowError)


def test_32_truncated_body(stage, kind):
    """No answer brings a byte: the device gives up for now, and an honest server completes it."""

    def nothing(handler, path, answer):
        return is_target(path) and raw(handler, answer.status, {"Content-Length": len(answer.body), **answer.headers})

    stage.server.send = nothing
    stage.refused(TruncatedError)
    installs(stage)


def test_33_a_wrong_content_range(stage, kind):
    """After a break the server answers another range than was asked, as if nothing were wrong."""
    interrupted(stage)

    def tap(method, path, answer):
        if not is_target(path) or answer.status != 206:
            return answer
        return Answer(206, answer.body, {"content-range": f"bytes 1-{len(answer.body)}/{len(answer.body) + 1}"})

    stage.world.tap = tap
    ran = stage.victim.run("all", "--yes")
    assert any("bytes=" in line for line in stage.server.asked), "it went on where it was cut"
    nothing_foreign(stage, ran)
    installs(stage) if stage.victim.installed == "1.0" else None


def test_33_another_files_bytes_in_the_right_range(stage, kind):
    """After a break the rest comes from another file; length and range are right."""
    interrupted(stage)
    stage.world.tap = lambda method, path, answer: (
        Answer(206, b"\0" * len(answer.body), answer.headers) if is_target(path) and answer.status == 206 else answer
    )
    ran = stage.victim.run("all", "--yes")
    assert any("bytes=" in line for line in stage.server.asked)
    nothing_foreign(stage, ran)


def test_34_a_poisoned_stored_payload(stage, kind):
    """Somebody changes the half-fetched payload while the device is off; sealed, only the bad piece comes again."""
    interrupted(stage)
    stage.world.tap = lambda method, path, answer: Answer(503) if is_target(path) and answer.status == 206 else answer
    assert stage.victim.run("download").exit_code != 0
    (stored,) = stage.victim.state.rglob(NAME)
    data = bytearray(stored.read_bytes())
    assert len(data) >= 200_000
    data[1000:2000] = b"\xee" * 1000
    stored.write_bytes(data)
    installs(stage)


def test_35_the_file_changes_between_resumes(stage, kind):
    """The cache's copy is replaced between two ranges: same name, same length, another ETag."""
    cut = []

    def first(handler, path, answer):
        if not is_target(path):
            return False
        tag = {"ETag": '"first"' if not cut else '"second"'}
        if not cut:
            cut.append(path)
            return raw(handler, 200, {"Content-Length": len(answer.body), **tag}, answer.body[:200_000])
        evil = b"\xff" * len(answer.body)
        return raw(handler, answer.status, {"Content-Length": len(evil), **tag, **answer.headers}, evil)

    stage.server.send = first
    ran = stage.victim.run("all", "--yes")
    assert ran.exit_code != 0
    stage.still("1.0")
    stage.told.append({"code": ran.code, "asked": stage.server.asked[-3:]})


def test_36_redirects(stage, kind):
    """The server sends the device elsewhere for the payload."""
    stage.world.tap = lambda method, path, answer: (
        Answer(302, b"", {"location": "https://127.0.0.1:1/x"}) if is_target(path) else answer
    )
    stage.refused(RedirectError)


def test_37_content_encoding(stage, kind):
    """A compressed payload could grow without bound: any Content-Encoding is refused unread."""
    stage.world.tap = lambda method, path, answer: (
        Answer(200, answer.body, {"content-encoding": "gzip"}) if is_target(path) else answer
    )
    stage.refused(EncodingError)


@pytest.mark.parametrize("where", [0, -1])
def test_38_a_flipped_bit(stage, kind, where):
    """One byte of every payload is another one: refused, whoever changed it."""

    def flip(method, path, answer):
        if not is_target(path) or not answer.body:
            return answer
        body = bytearray(answer.body)
        body[where] ^= 1
        return Answer(answer.status, bytes(body), answer.headers)

    stage.world.tap = flip
    ran = stage.victim.run("all", "--yes")
    assert ran.exit_code != 0
    assert ran.code in {DigestMismatchError.code, "slot/unsafe-archive"}, ran.err
    stage.still("1.0")
    stage.told.append({"code": ran.code, "asked": stage.server.asked[-3:]})
