"""When an update may go ahead: the owner's answer, windows in device-local time, preconditions, polling.

Pure: `decide` takes facts and returns an answer; `Surroundings` is the one reader of power and
space. Waiting is never a failure: every "not now" has a code, a sentence and, where it can be
known, the time when to look again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta, tzinfo
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from firmament.core.consent import Mode, Window, stricter
from firmament.core.fields import Fields, format_time
from firmament.core.manifest import Preconditions, UpdateClass
from firmament.durable import read_file
from firmament.errors import (
    FirmamentError,
    OutsideWindowError,
    PolicyError,
    PreconditionError,
    SettingError,
    WaitingForConsentError,
)

if TYPE_CHECKING:
    from firmament.durable import Disk

MIN_POLL_INTERVAL_S: Final = 10
# Below it a fleet is its own denial of service; demonstrations use 10 s.
MAX_POLL_INTERVAL_S: Final = 7 * 86_400
# TUF timestamps are renewed daily (trust.md §3.1); a device silent for a week looks lost.
DEFAULT_POLL_INTERVAL_S: Final = 3600
DEFAULT_FULL_POLL_S: Final = 6 * 3600
# As long as a signed answer is good for at the very least is twice that (ADR-0033).
POLL_JITTER: Final = 0.1
# Of the interval, both ways: 100 000 devices that started together are spread over 12 minutes per
# hourly round, and more each round.
FIRST_BACKOFF_S: Final = 5.0
MAX_BACKOFF_S: Final = 3600.0
REMIND_AFTER: Final = timedelta(hours=24)
"""After "later" the owner is asked again no earlier than this."""


class Chance(Protocol):
    """Chance as an argument; `random.Random` fits."""

    def uniform(self, a: float, b: float, /) -> float:
        """Return a number between `a` and `b`."""
        ...


class Metered(StrEnum):
    """What the owner lets travel over a link that costs money by volume."""

    ANY = "any"
    """Every update, unless its author asks for an unmetered link."""
    SECURITY = "security"
    """Security updates only."""
    NONE = "none"
    """Nothing: updates wait for another link, or for a parcel."""


class Answer(StrEnum):
    """What an owner can say to an offer."""

    NOW = "now"
    """Go ahead, window or not."""
    TONIGHT = "tonight"
    """Go ahead when the window opens."""
    LATER = "later"
    """Ask again another day."""
    SKIP = "skip"
    """Not this release."""


@dataclass(frozen=True, slots=True)
class Consent:
    """An answer and when it was given (wall time of the device)."""

    answer: Answer
    at: datetime
    until: datetime | None = None
    """After "later": when the owner is asked again; None: after `REMIND_AFTER`."""

    @property
    def again_at(self) -> datetime:
        """When the owner is asked again after "later"."""
        return self.until if self.until is not None else self.at + REMIND_AFTER

    def to_json(self) -> dict[str, Any]:
        """Return the journal's form."""
        until = {"until": format_time(self.until)} if self.until is not None else {}
        return {"answer": self.answer.value, "at": format_time(self.at), **until}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the journal's form."""
        return cls(fields.one_of("answer", Answer), fields.time("at"), fields.maybe("until", fields.time))


@dataclass(frozen=True, slots=True)
class Policy:
    """The device owner's rules (settings table ``[policy]``)."""

    security: Mode = Mode.AUTOMATIC
    feature: Mode = Mode.AUTOMATIC
    window: Window | None = None
    zone: tzinfo = UTC
    fetches_outside_window: bool = False
    """Whether the download may start before the window opens; the restart never does."""
    poll_interval_s: int = DEFAULT_POLL_INTERVAL_S
    first_poll_within_s: int = 30
    """A fleet that gets its power back at one moment spreads its first polls over this."""
    full_poll_s: int = DEFAULT_FULL_POLL_S
    """How long a server's unsigned word may put off the next poll with a signed answer; 0: never."""
    min_battery_percent: int = 0
    battery_file: Path | None = None
    """E.g. ``/sys/class/power_supply/BAT0/capacity``; None: there is no battery to run down."""
    power_file: Path | None = None
    """E.g. ``/sys/class/power_supply/AC/online``; None: always on mains."""
    metered_file: Path | None = None
    """Holds ``1`` while the link costs money by volume; None: it never does."""
    metered: Metered = Metered.ANY
    takes_repository_parcels: bool = False
    """Whether a parcel that no director signed may be installed: an author's word alone (docs/protocol/parcel.md)."""
    postpone_days: int = 14
    """How long a security update may be put off, from when the owner was first asked (console.md §1.4)."""
    postpone_times: int = 3
    """How often a security update may be put off."""

    def mode_for(self, update_class: UpdateClass) -> Mode:
        """Return the rule for a class of updates."""
        return self.security if update_class is UpdateClass.SECURITY else self.feature

    def at_least(self, mode: Mode, update_class: UpdateClass) -> Policy:
        """Return the policy with what an operator asked for laid over it, for one class: the stricter mode holds."""
        held = stricter(self.mode_for(update_class), mode)
        if update_class is UpdateClass.SECURITY:
            return replace(self, security=held)
        return replace(self, feature=held)

    def told(self) -> dict[str, str]:
        """Return the owner's rule as the attributes of a poll (docs/protocol/consent.md)."""
        found = {"policy.security": self.security.value, "policy.feature": self.feature.value}
        return {**found, "policy.window": str(self.window)} if self.window is not None else found

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Read the settings table; raises SettingError or MalformedError.

        ``mode`` sets both classes, ``security`` and ``feature`` override it.
        """
        mode = fields.one_of("mode", Mode, default=Mode.AUTOMATIC)
        window = fields.maybe("window", fields.text)
        policy = cls(
            security=fields.one_of("security", Mode, default=mode),
            feature=fields.one_of("feature", Mode, default=mode),
            window=Window.parse(window) if window else None,
            zone=time_zone(fields.text("timezone", default="")),
            fetches_outside_window=fields.boolean("fetch_outside_window", default=False),
            poll_interval_s=fields.integer(
                "poll_interval_s",
                minimum=MIN_POLL_INTERVAL_S,
                maximum=MAX_POLL_INTERVAL_S,
                default=DEFAULT_POLL_INTERVAL_S,
            ),
            first_poll_within_s=fields.integer("first_poll_within_s", maximum=86_400, default=30),
            full_poll_s=fields.integer("full_poll_s", maximum=86_400, default=DEFAULT_FULL_POLL_S),
            min_battery_percent=fields.integer("min_battery_percent", maximum=100, default=0),
            battery_file=_path(fields, "battery_file"),
            power_file=_path(fields, "power_file"),
            metered_file=_path(fields, "metered_file"),
            metered=fields.one_of("metered", Metered, default=Metered.ANY),
            takes_repository_parcels=fields.boolean("repository_parcels", default=False),
            postpone_days=fields.integer("postpone_days", maximum=365, default=14),
            postpone_times=fields.integer("postpone_times", maximum=100, default=3),
        )
        if policy.window is None and Mode.WINDOW in {policy.security, policy.feature}:
            raise SettingError('The mode "window" needs a window', expected='window = "02:00-04:00"')
        return policy


def _path(fields: Fields, name: str) -> Path | None:
    text = fields.text(name, max_length=4096, default="")
    return Path(text) if text else None


LOCAL_TIME: Final = Path("/etc/localtime")


def time_zone(name: str, *, local_time: Path = LOCAL_TIME) -> tzinfo:
    """Return a zone by name, or the device's own for an empty one; UTC where nothing is set."""
    try:
        if name:
            return ZoneInfo(name)
        with local_time.open("rb") as file:
            return ZoneInfo.from_file(file)
    except FileNotFoundError:
        return UTC
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise SettingError("The time zone is not known here", timezone=name or local_time, reason=error) from error


@dataclass(frozen=True, slots=True)
class Found:
    """What was found about the device at one moment; None where it cannot be told."""

    free_bytes: int
    battery_percent: int | None
    """None: a battery is configured and cannot be read."""
    mains_power: bool
    unmetered_link: bool


class Surroundings:
    """Reads free space, battery, power and link from files in the manner of sysfs."""

    def __init__(self, disk: Disk, policy: Policy, *, storage: Path) -> None:
        self._disk = disk
        self._policy = policy
        self._storage = storage

    def look(self) -> Found:
        """Return the facts; what is configured but cannot be read counts as not met."""
        policy = self._policy
        battery = 100 if policy.battery_file is None else self._number(policy.battery_file)
        return Found(
            free_bytes=self._disk.free_bytes(self._storage),
            battery_percent=battery,
            mains_power=policy.power_file is None or self._number(policy.power_file) == 1,
            unmetered_link=policy.metered_file is None or self._number(policy.metered_file) == 0,
        )

    def _number(self, path: Path) -> int | None:
        try:
            # sysfs says 4096 for every file, whatever it holds.
            text = read_file(self._disk, path, limit_bytes=4096).decode().strip()
            return int(text) if len(text) <= len("100") else None
        except (FirmamentError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class Verdict:
    """May it go ahead; if not, why not, and when to look again (None: when somebody acts)."""

    error: PolicyError | PreconditionError | None = None
    again_at: datetime | None = None

    @property
    def is_met(self) -> bool:
        """Whether nothing is missing."""
        return self.error is None


MET: Final = Verdict()


class Step(StrEnum):
    """What is about to begin."""

    FETCH = "fetch"
    RESTART = "restart"


def decide(
    policy: Policy,
    *,
    step: Step,
    update_class: UpdateClass,
    preconditions: Preconditions,
    consent: Consent | None,
    found: Found,
    now: datetime,
) -> Verdict:
    """Return whether `step` may begin now. `Answer.SKIP` is not asked about here: it ends the attempt."""
    mode = policy.mode_for(update_class)
    answer = consent.answer if consent is not None else None
    if answer is not Answer.NOW:
        missing = _consent(mode, consent, now)
        if missing is not None:
            return missing
        needs_window = mode is Mode.WINDOW or answer is Answer.TONIGHT
        early = step is Step.FETCH and policy.fetches_outside_window
        window = policy.window or (NIGHT if answer is Answer.TONIGHT else None)
        if needs_window and window is not None and not early and not window.is_open(now, policy.zone):
            opens = window.opens_at(now, policy.zone)
            return Verdict(
                OutsideWindowError("The window is closed", window=window, opens_at=format_time(opens)), opens
            )
    return _preconditions(policy, preconditions, found, step, update_class)


NIGHT: Final = Window(time(2), time(5))
"""What "tonight" means where no window is set."""


def _consent(mode: Mode, consent: Consent | None, now: datetime) -> Verdict | None:
    if consent is not None and consent.answer is Answer.LATER:
        if now < consent.again_at:
            again = format_time(consent.again_at)
            return Verdict(WaitingForConsentError("The owner said later", again_at=again), consent.again_at)
        consent = None
    if consent is None and mode is Mode.ASK:
        return Verdict(WaitingForConsentError("The owner has not answered yet"))
    if consent is None and mode is Mode.MANUAL:
        return Verdict(WaitingForConsentError("Updates of this class start by hand only", mode=mode.value))
    return None


def _preconditions(
    policy: Policy, wanted: Preconditions, found: Found, step: Step, update_class: UpdateClass
) -> Verdict:
    battery = max(wanted.battery_percent, policy.min_battery_percent)
    missing: PreconditionError | None = None
    if step is Step.FETCH and found.free_bytes < wanted.free_bytes:
        missing = PreconditionError("Too little free space", need_bytes=wanted.free_bytes, free_bytes=found.free_bytes)
    elif battery and (found.battery_percent is None or found.battery_percent < battery):
        missing = PreconditionError(
            "The battery is too low", need_percent=battery, found_percent=found.battery_percent or "unknown"
        )
    elif wanted.mains_power and not found.mains_power:
        missing = PreconditionError("The device is not on mains power")
    elif step is Step.FETCH and not found.unmetered_link:
        is_kept = policy.metered is Metered.NONE or (
            policy.metered is Metered.SECURITY and update_class is not UpdateClass.SECURITY
        )
        if wanted.unmetered_link or is_kept:
            missing = PreconditionError("The link is metered")
    return MET if missing is None else Verdict(missing)


def next_poll_s(policy: Policy, hint_s: int, chance: Chance) -> float:
    """Return seconds until the next poll: the server's wish within our own bounds, with jitter."""
    wish = hint_s or policy.poll_interval_s
    bounded = min(max(wish, MIN_POLL_INTERVAL_S), MAX_POLL_INTERVAL_S)
    return chance.uniform(bounded * (1 - POLL_JITTER), bounded * (1 + POLL_JITTER))


def backoff_s(failures: int, chance: Chance, *, first_s: float = FIRST_BACKOFF_S) -> float:
    """Return seconds until the next try after `failures` in a row (at least 1): doubling, full jitter.

    Full jitter spreads devices that failed together best (AWS Architecture Blog, "Exponential
    Backoff And Jitter"); the lower bound keeps a lucky draw from being no wait at all.
    """
    ceiling = min(MAX_BACKOFF_S, first_s * 2 ** min(failures - 1, 16))
    return chance.uniform(first_s / 2, ceiling)
