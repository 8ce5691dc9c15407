"""Cut the power at every storage operation of a whole update, and see what is left (after MCUboot's simulator).

One uncut run of a case records, before each operation that changes the disk, what a power cut
right there would leave, in each of the ways of `faults.Survives`. Then the power comes back on
every one of these disks: the boot loader decides from what it finds, the agent starts again, the
device comes to rest, and the judge looks:

* always a whole image that an author signed was started;
* the new one is kept exactly if the attempt is confirmed, in the journal and on the server;
* an unhealthy image is never kept;
* a healthy one is lost only when the power went during its trial: from the moment the boot
  loader spends its try until the boot control has confirmed it.

Disks that are equal byte for byte, with equal servers, are played once and counted each: the
device is deterministic. With a full disk the update is played anew for every operation that
needs space, first with no space from there on, then after a power cut with space again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from firmament.agent.agent import Agent
from firmament.errors import FirmamentError
from firmament.sim.bootloader import BootKind
from firmament.sim.faults import DiskFull, Survives
from firmament.sim.geometries import geometries
from firmament.sim.world import (
    BrickedError,
    Case,
    Condition,
    Ideal,
    Phase,
    Result,
    SlotKind,
    StuckError,
    Travel,
    Way,
    World,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from firmament.durable import Disk
    from firmament.sim.disk import SimDisk
    from firmament.sim.faults import Operation

DISK_FULL: Final = "disk-full"
MAY_COST: Final = frozenset({Phase.STARTING, Phase.TRIAL})
"""When a power cut may cost a good image: its one try is being spent, or it is on trial."""
FULL_STARTS: Final = 2
FULL_TICKS: Final = 5
# How often the agent tries on a full disk before somebody pulls the plug: long enough for a trial
# to reach its deadline, and for a restart.


@dataclass(frozen=True, slots=True)
class Faulty:
    """How a test breaks the device, to see that the sweep finds it."""

    make_agent: Callable[..., Agent] = Agent
    view: Callable[[SimDisk], Disk] = field(default=lambda disk: disk)


SOUND: Final = Faulty()


@dataclass(frozen=True, slots=True)
class Loss:
    """A cut that the device did not survive as it must."""

    case: str
    operation: str
    survives: str
    kind: str
    """``bricked``, ``lost`` (a good image outside its trial) or ``wrong``."""
    problem: str

    def __str__(self) -> str:
        """Return one line, enough to play it again."""
        return f"{self.kind}: {self.case}: {self.survives} at {self.operation}: {self.problem}"


@dataclass(slots=True)
class Tally:
    """What a sweep found."""

    tried: int = 0
    played: int = 0
    """Different ones; the others were equal to one of these."""
    lost_in_trial: int = 0
    """Healthy images given up because the power went during their trial: as designed."""
    losses: list[Loss] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take in another tally."""
        self.tried += other.tried
        self.played += other.played
        self.lost_in_trial += other.lost_in_trial
        self.losses += other.losses

    def count(self, kind: str) -> int:
        """Return how many losses are of this kind."""
        return sum(1 for loss in self.losses if loss.kind == kind)

    @property
    def is_clean(self) -> bool:
        """Whether every cut was survived."""
        return self.tried > 0 and not self.losses

    def __str__(self) -> str:
        """Return the last line of ``make sweep``."""
        return (
            f"power cuts: {self.tried} tried, {self.tried - len(self.losses)} survived, "
            f"{self.count('bricked')} bricked, {self.count('lost')} good images lost outside the trial"
        )


@dataclass(frozen=True, slots=True)
class _Point:
    """What a cut left, and what the world was like."""

    operation: Operation
    survives: Survives
    disk: SimDisk
    server: tuple[Any, ...]
    phase: Phase
    starts: int


def all_cases() -> Iterator[Case]:
    """Yield every row: slot x boot control x condition x geometry, then every way to travel for each slot.

    How the bytes travel ends before the boot control begins, so one boot control stands for all.
    """
    for slot in SlotKind:
        for boot in BootKind:
            for condition in Condition:
                if condition is Condition.DIES and boot is not BootKind.SUPERVISOR:
                    continue  # only the supervisor has a program that it sees die
                for geometry in geometries(slot):
                    yield Case(slot, boot, condition, geometry)
                # Going back writes no image, so one geometry says it all.
                yield Case(slot, boot, condition, geometries(slot)[0], Way.BACK)
    for slot in SlotKind:
        boot = BootKind.SUPERVISOR if slot is SlotKind.BUNDLE else BootKind.UBOOT
        for travel in Travel:
            if travel is not Travel.WHOLE:
                for geometry in geometries(slot):
                    yield Case(slot, boot, Condition.HEALTHY, geometry, travel=travel)


def sweep(case: Case, faulty: Faulty = SOUND, *, every: int = 1, with_full_disk: bool = True) -> Tally:
    """Try all cuts of one case; `every` > 1 tries each n-th operation only."""
    ideal = Ideal(case)
    tally, operations = _sweep_cuts(ideal, faulty, every)
    if with_full_disk:
        tally.add(_sweep_full(ideal, faulty, operations, every))
    return tally


def _sweep_cuts(ideal: Ideal, faulty: Faulty, every: int) -> tuple[Tally, list[Operation]]:
    tally = Tally()
    operations: list[Operation] = []
    points: list[_Point] = []
    world = _world(ideal, faulty)

    def before(operation: Operation) -> None:
        operations.append(operation)
        if operation.number % every == 0:
            server = ideal.server.copy_state()
            points.extend(
                _Point(operation, survives, world.disk.after_cut(survives), server, world.phase, world.starts)
                for survives in Survives
            )

    world.disk.before = before
    whole = _play(world)
    world.disk.before = None
    if not isinstance(whole, Result):
        tally.losses.append(Loss(str(ideal.case), "no cut", "-", *whole))
        return tally, operations
    tally.losses += _judged(ideal.case, "no cut", "-", whole, Phase.BEFORE)
    known: dict[object, Result | tuple[str, str]] = {}
    for point in points:
        tally.tried += 1
        key = (point.disk.fingerprint(), point.server)
        result = known.get(key)
        if result is None:
            tally.played += 1
            ideal.server.restore(point.server)
            again = World(ideal, point.disk, make_agent=faulty.make_agent, view=faulty.view, starts=point.starts)
            result = known[key] = _play(again)
        _take(tally, ideal.case, point.operation, point.survives, result, point.phase)
    return tally, operations


def _sweep_full(ideal: Ideal, faulty: Faulty, operations: list[Operation], every: int) -> Tally:
    """Let the disk be full from each operation on; those that need no space do not feel it."""
    tally = Tally()
    begun = 0
    for operation in operations:
        if not operation.needs_space:
            continue
        felt = operation.number + 1 - begun
        """This one and those before it, since the last that needed space."""
        begun = operation.number + 1
        if tally.played % every:
            tally.played += 1
            continue
        world = _world(ideal, faulty)
        tally.tried += felt
        tally.played += 1
        world.disk.faults.append(DiskFull(from_operation=operation.number))
        result: Result | tuple[str, str] = _play_full(world)
        # A full disk stops nothing from starting: only an image that really ran may be given up.
        phase = world.phase if world.phase is not Phase.STARTING else Phase.BEFORE
        if result == STILL_ON:
            world.disk.faults.clear()
            world.disk.lose_power(Survives.LOST)
            result = _play(world)
        _take(tally, ideal.case, operation, DISK_FULL, result, phase)
    return tally


STILL_ON: Final = ("on", "the disk is full and the device waits")


def _play_full(world: World) -> tuple[str, str]:
    """Play some starts on a full disk; everything still starts, and nothing is given up for want of space."""
    try:
        for _ in range(FULL_STARTS):
            if world.live(max_ticks=FULL_TICKS):
                break
            world.disk.lose_power(Survives.LOST)
    except (BrickedError, StuckError) as error:
        return _kind(error), str(error)
    except FirmamentError as error:
        return "wrong", f"the device does not start on a full disk: {error}"
    return STILL_ON


def _world(ideal: Ideal, faulty: Faulty) -> World:
    world = ideal.provisioned()
    world.make_agent, world.view = faulty.make_agent, faulty.view
    return world


def _play(world: World) -> Result | tuple[str, str]:
    try:
        world.settle()
        return world.result()
    except (BrickedError, StuckError) as error:
        return _kind(error), str(error)
    except FirmamentError as error:
        return "wrong", f"the device ended with {error.code}: {error.problem} {error.facts}"


def _kind(error: Exception) -> str:
    return "bricked" if isinstance(error, BrickedError) else "wrong"


def _take(
    tally: Tally,
    case: Case,
    operation: Operation,
    survives: str,
    result: Result | tuple[str, str],
    phase: Phase,
) -> None:
    where = f"operation {operation.number} ({operation.kind} {operation.path})"
    if not isinstance(result, Result):
        tally.losses.append(Loss(str(case), where, survives, *result))
        return
    tally.losses += _judged(case, where, survives, result, phase)
    if case.condition is Condition.HEALTHY and not result.booted_new and phase in MAY_COST:
        tally.lost_in_trial += 1


def _judged(case: Case, where: str, survives: str, result: Result, phase: Phase) -> list[Loss]:
    """Return what is wrong with a result; at most one loss per cut."""

    def loss(kind: str, problem: str) -> list[Loss]:
        return [Loss(str(case), where, survives, kind, f"{problem}: {result}")]

    is_healthy = case.condition is Condition.HEALTHY
    if result.booted_new != (result.status == "confirmed"):
        return loss("wrong", "what runs is not what the journal says")
    if result.reported != result.status:
        return loss("wrong", "the server was told something else")
    if case.travel.is_carried and survives != DISK_FULL and result.receipt != result.status:
        return loss("wrong", "the receipt beside the parcel says something else")
    if result.sequence_floor != (2 if result.booted_new or case.way is Way.BACK else 0):
        return loss("wrong", "the floor does not belong to what runs")
    if result.booted_new and not is_healthy:
        return loss("wrong", "an unhealthy image was kept")
    if not is_healthy and result.status != "reverted":
        return loss("wrong", "an unhealthy image did not end as reverted")
    if is_healthy and not result.booted_new and phase not in MAY_COST:
        return loss("lost", "a good image was given up outside its trial")
    return []
