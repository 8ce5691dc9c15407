"""Kill the server and PostgreSQL while devices report; count what was acknowledged and is not there.

    python tests/chaos/run.py [--faults 6] [--plant]

A real server on a real PostgreSQL that syncs to disk; devices over TLS. Each fault is kill -9 of
one of the two, in turn, and a start again of what was killed. At the end every report that was
answered with "stored" must be a row. `--plant` removes one such row: then this must fail.
"""

import argparse
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import urllib3

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.databases import Cluster
from support.server_world import World

DEVICES = 3
PROGRESS_DEADLINE_S = 60


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Reporter(threading.Thread):
    """One device that reports without an end, and remembers what was stored."""

    def __init__(self, device, attempt_id: str) -> None:
        super().__init__(daemon=True)
        self.device, self.attempt_id = device, attempt_id
        self.acknowledged: set[int] = set()
        self.refused = 0
        self.is_over = False

    def run(self) -> None:
        envelope = None
        while not self.is_over:
            envelope = envelope or self.device.envelope(self.attempt_id, "fetching")
            number = self.device.numbers
            try:
                answer = self.device.report(envelope)
            except (urllib3.exceptions.HTTPError, OSError):
                self.refused += 1
                time.sleep(0.1)
                continue
            if answer.status == 200 and number in answer.json["accepted"]:
                self.acknowledged.add(number)
                envelope = None  # only now may a device forget it
            else:
                assert answer.status in {429, 503}, answer.body
                assert int(answer.headers["retry-after"]) > 0
                self.refused += 1
                time.sleep(0.1)


def all_go_on(reporters: list[Reporter]) -> None:
    """Wait until every device had something stored again: the server recovered by itself."""
    before = [len(reporter.acknowledged) for reporter in reporters]
    deadline = time.monotonic() + PROGRESS_DEADLINE_S
    while any(len(r.acknowledged) < n + 3 for r, n in zip(reporters, before, strict=True)):
        dead = [reporter for reporter in reporters if not reporter.is_alive()]
        if dead or time.monotonic() > deadline:
            raise SystemExit("a device cannot go on: the server did not recover")
        time.sleep(0.02)


def play(directory: Path, faults: int, *, plant: bool) -> int:
    """Return how many acknowledged reports are not stored."""
    cluster = Cluster(fsync=True)
    try:
        name = cluster.fresh()
        settings = {"database": cluster.url(name), "database_password_file": str(cluster.directory / "password")}
        env = {"FIRMAMENT_SERVER_DEVICE_REQUESTS_PER_S": "1000", "FIRMAMENT_SERVER_ADDRESS_REQUESTS_PER_S": "5000"}
        world = World(directory / "world", env=env, database=settings).begin()
        try:
            world.publish_release("thermo", "1.1", 2, b"new")
            reporters = []
            for _ in range(DEVICES):
                device = world.device()
                attempt_id = world.assign(device, "thermo/1.1")
                device.poll()
                reporters.append(Reporter(device, attempt_id))
            for reporter in reporters:
                reporter.start()
            for fault in range(faults):
                all_go_on(reporters)
                if fault % 2:
                    say(f"fault {fault + 1}: kill -9 of PostgreSQL")
                    cluster.kill()
                    time.sleep(0.2)
                    cluster.start()
                else:
                    say(f"fault {fault + 1}: kill -9 of the server")
                    world.server.stop(signal.SIGKILL)
                    world.server.start()
            all_go_on(reporters)
            for reporter in reporters:
                reporter.is_over = True
            for reporter in reporters:
                reporter.join()
            if plant:
                world.server.change("DELETE FROM report WHERE number = 1")
            query = "SELECT d.uid, r.number FROM report r JOIN device d ON d.id = r.device_id"
            stored = {(row["uid"], row["number"]) for row in world.server.rows(query)}
            told = {(r.device.device_id, number) for r in reporters for number in r.acknowledged}
            say(f"reports acknowledged: {len(told)}, refused and sent again: {sum(r.refused for r in reporters)}")
            return len(told - stored)
        finally:
            world.close()
    finally:
        cluster.stop()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=6)
    parser.add_argument("--plant", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        lost = play(Path(directory), options.faults, plant=options.plant)
    say(f"faults: {options.faults}, lost: {lost}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
