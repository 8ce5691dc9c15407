"""Look at a device: each finding says what was seen and, if it is not good, what to do.

Nothing is changed. The server is asked one harmless question (its next director root), which
shows address, network, TLS and both certificates at once.
"""

from __future__ import annotations

import os
import stat
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from firmament.agent import identity
from firmament.agent.compose import compose_transport
from firmament.agent.policy import Surroundings
from firmament.agent.storage import compose_storage
from firmament.agent.tls import EARLIEST_CLOCK, LATEST_BEYOND_FLOOR
from firmament.core.fields import format_time
from firmament.core.finding import Finding, Verdict
from firmament.durable import read_file
from firmament.errors import FirmamentError, NotEnrolledError
from firmament.protocol.v1 import paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

    from firmament.agent.identity import Enrolment
    from firmament.agent.settings import AgentSettings
    from firmament.core.clock import Clock
    from firmament.durable import Disk

MIN_FREE_BYTES: Final = 16 * 1024 * 1024
# Journal, floors and both metadata caches at their ceilings, twice for replacing them.
WARN_ROOT: Final = timedelta(days=60)
# Root is renewed 95 days before it ends (trust.md §8); with 60 left somebody forgot.
WARN_CERTIFICATE: Final = timedelta(days=30)
MAX_CERTIFICATE_LENGTH_BYTES: Final = 64 * 1024
_OTHERS: Final = 0o077
_ABSENT: Final = frozenset({403, 404})


class Doctor:
    """Looks at the device that these settings describe."""

    def __init__(self, settings: AgentSettings, *, disk: Disk, clock: Clock) -> None:
        self._settings = settings
        self._disk = disk
        self._clock = clock
        self._enrolment: Enrolment | None = None

    def findings(self) -> Iterator[Finding]:
        """Yield every finding; a check that cannot be made is a finding too."""
        checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
            ("enrolment", self._enrolled),
            ("permissions", self._permissions),
            ("floors", self._floors),
            ("clock", self._clock_set),
            ("certificate", self._certificate),
            ("roots", self._roots),
            ("space", self._space),
            ("slots", self._slots),
            ("boot", self._boot),
            ("health", self._health),
            ("power", self._power),
            ("server", self._server),
            ("wake", self._wake),
        )
        for name, check in checks:
            try:
                yield from check()
            except FirmamentError as error:
                yield Finding(name, Verdict.BAD, _sentence(error), error.hint)

    def _enrolled(self) -> Iterator[Finding]:
        try:
            self._enrolment = enrolment = identity.load(self._disk, self._settings.state_directory)
        except NotEnrolledError as error:
            yield Finding("enrolment", Verdict.BAD, error.problem, error.hint)
            return
        facts = enrolment.facts
        seen = f"{enrolment.device_id}, {facts.product} on {facts.hardware}, server {facts.server_url}"
        if self._settings.hardware and self._settings.hardware != facts.hardware:
            action = f"Correct device.hardware in {self._settings.path}, or provision again."
            yield Finding("enrolment", Verdict.BAD, f"{seen}; settings say {self._settings.hardware}", action)
        else:
            yield Finding("enrolment", Verdict.GOOD, seen)

    def _permissions(self) -> Iterator[Finding]:
        state = self._settings.state_directory
        directory = state / identity.CURRENT
        for path in (state, directory / identity.IDENTITY_KEY, directory / identity.HPKE_KEY):
            mode = _mode(path)
            if mode is None:
                continue
            if path != state and mode & _OTHERS:
                yield Finding("permissions", Verdict.BAD, f"{path} may be used by others", f"chmod 600 {path}")
            elif mode & stat.S_IWOTH:
                yield Finding("permissions", Verdict.BAD, f"{path} may be written by anybody", f"chmod 700 {path}")
        if _mode(state) is not None and not os.access(state, os.W_OK):
            yield Finding("permissions", Verdict.BAD, f"{state} cannot be written", "Run as the agent's user (root).")
        elif _mode(state) is not None:
            yield Finding("permissions", Verdict.GOOD, f"{state} is ours")

    def _floors(self) -> Iterator[Finding]:
        if self._enrolment is not None:
            values = self._enrolment.floors(self._disk).load()
            seen = f"sequence number {values.sequence_number}, signed time {_time(values.time)}"
            yield Finding("floors", Verdict.GOOD, seen)

    def _clock_set(self) -> Iterator[Finding]:
        now, floor = self._clock.now(), self._time_floor()
        seen = format_time(now)
        if now < EARLIEST_CLOCK or (floor is not None and now < floor - timedelta(hours=1)):
            action = "Nothing is lost: updates use the server's signed time. Set the clock for windows and logs."
            yield Finding("clock", Verdict.WARNING, f"{seen} lies in the past", action)
        elif floor is not None and now > floor + LATEST_BEYOND_FLOOR:
            yield Finding(
                "clock", Verdict.WARNING, f"{seen}, long after the last contact ({_time(floor)})", "Check the date."
            )
        else:
            yield Finding("clock", Verdict.GOOD, seen)

    def _certificate(self) -> Iterator[Finding]:
        if self._enrolment is None:
            return
        from cryptography import x509

        path = self._enrolment.certificate_path
        chain = read_file(self._disk, path, limit_bytes=MAX_CERTIFICATE_LENGTH_BYTES).decode("ascii", "replace")
        self._enrolment.key.require_certificate(chain, device_id=self._enrolment.device_id)
        ends = x509.load_pem_x509_certificate(chain.encode()).not_valid_after_utc
        yield self._ending("certificate", "device certificate", ends, WARN_CERTIFICATE, "Provision the device again.")

    def _roots(self) -> Iterator[Finding]:
        if self._enrolment is None:
            return
        from tuf.api.metadata import Metadata, Root

        from firmament.trust.client import MAX_ROOT_LENGTH_BYTES, ROOT_HISTORY, mapped_errors

        relation = self._enrolment.relation
        for name, anchor in (("image", relation.image_root), ("director", relation.director_root)):
            newest = anchor
            history = relation.metadata_directory / name / ROOT_HISTORY
            kept = [file for file in self._disk.list(history) if file.endswith(".root.json")]
            if kept:
                path = history / max(kept, key=lambda file: int(file.partition(".")[0]))
                newest = read_file(self._disk, path, limit_bytes=MAX_ROOT_LENGTH_BYTES)
            with mapped_errors():
                root: Root = Metadata[Root].from_bytes(newest).signed
            action = "Hold the root ceremony (`firmament key ceremony start`) and publish the new root."
            yield self._ending("roots", f"{name} root {root.version}", root.expires, WARN_ROOT, action)

    def _space(self) -> Iterator[Finding]:
        state = self._settings.state_directory
        free = self._disk.free_bytes(state)
        if free < MIN_FREE_BYTES:
            yield Finding("space", Verdict.BAD, f"{free} bytes free in {state}", f"Free {MIN_FREE_BYTES - free} bytes.")
        else:
            yield Finding("space", Verdict.GOOD, f"{free // 1_000_000} MB free in {state}")

    def _slots(self) -> Iterator[Finding]:
        storage = compose_storage(self._settings, disk=self._disk, clock=self._clock)
        for slot in (storage.slots.a, storage.slots.b):
            capacity = slot.capacity_bytes()
            seen = f"slot {slot.label} ({storage.slots.kind}) takes up to {capacity // 1_000_000} MB"
            if capacity:
                yield Finding("slots", Verdict.GOOD, seen)
            else:
                yield Finding("slots", Verdict.BAD, seen, "Free space, or name the right device in [slots].")

    def _boot(self) -> Iterator[Finding]:
        boot = compose_storage(self._settings, disk=self._disk, clock=self._clock).boot
        booted, primary, armed = boot.booted(), boot.primary(), boot.armed()
        seen = f"slot {booted} is booted, {primary} is primary, {armed or 'nothing'} is armed"
        if booted is not primary:
            action = "A trial runs, or the boot loader fell back; `firmament-agent status` says which."
            yield Finding("boot", Verdict.WARNING, seen, action)
        else:
            yield Finding("boot", Verdict.GOOD, seen)

    def _health(self) -> Iterator[Finding]:
        checks = compose_storage(self._settings, disk=self._disk, clock=self._clock).checks
        if not checks:
            action = f"Add a [[health]] table to {self._settings.path}."
            yield Finding("health", Verdict.WARNING, "no check: every image that starts is kept", action)
        for check in checks:
            found = check.check()
            seen = f"{found.check}: {'healthy' if found.is_healthy else found.detail or 'unhealthy'}"
            if found.is_healthy:
                yield Finding("health", Verdict.GOOD, seen)
            else:
                action = "An update that looks like this would be given back; mend the check or the program."
                yield Finding("health", Verdict.WARNING, seen, action)

    def _power(self) -> Iterator[Finding]:
        policy = self._settings.policy
        found = Surroundings(self._disk, policy, storage=self._settings.state_directory).look()
        if policy.battery_file is not None:
            if found.battery_percent is None:
                action = "Correct policy.battery_file; until then nothing is installed."
                yield Finding("power", Verdict.BAD, f"{policy.battery_file} cannot be read", action)
            else:
                yield Finding("power", Verdict.GOOD, f"battery {found.battery_percent} %")
        if policy.power_file is not None:
            yield Finding("power", Verdict.GOOD, "on mains power" if found.mains_power else "not on mains power")

    def _server(self) -> Iterator[Finding]:
        if self._enrolment is None:
            return
        floors = self._enrolment.floors(self._disk)
        transport = compose_transport(self._settings, self._enrolment, floors, clock=self._clock)
        url = self._enrolment.facts.server_url
        try:
            response = transport.request("GET", f"{url}{paths.DIRECTOR_METADATA}1.root.json")
            status = response.status
            response.close()
        finally:
            transport.close()
        if status in _ABSENT or status == 200:  # noqa: PLR2004 - HTTP's own number
            yield Finding("server", Verdict.GOOD, f"{url} answers")
        else:
            action = "Look at the server's log, and whether this device is disabled there."
            yield Finding("server", Verdict.BAD, f"{url} answers with status {status}", action)

    def _wake(self) -> Iterator[Finding]:
        if self._enrolment is None or self._settings.wake is None:
            return
        from firmament.agent.wake_session import Session

        session = Session(self._settings.wake, self._enrolment.device_id, self._disk)
        try:
            session.open()
        except FirmamentError as error:
            yield Finding(
                "wake", Verdict.WARNING, f"{_sentence(error)}; the device asks at its usual times", error.hint
            )
        else:
            yield Finding("wake", Verdict.GOOD, f"the broker lets this device listen to {session.topic}")
        finally:
            session.close()

    def _time_floor(self) -> datetime | None:
        return None if self._enrolment is None else self._enrolment.floors(self._disk).load().time

    def _ending(self, check: str, what: str, ends: datetime, warn: timedelta, action: str) -> Finding:
        now = max(filter(None, (self._clock.now(), self._time_floor())))
        seen = f"{what} ends {format_time(ends)}"
        if ends < now:
            return Finding(check, Verdict.BAD, seen, action)
        return (
            Finding(check, Verdict.WARNING, seen, action) if ends - now < warn else Finding(check, Verdict.GOOD, seen)
        )


def _sentence(error: FirmamentError) -> str:
    facts = ", ".join(f"{name}={value}" for name, value in error.facts.items())
    return f"{error.problem}{f' ({facts})' if facts else ''}"


def _time(moment: datetime | None) -> str:
    return "none yet" if moment is None else format_time(moment)


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except OSError:
        return None
