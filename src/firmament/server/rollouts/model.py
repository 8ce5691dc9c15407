"""Values of the rollouts domain: the policy a person writes, and what a decision looks at."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from firmament.core import canonical
from firmament.core.fields import Fields
from firmament.core.ids import UUID
from firmament.errors import MalformedError
from firmament.server.rollouts.windows import Window, zone_named

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_WAVES: Final = 20
MAX_CANARIES: Final = 1000
MAX_WINDOWS: Final = 14
MAX_POLICY_LENGTH_BYTES: Final = 128 * 1024
DAY_S: Final = 86_400
MAX_TIME_S: Final = 366 * DAY_S
MAX_DEVICES: Final = 10_000_000
SILENT_INTERVALS: Final = 3
"""A device that missed three of its own rounds in a row is silent, not late."""


class WaitFor(StrEnum):
    """What must be true of a wave before the next one."""

    INSTALLED = "installed"
    HEALTHY = "healthy"
    """Updated devices report their health, and not too many report ``failing``."""


class OnStop(StrEnum):
    """What follows a stop by itself."""

    HOLD = "hold"
    REVERT = "revert"


class Advance(StrEnum):
    """Who opens the next wave."""

    AUTOMATIC = "automatic"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True)
class WaveSpec:
    """One wave: a number of devices, a share of all counted from the first, or named ones."""

    name: str
    count: int | None = None
    percent: float | None = None
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GatePolicy:
    """When the stop rule fires."""

    limit_ratio: float = 0.05
    """Of the finished: more failed than this is too many."""
    min_finished: int = 20
    """A ratio of fewer says nothing yet. A wave that cannot keep the limit any more stops earlier."""
    silence_floor_s: int = 3600
    """No device is called silent sooner, however often it usually asks."""
    health: bool = True
    """Compare the health that updated devices report with that of devices not yet updated."""


@dataclass(frozen=True, slots=True)
class Caps:
    """How many may be on the way at once, and start in a minute; None is no limit."""

    total: int | None = None
    per_site: int | None = None
    per_gateway: int | None = None
    starts_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class OldStock:
    """Devices below a sequence number need not wait for their wave once the first one is through."""

    sequence_below: int
    max_in_flight: int


@dataclass(frozen=True, slots=True)
class Policy:
    """How carefully; docs/operate/rollouts.md has the table."""

    waves: tuple[WaveSpec, ...] = ()
    """Empty: proposed by the number of targets (`propose_waves`)."""
    hold_s: int = 0
    wait_for: WaitFor = WaitFor.INSTALLED
    advance: Advance = Advance.AUTOMATIC
    gate: GatePolicy = GatePolicy()
    caps: Caps = Caps()
    windows: tuple[Window, ...] = ()
    default_zone: str = "UTC"
    """For devices that report none."""
    old_stock: OldStock | None = None
    dynamic: bool = False
    """Devices that match later join the last wave."""
    on_stop: OnStop = OnStop.HOLD
    retry_budget: int = 2
    """How often a fetch that failed is tried again before the device counts as failed."""
    answer_s: int = DAY_S
    """An owner who has not answered by then is asked again another day, and holds nobody up."""
    finish_s: int = 2 * DAY_S
    """A started device that is still not through by then has failed."""
    patience_s: int = DAY_S
    """A wave waits so long for devices that never ask; then half of it is enough to go on."""
    lifetime_s: int = 30 * DAY_S
    """Then a rollout ends, whoever did not ask until then."""
    site_commit_s: int | None = None
    """All devices of a site confirm within this time of the first start there, or all go back."""
    approval_above: int | None = None
    """More targets than this need a second person."""

    def to_json(self) -> dict[str, Any]:
        """Return what `decode_policy` reads."""
        return {
            "waves": [_wave_json(wave) for wave in self.waves],
            "hold_s": self.hold_s,
            "wait_for": self.wait_for.value,
            "advance": self.advance.value,
            "gate": {
                "limit_ratio": self.gate.limit_ratio,
                "min_finished": self.gate.min_finished,
                "silence_floor_s": self.gate.silence_floor_s,
                "health": self.gate.health,
            },
            "caps": {
                "total": self.caps.total,
                "per_site": self.caps.per_site,
                "per_gateway": self.caps.per_gateway,
                "starts_per_minute": self.caps.starts_per_minute,
            },
            "windows": [window.to_json() for window in self.windows],
            "default_zone": self.default_zone,
            "old_stock": None
            if self.old_stock is None
            else {"sequence_below": self.old_stock.sequence_below, "max_in_flight": self.old_stock.max_in_flight},
            "dynamic": self.dynamic,
            "on_stop": self.on_stop.value,
            "retry_budget": self.retry_budget,
            "answer_s": self.answer_s,
            "finish_s": self.finish_s,
            "patience_s": self.patience_s,
            "lifetime_s": self.lifetime_s,
            "site_commit_s": self.site_commit_s,
            "approval_above": self.approval_above,
        }


def decode_policy(fields: Fields) -> Policy:
    """Read a policy; what is not said has its default. Raises MalformedError."""
    gate, caps = fields.object("gate", optional=True), fields.object("caps", optional=True)
    default, gate_default = Policy(), GatePolicy()
    waves = tuple(
        _decode_wave(item, number)
        for number, item in enumerate(fields.objects("waves", max_items=MAX_WAVES, optional=True), 1)
    )
    _check_waves(waves)
    zone = fields.text("default_zone", max_length=64, default="UTC")
    zone_named(zone)
    return Policy(
        waves=waves,
        hold_s=fields.integer("hold_s", maximum=MAX_TIME_S, default=0),
        wait_for=fields.one_of("wait_for", WaitFor, default=WaitFor.INSTALLED),
        advance=fields.one_of("advance", Advance, default=Advance.AUTOMATIC),
        gate=GatePolicy(
            limit_ratio=ratio(gate, "limit_ratio", gate_default.limit_ratio),
            min_finished=gate.integer("min_finished", minimum=1, maximum=MAX_DEVICES, default=20),
            silence_floor_s=gate.integer("silence_floor_s", minimum=1, maximum=MAX_TIME_S, default=3600),
            health=gate.boolean("health", default=True),
        ),
        caps=Caps(
            **{
                name: _maybe_integer(caps, name, minimum=1, maximum=MAX_DEVICES)
                for name in ("total", "per_site", "per_gateway", "starts_per_minute")
            }
        ),
        windows=tuple(Window.decode(item) for item in fields.objects("windows", max_items=MAX_WINDOWS, optional=True)),
        default_zone=zone,
        old_stock=_decode_old_stock(fields),
        dynamic=fields.boolean("dynamic", default=False),
        on_stop=fields.one_of("on_stop", OnStop, default=OnStop.HOLD),
        retry_budget=fields.integer("retry_budget", maximum=20, default=default.retry_budget),
        answer_s=fields.integer("answer_s", minimum=60, maximum=MAX_TIME_S, default=default.answer_s),
        finish_s=fields.integer("finish_s", minimum=60, maximum=MAX_TIME_S, default=default.finish_s),
        patience_s=fields.integer("patience_s", minimum=60, maximum=MAX_TIME_S, default=default.patience_s),
        lifetime_s=fields.integer("lifetime_s", minimum=60, maximum=MAX_TIME_S, default=default.lifetime_s),
        site_commit_s=_maybe_integer(fields, "site_commit_s", minimum=60, maximum=MAX_TIME_S),
        approval_above=_maybe_integer(fields, "approval_above", minimum=0, maximum=MAX_DEVICES),
    )


def read_policy(text: str) -> Policy:
    """Read a stored policy."""
    value = canonical.decode_object(text.encode(), limit_bytes=MAX_POLICY_LENGTH_BYTES, what="policy")
    return decode_policy(Fields(value, what="policy"))


def write_policy(policy: Policy) -> str:
    """Write a policy for storing; ratios as decimal text, because canonical JSON has no fractions."""
    value = policy.to_json()
    value["gate"]["limit_ratio"] = repr(policy.gate.limit_ratio)
    for wave in value["waves"]:
        if "percent" in wave:
            wave["percent"] = repr(wave["percent"])
    return canonical.encode(_without_none(value)).decode()


def propose_waves(total: int) -> tuple[WaveSpec, ...]:
    """Return the ramp for a number of targets: one and the rest for a few, five waves for many."""
    rest = WaveSpec("everyone", percent=100.0)
    if total <= 1:
        return (rest,)
    if total < 100:  # noqa: PLR2004 - one in a hundred would be nobody
        return (WaveSpec("canary", count=1), rest)
    if total < 5000:  # noqa: PLR2004 - one percent would be fewer than fifty
        return (WaveSpec("canary", count=max(5, total // 100)), WaveSpec("10 %", percent=10.0), rest)
    return (
        WaveSpec("canary", count=50),
        WaveSpec("1 %", percent=1.0),
        WaveSpec("10 %", percent=10.0),
        WaveSpec("50 %", percent=50.0),
        rest,
    )


def wave_sizes(waves: Sequence[WaveSpec], total: int, named: Sequence[int]) -> list[int]:
    """Return how many targets each wave has.

    `named[i]` is how many targets wave i names; it has those and no others. Percents are of all
    targets, counted from the first wave; the last wave takes whoever is left.
    """
    sizes: list[int] = []
    end = 0
    for index, wave in enumerate(waves):
        begin = end
        # Those that a later wave names are left for it.
        room = max(0, total - sum(named[index + 1 :]) - begin)
        if index == len(waves) - 1:
            size = total - begin
        elif wave.devices:
            size = min(named[index], room)
        elif wave.percent is not None:
            size = min(max(0, math.ceil(total * wave.percent / 100) - begin), room)
        else:
            size = min(wave.count or 0, room)
        sizes.append(size)
        end = begin + size
    return sizes


def ratio(fields: Fields, name: str, default: float) -> float:
    """Read a share between 0 and 1, written as a number or as decimal text."""
    return _decimal(fields, name, default, most=1.0)


def _decimal(fields: Fields, name: str, default: float, *, most: float) -> float:
    found = fields.value.get(name, default)
    if isinstance(found, str):
        try:
            found = float(found)
        except ValueError:
            found = math.nan
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= most:
        raise MalformedError(f"{fields.what}.{name} is not a number from 0 to {most:g}", found=str(found)[:20])
    return float(found)


def _maybe_integer(fields: Fields, name: str, *, minimum: int, maximum: int) -> int | None:
    if fields.value.get(name) is None:
        return None
    return fields.integer(name, minimum=minimum, maximum=maximum)


def _decode_wave(fields: Fields, number: int) -> WaveSpec:
    said = [name for name in ("count", "percent", "devices") if name in fields]
    if len(said) != 1:
        raise MalformedError(f"{fields.what} needs exactly one of count, percent, devices", found=" ".join(said))
    return WaveSpec(
        name=fields.text("name", max_length=64, default=f"wave {number}"),
        count=_maybe_integer(fields, "count", minimum=1, maximum=MAX_DEVICES),
        percent=_decimal(fields, "percent", 0, most=100.0) if "percent" in fields else None,
        devices=fields.texts("devices", max_items=MAX_CANARIES, min_items=1, pattern=UUID)
        if "devices" in fields
        else (),
    )


def _check_waves(waves: Sequence[WaveSpec]) -> None:
    percents = [wave.percent for wave in waves if wave.percent is not None]
    if percents != sorted(percents):
        raise MalformedError("Percents are of all targets, counted from the first wave: they cannot fall")
    names = [name for wave in waves for name in wave.devices]
    if len(names) != len(set(names)):
        raise MalformedError("A device is named by two waves")


def _decode_old_stock(fields: Fields) -> OldStock | None:
    if fields.value.get("old_stock") is None:
        return None
    inner = fields.object("old_stock")
    return OldStock(
        inner.integer("sequence_below", minimum=1),
        inner.integer("max_in_flight", minimum=1, maximum=MAX_DEVICES),
    )


def _wave_json(wave: WaveSpec) -> dict[str, Any]:
    value: dict[str, Any] = {"name": wave.name}
    if wave.count is not None:
        value["count"] = wave.count
    if wave.percent is not None:
        value["percent"] = wave.percent
    if wave.devices:
        value["devices"] = list(wave.devices)
    return value


def _without_none(value: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(item) if isinstance(item, dict) else item
        for name, item in value.items()
        if item is not None
    }


@dataclass(frozen=True, slots=True)
class Counts:
    """How many targets of one wave are where."""

    by_status: dict[str, int] = field(default_factory=dict)

    def of(self, *statuses: str) -> int:
        """Sum over some statuses."""
        return sum(self.by_status.get(status, 0) for status in statuses)

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.by_status.values())


def add_counts(counts: Sequence[Counts]) -> Counts:
    """Sum over waves."""
    total: dict[str, int] = {}
    for item in counts:
        for status, n in item.by_status.items():
            total[status] = total.get(status, 0) + n
    return Counts(total)
