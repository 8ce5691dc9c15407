"""What both menus know of the daemon: its state kept fresh, events as lines, commands in the background.

A menu is a client of the daemon's socket and holds no state of its own: closing it stops nothing,
and two menus show the same. When the daemon goes away with the machine, the feed says that a
restart was expected, tries again, and tells by boot id and version what came back; that somebody
answers again proves nothing (console.md §1.1, SWUpdate).
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from firmament.agent.socket import ControlClient
from firmament.core.offer import printable, size
from firmament.errors import FirmamentError, RestartNeededError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from firmament.core.clock import Clock

MAX_LOG_LINES: Final = 200
RETRY_S: Final = 0.5
RATE_OVER_S: Final = 10.0
"""The rate shown is that of the last seconds, so that a stall is seen."""


@dataclass
class Rate:
    """Bytes a second over the last moments, and how long the rest takes."""

    samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=64))

    def note(self, now_s: float, done_bytes: int) -> None:
        """Take one sample; a download that began anew starts the measuring anew."""
        if self.samples and done_bytes < self.samples[-1][1]:
            self.samples.clear()
        self.samples.append((now_s, done_bytes))
        while len(self.samples) > 2 and now_s - self.samples[0][0] > RATE_OVER_S:  # noqa: PLR2004 - a rate needs two
            self.samples.popleft()

    @property
    def bytes_per_s(self) -> float:
        """Return the rate; 0 until it can be told."""
        if len(self.samples) < 2:  # noqa: PLR2004 - same
            return 0.0
        (first_s, first), (last_s, last) = self.samples[0], self.samples[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a menu draws; a value."""

    status: dict[str, Any]
    is_connected: bool
    rate_bytes_per_s: float
    log: tuple[str, ...]
    busy: str
    """The command that this menu waits for, or empty."""
    note: str
    """The last thing to tell the person in front of it."""


class Feed:
    """Follows one daemon in a thread of its own; `on_change` is called from there."""

    def __init__(self, socket: Path, clock: Clock, on_change: Callable[[], None] = lambda: None) -> None:
        self._socket = socket
        self._clock = clock
        self.on_change = on_change
        self._lock = threading.Lock()
        self._refresh_lock = threading.Lock()
        """One question at a time, or an older answer could arrive after a newer one."""
        self._status: dict[str, Any] = {}
        self._rate = Rate()
        self._log: deque[str] = deque(maxlen=MAX_LOG_LINES)
        self._is_connected = False
        self._was_restarting = False
        self._returned: tuple[dict[str, Any], bool] | None = None
        """What was known before the daemon went away, until it says what came back."""
        self._busy = ""
        self._note = ""
        self._is_closing = threading.Event()
        self._watching: ControlClient | None = None
        self._thread = threading.Thread(target=self._follow, name="feed", daemon=True)

    def start(self) -> None:
        """Connect; returns once the first state is there, or nothing answered."""
        self._refresh()
        if self._is_connected:
            self._add(f"Connected. {headline(self.snapshot())}.")
        self._thread.start()

    def close(self) -> None:
        """Stop following; whatever the daemon does goes on."""
        self._is_closing.set()
        if self._watching is not None:
            self._watching.close()

    def snapshot(self) -> Snapshot:
        """Return what is known now."""
        with self._lock:
            return Snapshot(
                status=dict(self._status),
                is_connected=self._is_connected,
                rate_bytes_per_s=self._rate.bytes_per_s,
                log=tuple(self._log),
                busy=self._busy,
                note=self._note,
            )

    def run(self, command: str, arguments: dict[str, Any] | None = None) -> FirmamentError | None:
        """Let the daemon do something and wait for the end; returns what it raised."""
        self._set(busy=command, note="")
        error: FirmamentError | None = None
        try:
            client = ControlClient.connect(self._socket)
            if client is None:
                self._set(note="The daemon does not answer; start it: firmament-agent run")
                return None
            client.ask(command, {"via": "menu", **(arguments or {})})
        except FirmamentError as caught:
            error = caught
        finally:
            self._set(busy="")
        self._refresh()
        if isinstance(error, RestartNeededError):
            self._set(note=f"The device restarts; back in about {minutes(self._status)} min.")
        elif error is not None:
            self._set(note=str(error))
        return error

    def run_soon(self, command: str, arguments: dict[str, Any] | None = None) -> threading.Thread:
        """Do as `run`, in a thread."""
        thread = threading.Thread(target=self.run, args=(command, arguments), name=command, daemon=True)
        thread.start()
        return thread

    # --- following -------------------------------------------------------------------------

    def _follow(self) -> None:
        while not self._is_closing.is_set():
            try:
                client = ControlClient.connect(self._socket)
                if client is not None:
                    self._watching = client
                    self._refresh()
                    client.ask("watch", {}, on_event=self._on_event)
            except FirmamentError:
                pass  # it went away; whether that was meant is told by what comes back
            self._watching = None
            if self._is_closing.is_set():
                return
            with self._lock:
                was, self._is_connected = self._is_connected, False
                self._was_restarting = self._was_restarting or self._status.get("state") in {"staged", "trial"}
            if was:
                expected = self._was_restarting
                text = f"The device restarts; back in about {minutes(self._status)} min."
                self._add(text if expected else "The daemon went away; trying again.")
            self._is_closing.wait(RETRY_S)

    def _refresh(self) -> None:
        with self._refresh_lock:
            self._take_status()
        self.on_change()

    def _take_status(self) -> None:
        try:
            client = ControlClient.connect(self._socket)
            status = client.ask("status", {}) if client is not None else None
        except FirmamentError:
            status = None
        if status is None:
            return
        with self._lock:
            before, self._status = self._status, status
            if not self._is_connected and before and self._returned is None:
                self._returned = (before, self._was_restarting)
            self._is_connected, self._was_restarting = True, False
            returned = self._returned
            # A daemon that has just started may answer before it has looked at what runs.
            if returned is not None and (status.get("running") or not returned[0].get("running")):
                self._returned = None
            else:
                returned = None
        if returned is not None:
            self._set(note="")
            self._add(came_back_with(returned[0], status, was_restarting=returned[1]))

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            with self._lock:
                attempt = self._status.get("attempt")
                if attempt is not None:
                    attempt["done_bytes"], attempt["total_bytes"] = event["done_bytes"], event["total_bytes"]
                    self._status["percent"] = event["percent"]
                self._rate.note(self._clock.monotonic_s(), event["done_bytes"])
            self.on_change()
            return
        text = line_of(event)
        if text:
            self._add(text)
        self._refresh()

    def _add(self, text: str) -> None:
        with self._lock:
            self._log.append(f"{self._clock.now().astimezone():%H:%M:%S} {printable(text)}")
        self.on_change()

    def _set(self, *, busy: str | None = None, note: str | None = None) -> None:
        with self._lock:
            self._busy = self._busy if busy is None else busy
            self._note = self._note if note is None else printable(note)
        self.on_change()


def line_of(event: dict[str, Any]) -> str:
    """Return an event as a line of the log; empty for what the rest of the menu shows."""
    match event["event"]:
        case "state-changed":
            why = f": {event['message']}" if event["message"] else ""
            return "" if event["state"] == "idle" else f"{event['release_id'] or 'release'} is {event['state']}{why}"
        case "health-checked":
            return f"health: {'good' if event['is_healthy'] else event['check'] + ' ' + event['detail']}"
        case "trouble":
            return str(event["message"])
        case "asked":
            return f"{event['release_id']} waits for the owner's answer"
        case _:
            return ""


def came_back_with(before: dict[str, Any], now: dict[str, Any], *, was_restarting: bool) -> str:
    """Say what came back after the daemon was away, by boot id and version."""
    old, new = (version_of(status) for status in (before, now))
    if before.get("boot_id") == now.get("boot_id") and not was_restarting:
        return "The daemon is back."
    if now.get("state") == "trial":
        return "Started the new image; it has to prove itself now."
    if new != old:
        return f"Came back with {new}."
    return f"Came back with {new}, as before."


def version_of(status: dict[str, Any]) -> str:
    """Return the version that runs, for people."""
    running = status.get("running")
    return str(running["version"]) if running else "an unknown image"


def minutes(status: dict[str, Any]) -> int:
    """Return how many minutes the device is usually away."""
    return max(1, -(-int(status.get("back_in_s") or 120) // 60))


def headline(snapshot: Snapshot) -> str:
    """Say in one line what is going on, with bytes, rate and time left where there are bytes."""
    status = snapshot.status
    state, attempt = status.get("state"), status.get("attempt") or {}
    if not snapshot.is_connected:
        return f"No answer from the daemon. Back in about {minutes(status)} min, if the device restarts."
    if state is None:
        return f"Updates do not work: {status.get('error', {}).get('message', 'the daemon is starting')}"
    version = str(attempt.get("release_id") or "").rpartition("/")[2]
    if state == "fetching" and attempt.get("total_bytes"):
        done, total = int(attempt["done_bytes"] or 0), int(attempt["total_bytes"])
        text = f"Downloading {version}  {size(done)} of {size(total)}"
        if snapshot.rate_bytes_per_s > 1:
            left_s = (total - done) / snapshot.rate_bytes_per_s
            text += f", {size(int(snapshot.rate_bytes_per_s))}/s, about {duration(left_s)} left"
        return text
    if status.get("back_in_s"):
        return f"Restarting into {version}; back in about {minutes(status)} min"
    if status.get("blocked"):
        return printable(str(status["blocked"]))
    texts = {
        "idle": "No update is in hand" + last_of(status),
        "offered": f"{version} is offered",
        "verified": f"{version} is in the other slot, verified",
        "trial": f"{version} runs and has to prove itself",
        "confirmed": f"{version} is kept",
    }
    return printable(texts.get(state, f"{version} is {state}"))


def last_of(status: dict[str, Any]) -> str:
    """Say how the attempt before ended."""
    last = status.get("last")
    if not last:
        return ""
    return printable(
        f"; {last['release_id'] or 'the last one'} was {last['status']}"
        + (f": {last['message']}" if last["message"] else "")
    )


def duration(seconds: float) -> str:
    """Write a time span for people: ``6 s``, ``3 min``, ``2 h``."""
    for limit, unit_s, unit in ((90, 1, "s"), (90 * 60, 60, "min")):
        if seconds < limit:
            return f"{max(1, round(seconds / unit_s))} {unit}"
    return f"{round(seconds / 3600)} h"


def facts(snapshot: Snapshot) -> list[tuple[str, str]]:
    """Return what is worth knowing beside the progress."""
    status = snapshot.status
    attempt, consent = status.get("attempt") or {}, status.get("consent") or {}
    around, device = status.get("surroundings") or {}, status.get("device") or {}
    found = [("Installed", f"{version_of(status)} (slot {status.get('booted', '?')})")]
    if attempt:
        found.append(("Offered", str(attempt.get("release_id") or "?")))
        if attempt.get("total_bytes"):
            found.append(("Download", size(int(attempt["total_bytes"]))))
    if around:
        found.append(("Free space", size(int(around["free_bytes"]))))
        battery = around.get("battery_percent")
        power = "mains" if around.get("mains_power") else "battery"
        found.append(("Power", power if battery in {None, 100} else f"{power}, {battery} %"))
    found.append(("Consent", consent_text(consent)))
    if device.get("server"):
        trouble = status.get("last_error")
        found.append(("Server", "trouble, see the log" if trouble else str(device["server"])))
    return [(name, printable(value)) for name, value in found]


def consent_text(consent: dict[str, Any]) -> str:
    """Say where the owner stands."""
    if consent.get("opted_out"):
        return "opted out"
    if consent.get("needs_answer"):
        return "asked, not answered"
    if consent.get("answer"):
        return str(consent["answer"]) + (f" until {consent['again_at']}" if consent.get("again_at") else "")
    return f"security {consent.get('security', '?')}, other {consent.get('feature', '?')}"


def title(snapshot: Snapshot) -> str:
    """Return who this device is and what it runs."""
    status, device = snapshot.status, snapshot.status.get("device") or {}
    name = device.get("serial") or str(device.get("device_id", ""))[:8] or "device"
    product = f"{device['product']} on {device['hardware']}, " if device.get("product") else ""
    return printable(f"{name}  {product}running {version_of(status)} (slot {status.get('booted', '?')})")
