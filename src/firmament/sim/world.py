"""A whole device in memory: simulated disk and boot loader, the real agent, the real link, a signed server.

`World` plays one device from provisioned and idle to the end of an attempt, through restarts and
power cuts. It is also the judge: at every start it compares what the boot loader chose with the
images that authors signed, byte by byte, without asking any code of the agent.

Users can build their own integration tests on it; everything that is chance or time is an
argument, and nothing touches the machine it runs on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from firmament.agent.agent import Agent
from firmament.agent.bootctl.port import Restart
from firmament.agent.events import Events
from firmament.agent.health.port import Finding
from firmament.agent.link import Relation, ServerLink, repository_of
from firmament.agent.machine import State
from firmament.agent.parts import Parts, TrialSettings
from firmament.agent.policy import Policy
from firmament.agent.record import Release
from firmament.agent.slots.bundle import BundleSlot
from firmament.agent.slots.image import ImageSlot
from firmament.agent.slots.port import Label, Slots
from firmament.core import bundle, canonical
from firmament.core.bundle import Entry, EntryKind
from firmament.core.clock import FixedClock
from firmament.core.fields import Fields
from firmament.core.ids import AttemptId, DeviceId
from firmament.errors import FirmamentError, RestartNeededError
from firmament.log import logger
from firmament.payload import wrap
from firmament.payload.methods import applicable
from firmament.payload.sealing import METHOD as SEALED_METHOD
from firmament.payload.wrap import Purpose
from firmament.protocol.parcel import (
    MAX_RECEIPT_LENGTH_BYTES,
    RECEIPT_SUFFIX,
    RECEIPT_TYPE,
    ReceiptFile,
    decode_receipt,
)
from firmament.protocol.status import FINAL_STATUSES
from firmament.protocol.v1.envelope import open_envelope
from firmament.sim.bootloader import APPLICATION, BootKind, install, is_armed, power_on
from firmament.sim.disk import SimDisk
from firmament.sim.faults import Survives
from firmament.sim.server import (
    BASE_URL,
    HARDWARE,
    PRODUCT,
    Packed,
    SimAuthor,
    SimServer,
    delta,
    sealed,
    whole,
)
from firmament.trust.device_keys import IdentityKey
from firmament.trust.floors import Floors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from firmament.agent.bootctl.port import BootControl
    from firmament.agent.slots.port import Slot
    from firmament.core.digest import Digest
    from firmament.durable import Disk

log = logger("sim.world")

BEGINNING: Final = datetime(2026, 11, 20, 12, tzinfo=UTC)
STATE: Final = Path("/var/lib/firmament")
PARCEL: Final = Path("/media/stick/site.parcel")
DEVICE_ID: Final = DeviceId("6ba7b810-9dad-41d1-80b4-00c04fd430c8")
ATTEMPT_ID: Final = AttemptId("0f1e2d3c-4b5a-4968-8776-655443322110")
WAY_BACK_ID: Final = AttemptId("00000000-0000-4000-8000-0000000000b2")
OLD_VERSION: Final = "1.0"
NEW_VERSION: Final = "1.1"
MAX_STARTS: Final = 12
# A cut costs one start, the trial one, going back one; more than a dozen is a boot loop.
MAX_TICKS: Final = 60
# Per start; an update takes some ten.


class SlotKind(StrEnum):
    """Where images live."""

    BUNDLE = "bundle"
    IMAGE_FILE = "image-file"
    IMAGE_DEVICE = "image-device"

    @property
    def installer(self) -> str:
        """The manifest's installer type."""
        return "bundle" if self is SlotKind.BUNDLE else "image"


class Condition(StrEnum):
    """What the new image is like."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    """It runs, and its health check never passes."""
    DIES = "dies"
    """Its program ends at once (supervisor)."""


class Way(StrEnum):
    """Where the device is going."""

    FORTH = "forth"
    """To the new image."""
    BACK = "back"
    """It was updated, and a rollout brings it back to the old image in its other slot."""


class BrickedError(AssertionError):
    """The boot loader started something that no author signed, or nothing could start."""


class StuckError(AssertionError):
    """The device did not come to rest."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Lengths that make trouble, and why."""

    name: str
    why: str
    old: bytes
    new: bytes
    slot_bytes: int
    chunk_bytes: int
    """Pieces in which the network delivers."""
    checkpoint_bytes: int


class Travel(StrEnum):
    """How the new image travels."""

    WHOLE = "whole"
    DELTA = "delta"
    """A delta from the running image, stored and then applied."""
    SEALED = "sealed"
    """The delta sealed, beside a sealed whole image."""
    FALLBACK = "fallback"
    """A delta that makes another image than was signed: the device falls back to the whole one."""
    SEALED_FALLBACK = "sealed-fallback"
    """The same with both sealed: the key of the second came along with the first."""
    PARCEL = "parcel"
    """Whole, on a stick; nobody answers the device, and its receipt is written beside the parcel."""
    SEALED_PARCEL = "sealed-parcel"
    """A sealed delta that makes another image, beside the sealed whole image, on a stick."""

    @property
    def is_carried(self) -> bool:
        """Whether it comes by hand."""
        return self in {Travel.PARCEL, Travel.SEALED_PARCEL}


@dataclass(frozen=True, slots=True)
class Case:
    """One device to play with."""

    slot: SlotKind
    boot: BootKind
    condition: Condition
    """Of the image that the device is going to."""
    geometry: Geometry
    way: Way = Way.FORTH
    travel: Travel = Travel.WHOLE

    def __str__(self) -> str:
        """Return the case as a row."""
        way = " x back" if self.way is Way.BACK else ""
        travel = f" x {self.travel}" if self.travel is not Travel.WHOLE else ""
        return f"{self.slot} x {self.boot} x {self.condition} x {self.geometry.name}{way}{travel}"


class Phase(StrEnum):
    """Where the new image is, seen from outside the agent."""

    BEFORE = "before"
    STARTING = "starting"
    """The boot loader has begun to start it, and may have spent its one try."""
    TRIAL = "trial"
    """It runs."""
    AFTER = "after"
    """The boot control has confirmed it."""


@dataclass(frozen=True, slots=True)
class Result:
    """How it ended."""

    booted_new: bool
    status: str
    """Final status in the journal's history, or empty."""
    reported: str
    """Final status that the server stored, or empty."""
    sequence_floor: int
    code: str
    starts: int
    receipt: str = ""
    """Outcome in the receipt beside the parcel, or empty."""


class Ideal:
    """Everything that stays the same for all devices of one case: keys, releases, the server.

    Making keys and signing takes longer than a whole update, so a sweep does it once.
    """

    def __init__(self, case: Case, **release: Any) -> None:
        """Make keys and releases; `release` are further manifest fields of the new one."""
        self.case = case
        self.clock = FixedClock(BEGINNING)
        self.author = SimAuthor(self.clock)
        self.identity = IdentityKey.generate()
        publish = self.author.publish
        installer = case.slot.installer
        if case.way is Way.BACK:
            release = {"revertible_to": 1, **release}
        self.old = publish(case.geometry.old, version=OLD_VERSION, sequence_number=1, installer=installer)
        self.hpke_key, self.hpke_public_key = wrap.generate()
        self.packed = pack_payloads(case)
        self.new = publish(
            case.geometry.new,
            version=NEW_VERSION,
            sequence_number=2,
            installer=installer,
            packed=self.packed,
            **release,
        )
        self.server = SimServer(self.author, self.clock, DEVICE_ID, chunk_bytes=case.geometry.chunk_bytes)
        self.server.hears_only = case.travel.is_carried

    def provisioned(self) -> World:
        """Return a device that runs the old release and has nothing in hand; the new one is assigned."""
        disk = SimDisk()
        case = self.case
        self.clock.set(BEGINNING)
        for label in Label:
            _put_image(disk, case, label, case.geometry.old if label is Label.A else b"")
        install(case.boot, disk)
        disk.make_directory(STATE)
        Floors(disk, STATE / "floors").create()
        disk.lose_power(Survives.ORDERED)
        self.server.restore((None, (), 0))
        world = World(self, disk, goes_back=False)
        world.settle()  # the first start makes the journal; the cuts begin after it
        self.assign()
        if case.travel.is_carried:
            disk.put(PARCEL, self.server.parcel(self.packed.files))
        if self.case.way is Way.BACK:
            world.settle()
            disk.lose_power(Survives.ORDERED)
            self.server.assign(self.old, WAY_BACK_ID, takes_back=ATTEMPT_ID)
            world = World(self, disk)
        disk.operations = 0
        return world

    def assign(self) -> None:
        """Let the director name the new release, and of its payloads the one that `Travel` says."""
        self.server.assign(self.new, ATTEMPT_ID, packed=self.packed, hpke_public_key=self.hpke_public_key)


@dataclass
class World:
    """One device; see the head of this file."""

    ideal: Ideal
    disk: SimDisk
    make_agent: Callable[..., Agent] = Agent
    """Tests plant faulty agents here."""
    view: Callable[[SimDisk], Disk] = field(default=lambda disk: disk)
    """Tests plant a faulty storage driver here."""
    alter: Callable[[Parts], Parts] = field(default=lambda parts: parts)
    """Tests change the agent's parts here."""
    starts: int = 0
    phase: Phase = Phase.BEFORE
    events: Events = field(default_factory=Events)
    policy: Policy = field(default_factory=lambda: Policy(first_poll_within_s=0))
    goes_back: bool | None = None
    """Whether the old image is the goal; None: as the case says."""
    agent: Agent = field(init=False)
    """The one of the latest start."""

    def __post_init__(self) -> None:
        """Choose the goal."""
        if self.goes_back is None:
            self.goes_back = self.case.way is Way.BACK

    @property
    def case(self) -> Case:
        """The row being played."""
        return self.ideal.case

    # --- a device's life -------------------------------------------------------------------

    def settle(self) -> None:
        """Play until the attempt is over and everybody knows; raises StuckError, BrickedError or PowerCut."""
        for _ in range(MAX_STARTS):
            if self.live():
                return
            # Restarted in a hurry, as by a watchdog: what was not made durable is gone.
            self.disk.lose_power(Survives.LOST)
        msg = f"not at rest after {MAX_STARTS} starts"
        raise StuckError(msg)

    def live(self, *, max_ticks: int = MAX_TICKS) -> bool:
        """Play one start; return False when it ended in a restart, or after `max_ticks` in the middle."""
        self.start()
        if self.case.travel.is_carried and self.ideal.server.assignment is not None and not self._install():
            return False
        for _ in range(max_ticks):
            wait_s = self.agent.tick()
            if self.agent.is_restarting:
                return False
            status = self.agent.status()
            if status.state is State.IDLE and not status.reports_waiting and self.ideal.server.assignment is None:
                return True
            self.ideal.clock.advance(wait_s)
        return False

    def _install(self) -> bool:
        """Be the person with the stick: install while nothing is in hand; False when it ended in a restart."""
        if self.agent.status().state is State.IDLE:
            try:
                self.agent.install(PARCEL)
            except RestartNeededError:
                return False
            except FirmamentError as error:
                log.debug("install.ended", code=error.code)  # the judge looks at what runs
        return True

    def start(self) -> Agent:
        """Switch the device on: the boot loader decides, and an agent is made that has done nothing yet."""
        boot = self._power_on()
        parts = self.alter(self._parts(boot))
        self.agent = self.make_agent(parts, checkpoint_bytes=self.case.geometry.checkpoint_bytes)
        return self.agent

    def _power_on(self) -> BootControl:
        self.starts += 1
        self.begins_to_start()
        boot = power_on(self.case.boot, self.disk, self.ideal.clock, starts=self.starts, lives=self._lives)
        self.has_started(boot.booted())
        return _Observed(boot, self)

    def _lives(self, label: Label) -> bool:
        return self.case.condition is not Condition.DIES or not self.is_sick(label)

    def is_sick(self, label: Label) -> bool:
        """Whether what a slot holds is the goal, and the case makes that one ill."""
        is_ill = self.case.condition is not Condition.HEALTHY and self.goes_back == (self.case.way is Way.BACK)
        return is_ill and self.holds_new(label)

    def _parts(self, boot: BootControl) -> Parts:
        disk = self.view(self.disk)
        ideal = self.ideal
        floors = Floors(disk, STATE / "floors")
        methods = frozenset({*applicable(), SEALED_METHOD})
        relation = Relation(
            device_id=DEVICE_ID,
            product=PRODUCT,
            hardware=HARDWARE,
            server_url=BASE_URL,
            repository_url=repository_of(BASE_URL),
            image_root=ideal.author.root,
            director_root=ideal.server.director_root,
            metadata_directory=STATE / "metadata",
        )
        return Parts(
            disk=disk,
            state_directory=STATE / "agent",
            clock=ideal.clock,
            chance=_Middle(),
            link=ServerLink(
                relation,
                ideal.identity,
                ideal.server,
                disk,
                ideal.clock,
                floors,
                methods=methods,
                parcel_piece_bytes=self.case.geometry.chunk_bytes,
            ),
            slots=Slots(self.case.slot.installer, _slot(disk, self.case, Label.A), _slot(disk, self.case, Label.B)),
            boot=boot,
            checks=(_Check(self, boot),),
            floors=floors,
            events=self.events,
            policy=self.policy,
            device_id=DEVICE_ID,
            trial=TrialSettings(deadline_s=3, interval_s=1, passes=2),
            methods=methods,
            unwrap=self._unwrap,
            initial=Release(ideal.old.version, ideal.old.sequence_number, ideal.old.image, Label.A),
        )

    def _unwrap(self, wrapped: bytes, release_id: str, sealed_digest: Digest) -> bytes:
        return wrap.unwrap(wrapped, self.ideal.hpke_key, Purpose(DEVICE_ID, release_id, sealed_digest.value))

    # --- the judge -------------------------------------------------------------------------

    def holds_new(self, label: Label) -> bool:
        """Whether a slot holds the image the device is going to, whole and to the byte."""
        geometry = self.case.geometry
        return _holds(self.disk, self.case, label, geometry.old if self.goes_back else geometry.new)

    def holds_old(self, label: Label) -> bool:
        """Whether a slot holds the image the device comes from, whole and to the byte."""
        geometry = self.case.geometry
        return _holds(self.disk, self.case, label, geometry.new if self.goes_back else geometry.old)

    def begins_to_start(self) -> None:
        """See the boot loader begin."""
        if is_armed(self.case.boot, self.disk):
            self.phase = Phase.STARTING

    def has_started(self, booted: Label) -> None:
        """See what the boot loader started; raises BrickedError for anything but a whole signed image."""
        if self.phase is Phase.STARTING:
            self.phase = Phase.TRIAL if self.holds_new(booted) else Phase.BEFORE
        if not self.holds_new(booted) and not self.holds_old(booted):
            msg = f"slot {booted} was started and holds no signed image\n{self.disk.dump()}"
            raise BrickedError(msg)

    def result(self) -> Result:
        """Start the device once more, as an owner would the next morning, and tell what is there."""
        self.disk.lose_power(Survives.LOST)
        boot = self._power_on()
        history = self.agent.history()
        reports = [report for report in self.ideal.server.reports if report.status in FINAL_STATUSES]
        return Result(
            booted_new=self.holds_new(boot.booted()),
            status=history[-1].status.value if history else "",
            reported=reports[-1].status.value if reports else "",
            sequence_floor=Floors(self.disk, STATE / "floors").load().sequence_number,
            code=history[-1].code if history else "",
            starts=self.starts,
            receipt=self._receipt(),
        )

    def _receipt(self) -> str:
        """Return the outcome that the receipt on the stick tells; its signature is other tests' business."""
        names = [name for name in self.disk.list(PARCEL.parent) if name.endswith(RECEIPT_SUFFIX)]
        if len(names) != 1:
            return f"{len(names)} receipts" if names else ""
        data = self.disk.get(PARCEL.parent / names[0])
        file = ReceiptFile.from_fields(
            Fields(canonical.decode_object(data, limit_bytes=MAX_RECEIPT_LENGTH_BYTES, what="receipt"), what="receipt")
        )
        return decode_receipt(open_envelope(file.receipt, expected_type=RECEIPT_TYPE).payload).outcome.value


class _Middle:
    """Chance that is none: always the middle."""

    def uniform(self, a: float, b: float, /) -> float:
        return (a + b) / 2


class _Observed:
    """A boot control whose trial and confirmation the world sees."""

    def __init__(self, boot: BootControl, world: World) -> None:
        self._boot = boot
        self._world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(self._boot, name)

    def restart(self) -> Restart:
        self._world.begins_to_start()
        restart = self._boot.restart()
        if restart is Restart.DONE:
            self._world.has_started(self._boot.booted())
        return restart

    def confirm(self, label: Label) -> None:
        self._boot.confirm(label)
        if self._world.phase is Phase.TRIAL:
            self._world.phase = Phase.AFTER


class _Check:
    """`HealthCheck` that knows the new image's condition."""

    name = "simulated"

    def __init__(self, world: World, boot: BootControl) -> None:
        self._world = world
        self._boot = boot

    def check(self) -> Finding:
        is_sick = self._world.is_sick(self._boot.booted())
        return Finding(self.name, not is_sick, "simulated illness" if is_sick else "")


# --- payloads ------------------------------------------------------------------------------


def pack_payloads(case: Case) -> Packed:
    """Return the new release's payloads; the director names the last one."""
    old, new = case.geometry.old, case.geometry.new
    plain = whole(PRODUCT, NEW_VERSION, new)
    if case.travel in {Travel.WHOLE, Travel.PARCEL}:
        return plain
    is_wrong = case.travel in {Travel.FALLBACK, Travel.SEALED_FALLBACK, Travel.SEALED_PARCEL}
    both = plain + delta(PRODUCT, NEW_VERSION, old, _damaged(new) if is_wrong else new)
    is_sealed = case.travel in {Travel.SEALED, Travel.SEALED_FALLBACK, Travel.SEALED_PARCEL}
    return sealed(both) if is_sealed else both


def _damaged(image: bytes) -> bytes:
    """Return an image of the same length that differs in its last piece but one."""
    place = len(image) // 2
    return image[:place] + bytes([image[place] ^ 0xFF]) + image[place + 1 :]


# --- slots on the simulated disk -----------------------------------------------------------


def pack(tree: Mapping[str, bytes | str | None]) -> bytes:
    """Return the bundle of a tree: bytes are files, text is a symlink's target, None a directory."""

    def members() -> Iterator[bytes]:
        for path in sorted(tree, key=bundle.sort_key):
            content = tree[path]
            if content is None:
                yield bundle.header(Entry(path, EntryKind.DIRECTORY))
            elif isinstance(content, str):
                yield bundle.header(Entry(path, EntryKind.SYMLINK, link=content))
            else:
                yield bundle.header(Entry(path, EntryKind.FILE, length_bytes=len(content)))
                yield content + bundle.padding(len(content))
        yield bundle.END

    return b"".join(members())


def unpack(data: bytes) -> dict[str, bytes | str | None]:
    """Return the tree of a bundle."""
    tree: dict[str, bytes | str | None] = {}
    reader = bundle.Reader()
    path = ""
    for item in reader.feed(data):
        if isinstance(item, Entry):
            path = item.path
            tree[path] = {EntryKind.DIRECTORY: None, EntryKind.SYMLINK: item.link, EntryKind.FILE: b""}[item.kind]
        else:
            before = tree[path]
            assert isinstance(before, bytes)
            tree[path] = before + bytes(item)
    reader.finish()
    return tree


def _slot(disk: Disk, case: Case, label: Label) -> Slot:
    if case.slot is SlotKind.BUNDLE:
        return BundleSlot(disk, label, APPLICATION)
    limit = case.geometry.slot_bytes if case.slot is SlotKind.IMAGE_FILE else None
    return ImageSlot(disk, label, _image_path(case, label), limit_bytes=limit)


def _image_path(case: Case, label: Label) -> Path:
    return Path(f"/dev/sim-{label}") if case.slot is SlotKind.IMAGE_DEVICE else Path(f"/images/{label}.img")


def _put_image(disk: SimDisk, case: Case, label: Label, image: bytes) -> None:
    if case.slot is SlotKind.IMAGE_DEVICE:
        disk.put(_image_path(case, label), image.ljust(case.geometry.slot_bytes, b"\xff"), is_device=True)
    elif case.slot is SlotKind.IMAGE_FILE:
        disk.put(_image_path(case, label).with_name("README"), b"")
        if image:
            disk.put(_image_path(case, label), image)
    else:
        for path, content in unpack(image).items() if image else ():
            place = APPLICATION / label / path
            if content is None:
                disk.make_directory(place, mode=0o755)
            elif isinstance(content, str):
                disk.symlink(content, place)
            else:
                disk.put(place, content)


def _holds(disk: SimDisk, case: Case, label: Label, image: bytes) -> bool:
    """Whether a slot holds an image to the byte, read without the agent's code."""
    if case.slot is SlotKind.BUNDLE:
        return disk.tree(APPLICATION / label) == unpack(image)
    path = _image_path(case, label)
    found = disk.get(path) if disk.exists(path) else b""
    return found[: len(image)] == image if case.slot is SlotKind.IMAGE_DEVICE else found == image
