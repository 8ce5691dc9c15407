"""Kill servers, the leader and PostgreSQL, and fill the disk, under a rollout; count what was lost.

    python tests/chaos/run.py [--faults 12] [--servers 3] [--devices 48]

Real servers on one real PostgreSQL that syncs to disk; devices over TLS that ask whichever server
answers, install what a rollout with limits tells them, and report each step until it is stored.
Faults in turn: kill -9 of a follower, of the leader, of PostgreSQL, and a full disk below
PostgreSQL and the servers (a small file system, which only root can mount). What was killed is
started again, as a supervisor does; everything else recovers by itself, within `RECOVERY_S`.

At the end: every report that was answered with "stored" is a row, no limit of the rollout was
ever exceeded (from the chain of events), no device saw an older version (each asserts it at every
poll), the rollout finished and every device is updated once, and the audit chain verifies.
Last, one stored report of each device is removed: unless all of those are then counted as lost,
the count itself is broken and the run fails.
"""

import argparse
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import checks
from support.databases import Cluster
from support.server_world import Client, World, replica_of
from updating import STEPS, UpdatingDevice

RECOVERY_S = 60
IN_FLIGHT = 3
SMALL_DISK_MIB = 320
FILLED_S = 3.0
END_S = 240
MOUNTED = "FIRMAMENT_CHAOS_MOUNTED"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Chaos:
    """Servers, database, devices, a rollout, and what is done to them."""

    def __init__(self, directory: Path, *, servers: int, devices: int) -> None:
        self.directory = directory
        postgres = directory / "postgres"
        postgres.mkdir()
        if os.getuid() == 0:
            for path in (directory, *directory.parents):
                if path.stat().st_uid == 0 and path.stat().st_mode & 0o005 == 0:
                    path.chmod(0o755)  # PostgreSQL runs as another user
        self.cluster = Cluster(fsync=True, directory=postgres)
        name = self.cluster.fresh()
        settings = {
            "database": self.cluster.url(name),
            "database_password_file": str(self.cluster.directory / "password"),
        }
        env = {
            "FIRMAMENT_SERVER_DEVICE_REQUESTS_PER_S": "1000",
            "FIRMAMENT_SERVER_ADDRESS_REQUESTS_PER_S": "5000",
            "FIRMAMENT_SERVER_MIN_FREE_BYTES": "0",
            "FIRMAMENT_SERVER_CHECKPOINT_EVERY_EVENTS": "50",
        }
        self.world = World(directory / "world", env=env, database=settings).begin()
        self.servers = [self.world.server]
        for number in range(1, servers):
            self.servers.append(replica_of(self.world.server, directory / f"server{number}").start())
        self.world.publish_release("thermo", "2.0", 2, b"new")
        self.permits = threading.Semaphore(0)
        self.devices = [
            UpdatingDevice(self.world.device(), self.servers, self.permits, 2, "2.0") for _ in range(devices)
        ]
        for one in self.devices:
            one.device.poll()
        self.rollout_id = self._start()

    def _start(self) -> str:
        body = {
            "release": "thermo/2.0",
            "name": "chaos",
            "selector": "product=thermo",
            "waves": [{"percent": 50}, {"percent": 100}],
            "caps": {"total": IN_FLIGHT},
        }
        made = self.world.admin.ask("POST", "/api/v1/rollouts", body)
        assert made.status == 201, made.body
        return made.json["rollout_id"]

    # --- faults ------------------------------------------------------------------------------

    def leader(self):
        """Return the server that leads, once there is one."""
        deadline = time.monotonic() + RECOVERY_S
        while time.monotonic() < deadline:
            for server in self.servers:
                try:
                    with Client(server) as client:
                        if client.ask("GET", "/readyz").json.get("role") == "leader":
                            return server
                except Exception:  # noqa: BLE001 - it is away or starts: ask the next
                    continue
            time.sleep(0.1)
        raise SystemExit("nobody leads: the servers did not recover")

    def kill_follower(self) -> None:
        leader = self.leader()
        self._kill_server(next(server for server in self.servers if server is not leader))

    def kill_leader(self) -> None:
        self._kill_server(self.leader())

    def _kill_server(self, server) -> None:
        server.stop(signal.SIGKILL)
        time.sleep(1)
        server.start()

    def kill_postgres(self) -> None:
        self.cluster.kill()
        time.sleep(1)
        self.cluster.start()

    def fill_disk(self) -> None:
        ballast = self.directory / "ballast"
        with ballast.open("wb") as file:
            try:
                while file.write(b"\0" * 2**16):
                    file.flush()
            except OSError:
                pass
        assert shutil.disk_usage(self.directory).free < 2**16
        time.sleep(FILLED_S)
        ballast.unlink()
        if self.cluster.process.poll() is not None:  # PostgreSQL ends when its log cannot grow
            say("  PostgreSQL had ended; started again")
            self.cluster.start()

    # --- the whole ---------------------------------------------------------------------------

    def all_go_on(self) -> None:
        """Wait until every device was answered again: everything recovered by itself."""
        before = [one.polls for one in self.devices]
        deadline = time.monotonic() + RECOVERY_S
        # Two polls, or one and the end of an attempt in between.
        while any(one.polls < n + 2 for one, n in zip(self.devices, before, strict=True)):
            self.require_alive()
            if time.monotonic() > deadline:
                raise SystemExit("a device cannot go on: the servers did not recover")
            time.sleep(0.05)

    def under_way(self) -> None:
        """Wait until a device is in the middle of its attempt."""
        deadline = time.monotonic() + RECOVERY_S
        while not any(0 < len(one.steps) < len(STEPS) for one in self.devices):
            self.require_alive()
            if time.monotonic() > deadline:
                raise SystemExit("the rollout does not go on")
            time.sleep(0.05)

    def require_alive(self) -> None:
        for one in self.devices:
            if one.problem:
                raise SystemExit(f"a device cannot go on: {one.problem}")

    def play(self, faults: int, *, has_small_disk: bool) -> None:
        for one in self.devices:
            one.start()
        kinds = [("kill -9 of a follower", self.kill_follower), ("kill -9 of the leader", self.kill_leader)]
        kinds.append(("kill -9 of PostgreSQL", self.kill_postgres))
        if has_small_disk:
            kinds.append(("the disk is full", self.fill_disk))
        else:
            say("the full disk is left out: only root can mount a small file system here")
        for number, (text, fault) in enumerate(itertools.islice(itertools.cycle(kinds), faults), 1):
            self.under_way()
            updated = sum(one.is_updated for one in self.devices)
            began = time.monotonic()
            fault()
            self.all_go_on()
            say(f"fault {number}: {text}; {updated} updated before; all go on after {time.monotonic() - began:.1f} s")
            self.permits.release(len(self.devices) // (faults + 1) or 1)
        self.permits.release(len(self.devices))
        deadline = time.monotonic() + END_S
        while not all(one.is_updated for one in self.devices):
            self.require_alive()
            if time.monotonic() > deadline:
                raise SystemExit("the rollout did not end")
            time.sleep(0.1)
        self.finished(deadline)
        for one in self.devices:
            one.is_over = True
        for one in self.devices:
            one.join()

    def finished(self, deadline: float) -> None:
        while True:
            with Client(self.leader(), token=self.world.admin.token) as admin:
                shown = admin.ask("GET", f"/api/v1/rollouts/{self.rollout_id}").json
            if shown.get("state") == "finished":
                break
            if time.monotonic() > deadline:
                raise SystemExit(f"the rollout did not finish: {shown}")
            time.sleep(0.2)
        if shown["counts"] != {"updated": len(self.devices)}:
            raise SystemExit(f"the counts do not add up: {shown['counts']}")

    def wrong(self) -> list[str]:
        """Say what does not hold."""
        server = self.world.server
        most = checks.most_in_flight(server, self.rollout_id)
        early = checks.early_starts(server, self.rollout_id)
        attempts = checks.attempts_of_each(server)
        is_whole = checks.audit_verifies(self.world, self.directory)
        say(f"most in flight at once: {most} of {IN_FLIGHT}; started before their wave: {early}")
        say(f"attempts of one device: {attempts} at most; audit chain verifies: {'yes' if is_whole else 'NO'}")
        return [
            text
            for is_wrong, text in (
                (most > IN_FLIGHT, "more in flight than allowed"),
                (early > 0, "a wave was not waited for"),
                (attempts > 1, "a device was told twice"),
                (not is_whole, "the audit chain is broken"),
            )
            if is_wrong
        ]

    def close(self) -> None:
        for one in getattr(self, "devices", []):
            one.is_over = True
        for server in self.servers[1:]:
            server.stop(signal.SIGKILL)
        self.world.server.stop(signal.SIGKILL)
        self.world.close()
        self.cluster.stop()


def in_small_file_system(directory: Path) -> bool:
    """Mount a small one there, in a mount namespace of this process's own (see `main`)."""
    if MOUNTED not in os.environ:
        return False
    size = f"size={SMALL_DISK_MIB}m,mode=755"
    return subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", directory], check=False).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=12)
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--devices", type=int, default=48)
    options = parser.parse_args()
    can_mount = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode == 0
    if can_mount and MOUNTED not in os.environ:
        again = ["unshare", "--mount", sys.executable, __file__, *sys.argv[1:]]
        return subprocess.run(again, check=False, env={**os.environ, MOUNTED: "1"}).returncode
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "disk"
        directory.mkdir()
        has_small_disk = in_small_file_system(directory)
        chaos = Chaos(directory, servers=options.servers, devices=options.devices)
        try:
            chaos.play(options.faults, has_small_disk=has_small_disk)
            wrong = chaos.wrong()
            lost = checks.lost_reports(chaos.world.server, chaos.devices)
            told = sum(len(one.acknowledged) for one in chaos.devices)
            polls, refused = (sum(getattr(one, what) for one in chaos.devices) for what in ("polls", "refused"))
            say(f"reports acknowledged: {told}, polls answered: {polls}, asked again: {refused}")
            chaos.world.server.change("DELETE FROM report WHERE number = 1")
            planted = checks.lost_reports(chaos.world.server, chaos.devices) - lost
            say(f"planted losses found: {planted} of {len(chaos.devices)}")
            if planted != len(chaos.devices):
                wrong.append("a planted loss was not found")
            for text in wrong:
                say(f"WRONG: {text}")
            say(f"faults: {options.faults}, lost: {lost}")
            return 1 if lost or wrong else 0
        finally:
            chaos.close()
            if has_small_disk:
                subprocess.run(["umount", "--lazy", directory], check=False)


if __name__ == "__main__":
    sys.exit(main())
