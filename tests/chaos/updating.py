"""Devices that live through a rollout while servers die: real TLS, signed reports, nothing forgotten unacknowledged."""

import json
import threading
import time

import urllib3

STEPS = ("fetching", "verified", "staged", "trial", "confirmed")
PAUSE_S = 0.1


class UpdatingDevice(threading.Thread):
    """Polls whichever server answers, installs what it is told, and reports each step until it is stored."""

    def __init__(self, device, servers, permits: threading.Semaphore, sequence_number: int, version: str) -> None:
        super().__init__(daemon=True)
        self.device, self.servers, self.permits = device, servers, permits
        self.new = {"boot_id": "boot-b", "version": version, "sequence_number": sequence_number}
        self.steps = list(STEPS)
        self.acknowledged: set[int] = set()
        self.refused = self.polls = self.turn = 0
        self.is_updated = self.is_over = False
        self.problem = ""

    def run(self) -> None:
        try:
            self._live()
        except Exception as error:  # noqa: BLE001 - the run ends with it: a device cannot go on
            self.problem = f"{type(error).__name__}: {error}"[:500]

    def _live(self) -> None:
        while not self.is_over:
            running = self.new if self.is_updated else {}
            assignment = self._until(lambda running=running: self.device.poll(**running), _assignment)
            self.polls += 1
            if assignment and not self.is_updated:
                self._go_on(assignment["attempt_id"])
            time.sleep(PAUSE_S)

    def _go_on(self, attempt_id: str) -> None:
        while self.steps:
            step = self.steps[0]
            # The trial lasts until the run wants it to end: so attempts are open during every fault.
            if step == "confirmed" and not self.permits.acquire(blocking=False):
                return
            self._report(attempt_id, step, self.new if step in {"trial", "confirmed"} else {})
            self.steps.pop(0)
        self.is_updated = True

    def _report(self, attempt_id: str, step: str, running: dict) -> None:
        envelope = self.device.envelope(attempt_id, step, **running)
        number = self.device.numbers

        def stored(answer) -> bool:
            assert number in answer.json["accepted"], answer.body
            self.acknowledged.add(number)
            return True

        self._until(lambda: self.device.report(envelope), stored)  # only after that may a device forget it

    def _until(self, ask, take):
        """Ask one server after the other until one answers; a run that ends breaks it off."""
        while not self.is_over:
            self.turn += 1
            self.device.connect(self.servers[self.turn % len(self.servers)])
            try:
                answer = ask()
            except (urllib3.exceptions.HTTPError, OSError):
                answer = None
            if answer is not None and answer.status == 200:
                return take(answer)
            # A full disk (507) and an absent database (503) are said as such; nothing else may be said.
            assert answer is None or answer.status in {429, 503, 507}, (answer.status, answer.body)
            self.refused += 1
            time.sleep(PAUSE_S)
        return None


def _assignment(answer) -> dict | None:
    targets = json.loads(answer.json["targets"])["signed"]["targets"]
    return next(iter(targets.values()))["custom"] if targets else None
