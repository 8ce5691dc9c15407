import grp
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest

from firmament.agent.daemon import Daemon, Notifier, event_value, execute
from firmament.agent.events import Asked, HealthChecked, Progress, StateChanged, Trouble
from firmament.agent.hooks import Hooks
from firmament.agent.machine import State
from firmament.agent.settings import HookSettings
from firmament.agent.socket import MAX_WAITING_LINES, ControlClient, ControlServer, Conversation
from firmament.core.clock import SystemClock
from firmament.core.fields import Fields
from firmament.durable import RealDisk
from firmament.errors import AddressInUseError, MalformedError, NothingToDoError, SettingError, TruncatedError

ATTEMPT = str(uuid.uuid4())


def moved(state, **facts):
    return StateChanged(ATTEMPT, "thermo/1.1", State.IDLE, state, **facts)


@pytest.fixture
def script(tmp_path):
    def write(name, text, mode=0o755):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(mode)

    return write


@pytest.fixture
def hooks(tmp_path):
    made = Hooks(HookSettings(tmp_path, timeout_s=1))
    yield made
    made.close()


def heard(path, lines):
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if path.exists() and len(path.read_text().splitlines()) >= lines:
            return path.read_text().splitlines()
        time.sleep(0.01)
    raise AssertionError(path.read_text() if path.exists() else "nothing")


def test_facts_come_as_environment_and_never_as_words_of_a_shell(tmp_path, script, hooks):
    script(
        "on_failed",
        f'printf "%s\\n" "$FIRMAMENT_EVENT $FIRMAMENT_STATE $FIRMAMENT_CODE $FIRMAMENT_MESSAGE" >> {tmp_path}/out',
    )
    evil = f"$(touch {tmp_path}/owned)`touch {tmp_path}/owned`; touch {tmp_path}/owned"
    hooks(moved(State.REVERTED, code="slot/health", message=evil))
    assert heard(tmp_path / "out", 1) == [f"on_failed reverted slot/health {evil}"]
    assert not (tmp_path / "owned").exists()


def test_a_hook_sees_nothing_of_the_agents_environment(tmp_path, script, hooks, monkeypatch):
    monkeypatch.setenv("FIRMAMENT_PASSPHRASE_FILE", "/secret")
    script("on_offer", f"env | grep -v -e ^PWD -e ^SHLVL -e ^_= | cut -d= -f1 | sort > {tmp_path}/out")
    hooks(moved(State.OFFERED))
    assert set(heard(tmp_path / "out", 8)) == {
        "PATH",
        *(f"FIRMAMENT_{name}" for name in ("EVENT", "STATE", "CODE", "MESSAGE", "PERCENT", "ATTEMPT", "RELEASE")),
    }


def test_a_hook_that_hangs_is_ended_with_all_it_started(tmp_path, script, hooks):
    script("on_done", f"(sleep 1.5; touch {tmp_path}/survived) & sleep 60")
    script("on_offer", f"echo next >> {tmp_path}/out")
    hooks(moved(State.CONFIRMED))
    hooks(moved(State.OFFERED))
    assert heard(tmp_path / "out", 1) == ["next"]
    time.sleep(0.8)
    assert not (tmp_path / "survived").exists()


def test_before_a_restart_the_agent_waits_for_the_hook(tmp_path, script, hooks):
    script("on_restart_in", f"sleep 0.3; echo $FIRMAMENT_RESTART_IN_S >> {tmp_path}/out")
    hooks(moved(State.STAGED))
    assert (tmp_path / "out").read_text() == "1\n"
    script("on_restart_in", "sleep 60")
    began = time.monotonic()
    hooks(moved(State.STAGED))
    assert time.monotonic() - began < 5


def test_progress_is_told_once_per_percent(tmp_path, script, hooks):
    script("on_progress", f"echo $FIRMAMENT_PERCENT >> {tmp_path}/out")
    script("on_offer", f"echo asked $FIRMAMENT_PERCENT >> {tmp_path}/out")
    for done in range(0, 1000, 100):
        hooks(Progress(ATTEMPT, done, 100_000))
    hooks(Progress(ATTEMPT, 50_000, 100_000))
    hooks(Asked(ATTEMPT, "thermo/1.1", {}))
    hooks(Trouble("transfer", "x", 1.0))
    assert heard(tmp_path / "out", 3) == ["5", "42", "asked"]


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o644])
def test_files_that_others_could_write_or_nobody_can_run_are_left_alone(tmp_path, script, hooks, mode):
    script("on_offer", f"touch {tmp_path}/ran", mode)
    script("on_done", f"echo end >> {tmp_path}/out")
    hooks(moved(State.OFFERED))
    hooks(moved(State.CONFIRMED))
    assert heard(tmp_path / "out", 1) == ["end"]
    assert not (tmp_path / "ran").exists()


def test_a_hook_that_fails_or_is_no_program_changes_nothing(tmp_path, script, hooks):
    script("on_offer", "exit 3")
    (tmp_path / "on_done").write_bytes(b"\x7fELF")
    (tmp_path / "on_done").chmod(0o755)
    script("on_failed", f"echo end >> {tmp_path}/out")
    for state in (State.OFFERED, State.CONFIRMED, State.FAILED):
        hooks(moved(state))
    assert heard(tmp_path / "out", 1) == ["end"]


def test_without_a_directory_there_are_no_hooks():
    hooks = Hooks(HookSettings())
    hooks(moved(State.OFFERED))
    hooks.close()


# --- the socket ----------------------------------------------------------------------------


@pytest.fixture
def serve(tmp_path):
    made = []

    def start(handle, **options):
        server = ControlServer(tmp_path / "s", handle=handle, **options)
        server.start()
        made.append(server)
        return server

    yield start
    for server in made:
        server.close()


def test_a_slow_reader_loses_events_but_never_the_result(tmp_path, serve):
    def handle(request, conversation):
        for number in range(10 * MAX_WAITING_LINES):
            conversation.event({"event": "n", "number": number})
        conversation.result({"done": True})

    serve(handle)
    seen = []
    assert ControlClient.connect(tmp_path / "s").ask("x", {}, on_event=seen.append) == {"done": True}
    assert 0 < len(seen) < 10 * MAX_WAITING_LINES


def test_errors_cross_the_socket_with_their_class_and_facts(tmp_path, serve):
    serve(lambda request, conversation: conversation.error(NothingToDoError("nothing", running="1.0")))
    with pytest.raises(NothingToDoError) as caught:
        ControlClient.connect(tmp_path / "s").ask("check", {})
    assert (caught.value.problem, caught.value.facts) == ("nothing", {"running": "1.0"})


def test_last_words_reach_a_client_when_the_server_closes(tmp_path, serve):
    conversations = []
    server = serve(lambda request, conversation: conversations.append(conversation))
    client, said = ControlClient.connect(tmp_path / "s"), []
    asking = threading.Thread(target=lambda: said.append(client.ask("x", {})))
    asking.start()
    while not conversations:
        time.sleep(0.01)
    conversations[0].result({"last": "words"})
    server.close()
    asking.join(10)
    assert said == [{"last": "words"}]


def test_two_daemons_on_one_socket(tmp_path, serve):
    serve(lambda request, conversation: conversation.result({}))
    with pytest.raises(AddressInUseError):
        ControlServer(tmp_path / "s", handle=None).start()


def test_a_stale_socket_is_replaced(tmp_path, serve):
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "s"))
    serve(lambda request, conversation: conversation.result({}))
    assert ControlClient.connect(tmp_path / "s").ask("x", {}) == {}


def test_a_path_or_group_that_cannot_work(tmp_path):
    with pytest.raises(SettingError):
        ControlServer(tmp_path / ("x" * 120), handle=None).start()
    with pytest.raises(SettingError):
        ControlServer(tmp_path / "s", group="no-such-group", handle=None).start()


def test_a_group_may_use_it(tmp_path, serve):
    serve(lambda request, conversation: conversation.result({}), group=grp.getgrgid(os.getegid()).gr_name)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o660


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_other_users_are_refused_twice(serve):
    """By the mode of the name, and if that was loosened by the peer's credentials."""
    ask = """
import json, os, socket, sys
os.setuid(65534)
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.sendall(b'{"v":1,"command":"status"}\\n')
print(json.loads(client.makefile().readline())["error"]["code"])
"""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        place.chmod(0o755)
        server = ControlServer(place / "s", handle=lambda request, conversation: conversation.result({}))
        server.start()
        try:
            for mode, expected in ((0o600, "PermissionError"), (0o666, "request/forbidden")):
                (place / "s").chmod(mode)
                done = subprocess.run(
                    [sys.executable, "-c", ask, str(place / "s")], capture_output=True, text=True, check=False
                )
                assert expected in done.stdout + done.stderr
        finally:
            server.close()


def test_an_answer_that_makes_no_sense(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        for words in (b"hello\n", b'{"error":{}}\n', b"{}\n", b""):
            client = ControlClient.connect(tmp_path / "s")
            connection, _ = listener.accept()
            connection.sendall(words)
            connection.close()
            with pytest.raises(TruncatedError):
                client.ask("x", {})


def test_nobody_listens(tmp_path):
    assert ControlClient.connect(tmp_path / "absent") is None


# --- small parts of the daemon -------------------------------------------------------------


def test_events_have_names_and_facts():
    assert event_value(moved(State.STAGED))["event"] == "state-changed"
    assert event_value(Progress(ATTEMPT, 1, 2)) == {
        "event": "progress",
        "attempt_id": ATTEMPT,
        "done_bytes": 1,
        "total_bytes": 2,
        "percent": 42,
    }
    assert event_value(HealthChecked(ATTEMPT, True, "", "", 1.0))["event"] == "health-checked"


def test_unknown_commands_and_answers_are_refused():
    agent = SimpleNamespace(
        **dict.fromkeys(("check", "download", "verify", "apply", "run_all", "confirm", "revert", "answer"))
    )
    for command, arguments in (
        ("rm", {}),
        ("answer", {"answer": "perhaps"}),
        ("answer", {}),
        ("consent", {}),
        ("consent", {"action": "perhaps"}),
    ):
        with pytest.raises(MalformedError):
            execute(agent, command, Fields(arguments, what="arguments"), actor="uid:0")


def test_without_a_manager_nothing_is_said(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().say("READY=1")
    Notifier("/no/such/socket").say("READY=1")
    Notifier("@no-such-abstract-socket").say("READY=1")


def test_a_conversation_ends_when_its_client_left():
    conversation = Conversation()
    conversation.is_over = True
    assert list(conversation.lines()) == []


def test_the_daemon_is_made_without_touching_anything(tmp_path):
    settings = SimpleNamespace(state_directory=tmp_path / "state")
    Daemon(settings, disk=RealDisk(), clock=SystemClock())
    assert not settings.state_directory.exists()
