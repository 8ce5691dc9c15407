"""Publishing to a server over real TLS: a small stub that misbehaves in every way a server or a proxy can."""

import datetime as dt
import hashlib
import json
import re
import ssl
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from support import authoring
from support.authoring import NOW

from firmament.core.clock import FixedClock
from firmament.core.digest import Digest
from firmament.errors import (
    ConflictError,
    FileError,
    FirmamentError,
    HttpStatusError,
    LengthExceededError,
    MalformedError,
    RedirectError,
    SettingError,
    SlowError,
    TlsError,
    TransferError,
    UnauthenticatedError,
    UnreachableError,
)
from firmament.release import publish
from firmament.release.remote import OperatorApi
from firmament.release.setup import read_online

TOKEN = "a-token"


class Stub(BaseHTTPRequestHandler):
    """As much of the operator API as publishing needs; `server.answer` overrides everything."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments):
        pass

    def reply(self, status, value=None, headers=()):
        body = json.dumps(value).encode() if value is not None else b""
        self.send_response(status)
        for name, content in headers:
            self.send_header(name, content)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self):
        stub = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        stub.requests.append((self.command, self.path))
        stub.keys.append(self.headers["Idempotency-Key"])
        if stub.answer is not None:
            stub.answer(self)
            return
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            problem = {"type": "request/unauthenticated", "title": "The token is not valid", "status": 401}
            self.reply(401, problem | {"facts": {"actor": "?"}, "request_id": "r1"})
        elif self.path.startswith("/api/v1/blobs/"):
            digest = self.path.rpartition("/")[2]
            if self.command == "PUT":
                assert hashlib.sha256(body).hexdigest() == digest
                stub.blobs[digest] = body
                self.reply(201, {})
            else:
                self.reply(200 if digest in stub.blobs else 404)
        elif self.path == "/api/v1/image/state":
            self.reply(200, stub.state)
        elif self.path == "/api/v1/image/publish":
            stub.published.append(json.loads(body))
            self.reply(200, {"snapshot_version": len(stub.published), "releases": []})
        else:
            self.reply(404, {"type": "request/not-found", "title": "No such page", "facts": {}})

    do_GET = do_PUT = do_POST = do_HEAD = handle_any  # noqa: N815 - http.server's names


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stub")])
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "ca.pem"
    path.write_bytes(built.public_bytes(Encoding.PEM))
    (directory / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


@pytest.fixture
def stub(certificate):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.answer, server.requests, server.blobs, server.published = None, [], {}, []
    server.keys = []
    server.state = {"roles": {}, "director_root": 0, "snapshot_version": 0, "timestamp_version": 0}
    server.url = f"https://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def api(stub, certificate):
    with OperatorApi(stub.url, token=TOKEN, ca=certificate) as found:
        yield found


@pytest.fixture
def served(tmp_path, tree):
    public, _ = authoring.online_keys()
    workspace = authoring.make_workspace(tmp_path / "ws", online=read_online(json.dumps(public).encode()))
    authoring.build_release(workspace, tree, "1.0")
    authoring.sign_release(workspace, "thermo/1.0")
    return workspace


@contextmanager
def answering(stub, answer):
    stub.answer = answer
    yield
    stub.answer = None


def test_a_release_is_sent_once_and_then_kept_here(stub, api, served):
    sent = []
    what = publish.plan(served)
    publish.publish_server(served, what, api, now=NOW, progress=lambda path, length: sent.append((path, length)))
    (body,) = stub.published
    assert sorted(body["metadata"]) == ["1.root.json", "1.targets.json", "2.thermo.json"]
    assert sorted(body["director_roots"]) == ["1.root.json"]
    assert len(stub.blobs) == len(sent) == 1
    assert served.draft("thermo") is None
    assert served.product("thermo").signed.version == 2
    stub.state = {"roles": {"root": 1, "targets": 1, "thermo": 2}, "director_root": 1}
    publish.publish_server(served, None, api, now=NOW)
    again = stub.published[1]
    assert again["director_roots"] == {}
    assert sorted(again["metadata"]) == ["1.targets.json", "2.thermo.json"]
    assert {name: body["metadata"][name] for name in again["metadata"]} == again["metadata"]  # the very same bytes
    assert [method for method, path in stub.requests if "blobs" in path] == ["HEAD", "PUT"]


def test_a_cut_between_the_servers_answer_and_ours_is_repaired_by_publishing_again(stub, api, served, monkeypatch):
    what = publish.plan(served)
    monkeypatch.setattr(publish, "_take", lambda *_a, **_k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        publish.publish_server(served, what, api, now=NOW)
    monkeypatch.undo()
    authoring.cheap_scrypt(monkeypatch)
    stub.state = {"roles": {"root": 1, "targets": 1, "thermo": 2}, "director_root": 1}
    publish.publish_server(served, publish.plan(served), api, now=NOW)
    assert stub.published[1]["metadata"]["2.thermo.json"] == stub.published[0]["metadata"]["2.thermo.json"]
    assert served.draft("thermo") is None


def test_a_server_that_is_ahead_is_not_overwritten(stub, api, served):
    stub.state = {"roles": {"root": 1, "targets": 1, "thermo": 7}, "director_root": 1}
    with pytest.raises(ConflictError):
        publish.publish_server(served, publish.plan(served), api, now=NOW)
    assert not stub.published
    assert served.draft("thermo") is not None


def problem(status, code, title="No", **facts):
    return problem_of(status, code, title, facts)


def problem_of(status, code, title, facts):
    return lambda handler: handler.reply(status, {"type": code, "title": title, "facts": facts, "request_id": "r7"})


def test_a_refusal_is_the_error_the_server_names(stub, api, served):
    refusal = problem(409, "request/conflict", "The root does not name this server's key", role="snapshot")
    with answering(stub, refusal), pytest.raises(ConflictError) as caught:
        publish.publish_server(served, publish.plan(served), api, now=NOW)
    assert caught.value.problem == "The root does not name this server's key"
    assert caught.value.facts == {"role": "snapshot", "request_id": "r7"}
    assert served.draft("thermo") is not None


def test_an_error_of_a_later_server_is_its_nearest_parent(stub, api):
    with answering(stub, problem(409, "trust/new-kind-of-distrust")), pytest.raises(Exception) as caught:
        api.image_state()
    assert caught.value.code == "trust"


def test_facts_cannot_break_the_error(stub, api):
    facts = {"problem": "x", "self": "y", "A fact": 1, "field": "z"}
    with answering(stub, problem_of(400, "request/malformed", "No", facts)), pytest.raises(MalformedError) as caught:
        api.image_state()
    assert caught.value.facts == {"field": "z", "request_id": "r7"}


def test_a_wrong_token_is_told_and_not_shown(stub, certificate):
    with (
        OperatorApi(stub.url, token="secret-token", ca=certificate) as api,
        pytest.raises(UnauthenticatedError) as caught,
    ):
        api.image_state()
    assert "secret-token" not in str(caught.value)


def raw(data, *, close=True):
    def answer(handler):
        handler.wfile.write(data)
        handler.close_connection = close

    return answer


ANSWERS = {
    "redirect": (raw(b"HTTP/1.1 302 Found\r\nLocation: https://evil/\r\nContent-Length: 0\r\n\r\n"), RedirectError),
    "html-error": (raw(b"HTTP/1.1 502 Bad\r\nContent-Length: 6\r\n\r\n<html>"), HttpStatusError),
    "empty-error": (raw(b"HTTP/1.1 500 Bad\r\nContent-Length: 0\r\n\r\n"), HttpStatusError),
    "not-json": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"), MalformedError),
    "a-list": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"), MalformedError),
    "wrong-types": (raw(b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"roles":1}'), MalformedError),
    "truncated": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), TransferError),
    "not-http": (raw(b"\x16\x03\x01"), TransferError),
    "nothing": (raw(b""), TransferError),
    "endless": (
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + b" " * 9_000_000),
        LengthExceededError,
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_server_that_misbehaves_is_a_sentence(stub, api, name):
    answer, expected = ANSWERS[name]
    with answering(stub, answer), pytest.raises(expected):
        api.image_state()
    assert len(stub.requests) == 1  # no retry, no second address


class Waits(FixedClock):
    """A clock that notes what it was asked to wait."""

    def __init__(self):
        super().__init__(NOW)
        self.waits = []

    def sleep(self, duration_s):
        self.waits.append(duration_s)


def in_turn(*answers):
    left = list(answers)
    return lambda handler: left.pop(0)(handler) if left else handler.reply(200, {"done": True})


BUSY = problem(409, "repeat/busy", retry_after_s=3)
HASTY = problem(429, "request/rate-limited", retry_after_s=60)


def GATEWAY(handler):  # noqa: N802 - beside its like
    handler.reply(502)


@pytest.mark.parametrize(
    ("answers", "waits"),
    [((raw(b""),), [0.5]), ((BUSY,), [3]), ((GATEWAY, raw(b""), GATEWAY), [0.5, 1.0, 2.0]), ((), [])],
    ids=["cut", "busy", "thrice", "at-once"],
)
def test_a_change_is_sent_again_under_one_key(stub, certificate, answers, waits):
    clock = Waits()
    with (
        OperatorApi(stub.url, token=TOKEN, ca=certificate, clock=clock) as api,
        answering(stub, in_turn(*answers)),
    ):
        assert api.call("POST", "/api/v1/rollouts", {}) == {"done": True}
        first = set(stub.keys)
        assert api.call("POST", "/api/v1/rollouts", {}) == {"done": True}
    assert clock.waits == waits
    assert len(first) == 1
    assert re.fullmatch("[0-9a-f]{32}", first.pop())
    assert len(set(stub.keys)) == 2  # another change has another key


UNMENDED = {
    "hasty": HASTY,
    "failed": raw(b"HTTP/1.1 500 Bad\r\nContent-Length: 0\r\n\r\n"),
    "refused": problem(403, "request/forbidden"),
}


@pytest.mark.parametrize("answer", UNMENDED)
def test_what_waiting_does_not_mend_is_told_at_once(stub, certificate, answer):
    clock = Waits()
    with (
        OperatorApi(stub.url, token=TOKEN, ca=certificate, clock=clock) as api,
        answering(stub, UNMENDED[answer]),
        pytest.raises(FirmamentError),
    ):
        api.call("POST", "/api/v1/rollouts", {})
    assert (len(stub.requests), clock.waits) == (1, [])


def test_a_server_that_stays_away_is_told_after_four_times(stub, certificate):
    clock = Waits()
    with (
        OperatorApi(stub.url, token=TOKEN, ca=certificate, clock=clock, idempotency_key="nightly") as api,
        answering(stub, GATEWAY),
        pytest.raises(HttpStatusError),
    ):
        api.call("PUT", "/api/v1/groups/g", {})
    assert stub.keys == ["nightly"] * 4


def test_a_named_command_names_each_of_its_changes(stub, certificate):
    with (
        OperatorApi(stub.url, token=TOKEN, ca=certificate, idempotency_key="nightly") as api,
        answering(stub, in_turn()),
    ):
        for method in ("POST", "GET", "PUT"):
            api.call(method, "/api/v1/rollouts", {})
    assert stub.keys == ["nightly", None, "nightly.2"]


def test_silence_is_slow(stub, api, monkeypatch):
    import urllib3

    release = threading.Event()
    api._pool.connection_pool_kw["timeout"] = urllib3.Timeout(connect=1, read=0.2)
    with answering(stub, lambda _handler: release.wait(5)), pytest.raises(SlowError):
        api.image_state()
    release.set()


def test_an_unknown_certificate_is_refused(stub):
    with OperatorApi(stub.url, token=TOKEN) as api, pytest.raises(TlsError):
        api.image_state()
    assert stub.requests == []  # the token was not sent


def test_nobody_there_is_told(certificate):
    with OperatorApi("https://127.0.0.1:1", token=TOKEN, ca=certificate) as api, pytest.raises(UnreachableError):
        api.image_state()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "ftp://x", "127.0.0.1", "https://", "https://x/?a=b", ""])
def test_only_https_addresses_are_taken(url):
    """The token would travel in the clear."""
    with pytest.raises(SettingError):
        OperatorApi(url, token=TOKEN)


def test_a_ca_file_that_is_none_is_told(tmp_path):
    (tmp_path / "ca.pem").write_text("x")
    for path in (tmp_path / "ca.pem", tmp_path / "absent.pem"):
        with pytest.raises(SettingError):
            OperatorApi("https://127.0.0.1:1", token=TOKEN, ca=path)


def test_a_payload_that_went_away_is_told(api, tmp_path):
    with pytest.raises(FileError):
        api.put_blob(Digest.of(b""), tmp_path / "absent", 5)
