"""HTTP against servers that misbehave: download cases 30-37 and 40 of trust.md §10."""

import gzip
import http.client
import ssl
import time
from datetime import UTC, datetime, timedelta

import pytest
import urllib3
from support.sockets import RawServer, reply

from firmament.agent import fetch
from firmament.agent.fetch import (
    HttpTransport,
    MinimumRate,
    TlsFiles,
    TokenBucket,
    TransferSettings,
    mapped_errors,
    read_body,
    require_success,
)
from firmament.agent.resume import TransportSource
from firmament.agent.tls import believed_time, make_context
from firmament.core.clock import FixedClock, SystemClock
from firmament.errors import (
    EncodingError,
    HttpStatusError,
    KeyFileError,
    LengthExceededError,
    RangeError,
    RedirectError,
    SettingError,
    SlowError,
    TlsError,
    TransferError,
    TruncatedError,
    UnreachableError,
)
from firmament.server.authority import issue_device_certificate, issue_server_certificate, make_authority, read_request
from firmament.trust.device_keys import IdentityKey

QUICK = TransferSettings(
    connect_timeout_s=2, idle_timeout_s=0.5, request_deadline_s=3, min_rate_bytes_per_s=1000, rate_window_s=0.4
)
DATA = bytes(range(256)) * 400
NOW = datetime.now(UTC)


def transport(*, tls=None, settings=QUICK, floor=None, clock=None):
    return HttpTransport(clock or SystemClock(), settings=settings, tls=tls, time_floor=lambda: floor)


@pytest.fixture
def serve():
    made = []

    def start(answer, **options):
        server = RawServer(answer, **options)
        made.append(server)
        return server

    yield start
    for server in made:
        server.close()


@pytest.fixture
def http_transport():
    found = transport()
    yield found
    found.close()


def get(channel, url, *, limit=1_000_000):
    response = channel.request("GET", url)
    return read_body(response, limit_bytes=limit, url=url)


def says(data):
    return lambda connection, head: connection.sendall(data)


def test_a_body_arrives_and_the_connection_is_kept(serve, http_transport):
    server = serve(says(reply(DATA)))
    for _ in range(3):
        assert get(http_transport, server.url) == DATA
    assert server.connections == 1
    assert b"Accept-Encoding: identity" in server.requests[0]
    assert b"User-Agent: firmament-agent/" in server.requests[0]


def test_headers_are_lower_case_and_a_body_is_sent(serve, http_transport):
    server = serve(says(reply(b"ok", headers=["X-Thing: 1"])))
    response = http_transport.request("POST", f"{server.url}/p?q=1", body=b"hello", headers={"Content-Type": "x/y"})
    assert response.headers["x-thing"] == "1"
    assert b"".join(response.chunks()) == b"ok"
    response.close()
    assert server.requests[0].startswith(b"POST /p?q=1 HTTP/1.1")
    assert server.requests[0].endswith(b"\r\n\r\nhello")


def test_chunked_bodies_arrive(serve, http_transport):
    server = serve(says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"))
    assert get(http_transport, server.url) == b"hello world"


def test_a_response_that_is_given_up_does_not_poison_the_next(serve, http_transport):
    server = serve(says(reply(DATA)))
    response = http_transport.request("GET", server.url)
    next(iter(response.chunks()))
    response.close()
    assert get(http_transport, server.url) == DATA


def test_a_server_that_drops_idle_connections(serve, http_transport, monkeypatch):
    monkeypatch.setattr(fetch, "IDLE_LIMIT_S", 0.0)
    server = serve(says(reply(b"ok")))
    for _ in range(2):
        assert get(http_transport, server.url) == b"ok"
        time.sleep(0.01)
    assert server.connections == 2


# --- ceilings and refusals -----------------------------------------------------------------


@pytest.mark.parametrize("announced", [True, False])
def test_endless_bodies_are_cut(serve, http_transport, announced):
    """Case 30."""

    def answer(connection, head):
        length = b"Content-Length: 99999999\r\n" if announced else b""
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    server = serve(answer)
    with pytest.raises(LengthExceededError):
        get(http_transport, server.url, limit=1000)


def test_endless_headers_are_cut(serve, http_transport):
    def answer(connection, head):
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            connection.sendall(b"X-Header: 1\r\n" * 1000)

    with pytest.raises(TransferError):
        get(http_transport, serve(answer).url)


@pytest.mark.parametrize("place", ["headers", "body", "interim"])
def test_slow_drips_are_cut(serve, http_transport, place):
    """Case 31: one byte at a time, well within every socket timeout."""

    def answer(connection, head):
        if place == "body":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        elif place == "headers":
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while True:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" if place == "interim" else b"x")
            time.sleep(0.05)

    started = time.monotonic()
    with pytest.raises(SlowError):
        get(http_transport, serve(answer).url)
    assert time.monotonic() - started < QUICK.request_deadline_s + 1


@pytest.mark.parametrize("place", ["before the answer", "in the body"])
def test_silence_is_cut(serve, http_transport, place):
    def answer(connection, head):
        if place == "in the body":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx")
        time.sleep(5)

    with pytest.raises(SlowError):
        get(http_transport, serve(answer).url)


@pytest.mark.parametrize(
    "ending",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    ],
)
def test_truncated_bodies(serve, http_transport, ending):
    """Case 32."""

    def answer(connection, head):
        connection.sendall(ending)
        return False

    with pytest.raises(TruncatedError):
        get(http_transport, serve(answer).url)


@pytest.mark.parametrize("ending", [b"", b"HTTP/1.1", b"hello\r\n\r\n"])
def test_no_answer_at_all(serve, http_transport, ending):
    def answer(connection, head):
        connection.sendall(ending)
        return False

    with pytest.raises(TransferError):
        get(http_transport, serve(answer).url)


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_redirects_are_not_followed(serve, http_transport, status):
    """Case 36."""
    target = serve(says(reply(b"evil")))
    server = serve(says(reply(status=status, headers=[f"Location: {target.url}"])))
    with pytest.raises(RedirectError):
        get(http_transport, server.url)
    assert target.requests == []


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP", "identity, gzip"])
def test_encoded_bodies_are_refused(serve, http_transport, encoding):
    """Case 37: a bomb is not opened."""
    bomb = gzip.compress(bytes(10_000_000))
    server = serve(says(reply(bomb, headers=[f"Content-Encoding: {encoding}"])))
    with pytest.raises(EncodingError):
        get(http_transport, server.url)


def test_nobody_listens(http_transport):
    with pytest.raises(UnreachableError):
        get(http_transport, "http://127.0.0.1:1/")


@pytest.mark.parametrize(
    "url",
    ["https://localhost/", "ftp://x/", "", "http://", "http://user:secret@localhost/", "http://[::1/", "http://x y/"],
)
def test_addresses_that_cannot_be_used(http_transport, url):
    with pytest.raises(TransferError) as caught:
        get(http_transport, url)
    assert caught.value.retry


def test_names_that_do_not_exist(http_transport):
    with pytest.raises(UnreachableError):
        get(http_transport, "http://no-such-host.invalid/")


def test_a_header_with_a_line_break_is_no_request(serve, http_transport):
    server = serve(says(reply()))
    with pytest.raises(TransferError):
        http_transport.request("GET", server.url, headers={"X": "a\r\nb"})


def test_what_the_server_says_about_an_error_is_kept(serve, http_transport):
    body = b'{"type":"request/not-found","detail":"gone","request_id":"r1"}'
    server = serve(says(reply(body, status="404 Not Found", headers=["Retry-After: 7"])))
    response = http_transport.request("GET", server.url)
    with pytest.raises(HttpStatusError) as caught:
        require_success(response, server.url)
    facts = caught.value.facts
    assert (facts["status"], facts["server_code"], facts["retry_after_s"]) == (404, "request/not-found", 7)


def test_an_error_page_that_is_no_problem_document(serve, http_transport):
    server = serve(says(reply(b"<html>" * 10_000, status="500 Oops", headers=["Retry-After: soon"])))
    with pytest.raises(HttpStatusError) as caught:
        require_success(http_transport.request("GET", server.url), server.url)
    assert caught.value.facts == {"status": 500, "url": server.url}


@pytest.mark.parametrize("has_begun", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        urllib3.exceptions.HTTPError(),
        urllib3.exceptions.ProtocolError("x", ConnectionResetError()),
        urllib3.exceptions.ReadTimeoutError(None, "", "x"),
        urllib3.exceptions.ConnectTimeoutError(),
        urllib3.exceptions.NewConnectionError(None, "x"),
        urllib3.exceptions.SSLError(),
        urllib3.exceptions.LocationParseError("x"),
        urllib3.exceptions.IncompleteRead(1, 2),
        urllib3.exceptions.InvalidHeader(),
        urllib3.exceptions.DecodeError(),
        http.client.IncompleteRead(b""),
        http.client.BadStatusLine("x"),
        http.client.LineTooLong("x"),
        ssl.SSLError(),
        ssl.CertificateError(),
        ConnectionResetError(),
        BrokenPipeError(),
        TimeoutError(),
        OSError(),
        ValueError(),
        UnicodeEncodeError("idna", "", 0, 1, "x"),
    ],
)
def test_every_foreign_error_becomes_one_of_ours(error, has_begun):
    with pytest.raises(TransferError), mapped_errors("http://x", has_begun=has_begun):
        raise error


# --- rates ---------------------------------------------------------------------------------


def test_the_minimum_rate_counts_only_waiting():
    rate = MinimumRate(1000, 10)
    for _ in range(100):
        rate.add(1000, 1.0)
    rate.add(0, 9.0)
    with pytest.raises(SlowError) as caught:
        rate.add(5000, 1.0)
    assert caught.value.facts["rate_bytes_per_s"] == 500


def test_the_bucket_keeps_the_rate():
    clock = FixedClock(NOW)
    bucket = TokenBucket(clock, 1000)
    for _ in range(50):
        bucket.take(1000)
    assert clock.monotonic_s() == pytest.approx(49)
    clock.advance(100)
    bucket.take(1000)  # one second's worth was saved up, no more
    bucket.take(1000)
    assert clock.monotonic_s() == pytest.approx(150)
    assert TokenBucket(clock, 0).chunk_bytes == 65536
    assert TokenBucket(clock, 8192).chunk_bytes == 2048


def test_a_limited_download_takes_its_time(serve):
    server = serve(says(reply(bytes(30_000))))
    channel = transport(settings=TransferSettings(max_rate_bytes_per_s=40_000))
    started = time.monotonic()
    get(channel, server.url)
    get(channel, server.url)
    channel.close()
    assert 0.4 < time.monotonic() - started < 3


# --- resuming ------------------------------------------------------------------------------


class FileServer:
    """Serves DATA with ranges; `cut` bytes per connection."""

    def __init__(self, *, cut=None, etags=('"1"',), ranges=True, change=None):
        self.cut = cut
        self.etags = list(etags)
        self.ranges = ranges
        self.change = change

    def __call__(self, connection, head):
        lines = {}
        for line in head.decode().split("\r\n")[1:]:
            name, _, value = line.partition(": ")
            lines[name.lower()] = value
        etag = self.etags.pop(0) if len(self.etags) > 1 else self.etags[0]
        offset = int(lines["range"].removeprefix("bytes=").removesuffix("-")) if "range" in lines else 0
        if offset and (not self.ranges or lines.get("if-range", etag) != etag):
            offset = 0
        body = DATA[offset:]
        head = [f"ETag: {etag}"] if etag else []
        status = "200 OK"
        if offset:
            status = "206 Partial Content"
            head.append(f"Content-Range: bytes {offset}-{len(DATA) - 1}/{len(DATA)}")
        answer = reply(body, status=status, headers=head)
        if self.change is not None:
            answer = self.change(answer, offset)
        front, _, rest = answer.partition(b"\r\n\r\n")
        connection.sendall(front + b"\r\n\r\n" + rest[: self.cut])
        return self.cut is None


class Patient(SystemClock):
    def sleep(self, duration_s):
        pass


def source(channel):
    return TransportSource(channel, Patient(), payload_deadline_s=20)


def stream(channel, server, *, offset=0):
    return b"".join(source(channel).stream(f"{server.url}/f", offset=offset, length_bytes=len(DATA)))


@pytest.mark.parametrize("etag", ['"1"', "", 'W/"1"'])
@pytest.mark.parametrize("offset", [0, 1, 50_000, len(DATA) - 1])
def test_a_dropping_link_is_continued(serve, http_transport, etag, offset):
    server = serve(FileServer(cut=30_000, etags=[etag]))
    assert stream(http_transport, server, offset=offset) == DATA[offset:]
    ranges = [b"Range:" in request for request in server.requests]
    assert ranges == [bool(offset)] + [True] * (len(ranges) - 1)


def test_nothing_left_asks_nothing(serve, http_transport):
    server = serve(FileServer())
    assert stream(http_transport, server, offset=len(DATA)) == b""
    assert server.requests == []


def test_a_server_without_ranges_sends_all_again(serve, http_transport):
    server = serve(FileServer(ranges=False, etags=[""]))
    assert stream(http_transport, server, offset=70_000) == DATA[70_000:]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_changes_must_be_fetched_from_the_start(serve, http_transport, ranges):
    """Case 35."""
    server = serve(FileServer(cut=30_000, etags=['"1"', '"2"'], ranges=ranges))
    with pytest.raises(RangeError):
        stream(http_transport, server)


@pytest.mark.parametrize(
    "lie",
    [
        "bytes 0-102399/102400",
        "bytes 50001-102399/102400",
        "bytes 50000-102398/102400",
        "bytes 50000-102399/102401",
        "bytes */102400",
        "",
    ],
)
def test_another_range_is_refused(serve, http_transport, lie):
    """Case 33."""

    def change(answer, offset):
        old = f"bytes {offset}-{len(DATA) - 1}/{len(DATA)}".encode()
        return answer.replace(old, lie.encode())

    server = serve(FileServer(change=change))
    with pytest.raises(RangeError):
        stream(http_transport, server, offset=50_000)


def test_a_range_that_nobody_asked_for(serve, http_transport):
    server = serve(says(reply(DATA, status="206 Partial", headers=[f"Content-Range: bytes 0-102399/{len(DATA)}"])))
    with pytest.raises(RangeError):
        stream(http_transport, server)


@pytest.mark.parametrize(
    ("status", "error"), [("416 Range", RangeError), ("404 No", HttpStatusError), ("204 No", HttpStatusError)]
)
def test_other_answers_end_it_at_once(serve, http_transport, status, error):
    server = serve(says(reply(status=status)))
    with pytest.raises(error):
        stream(http_transport, server, offset=5)
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again_but_not_for_ever(serve, http_transport):
    server = serve(says(reply(status="503 Busy")))
    with pytest.raises(HttpStatusError):
        stream(http_transport, server)
    assert len(server.requests) == 4


@pytest.mark.parametrize(("size", "error"), [(len(DATA) + 1, LengthExceededError), (len(DATA) - 1, TruncatedError)])
def test_files_of_another_length(serve, http_transport, size, error):
    """Cases 30 and 32."""
    server = serve(says(reply(bytes(size))))
    with pytest.raises(error):
        stream(http_transport, server)


def test_a_body_without_length_that_does_not_end(serve, http_transport):
    def answer(connection, head):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(bytes(65536))

    with pytest.raises(LengthExceededError):
        stream(http_transport, serve(answer))


def test_the_deadline_of_a_payload_holds_over_all_connections(serve, http_transport):
    server = serve(FileServer(cut=1000))
    slow = TransportSource(http_transport, SystemClock(), payload_deadline_s=0.8)
    with pytest.raises(TransferError):
        b"".join(slow.stream(f"{server.url}/f", offset=0, length_bytes=len(DATA)))


# --- TLS -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority():
    return make_authority("Test", now=NOW)


def server_context(tmp_path, authority, *, names=("localhost",), now=NOW, client_ca=None):
    chain, key = issue_server_certificate(authority, names=names, addresses=["127.0.0.1"], now=now)
    (tmp_path / "server.pem").write_text(chain)
    (tmp_path / "server.key").write_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=client_ca.pem)
    return context


@pytest.fixture
def secure(tmp_path, authority, serve):
    return lambda **options: serve(says(reply(DATA)), context=server_context(tmp_path, authority, **options))


def fetched(server, authority, **options):
    channel = transport(tls=TlsFiles(authority.pem), **options)
    try:
        return get(channel, server.url)
    finally:
        channel.close()


def test_the_pinned_ca_is_trusted_and_no_other(secure, authority):
    """Case 40."""
    server = secure()
    assert fetched(server, authority) == DATA
    with pytest.raises(TlsError):
        fetched(server, make_authority("Other", now=NOW))


def test_another_name_is_refused(secure, authority):
    with pytest.raises(TlsError):
        fetched(secure(names=["elsewhere"]), authority)


def test_a_certificate_that_has_ended_is_refused(secure, authority):
    with pytest.raises(TlsError):
        fetched(secure(now=NOW - timedelta(days=500)), authority)


def test_plain_http_is_refused_where_tls_is_meant(serve, authority):
    server = serve(says(reply(DATA)))
    with pytest.raises(UnreachableError):
        fetched(server, authority)
    assert server.requests == []


@pytest.mark.parametrize("year", [1970, 2040])
def test_a_wrong_clock_does_not_stop_a_device(secure, authority, year):
    clock = SystemClock()
    clock.now = lambda: datetime(year, 1, 1, tzinfo=UTC)
    assert fetched(secure(), authority, clock=clock, floor=NOW) == DATA


def test_a_certificate_that_ended_before_the_last_contact_is_refused(secure, authority):
    clock = SystemClock()
    clock.now = lambda: datetime(1970, 1, 1, tzinfo=UTC)
    with pytest.raises(TlsError):
        fetched(secure(), authority, clock=clock, floor=NOW + timedelta(days=500))


@pytest.mark.parametrize(
    ("now", "floor", "believed"),
    [
        (2027, None, 2027),
        (1970, None, 2026),
        (2027, 2026, 2027),
        (1970, 2027, 2027),
        (2040, 2027, 2027),
    ],
)
def test_what_time_is_believed(now, floor, believed):
    moments = {year: datetime(year, 1, 1, tzinfo=UTC) for year in (1970, 2026, 2027, 2040)}
    assert believed_time(moments[now], moments.get(floor)) == moments[believed]


def test_the_device_shows_its_certificate(tmp_path, authority, secure):
    devices = make_authority("Devices", now=NOW)
    key = IdentityKey.generate()
    request = read_request(key.request_pem(product="thermo", hardware="rpi4"))
    chain = issue_device_certificate(
        devices, request, device_id="00000000-0000-0000-0000-000000000001", days=9, now=NOW
    )
    certificate, key_file = tmp_path / "device.pem", tmp_path / "device.key"
    certificate.write_text(chain)
    key_file.write_bytes(key.pem)
    server = secure(client_ca=devices)
    channel = transport(tls=TlsFiles(authority.pem, certificate, key_file))
    assert get(channel, server.url) == DATA
    channel.close()
    with pytest.raises(TransferError):
        fetched(server, authority)


def test_a_session_is_continued(tmp_path, authority, serve, monkeypatch):
    monkeypatch.setattr(fetch, "IDLE_LIMIT_S", 0.0)
    reused = []

    def answer(connection, head):
        reused.append(connection.session_reused)
        connection.sendall(reply(b"ok"))

    server = serve(answer, context=server_context(tmp_path, authority))
    channel = transport(tls=TlsFiles(authority.pem))
    for _ in range(3):
        assert get(channel, server.url) == b"ok"
        time.sleep(0.01)
    channel.close()
    assert reused == [False, True, True]


def test_bad_anchors_and_keys_are_said(tmp_path, authority):
    with pytest.raises(SettingError):
        make_context(ca_pem="nonsense")
    with pytest.raises(KeyFileError):
        make_context(ca_pem=authority.pem, certificate=tmp_path / "absent", key=tmp_path / "absent")
