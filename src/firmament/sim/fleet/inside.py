"""The firmware server's own functions in this process, on a clock of the simulation.

Everything that decides is the server's: its schema and SQL, the device link, attempts, the
rollout engine and its loops, signed reports, the chain of events. What is left out is HTTP, TLS
and the signature under answers that assign nothing.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from securesystemslib.signer import CryptoSigner

from firmament.core import canonical
from firmament.core.digest import Digest
from firmament.core.ids import AttemptId, DeviceId
from firmament.core.manifest import Image, Manifest, Payload
from firmament.server import device_link, seen
from firmament.server.attempts import service as attempts
from firmament.server.attempts import taking
from firmament.server.attempts.machine import AttemptState
from firmament.server.attempts.model import OpenAttempt
from firmament.server.database.connection import connect, transact
from firmament.server.database.migrate import migrate
from firmament.server.device_link import Intervals, Session
from firmament.server.inventory.attributes import write_attributes
from firmament.server.inventory.model import Device
from firmament.server.inventory.service import BUCKETS
from firmament.server.inventory.store import ATTEMPT_QUERY, LINK_QUERY, decode_manifest
from firmament.server.reports import open_report
from firmament.server.rollouts import loops, offers, service, store, view
from firmament.server.rollouts.board import Board, PendingTarget
from firmament.server.rollouts.machine import TargetStatus
from firmament.server.scope import FIRST_TENANT, Role, Scope, of_device
from firmament.server.seen import LastSeen
from firmament.sim.fleet.device import NEW_SEQUENCE, NEW_VERSION, OLD_SEQUENCE, OLD_VERSION, assignment_in
from firmament.trust.director import DirectorKeys, make_reply

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from firmament.protocol.v1.messages import PollRequest
    from firmament.server.rollouts.model import Policy
    from firmament.sim.fleet.device import VirtualDevice
    from firmament.sim.fleet.model import Scenario

PRODUCT: Final = "fleet"
RELEASE: Final = f"{PRODUCT}/{NEW_VERSION}"
OPERATOR: Final = Scope(FIRST_TENANT, "person:simulation", Role.ADMIN)
CHUNK: Final = 5000


class InsideServer:
    """`Line` for every device of a fleet, and the operator's side of it."""

    def __init__(self, directory: Path, scenario: Scenario, *, now_s: int) -> None:
        self.path = directory / "firmament.db"
        migrate(self.path)
        self._db = connect(self.path)
        # A simulation that loses the power is played again.
        self._db.execute("PRAGMA synchronous = OFF")
        self.now_s = now_s
        self._scenario = scenario
        self._board = Board()
        self._seen = LastSeen()
        self._manifests: dict[int, Manifest] = {}
        self._keys = DirectorKeys(*(CryptoSigner.generate_ed25519() for _ in range(3)))
        self._versions = now_s
        self.rollout_id = ""
        self.changes = 0
        """How often a device changed something; the loops need not run while nothing does."""

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    @property
    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.now_s, UTC)

    # --- setting up ------------------------------------------------------------------------

    def populate(self, devices: Iterable[VirtualDevice]) -> list[VirtualDevice]:
        """Publish two releases and enrol the fleet, in chunks."""
        self._db.execute(
            "INSERT INTO product(id, tenant_id, name, created_at) VALUES (1, ?, ?, ?)",
            (FIRST_TENANT, PRODUCT, self.now_s),
        )
        hardware = tuple(self._scenario.crowd.hardware)
        lowest = OLD_SEQUENCE if self._scenario.may_go_back else None
        for version, sequence, permitted in (
            (OLD_VERSION, OLD_SEQUENCE, None),
            (NEW_VERSION, NEW_SEQUENCE, lowest),
        ):
            self._publish(version, sequence, hardware, revertible_to=permitted)
        made: list[VirtualDevice] = []
        chunk: list[VirtualDevice] = []
        for device in devices:
            chunk.append(device)
            if len(chunk) == CHUNK:
                self._enrol(chunk)
                made += chunk
                chunk = []
        self._enrol(chunk)
        return made + chunk

    def _publish(
        self, version: str, sequence_number: int, hardware: tuple[str, ...], *, revertible_to: int | None
    ) -> None:
        digest = Digest.of(version.encode())
        length = self._scenario.weather.payload_bytes
        target = f"{PRODUCT}/{version}/firmware.img"
        manifest = Manifest(
            product=PRODUCT,
            version=version,
            sequence_number=sequence_number,
            hardware=hardware,
            installer="image",
            image=Image(digest, length),
            payloads=(Payload("whole", 1, target, length, digest),),
            created_at=self._now,
            revertible_to=revertible_to,
        )
        self._db.execute(
            "INSERT INTO release(tenant_id, product_id, version, sequence_number, target, length_bytes, digest, "
            "manifest, published_at) VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?)",
            (
                FIRST_TENANT,
                version,
                sequence_number,
                target,
                length,
                str(digest),
                canonical.encode(manifest.to_json()),
                self.now_s,
            ),
        )

    def _enrol(self, devices: list[VirtualDevice]) -> None:
        sites = self._scenario.crowd.sites
        self._db.execute("BEGIN")
        for device in devices:
            # Names follow from the seed, so that a run can be repeated to the byte.
            name = uuid.uuid5(uuid.NAMESPACE_OID, f"{self._scenario.seed}/{device.number}")
            device.device_id, device.line = DeviceId(str(name)), self
            row = self._db.execute(
                "INSERT INTO device(tenant_id, uid, product_id, hardware, serial, identity_keyid, identity_key, "
                "hpke_public_key, bucket, enrolled_at, version, sequence_number) "
                "VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
                (
                    FIRST_TENANT,
                    device.device_id,
                    device.hardware,
                    f"SIM-{device.number:06d}",
                    device.key.keyid,
                    device.key.public_der,
                    device.number.to_bytes(4, "big"),
                    name.int % BUCKETS,
                    self.now_s,
                    OLD_VERSION,
                    OLD_SEQUENCE,
                ),
            ).fetchone()
            attributes = canonical.encode(dict(device.attributes)).decode()
            write_attributes(self._db, FIRST_TENANT, row["id"], was="{}", now=attributes)
            self._db.execute("UPDATE device SET attributes = ? WHERE id = ?", (attributes, row["id"]))
            self._db.execute(
                "INSERT INTO device_seen(device_id, last_seen, address, last_poll, interval_s) VALUES (?, ?, '', ?, ?)",
                (row["id"], self.now_s, self.now_s, device.fate.interval_s),
            )
            if sites:
                site = device.number % sites + 1
                self._db.execute(
                    "INSERT INTO site(id, tenant_id, name, created_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    (site, FIRST_TENANT, f"site-{site:04d}", self.now_s),
                )
                self._db.execute("INSERT INTO device_place VALUES (?, ?, ?, NULL)", (row["id"], FIRST_TENANT, site))
        self._db.execute("COMMIT")

    def create(self, policy: Policy) -> str:
        """Make and start a rollout of the new release to everybody."""
        made = transact(
            self._db,
            lambda connection: service.create(
                connection, OPERATOR, name="simulated", release=RELEASE, selector="", policy=policy, now=self._now
            ),
        )
        # Its id decides who goes first: from the seed, so that a play can be repeated.
        self.rollout_id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"rollout {self._scenario.seed}"))
        self._db.execute("UPDATE rollout SET uid = ? WHERE id = ?", (self.rollout_id, made.row_id))
        return self.rollout_id

    # --- the loops and the operator's view -------------------------------------------------

    def tick(self) -> None:
        """Do what the server does every few seconds."""
        while rows := self._seen.take():
            transact(self._db, lambda connection, rows=rows: seen.write_seen(connection, rows))  # type: ignore[misc]  # bound now
        for _ in range(loops.MAX_CHUNKS):
            if not transact(self._db, lambda connection: loops.tick(connection, self._now)):
                break
        self._board.refresh(self._db)

    def state(self) -> str:
        """Return the rollout's state, by a point read."""
        row = self._db.execute("SELECT state FROM rollout WHERE uid = ?", (self.rollout_id,)).fetchone()
        return str(row["state"])

    def show(self) -> dict[str, Any]:
        """Return the rollout as the operator API shows it."""
        return view.show_rollout(self._db, OPERATOR, store.get_rollout(self._db, OPERATOR, self.rollout_id))

    @property
    def database(self) -> Any:
        """The connection, for whoever looks at the evidence afterwards."""
        return self._db

    # --- Line ------------------------------------------------------------------------------

    def poll(self, device: VirtualDevice, request: PollRequest) -> dict[str, Any] | None:
        """See `Line`."""
        row = self._db.execute(LINK_QUERY, (device.device_id,)).fetchone()
        stored = Device.of_row(row)
        session = Session(stored, self._attempt(row) if row["attempt_row"] is not None else None)
        is_idle = session.attempt is None
        self._seen.note(stored.row_id, self.now_s, "", is_idle_poll=is_idle)
        if is_idle and row["target_rollout"] is not None:
            target = PendingTarget(
                row["target_rollout"], row["target_wave"], TargetStatus(row["target_status"]), row["not_before"]
            )
            if self._board.may_begin(
                target, sequence_number=request.sequence_number, attributes=stored.attributes, now=self._now
            ):
                facts = offers.describe(stored, request)
                if transact(
                    self._db,
                    lambda connection: offers.begin(
                        connection, stored.row_id, facts, offers.polled(request), self._now
                    ),
                ):
                    row = self._db.execute(LINK_QUERY, (device.device_id,)).fetchone()
                    session = replace(session, attempt=self._attempt(row))
        _, effects = device_link.on_poll(session, request, intervals=Intervals(device.fate.interval_s, 60))
        reply = device_link.replies(effects)
        changes = [effect for effect in effects if effect is not reply]
        if changes:
            self.changes += 1
            scope = of_device(stored.tenant_id, stored.device_id)
            transact(self._db, lambda connection: attempts.carry_out(connection, scope, stored, changes, self._now))
        if reply.assignment is None:
            return None
        self._versions += 1
        signed = make_reply(
            self._keys,
            device_id=stored.device_id,
            nonce=request.nonce,
            assignment=reply.assignment,
            now=self._now,
            version=self._versions,
            poll_after_s=reply.poll_after_s,
        )
        return assignment_in(signed.targets)

    def report(self, device: VirtualDevice, envelope: dict[str, Any]) -> None:
        """See `Line`."""
        row = self._db.execute(LINK_QUERY, (device.device_id,)).fetchone()
        stored = Device.of_row(row)
        self._seen.note(stored.row_id, self.now_s, "")
        key = self._db.execute("SELECT identity_key FROM device WHERE id = ?", (stored.row_id,)).fetchone()
        report, payload = open_report(envelope, identity_key=bytes(key["identity_key"]), keyid=stored.identity_keyid)
        found = self._db.execute(ATTEMPT_QUERY, (report.attempt_id,)).fetchone()
        self.changes += 1
        session = Session(stored, self._attempt(found))
        device_link.check_report(session, report, owner_row_id=found["device_id"])
        transact(
            self._db,
            lambda connection: taking.take_report(connection, session, report, payload, self._now),
        )

    def _attempt(self, row: Any) -> OpenAttempt:
        manifest = self._manifests.get(row["release_row"])
        if manifest is None:
            manifest = self._manifests[row["release_row"]] = decode_manifest(bytes(row["manifest"]))
        return OpenAttempt(
            row_id=row["attempt_row"],
            attempt_id=AttemptId(row["attempt_uid"]),
            state=AttemptState(row["state"]),
            code=row["code"],
            boot_id_before=row["boot_id_before"],
            target=row["target"],
            manifest=manifest,
            takes_back=None if row["takes_back"] is None else AttemptId(row["takes_back"]),
        )
