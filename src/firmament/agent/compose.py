"""Put the agent together from its settings and its enrolment: the one place that knows every part.

world = compose(settings, disk=RealDisk(), clock=SystemClock(), should_stop=...)
world.agent.tick()
"""

from __future__ import annotations

import contextlib
import platform
import random  # noqa: TID251 - the one place that makes the agent's chance; it decides nothing secret
import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from firmament.agent import identity
from firmament.agent.agent import Agent
from firmament.agent.events import Events
from firmament.agent.fetch import HttpTransport, TlsFiles
from firmament.agent.link import Cache, ServerLink
from firmament.agent.parts import Parts
from firmament.agent.policy import LOCAL_TIME
from firmament.agent.record import Release
from firmament.agent.slots.port import Label
from firmament.agent.storage import JOURNAL_DIRECTORY, Storage, compose_storage
from firmament.core.manifest import Image
from firmament.durable import make_directory_durably, read_file
from firmament.errors import FirmamentError, SettingError
from firmament.payload.methods import applicable
from firmament.payload.sealing import METHOD as SEALED_METHOD

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, tzinfo

    from firmament.agent.bootctl.port import BootControl
    from firmament.agent.fetch import TransferSettings
    from firmament.agent.identity import Enrolment
    from firmament.agent.parts import Unwrap
    from firmament.agent.settings import AgentSettings
    from firmament.agent.share import Share
    from firmament.agent.wake import Listener
    from firmament.core.clock import Clock
    from firmament.core.digest import Digest
    from firmament.durable import Disk
    from firmament.trust.floors import Floors

NEIGHBOUR_CONNECT_S: Final = 2.0
NEIGHBOUR_IDLE_S: Final = 5.0
NEIGHBOUR_MIN_RATE_BYTES_PER_S: Final = 16 * 1024
# A neighbour answers in milliseconds and sends megabytes per second; whoever does not is not worth waiting for while
# the server is there. A device whose own rate is limited waits for itself, which does not count.


@dataclass(frozen=True, slots=True)
class World:
    """The agent and those of its parts that its caller also needs."""

    agent: Agent
    events: Events
    boot: BootControl
    transport: HttpTransport
    enrolment: Enrolment

    def close(self) -> None:
        """Close the connections."""
        self.transport.close()


def compose_transport(settings: AgentSettings, enrolment: Enrolment, floors: Floors, *, clock: Clock) -> HttpTransport:
    """Make the transport to the enrolment's server."""
    tls = TlsFiles(enrolment.facts.ca_pem, enrolment.certificate_path, enrolment.key_path)
    plain = enrolment.facts.server_url.startswith("http:")

    def time_floor() -> datetime | None:
        with contextlib.suppress(FirmamentError):  # damaged floors stop the walk; TLS only dates by them
            return floors.load().time
        return None

    return HttpTransport(clock, settings=settings.transfer, tls=None if plain else tls, time_floor=time_floor)


def compose(
    settings: AgentSettings,
    *,
    disk: Disk,
    clock: Clock,
    storage: Storage | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> World:
    """Make the agent; raises NotEnrolledError, StateError, SettingError or FileError, starts nothing."""
    if storage is None:
        storage = compose_storage(settings, disk=disk, clock=clock)
    enrolment = identity.load(disk, settings.state_directory)
    if settings.hardware and settings.hardware != enrolment.facts.hardware:
        raise SettingError(
            "This device was provisioned as other hardware",
            setting="device.hardware",
            found=settings.hardware,
            provisioned=enrolment.facts.hardware,
        )
    floors = enrolment.floors(disk)
    transport = compose_transport(settings, enrolment, floors, clock=clock)
    events = Events()
    journal = settings.state_directory / JOURNAL_DIRECTORY
    make_directory_durably(disk, journal)
    methods = frozenset({*applicable(memory_bytes=settings.payloads.memory_bytes), SEALED_METHOD})
    parts = Parts(
        disk=disk,
        state_directory=journal,
        clock=clock,
        chance=random.SystemRandom(),
        link=ServerLink(
            relation=enrolment.relation,
            key=enrolment.key,
            transport=transport,
            disk=disk,
            clock=clock,
            floors=floors,
            methods=methods,
            caches=caches_of(settings, clock),
            payload_deadline_s=settings.transfer.deadline_s,
            retry_wait_s=settings.transfer.retry_wait_ms / 1000,
            takes_repository_parcels=settings.policy.takes_repository_parcels,
        ),
        slots=storage.slots,
        boot=storage.boot,
        checks=storage.checks,
        floors=floors,
        events=events,
        policy=settings.policy,
        device_id=enrolment.device_id,
        trial=settings.trial,
        initial=_initial(settings),
        attributes=attributes_of(settings),
        language=settings.owner.language,
        offline_s=settings.owner.offline_s,
        methods=methods,
        payloads=settings.payloads,
        retry_wait_s=settings.transfer.retry_wait_ms / 100,
        unwrap=_unwrap(disk, enrolment),
        share=compose_share(settings, storage, disk=disk),
        should_stop=should_stop,
    )
    return World(Agent(parts), events, storage.boot, transport, enrolment)


def compose_listener(
    settings: AgentSettings, *, disk: Disk, clock: Clock, hint: Callable[[float], None]
) -> Listener | None:
    """Make what listens for hints, if a broker is set; who has none does not load it."""
    if settings.wake is None:
        return None
    from firmament.agent.wake import Listener

    return Listener(
        settings.wake,
        disk=disk,
        state_directory=settings.state_directory,
        clock=clock,
        chance=random.SystemRandom(),
        hint=hint,
    )


def compose_share(settings: AgentSettings, storage: Storage, *, disk: Disk) -> Share | None:
    """Make the store of payloads for others nearby; None where the owner offers none."""
    if settings.share is None:
        return None
    from firmament.agent.share import DIRECTORY, Share

    return Share(disk, settings.state_directory / DIRECTORY, storage.slots, limit_bytes=settings.share.limit_bytes)


def caches_of(settings: AgentSettings, clock: Clock) -> tuple[Cache, ...]:
    """Return who is asked before the server, those nearby first and with little patience."""
    transfer = settings.transfer
    impatient = replace(
        transfer,
        connect_timeout_s=min(transfer.connect_timeout_s, NEIGHBOUR_CONNECT_S),
        idle_timeout_s=min(transfer.idle_timeout_s, NEIGHBOUR_IDLE_S),
        min_rate_bytes_per_s=max(transfer.min_rate_bytes_per_s, NEIGHBOUR_MIN_RATE_BYTES_PER_S),
        rate_window_s=min(transfer.rate_window_s, NEIGHBOUR_IDLE_S),
    )
    nearby = [_cache(url, impatient, clock, setting="payload.neighbours") for url in settings.payloads.neighbours]
    caches = [_cache(url, transfer, clock, setting="payload.base_urls") for url in settings.payloads.base_urls]
    return (*nearby, *caches)


def _cache(url: str, transfer: TransferSettings, clock: Clock, *, setting: str) -> Cache:
    """Return a cache with a transport of its own: no device certificate, the system's CAs, or plain HTTP."""
    base = url.rstrip("/") + "/"
    if base.startswith("http:"):
        return Cache(base, HttpTransport(clock, settings=transfer, tls=None))
    bundle = ssl.get_default_verify_paths().cafile
    try:
        ca_pem = Path(bundle or "").read_text()
    except OSError as error:
        raise SettingError("An https cache needs the system's CA certificates", setting=setting) from error
    return Cache(base, HttpTransport(clock, settings=transfer, tls=TlsFiles(ca_pem)))


def _unwrap(disk: Disk, enrolment: Enrolment) -> Unwrap:
    """Return what opens content keys with the device's HPKE key, which is read only when one comes."""

    def unwrap(wrapped: bytes, release_id: str, sealed_digest: Digest) -> bytes:
        from firmament.payload.wrap import PRIVATE_KEY_LENGTH_BYTES, Purpose, unwrap

        private = read_file(disk, enrolment.directory / identity.HPKE_KEY, limit_bytes=PRIVATE_KEY_LENGTH_BYTES)
        return unwrap(wrapped, private, Purpose(enrolment.device_id, release_id, sealed_digest.value))

    return unwrap


def attributes_of(settings: AgentSettings) -> dict[str, str]:
    """Return the facts for the inventory: what can be known without asking, then what the owner set."""
    found = {"arch": platform.machine(), "kernel": platform.release()}
    if zone := zone_name(settings.policy.zone):
        found["zone"] = zone
    with contextlib.suppress(OSError):
        found["os"] = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    return {name: value[:256] for name, value in {**found, **settings.attributes}.items() if value}


def zone_name(zone: tzinfo, *, local_time: Path = LOCAL_TIME) -> str:
    """Return the name of the zone that windows are told in, "" where it has none."""
    if isinstance(zone, ZoneInfo) and zone.key:
        return str(zone.key)
    with contextlib.suppress(OSError):
        _, found, name = str(local_time.resolve(strict=True)).rpartition("/zoneinfo/")
        return name if found else ""
    return ""


def _initial(settings: AgentSettings) -> Release | None:
    factory = settings.factory
    if factory is None:
        return None
    if factory.slot not in set(Label):
        raise SettingError("The slot is not one of the known words", setting="factory.slot", found=factory.slot)
    return Release(
        version=factory.version,
        sequence_number=factory.sequence_number,
        image=Image(factory.digest, factory.length_bytes),
        slot=Label(factory.slot),
    )
