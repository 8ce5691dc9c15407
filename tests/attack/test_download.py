"""Attacks on the way of the bytes (trust.md §10, 30 to 40): the attacker holds the server's TLS key or the cache."""

import subprocess
import time
from datetime import UTC, datetime, timedelta

import pytest
from attack.hostile import Authority, make_bundle
from support.world import Answer

from firmament.errors import (
    DigestMismatchError,
    EncodingError,
    HttpStatusError,
    LengthExceededError,
    RedirectError,
    SlowError,
    TlsError,
    TransferError,
    TruncatedError,
)

TARGETS = "/v1/image/targets/"
BIG = {"data.bin": bytes(range(256)) * 2048}
"""Half a mebibyte: several reads, several resumes."""


def is_target(path: str) -> bool:
    return path.startswith(TARGETS)


def raw(handler, status: int, headers: dict[str, object], *chunks: bytes) -> bool:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, str(value))
    handler.send_header("Connection", "close")
    handler.end_headers()
    for chunk in chunks:
        handler.wfile.write(chunk)
    return True


def test_30_endless_target(stage):
    """The payload never ends."""
    stage.server.release("1.1", 2)

    def endless(handler, path, answer):
        return is_target(path) and raw(handler, 200, {}, answer.body, *[b"x" * 65_536] * 10_000)

    stage.server.send = endless
    stage.refused(LengthExceededError)


def test_30_a_longer_target_than_was_signed(stage):
    """The payload is announced longer than it was signed."""
    stage.server.release("1.1", 2)

    def longer(handler, path, answer):
        body = answer.body + b"x"
        return is_target(path) and raw(handler, 200, {"Content-Length": len(body)}, body)

    stage.server.send = longer
    stage.refused(LengthExceededError)


def test_31_slow_drip(stage):
    """A byte now and then keeps the connection alive for ever; the minimum rate ends it."""
    stage.victim.configure(min_rate_bytes_per_s=2000, rate_window_s=1)
    stage.server.release("1.1", 2, make_bundle("1.1", extra=BIG))

    def drip(handler, path, answer):
        if not is_target(path):
            return False
        raw(handler, 200, {"Content-Length": len(answer.body)})
        for offset in range(600):
            handler.wfile.write(answer.body[offset : offset + 1])
            handler.wfile.flush()
            time.sleep(0.05)
        return True

    stage.server.send = drip
    began = time.monotonic()
    stage.refused(SlowError)
    assert time.monotonic() - began < 25


def test_32_truncated_body(stage):
    """Each answer ends early: what came is kept, the rest is asked for, and an honest server completes it."""
    stage.server.release("1.1", 2, make_bundle("1.1", extra=BIG))

    def truncated(handler, path, answer):
        return is_target(path) and raw(
            handler, answer.status, {"Content-Length": len(answer.body)}, answer.body[:-1000]
        )

    def nothing(handler, path, answer):
        return is_target(path) and raw(handler, 200, {"Content-Length": len(answer.body)})

    stage.server.send = nothing
    stage.refused(TruncatedError)
    stage.server.send = None
    ran = stage.victim.run("all", "--yes")
    assert ran.exit_code == 0, ran.err
    assert stage.victim.installed == "1.1"


def interrupted(stage) -> None:
    """Get the device half way: the first answer brings a part and breaks off."""
    cut = []

    def once(handler, path, answer):
        if not is_target(path) or cut:
            return False
        cut.append(path)
        return raw(handler, 200, {"Content-Length": len(answer.body)}, answer.body[:300_000])

    stage.server.send = once


@pytest.mark.parametrize("lie", ["another-offset", "another-length", "no-range"])
def test_33_a_wrong_content_range(stage, lie):
    """After a break the server answers another range than was asked, as if nothing were wrong."""
    data = make_bundle("1.1", extra=BIG)
    stage.server.release("1.1", 2, data)
    interrupted(stage)

    def tap(method, path, answer):
        if not is_target(path) or answer.status != 206:
            return answer
        start = len(data) - len(answer.body)
        ranges = {
            "another-offset": f"bytes {start + 1}-{len(data) - 1}/{len(data)}",
            "another-length": f"bytes {start}-{len(data)}/{len(data) + 1}",
            "no-range": "",
        }
        headers = {"content-range": ranges[lie]} if ranges[lie] else {}
        return Answer(206, answer.body, headers)

    stage.world.tap = tap
    ran = stage.victim.run("all", "--yes")
    assert ran.exit_code == 0, ran.err
    asked = [line for line in stage.server.asked if TARGETS in line]
    assert ["bytes=" in line for line in asked] == [False, True, False]  # part, lie, from the start
    assert (stage.victim.app / "current" / "data.bin").read_bytes() == BIG["data.bin"]
    stage.told.append({"code": "(not believed; fetched again from 0)", "asked": asked})


def test_33_another_files_bytes_in_the_right_range(stage):
    """After a break the rest comes from another file; length and range are right."""
    data = make_bundle("1.1", extra=BIG)
    stage.server.release("1.1", 2, data)
    interrupted(stage)

    def tap(method, path, answer):
        if is_target(path) and answer.status == 206:
            return Answer(206, b"\0" * len(answer.body), answer.headers)
        return answer

    stage.world.tap = tap
    ran = stage.victim.run("all", "--yes")
    assert ran.exit_code != 0
    stage.still("1.0")
    assert any("bytes=" in line for line in stage.server.asked)
    stage.told.append({"code": ran.code, "asked": stage.server.asked[-3:]})


def test_33_a_whole_answer_to_a_range(stage):
    """After a break the server ignores the range: the device starts over and installs what was signed."""
    stage.server.release("1.1", 2, make_bundle("1.1", extra=BIG))
    interrupted(stage)
    data = next(blob for name, blob in stage.image.blobs.items() if "/1.1/" in name)
    stage.world.tap = lambda method, path, answer: (
        Answer(200, data) if is_target(path) and answer.status == 206 else answer
    )
    ran = stage.victim.run("all", "--yes")
    assert stage.victim.installed in {"1.0", "1.1"}
    if ran.exit_code == 0:
        written = stage.victim.app / "current" / "data.bin"
        assert written.read_bytes() == BIG["data.bin"]
    stage.told.append(
        {"code": ran.code or "(started over, nothing foreign installed)", "asked": stage.server.asked[-3:]}
    )


def test_34_a_poisoned_partial_download(stage):
    """Somebody changes the half-written slot while the device is off."""
    stage.server.release("1.1", 2, make_bundle("1.1", extra=BIG))
    interrupted(stage)
    stage.world.tap = lambda method, path, answer: Answer(503) if is_target(path) and answer.status == 206 else answer
    assert stage.victim.run("download").exit_code != 0
    other = "b" if (stage.victim.app / "current").resolve().name == "a" else "a"
    poisoned = [path for path in (stage.victim.app / other).rglob("*") if path.is_file()]
    assert poisoned
    for path in poisoned:
        path.write_bytes(b"evil")
    (stage.victim.app / other / "evil.py").write_text("evil")
    stage.world.tap = stage.server.send = None
    ran = stage.victim.run("all", "--yes")
    assert ran.exit_code == 0, ran.err
    assert stage.victim.installed == "1.1"
    assert not (stage.victim.app / "current" / "evil.py").exists()
    assert (stage.victim.app / "current" / "data.bin").read_bytes() == BIG["data.bin"]
    stage.told.append({"code": "(thrown away and fetched again)", "asked": stage.server.asked[-3:]})


def test_35_the_file_changes_between_resumes(stage):
    """The cache's copy is replaced between two ranges: same name, same length, another ETag."""
    data = make_bundle("1.1", extra=BIG)
    stage.server.release("1.1", 2, data)
    cut = []

    def first(handler, path, answer):
        if not is_target(path):
            return False
        tag = {"ETag": '"first"' if not cut else '"second"'}
        if not cut:
            cut.append(path)
            return raw(handler, 200, {"Content-Length": len(data), **tag}, data[:300_000])
        start = len(data) - len(answer.body) if answer.status == 206 else 0
        evil = b"\xff" * (len(data) - start)
        extra = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        return raw(handler, 206 if start else 200, {"Content-Length": len(evil), **tag, **extra}, evil)

    stage.server.send = first
    ran = stage.victim.run("all", "--yes")
    assert ran.exit_code != 0
    assert ran.code
    stage.still("1.0")
    stage.told.append({"code": ran.code, "asked": stage.server.asked[-3:]})


@pytest.mark.parametrize("where", ["http://localhost:1/x", "https://127.0.0.1:1/x", "/v1/image/targets/other"])
@pytest.mark.parametrize("what", ["metadata", "payload"])
def test_36_redirects(stage, where, what):
    """The server sends the device elsewhere, or down to plain HTTP."""
    stage.server.release("1.1", 2)
    prefix = TARGETS if what == "payload" else "/v1/image/metadata/timestamp"
    stage.world.tap = lambda method, path, answer: (
        Answer(302, b"", {"location": where}) if path.startswith(prefix) else answer
    )
    stage.refused(RedirectError)


@pytest.mark.parametrize("what", ["poll", "metadata", "payload"])
def test_37_content_encoding(stage, what):
    """A compressed answer could grow without bound: any Content-Encoding is refused unread."""
    stage.server.release("1.1", 2)
    prefix = {"poll": "/v1/poll", "metadata": "/v1/image/metadata/timestamp", "payload": TARGETS}[what]

    def bomb(method, path, answer):
        return Answer(200, answer.body, {"content-encoding": "gzip"}) if path.startswith(prefix) else answer

    stage.world.tap = bomb
    stage.refused(EncodingError)


@pytest.mark.parametrize("where", [0, 700, -1])
def test_38_a_flipped_bit_or_a_substitution_of_the_same_length(stage, where):
    """One byte of the payload is another one: refused for good, whoever changed it."""
    stage.server.release("1.1", 2)

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


def test_38_another_image_of_the_same_length(stage):
    """The payload is a well-formed bundle of the right length that nobody signed."""
    good, evil = make_bundle("1.1"), make_bundle("6.6")
    assert len(good) == len(evil)
    stage.server.release("1.1", 2, good)
    stage.world.tap = lambda method, path, answer: Answer(200, evil) if is_target(path) else answer
    stage.refused(DigestMismatchError)
    assert any(
        report.status == "refused" and report.code == DigestMismatchError.code for report in stage.server.reports
    )


FULL_DISK = """
cp -a "$0" "$0.copy" && mount -t tmpfs -o size=2m none "$0" && cp -a "$0.copy/." "$0" && rm -rf "$0.copy" &&
head -c 1500000 /dev/zero > "$0/log" && exec "$@"
"""
"""The slots on a file system of 2 MiB that a log has nearly filled, in a mount namespace of this run alone; $0 is their folder."""


@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode != 0,
    reason="only root can mount a small file system here",
)
def test_39_a_full_disk(stage):
    """The storage has no room for the image: said so, nothing lost; with room it installs."""
    app = stage.victim.app
    stage.server.release("1.1", 2, make_bundle("1.1", extra=BIG | {"more.bin": BIG["data.bin"]}))
    stage.refused("slot/disk-full", prefix=("unshare", "--mount", "sh", "-c", FULL_DISK, str(app)))
    stage.accepted("1.1")


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_a_payload_that_is_withheld(stage, status):
    """The server keeps the payload back: the device waits and keeps what it runs."""
    stage.server.release("1.1", 2)
    stage.world.tap = lambda method, path, answer: Answer(status) if is_target(path) else answer
    stage.refused(HttpStatusError)


@pytest.mark.parametrize("fault", ["another-ca", "expired", "another-name"])
def test_40_tls(own_stage, fault):
    """Whoever answers cannot show the server's certificate."""
    stage, now = own_stage, datetime.now(UTC)
    stage.server.release("1.1", 2)
    authority = Authority("evil") if fault == "another-ca" else stage.server.authority
    made = {
        "another-ca": {},
        "expired": {"begins": now - timedelta(days=20), "ends": now - timedelta(days=10)},
        "another-name": {"names": ("evil.example",)},
    }[fault]
    stage.server.restart(authority.server(stage.server.directory, **made))
    stage.refused(TlsError)
    assert stage.server.asked == []
    stage.server.restart(stage.server.authority.server(stage.server.directory))
    stage.accepted("1.1")


def test_40_a_server_that_hangs_up(stage):
    """The connection is closed in the middle of everything."""
    stage.server.release("1.1", 2)

    def hang_up(handler, path, answer):
        handler.connection.close()
        return True

    stage.server.send = hang_up
    ran = stage.victim.run("check")
    assert ran.exit_code != 0
    assert ran.code.startswith(TransferError.code)
    stage.still("1.0")
    stage.told.append({"code": ran.code, "asked": stage.server.asked[-1:]})
