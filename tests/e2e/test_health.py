"""Health checks against real commands and a real socket: they answer in time, whatever is asked."""

import http.server
import socket
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from firmament.agent.health.checks import MAX_BODY_BYTES, CommandCheck, HttpCheck, SystemdCheck, split_url
from firmament.agent.health.port import MAX_DETAIL_CHARACTERS, MAX_DETAIL_LINES, tail
from firmament.errors import SettingError


def python(code, **options):
    return CommandCheck((sys.executable, "-c", code), **options)


@contextmanager
def within(limit_s):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < limit_s


# --- commands ------------------------------------------------------------------------------


def test_a_command_that_ends_with_0_is_healthy():
    found = python("print('all well')").check()
    assert (found.is_healthy, found.detail) == (True, "all well")
    assert found.check == f"command {sys.executable}"


def test_a_command_that_fails_is_told_with_its_last_words():
    found = python("import sys; [print(i) for i in range(100)]; sys.exit('no sensor')").check()
    assert not found.is_healthy
    assert "no sensor" in found.detail
    assert found.detail.endswith("It ended with 1")
    assert len(found.detail.splitlines()) <= MAX_DETAIL_LINES


def test_a_command_that_hangs_is_ended_with_everything_it_started(tmp_path):
    pid_file = tmp_path / "pid"
    code = f"import subprocess,time; p=subprocess.Popen(['sleep','600']); open({str(pid_file)!r},'w').write(str(p.pid)); time.sleep(600)"
    with within(5):
        found = python(code, timeout_s=1).check()
    assert not found.is_healthy
    assert "did not end within 1 s" in found.detail
    stat = Path(f"/proc/{pid_file.read_text()}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_command_that_leaves_a_child_with_the_pipe_does_not_hold_the_trial():
    code = "import os,time\nif os.fork() == 0:\n os.setsid()\n time.sleep(4)\n os._exit(0)\nprint('done', flush=True)"
    with within(4):
        found = python(code).check()
    assert found.is_healthy
    assert found.detail == "done"


def test_a_command_that_writes_without_end_costs_no_memory():
    with within(20):
        found = python("while True: print('x' * 100000)", timeout_s=1).check()
    assert not found.is_healthy
    assert len(found.detail) <= MAX_DETAIL_CHARACTERS


def test_a_command_that_does_not_exist_is_unhealthy():
    found = CommandCheck(["/no/such/self-test"]).check()
    assert not found.is_healthy
    assert "cannot be started" in found.detail


def test_control_characters_do_not_reach_reports():
    assert (
        tail("red \x1b[31malert\x07\nok\t1") == "red \N{REPLACEMENT CHARACTER}[31malert\N{REPLACEMENT CHARACTER}\nok\t1"
    )


# --- HTTP ----------------------------------------------------------------------------------


@pytest.fixture
def serve():
    open_servers = []

    def start(answer):
        """Serve raw connections: `answer(connection)` writes what it likes."""
        listener = socket.create_server(("127.0.0.1", 0))
        stopping = threading.Event()

        def loop():
            while not stopping.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(65536)
                        answer(connection)
                    except OSError:
                        pass

        thread = threading.Thread(target=loop)
        thread.start()
        open_servers.append((listener, stopping, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/health?deep=1"

    yield start
    for listener, stopping, thread in open_servers:
        stopping.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def canned(data):
    return lambda connection: connection.sendall(data)


def test_a_real_server_is_asked():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = b'{"status": "ok"}' if self.path == "/health?deep=1" else b"?"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/health?deep=1"
        found = HttpCheck(url, expect='"ok"').check()
        server.shutdown()
        thread.join()
    assert (found.is_healthy, found.detail) == (True, '200\n{"status": "ok"}')


@pytest.mark.parametrize(
    ("answer", "healthy"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", True),
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\nsorry", False),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/ok\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", False),
        (b"SSH-2.0-OpenSSH_9.2\r\n", False),
        (b"", False),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n", False),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", False),
    ],
    ids=["204", "200", "503", "redirect", "truncated", "ssh", "nothing", "many headers", "long header", "chunks"],
)
def test_answers(serve, answer, healthy):
    found = HttpCheck(serve(canned(answer)), timeout_s=3).check()
    assert found.is_healthy is healthy, found.detail
    assert found.detail


def test_the_expected_text_must_be_there(serve):
    url = serve(canned(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nnot yet!"))
    found = HttpCheck(url, expect="ready").check()
    assert not found.is_healthy
    assert "does not contain 'ready'" in found.detail


def drip(data):
    def answer(connection):
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    return answer


@pytest.mark.parametrize(
    "data",
    [b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"y" * 1000],
    ids=["headers", "body"],
)
def test_an_answer_that_drips_does_not_hold_the_trial(serve, data):
    with within(3):
        found = HttpCheck(serve(drip(data)), timeout_s=1).check()
    assert not found.is_healthy
    assert "No whole answer within 1 s" in found.detail


def test_silence_does_not_hold_the_trial(serve):
    with within(3):
        found = HttpCheck(serve(lambda _connection: time.sleep(2)), timeout_s=1).check()
    assert not found.is_healthy


def test_an_endless_body_is_read_up_to_its_ceiling(serve):
    def answer(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"y" * 65536)

    found = HttpCheck(serve(answer), timeout_s=5).check()
    assert found.is_healthy
    assert len(found.detail) <= min(MAX_DETAIL_CHARACTERS, MAX_BODY_BYTES)


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found = HttpCheck(f"http://127.0.0.1:{port}/").check()
    assert not found.is_healthy
    assert "refused" in found.detail.lower()


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "http://example.com/",
        "http://192.0.2.1/",
        "http://127.0.0.1@example.com/",
        "http://user@127.0.0.1/",
        "http://127.0.0.1:99999/",
        "http://[::ffff:192.0.2.1]/",
        "ftp://127.0.0.1/",
        "/health",
        "",
    ],
)
def test_only_this_machine_is_asked(url):
    with pytest.raises(SettingError):
        split_url(url)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "[::1]"])
def test_loopback_in_all_its_forms(host):
    assert split_url(f"http://{host}:8080/a?b=c") == (host.strip("[]"), 8080, "/a?b=c")


# --- systemd -------------------------------------------------------------------------------


def fake_systemctl(tmp_path, text, code=0):
    path = tmp_path / "systemctl"
    path.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\ncat <<'END'\n{text}\nEND\nexit {code}\n")
    path.chmod(0o755)
    return str(path)


def show(active="active", restarts=0):
    return f"ActiveState={active}\nSubState=running\nResult=success\nNRestarts={restarts}"


def test_an_active_unit_is_healthy_until_it_restarts(tmp_path):
    check = SystemdCheck("thermo.service", systemctl=fake_systemctl(tmp_path, show(restarts=2)))
    assert check.check().is_healthy
    assert check.check().is_healthy
    assert (tmp_path / "asked").read_text().split()[-2:] == ["--", "thermo.service"]
    fake_systemctl(tmp_path, show(restarts=3))
    found = check.check()
    assert not found.is_healthy
    assert "restarted" in found.detail
    assert check.check().is_healthy


@pytest.mark.parametrize(
    ("text", "code"), [(show("activating"), 0), (show("failed"), 0), ("", 0), (show(), 1), ("rubbish", 0)]
)
def test_other_units_are_not(tmp_path, text, code):
    assert not SystemdCheck("thermo.service", systemctl=fake_systemctl(tmp_path, text, code)).check().is_healthy


def test_without_systemd_it_says_so(tmp_path):
    found = SystemdCheck("thermo.service", systemctl=str(tmp_path / "none")).check()
    assert not found.is_healthy
    assert "cannot be started" in found.detail


@pytest.mark.skipif(not Path("/usr/bin/systemctl").exists(), reason="systemd is not installed")
def test_the_real_systemctl_without_systemd_is_unhealthy_not_an_error():
    assert not SystemdCheck("no-such-unit-here.service").check().is_healthy
