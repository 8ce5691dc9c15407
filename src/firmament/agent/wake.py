"""Hints by MQTT that there may be something: a device with ``[wake]`` asks earlier than it would have.

The broker is nobody whom the device trusts. All that it can do is to be heard: a hint makes the
agent poll at a random moment within the hint's spread, at most once each ``min_interval_s``, never
later than it would have polled anyway, and what is installed is still decided by the answer to
the poll. Packets have a ceiling, a broker that talks too much is left, and everything happens in
a thread that nothing waits for.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament.agent import identity, wake_packets
from firmament.agent.policy import backoff_s
from firmament.agent.wake_packets import Kind, Published
from firmament.agent.wake_session import Session
from firmament.errors import FirmamentError, TooLargeError, UnreachableError
from firmament.log import logger
from firmament.protocol.v1.wake import MAX_SPREAD_S, Wake, decode_wake

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from firmament.agent.policy import Chance
    from firmament.agent.wake_settings import WakeSettings
    from firmament.core.clock import Clock
    from firmament.durable import Disk

log = logger("agent.wake")

PING_S: Final = 120
MIN_RECEIVE_S: Final = 0.1
WINDOW_S: Final = 60
MAX_IN_WINDOW: Final = 64
"""Packets that a broker may send in a minute; a rollout makes a few."""
MIN_WAIT_S: Final = 30


class Hints:
    """When to poll for what is heard."""

    def __init__(self, chance: Chance, *, min_interval_s: int) -> None:
        self._chance = chance
        self._min_interval_s = min_interval_s
        self._rev = -1
        self._at_s = float("-inf")

    def take(self, wake: Wake, now_s: float) -> float | None:
        """Return when to poll (monotonic); None for a hint known already, or while its moment is still to come."""
        if wake.rev == self._rev:
            return None
        self._rev = wake.rev
        if self._at_s > now_s:
            return None
        soon_s = now_s + self._chance.uniform(0, min(wake.spread_s, MAX_SPREAD_S))
        self._at_s = max(soon_s, self._at_s + self._min_interval_s)
        return self._at_s


@dataclass(slots=True)
class Rate:
    """How much the broker said in this minute."""

    since_s: float
    count: int = 0

    def add(self, now_s: float) -> None:
        """Count one more; raises TooLargeError above the limit."""
        if now_s - self.since_s >= WINDOW_S:
            self.since_s, self.count = now_s, 0
        self.count += 1
        if self.count > MAX_IN_WINDOW:
            raise TooLargeError("The broker talks more than a listener bears", limit=MAX_IN_WINDOW, window_s=WINDOW_S)


class Listener:
    """Listens in a thread of its own; `hint(at_s)` is called there, at most once each `min_interval_s`."""

    def __init__(
        self,
        settings: WakeSettings,
        *,
        disk: Disk,
        state_directory: Path,
        clock: Clock,
        chance: Chance,
        hint: Callable[[float], None],
    ) -> None:
        self._settings = settings
        self._disk = disk
        self._state_directory = state_directory
        self._clock = clock
        self._chance = chance
        self._hint = hint
        self._hints = Hints(chance, min_interval_s=settings.min_interval_s)
        self._ending = threading.Event()
        self._session: Session | None = None
        self._thread = threading.Thread(target=self._run, name="wake", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """End; a connection under way is cut off."""
        self._ending.set()
        if self._session is not None:
            self._session.close()
        if self._thread.is_alive():
            self._thread.join(1)

    def _run(self) -> None:
        failures = 0
        while not self._ending.is_set():
            began_s = self._now_s()
            try:
                self._listen()
            except FirmamentError as error:
                if not self._ending.is_set():
                    log.warning("wake.lost", code=error.code, problem=error.problem)
            failures = 1 if self._now_s() - began_s > WINDOW_S else failures + 1
            self._ending.wait(max(MIN_WAIT_S, backoff_s(failures, self._chance)))

    def _listen(self) -> None:
        device_id = identity.load(self._disk, self._state_directory).device_id
        self._session = session = Session(self._settings, device_id, self._disk)
        try:
            session.open()
            log.info("wake.listens", topic=session.topic)
            self._hear(session)
        finally:
            session.close()

    def _hear(self, session: Session) -> None:
        rate, said_s, heard_s = Rate(self._now_s()), self._now_s(), self._now_s()
        while not self._ending.is_set():
            if self._now_s() - said_s >= PING_S:
                if heard_s < said_s:
                    raise UnreachableError("The broker fell silent", silent_s=round(self._now_s() - heard_s))
                session.send(wake_packets.PINGREQ)
                said_s = self._now_s()
            packets = session.receive(max(MIN_RECEIVE_S, said_s + PING_S - self._now_s()))
            for packet in packets:
                heard_s = self._now_s()
                rate.add(heard_s)
                if packet.kind is Kind.PUBLISH:
                    self._take(wake_packets.published(packet), session.topic)

    def _take(self, found: Published, topic: str) -> None:
        if found.topic != topic:
            return
        at_s = self._hints.take(decode_wake(found.payload), self._now_s())
        if at_s is not None:
            log.info("wake.hinted", in_s=round(at_s - self._now_s()))
            self._hint(at_s)

    def _now_s(self) -> float:
        return self._clock.monotonic_s()
