"""A server's rollout functions over a real database file, and devices that call and report, on a clock of ours."""

import contextlib
import dataclasses
import json
import os
from datetime import UTC, datetime, timedelta

from support.databases import forget, fresh_target

from firmament.core import canonical
from firmament.core.digest import Digest
from firmament.core.ids import AttemptId, DeviceId
from firmament.core.manifest import Image, Manifest, Payload
from firmament.protocol.status import AttemptStatus
from firmament.protocol.v1.messages import PollRequest, Report
from firmament.server import device_link, seen
from firmament.server.attempts import service as attempts
from firmament.server.attempts import taking
from firmament.server.attempts.machine import AttemptState
from firmament.server.attempts.model import OpenAttempt
from firmament.server.database.opening import command_database
from firmament.server.device_link import Intervals, Session
from firmament.server.http.conditional import has_nothing_to_do
from firmament.server.inventory.model import Device
from firmament.server.inventory.service import BUCKETS
from firmament.server.inventory.store import ATTEMPT_QUERY, GLANCE_QUERY, LINK_QUERY, decode_manifest
from firmament.server.rollouts import actions, facts, loops, offers, permitted, reasons, service, store, view, why
from firmament.server.rollouts.board import Board
from firmament.server.rollouts.model import Policy
from firmament.server.scope import Role, Scope, of_device

START = datetime(2026, 11, 20, 12, tzinfo=UTC)
OPERATOR = Scope(1, "person:olga", Role.OPERATOR)
APPROVER = Scope(1, "person:anna", Role.APPROVER)
ADMIN = Scope(1, "person:ada", Role.ADMIN)
IMAGE = b"image of "


@dataclasses.dataclass
class SimpleDevice:
    """What one device knows; behaviour is the test's."""

    row_id: int
    device_id: DeviceId
    version: str = "1.0"
    sequence_number: int = 1
    boot: int = 1
    reports: int = 0
    attributes: dict = dataclasses.field(default_factory=dict)
    attempt_id: AttemptId | None = None
    takes_back: AttemptId | None = None
    before: tuple[str, int] = ("", 0)


class RolloutWorld:
    """See the head of this file."""

    def __init__(self, directory, *, kind, devices=0, product="thermo", hardware="rpi4"):
        self.target = fresh_target(kind, directory)
        self._opened = contextlib.ExitStack()
        self.commands = self._opened.enter_context(command_database(self.target))
        self.db = self.commands.connection
        if kind == "sqlite":
            # The tests ask what is decided, not what survives a power cut; the PostgreSQL of the tests does without too.
            self.db.execute("PRAGMA synchronous = OFF")
        self.now = START
        self.devices: list[SimpleDevice] = []
        self.db.execute("INSERT INTO product(id, tenant_id, name, created_at) VALUES (1, 1, ?, 0)", (product,))
        self.release("1.0", 1)
        for _ in range(devices):
            self.add_device(hardware=hardware)

    def close(self):
        self._opened.close()
        forget(self.target)

    def release(self, version, sequence_number, **changes):
        data = IMAGE + version.encode()
        target = f"thermo/{version}/firmware.img"
        given = {
            "product": "thermo",
            "version": version,
            "sequence_number": sequence_number,
            "hardware": ("rpi4", "rpi5"),
            "installer": "image",
            "image": Image(Digest.of(data), len(data)),
            "payloads": (Payload("whole", 1, target, len(data), Digest.of(data)),),
            "created_at": START,
        }
        manifest = Manifest(**{**given, **changes})
        self.db.execute(
            "INSERT INTO release(tenant_id, product_id, version, sequence_number, target, length_bytes, digest, manifest, "
            "published_at) VALUES (1, 1, ?, ?, ?, ?, ?, ?, 0)",
            (version, sequence_number, target, len(data), str(Digest.of(data)), canonical.encode(manifest.to_json())),
        )
        return manifest

    def add_device(self, *, hardware="rpi4", version="1.0", sequence_number=1, site=None, attributes=None):
        number = len(self.devices) + 1
        name = DeviceId(f"00000000-0000-4000-8000-{number:012d}")
        row = self.db.execute(
            "INSERT INTO device(tenant_id, uid, product_id, hardware, serial, identity_keyid, identity_key, "
            "hpke_public_key, bucket, enrolled_at, version, sequence_number) "
            "VALUES (1, ?, 1, ?, '', ?, ?, ?, ?, 0, ?, ?) RETURNING id",
            (name, hardware, f"k{number}", b"k", b"h%d" % number, (number * 7919) % BUCKETS, version, sequence_number),
        ).fetchone()
        device = SimpleDevice(row["id"], name, version, sequence_number, attributes=attributes or {})
        if site is not None:
            known = self.db.execute("SELECT id FROM site WHERE name = ?", (site,)).fetchone()
            site_id = (
                known["id"]
                if known
                else self.db.execute(
                    "INSERT INTO site(tenant_id, name, created_at) VALUES (1, ?, 0) RETURNING id", (site,)
                ).fetchone()["id"]
            )
            self.db.execute("INSERT INTO device_place VALUES (?, 1, ?, NULL)", (device.row_id, site_id))
        self.devices.append(device)
        return device

    # --- time and people -------------------------------------------------------------------

    def pass_time(self, seconds):
        self.now += timedelta(seconds=seconds)

    def submit(self, job):
        return self.commands.transact(job)

    def step(self):
        """Let the loops do one piece of their work; return whether they want more at once."""
        return self.submit(lambda connection: loops.tick(connection, self.now))

    def tick(self, seconds=0.0):
        """Let time pass, then let the loops do all they want to do now."""
        self.pass_time(seconds)
        for _ in range(200):
            if not self.step():
                return
        raise AssertionError("the loops never rest")

    def create(self, *, scope=OPERATOR, release="thermo/2.0", selector="", policy=None, **changes):
        made = self.submit(
            lambda connection: service.create(
                connection,
                scope,
                name="spring",
                release=release,
                selector=selector,
                policy=policy or Policy(),
                now=self.now,
                **changes,
            )
        )
        return made.rollout_id

    def act(self, rollout_id, action, *, scope=OPERATOR, **changes):
        return self.submit(
            lambda connection: actions.act(connection, scope, rollout_id, action, actions.Request(**changes), self.now)
        )

    def preview(self, rollout_id, action, *, scope=ADMIN, exclude=""):
        return permitted.preview(self.db, scope, rollout_id, action, exclude=exclude, now=self.now)

    def rollout(self, rollout_id, scope=ADMIN):
        return view.show_rollout(self.db, scope, store.get_rollout(self.db, scope, rollout_id))

    def events(self, kind):
        found = self.db.execute("SELECT * FROM event WHERE kind = ? ORDER BY number", (kind,)).fetchall()
        return [{**dict(row), "facts": json.loads(bytes(row["facts"]))} for row in found]

    def reasons(self, rollout_id):
        return reasons.list_reasons(self.db, store.get_rollout(self.db, ADMIN, rollout_id))

    def ask(self, device, release=None):
        return facts.ask_why(self.db, ADMIN, device.device_id, release, self.now)

    def why(self, device, release=None):
        """The first rule that stands against it."""
        return why.first_missing(self.ask(device, release))

    # --- devices ---------------------------------------------------------------------------

    def _session(self, device):
        row = self.db.execute(LINK_QUERY, (device.device_id,)).fetchone()
        attempt = None if row["attempt_row"] is None else self._attempt(row)
        return Session(Device.of_row(row), attempt)

    def _attempt(self, row):
        return OpenAttempt(
            row["attempt_row"],
            AttemptId(row["attempt_uid"]),
            AttemptState(row["state"]),
            row["code"],
            row["boot_id_before"],
            row["target"],
            decode_manifest(bytes(row["manifest"])),
            row["takes_back"],
        )

    def would_hear_nothing(self, device):
        """Whether the server would say that nothing changed, to a device that asks no more than that."""
        board = Board()
        board.refresh(self.db)
        _, _, _, _, *row = self.db.execute(GLANCE_QUERY, (device.device_id,)).fetchone()
        return has_nothing_to_do(*row, board=board, now=self.now)

    def poll(self, device, **changes):
        """Poll as a device; return the attempt that the director names, None when there is none."""
        given = {
            "nonce": os.urandom(16),
            "version": device.version,
            "sequence_number": device.sequence_number,
            "boot_id": f"boot-{device.boot}",
            "attributes": device.attributes,
        }
        poll = PollRequest(**{**given, **changes})
        session = self._session(device)
        told = (poll.sequence_number, canonical.encode(poll.attributes).decode())
        is_same = told == (session.device.sequence_number, session.device.attributes)
        is_quiet = is_same and self.would_hear_nothing(device)
        is_idle = session.attempt is None
        self.submit(
            lambda connection: seen.write_seen(
                connection,
                [(device.row_id, int(self.now.timestamp()), "", int(self.now.timestamp()) if is_idle else 0)],
            )
        )
        if session.attempt is None:
            described = offers.describe(session.device, poll)
            self.submit(
                lambda connection: offers.begin(connection, device.row_id, described, offers.polled(poll), self.now)
            )
            session = self._session(device)
        _, effects = device_link.on_poll(session, poll, intervals=Intervals(1800, 60))
        reply = device_link.replies(effects)
        self.submit(
            lambda connection: attempts.carry_out(
                connection,
                of_device(1, device.device_id),
                session.device,
                [effect for effect in effects if effect is not reply],
                self.now,
            )
        )
        named = reply.assignment
        assert named is None or not is_quiet, "a device that only asked whether anything changed would not have polled"
        device.attempt_id = named.attempt_id if named is not None else None
        device.takes_back = named.takes_back if named is not None else None
        return named

    def tell(self, device, status, *, attempt_id=None, code="", version=None, sequence_number=None):
        """Report as a device."""
        device.reports += 1
        report = Report(
            device_id=device.device_id,
            report_number=device.reports,
            attempt_id=attempt_id or device.attempt_id,
            status=AttemptStatus(status),
            version=device.version if version is None else version,
            sequence_number=device.sequence_number if sequence_number is None else sequence_number,
            boot_id=f"boot-{device.boot}",
            at=self.now,
            code=code,
        )
        row = self.db.execute(ATTEMPT_QUERY, (report.attempt_id,)).fetchone()
        session = dataclasses.replace(self._session(device), attempt=self._attempt(row))
        self.submit(
            lambda connection: taking.take_report(
                connection, session, report, canonical.encode(report.to_json()), self.now
            )
        )

    def install(self, device, *, release=("2.0", 2)):
        """Go through a whole update: fetch, trial, confirm."""
        for status in ("fetching", "staged"):
            self.tell(device, status)
        device.before = (device.version, device.sequence_number)
        device.boot += 1
        device.version, device.sequence_number = release
        self.tell(device, "trial")
        self.tell(device, "confirmed")

    def go_back(self, device):
        """Obey an assignment to revert."""
        device.boot += 1
        device.version, device.sequence_number = device.before
        self.tell(device, "confirmed")

    def break_down(self, device, code="slot/health"):
        """Try the release, find it unhealthy, and run the old image again."""
        self.tell(device, "fetching")
        device.boot += 2
        self.tell(device, "reverted", code=code)

    def statuses(self, rollout_id):
        row = self.db.execute("SELECT id FROM rollout WHERE uid = ?", (rollout_id,)).fetchone()
        rows = self.db.execute(
            "SELECT d.uid, t.status FROM rollout_target t JOIN device d ON d.id = t.device_id WHERE t.rollout_id = ? ORDER BY d.id",
            (row["id"],),
        )
        return {found["uid"]: found["status"] for found in rows}

    def check_counters(self):
        """Counters, slots and reasons equal a recount."""
        recount = self.db.execute(
            "SELECT rollout_id, wave, status, COUNT(*) AS n FROM rollout_target GROUP BY rollout_id, wave, status"
        )
        wanted = {(row["rollout_id"], row["wave"], row["status"]): row["n"] for row in recount}
        found = {
            (row["rollout_id"], row["wave"], row["status"]): row["n"]
            for row in self.db.execute("SELECT * FROM rollout_counter WHERE n <> 0")
        }
        assert found == wanted
        reasons = self.db.execute(
            "SELECT rollout_id, code, COUNT(*) AS n FROM rollout_target WHERE status IN ('failed', 'silent') "
            "GROUP BY rollout_id, code"
        )
        assert {(row["rollout_id"], row["code"]): row["n"] for row in reasons} == {
            (row["rollout_id"], row["code"]): row["n"]
            for row in self.db.execute("SELECT * FROM rollout_reason WHERE n <> 0")
        }
        for row in self.db.execute("SELECT * FROM rollout_limit"):
            kind, _, number = row["scope"].partition(":")
            where = {"": "holds_slot = 1", "old-stock": "holds_slot = 2"}.get(
                kind, f"{kind}_id = {number} AND holds_slot > 0"
            )
            used = self.db.execute(
                f"SELECT COUNT(*) AS n FROM rollout_target WHERE rollout_id = ? AND {where}", (row["rollout_id"],)
            ).fetchone()["n"]
            assert row["in_flight"] == used, row["scope"]


@contextlib.contextmanager
def rollout_world(directory, **changes):
    """A world that is closed at the end."""
    world = RolloutWorld(directory, **changes)
    try:
        yield world
    finally:
        world.check_counters()
        world.close()
