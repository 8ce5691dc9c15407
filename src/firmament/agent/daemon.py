"""``firmament-agent run``: the loop around the engine, made to stay alive.

What it keeps apart:

* the main thread alone touches the engine; it runs what is due (`Agent.tick`) and the commands
  that clients sent, one at a time;
* one thread looks after the supervised program (`BootControl.tend`), so that a program is
  restarted while a download is under way;
* socket and hooks have threads of their own and see only values.

A device whose journal, floors or enrolment cannot be used still starts its program, answers
``status`` and tries again later: an agent that gives up would take the device with it. SIGTERM
ends between two chunks of a download or two steps; the journal makes every point a safe one.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import signal
import socket
import threading
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from firmament.agent.compose import compose, compose_listener, compose_share
from firmament.agent.consent import Who
from firmament.agent.events import AgentEvent, Asked, HealthChecked, Progress, StateChanged, Trouble
from firmament.agent.hooks import Hooks
from firmament.agent.lock import InstanceLock
from firmament.agent.machine import State
from firmament.agent.policy import Answer
from firmament.agent.record import MAX_PARCEL_PATH_LENGTH
from firmament.agent.socket import ControlServer, Conversation, Request
from firmament.agent.storage import compose_storage
from firmament.agent.storing import StoppedError
from firmament.core.consent import Mode
from firmament.core.fields import Fields
from firmament.core.manifest import UpdateClass
from firmament.durable import make_directory_durably
from firmament.errors import (
    FirmamentError,
    LockedError,
    MalformedError,
    RestartNeededError,
    SettingError,
    error_for_code,
)
from firmament.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from firmament.agent.agent import Agent
    from firmament.agent.bootctl.port import BootControl
    from firmament.agent.compose import World
    from firmament.agent.page import Page
    from firmament.agent.settings import AgentSettings
    from firmament.agent.share_server import ShareServer
    from firmament.agent.status import Status
    from firmament.agent.storage import Storage
    from firmament.core.clock import Clock
    from firmament.durable import Disk

log = logger("agent.daemon")

FIRST_DEGRADED_S: Final = 30.0
MAX_DEGRADED_S: Final = 3600.0
MAX_TEND_S: Final = 5.0
MAX_WAIT_S: Final = 60.0
"""The main thread says at least this often that it is alive."""
OWNER: Final = "owner"
"""Who answers on the local page: somebody who read the one-time code off the device."""
MAX_WISH_S: Final = 366 * 86_400
READ_ONLY: Final = frozenset({"status", "history", "watch", "page"})
COMMANDS: Final = frozenset(
    {"check", "download", "verify", "apply", "all", "confirm", "revert", "answer", "consent", "install", "receipts"}
)
SURFACES: Final = frozenset({"command", "menu", "socket"})
"""What a client of the socket may call itself."""


class Notifier:
    """Tells systemd how the service is (sd_notify(3)); without a manager it does nothing."""

    def __init__(self, address: str | None = None) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET") if address is None else address

    def say(self, *words: str) -> None:
        """Send e.g. ``READY=1``, ``WATCHDOG=1``, ``STATUS=...``."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto("\n".join(words).encode(), address)


@dataclass
class _Job:
    """A command on its way to the main thread."""

    request: Request
    conversation: Conversation


def event_value(event: AgentEvent) -> dict[str, Any]:
    """Return an event as the socket and ``--json`` show it: its name and its facts."""
    names = {
        StateChanged: "state-changed",
        Progress: "progress",
        HealthChecked: "health-checked",
        Trouble: "trouble",
        Asked: "asked",
    }
    value: dict[str, Any] = {"event": names[type(event)], **asdict(event)}
    if isinstance(event, StateChanged | Progress):
        value["percent"] = event.percent
    return value


class Daemon:
    """One life of the agent."""

    def __init__(self, settings: AgentSettings, *, disk: Disk, clock: Clock, notifier: Notifier | None = None) -> None:
        self._settings = settings
        self._disk = disk
        self._clock = clock
        self._notifier = notifier or Notifier()
        self._wake: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._is_ending = threading.Event()
        self._has_job = threading.Event()
        self._lock = threading.Lock()
        self._watching: list[Conversation] = []
        self._status: dict[str, Any] = {"v": 1, "state": None}
        self._history: list[dict[str, Any]] = []
        self._degraded: FirmamentError | None = None
        self._degraded_for_s = FIRST_DEGRADED_S
        self._world: World | None = None
        self._page: Page | None = None
        self._is_hinted = False
        self._hinted_s: float | None = None

    def run(self) -> int:
        """Run until `end`; return the exit code: 0, or RestartNeededError's on a simulated machine.

        Raises LockedError when another agent runs, SettingError when the settings cannot work.
        """
        make_directory_durably(self._disk, self._settings.state_directory)
        with InstanceLock(self._settings.state_directory):
            storage = compose_storage(self._settings, disk=self._disk, clock=self._clock)
            server = ControlServer(self._settings.socket, group=self._settings.socket_group, handle=self._handle)
            page, sharing = self._make_page(), self._make_share(storage)
            listener = compose_listener(self._settings, disk=self._disk, clock=self._clock, hint=self._hinted)
            hooks = Hooks(self._settings.hooks, page_code=lambda: page.code.value if page is not None else "")
            storage.boot.start()
            tender = threading.Thread(target=self._tend, args=(storage.boot,), name="tender", daemon=True)
            tender.start()
            try:
                wait_s = self._look_first(storage, hooks)
                server.start()
                if page is not None:
                    page.start()
                self._page = page
                for other in (sharing, listener):
                    if other is not None:
                        other.start()
                self._notifier.say("READY=1", f"MAINPID={os.getpid()}")
                return self._loop(storage, hooks, wait_s)
            finally:
                self._notifier.say("STOPPING=1")
                self._is_ending.set()
                while (left := self._next_job(0)) is not None:
                    self._refuse(left)
                with self._lock:
                    for conversation in self._watching:
                        conversation.error(LockedError("The daemon ends"))
                server.close()
                for served in (page, sharing, listener):
                    if served is not None:
                        served.close()
                hooks.close()
                tender.join(2 * MAX_TEND_S)
                storage.boot.stop()
                if self._world is not None:
                    self._world.close()

    def _make_page(self) -> Page | None:
        if self._settings.page is None:
            return None
        from firmament.agent.page import Page  # a device without a page does not pay for it

        return Page(self._settings.page, self._clock, look=self._look, say=self._say)

    def _make_share(self, storage: Storage) -> ShareServer | None:
        share = compose_share(self._settings, storage, disk=self._disk)
        if share is None or self._settings.share is None:
            return None
        from firmament.agent.share_server import ShareServer

        return ShareServer(self._settings.share, share, self._clock)

    def _hinted(self, at_s: float) -> None:
        self._hinted_s = at_s
        self._wake.put(None)

    def _look(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        with self._lock:
            return dict(self._status), list(self._history)

    def _say(self, action: str) -> None:
        """Take an answer from the page, as the owner; raises what the engine raises."""
        conversation = Conversation()
        arguments = Fields({"action": action, "via": "page"}, what="arguments")
        self._handle(Request("consent", arguments, os.getuid(), OWNER), conversation)
        for line in conversation.lines():
            if "error" in line:
                found = line["error"]
                raise error_for_code(found["code"])(found["problem"], **found["facts"])

    def end(self) -> None:
        """Ask the daemon to end at the next safe point; any thread or signal handler may call it."""
        self._is_ending.set()
        self._wake.put(None)

    def on_signals(self) -> None:
        """End on SIGTERM and SIGINT; poll soon on SIGHUP."""

        def ending(number: int, _frame: FrameType | None) -> None:
            log.info("daemon.asked-to-end", signal=signal.Signals(number).name)
            self.end()

        def hinted(_number: int, _frame: FrameType | None) -> None:
            self._is_hinted = True  # a poll under way would write over its own next time
            self._wake.put(None)

        signal.signal(signal.SIGTERM, ending)
        signal.signal(signal.SIGINT, ending)
        signal.signal(signal.SIGHUP, hinted)

    # --- the main thread -------------------------------------------------------------------

    def _look_first(self, storage: Storage, hooks: Hooks) -> float:
        """Know the status before the first question for it; return seconds until something is due."""
        try:
            self._publish(self._whole_world(storage, hooks).agent)
        except FirmamentError as error:
            return self._degrade(error)
        return 0.0

    def _loop(self, storage: Storage, hooks: Hooks, wait_s: float) -> int:
        while not self._is_ending.is_set():
            job = self._next_job(wait_s)
            if self._is_ending.is_set():
                self._refuse(job)
                break
            wait_s = self._live(storage, hooks, job)
            self._notifier.say("WATCHDOG=1", f"STATUS={self._summary()}")
            if self._world is not None and self._world.agent.is_restarting and self._is_simulated():
                return RestartNeededError.exit_code
        return 0

    def _live(self, storage: Storage, hooks: Hooks, job: _Job | None) -> float:
        """Run a command and what is due; return seconds until something is again."""
        try:
            world = self._whole_world(storage, hooks)
            if job is not None:
                self._answer(world.agent, job)
                job = None
            if self._is_simulated() and world.agent.is_restarting:
                return 0.0
            if self._is_hinted:
                self._is_hinted = False
                world.agent.poll_soon()
            hinted_s, self._hinted_s = self._hinted_s, None
            if hinted_s is not None:
                world.agent.poll_by(hinted_s)
            wait_s = world.agent.tick()
            self._publish(world.agent)
        except FirmamentError as error:
            if job is not None:
                job.conversation.error(error)
            return self._degrade(error)
        self._degraded, self._degraded_for_s = None, FIRST_DEGRADED_S
        return wait_s

    def _whole_world(self, storage: Storage, hooks: Hooks) -> World:
        if self._world is None:
            world = compose(
                self._settings,
                disk=self._disk,
                clock=self._clock,
                storage=storage,
                should_stop=self._should_stop,
            )
            world.events.listen(self._on_event)
            world.events.listen(hooks)
            self._world = world
        return self._world

    def _degrade(self, error: FirmamentError) -> float:
        """Keep the device running although updates cannot."""
        if self._world is not None:
            self._world.close()
        self._world = None  # made anew next time: what was damaged may have been mended
        if self._degraded is None or self._degraded.code != error.code:
            log.error("daemon.degraded", code=error.code, problem=str(error))
        self._degraded = error
        with self._lock:
            self._status = {"v": 1, "state": None, "error": {"code": error.code, "message": str(error)}}
        wait_s = self._degraded_for_s
        self._degraded_for_s = min(2 * wait_s, MAX_DEGRADED_S)
        return wait_s

    def _next_job(self, wait_s: float) -> _Job | None:
        """Wait for a command or a hint, at most `wait_s`; None when there was none."""
        until_s = self._clock.monotonic_s() + wait_s
        while True:
            left_s = until_s - self._clock.monotonic_s()
            try:
                job = self._wake.get(timeout=min(max(left_s, 0.0), MAX_WAIT_S))
            except queue.Empty:
                if left_s <= 0:
                    return None
                self._notifier.say("WATCHDOG=1")
                continue
            if self._wake.empty():
                self._has_job.clear()
            return job

    def _should_stop(self) -> bool:
        """Asked between two chunks: also a sign of life."""
        self._notifier.say("WATCHDOG=1")
        return self._is_ending.is_set() or self._has_job.is_set()

    def _answer(self, agent: Agent, job: _Job) -> None:
        log.info("daemon.command", command=job.request.command, user_id=job.request.user_id)
        with self._lock:
            self._watching.append(job.conversation)
        try:
            job.conversation.result(execute(agent, job.request.command, job.request.arguments, actor=job.request.actor))
        except StoppedError:
            job.conversation.error(LockedError("Another command or the end of the daemon interrupted this one"))
        except FirmamentError as error:
            job.conversation.error(error)
        finally:
            with self._lock:
                self._watching.remove(job.conversation)
            self._publish(agent)

    def _refuse(self, job: _Job | None) -> None:
        if job is not None:
            job.conversation.error(LockedError("The daemon ends"))

    def _publish(self, agent: Agent) -> None:
        value = {**agent.status().to_json(), "device": self._device()}
        history = [ended.to_json() for ended in agent.history()]
        with self._lock:
            self._status, self._history = value, history

    def _device(self) -> dict[str, Any]:
        if self._world is None:
            return {}
        facts = self._world.enrolment.facts
        return {
            "device_id": self._world.enrolment.device_id,
            "product": facts.product,
            "hardware": facts.hardware,
            "server": facts.server_url,
        }

    def _on_event(self, event: AgentEvent) -> None:
        self._notifier.say("WATCHDOG=1")
        value = event_value(event)
        if self._world is not None:
            self._publish(self._world.agent)
        with self._lock:
            if isinstance(event, Progress) and self._status.get("attempt"):
                # The journal knows checkpoints only; who looks wants to see it move.
                self._status["attempt"]["done_bytes"] = event.done_bytes
                self._status["percent"] = event.percent
            self._watching = [conversation for conversation in self._watching if not conversation.is_over]
            for conversation in self._watching:
                conversation.event(value)

    def _summary(self) -> str:
        if self._degraded is not None:
            return f"cannot update: {self._degraded.code}"
        return f"{self._status.get('state')} {self._status.get('percent', 0)} %"

    def _is_simulated(self) -> bool:
        return self._settings.boot.value.get("kind") == "sim"

    # --- other threads ---------------------------------------------------------------------

    def _tend(self, boot: BootControl) -> None:
        while not self._is_ending.is_set():
            try:
                wait_s = boot.tend()
            except FirmamentError as error:
                log.warning("daemon.tend-failed", code=error.code, problem=error.problem)
                wait_s = MAX_TEND_S
            if wait_s == math.inf:
                return
            self._is_ending.wait(min(wait_s, MAX_TEND_S))

    def _handle(self, request: Request, conversation: Conversation) -> None:
        """Answer a client, in its own thread."""
        if request.command == "watch":
            with self._lock:
                self._watching.append(conversation)
                conversation.event({"event": "status", **self._status})
        elif request.command == "page":
            page = self._page
            if page is None:
                raise SettingError("There is no page; set `listen` in [page]", path=self._settings.path)
            conversation.result({"url": page.url, "code": page.code.value})
        elif request.command in READ_ONLY:
            with self._lock:
                value = self._status if request.command == "status" else {"attempts": self._history}
            conversation.result(value)
        elif request.command in COMMANDS:
            self._has_job.set()
            self._wake.put(_Job(request, conversation))
        else:
            raise MalformedError("There is no such command", found=request.command)


def execute(agent: Agent, command: str, arguments: Fields, *, actor: str) -> dict[str, Any]:
    """Run a command on the engine and return its result; the daemon and the direct way share it.

    `actor` is who asks, for consent events. Raises what the engine raises; MalformedError for an
    unknown command or answer.
    """
    via = arguments.text("via", max_length=32, default="socket")
    who = Who(actor, via if via in SURFACES else "page" if actor == OWNER else "socket")
    if arguments.boolean("yes", default=False):
        _agree(agent, who)
    if command == "install":
        path = Path(arguments.text("parcel", max_length=MAX_PARCEL_PATH_LENGTH))
        return agent.install(path, who if arguments.boolean("agrees", default=False) else None).to_json()
    if command == "receipts":
        return {"receipts": {name: data.decode() for name, data in agent.receipts().items()}}
    if command == "answer":
        return agent.answer(arguments.one_of("answer", Answer), who).to_json()
    if command == "consent":
        return _consent(agent, arguments, who).to_json()
    commands: dict[str, Callable[[], Status]] = {
        "check": agent.check,
        "download": agent.download,
        "verify": agent.verify,
        "apply": agent.apply,
        "all": agent.run_all,
        "confirm": agent.confirm,
        "revert": agent.revert,
    }
    if command not in commands:
        raise MalformedError("There is no such command", found=command)
    return commands[command]().to_json()


def _consent(agent: Agent, arguments: Fields, who: Who) -> Status:
    """Take what an owner says: an answer to the offer, or a decision for good."""
    action = arguments.text("action", max_length=16)
    match action:
        case "now" | "tonight" | "later" | "skip":
            wish_s = arguments.integer("for_s", maximum=MAX_WISH_S, default=0)
            return agent.answer(Answer(action), who, timedelta(seconds=wish_s) if wish_s else None)
        case "withdraw":
            return agent.withdraw(who)
        case "opt-out":
            return agent.opt_out(who)
        case "opt-in":
            return agent.opt_in(who)
        case "mode":
            modes: dict[UpdateClass, Mode | None] = {}
            for update_class in UpdateClass:
                if update_class.value in arguments:
                    word = arguments.text(update_class.value, max_length=16)
                    modes[update_class] = None if word == "settings" else arguments.one_of(update_class.value, Mode)
            return agent.choose(modes)
        case _:
            raise MalformedError("There is no such answer", found=action)


def _agree(agent: Agent, who: Who) -> None:
    """Give the consent that ``--yes`` means, for what is in hand or is offered now."""
    if agent.status().state is State.IDLE:
        agent.check()
    if agent.status().state in {State.OFFERED, State.WAITING, State.FETCHING, State.VERIFIED}:
        agent.answer(Answer.NOW, who)
