"""The agent's settings: a TOML file, every name of it in one table, unknown names refused.

Read from ``--config``, else the file that FIRMAMENT_AGENT_CONFIG names, else
``/etc/firmament/agent.toml``. `SETTINGS` is that table; the reference page, the skeleton that
``install-service`` writes and the check for misspelt names are all made from it. Whom to trust is
not a setting: that is provisioned (provision.py).
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from firmament.agent.fetch import TransferSettings
from firmament.agent.parts import PayloadSettings, TrialSettings
from firmament.agent.policy import Policy
from firmament.agent.share import ShareSettings
from firmament.agent.wake_settings import WakeSettings
from firmament.core import toml
from firmament.core.digest import ALLOWED, Digest
from firmament.core.fields import Fields
from firmament.core.ids import HARDWARE, VERSION
from firmament.core.manifest import MAX_IMAGE_LENGTH_BYTES
from firmament.durable import read_file
from firmament.errors import FileError, MalformedError, SettingError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from firmament.durable import Disk

CONFIG_VARIABLE: Final = "FIRMAMENT_AGENT_CONFIG"
DEFAULT_CONFIG: Final = Path("/etc/firmament/agent.toml")
DEFAULT_STATE: Final = "/var/lib/firmament"
DEFAULT_SOCKET: Final = "/run/firmament/agent.sock"
MAX_CONFIG_LENGTH_BYTES: Final = 64 * 1024
MAX_PATH_LENGTH: Final = 4096
MAX_HEALTH_CHECKS: Final = 16
MAX_OWN_ATTRIBUTES: Final = 56
# A poll carries 64 (docs/protocol/README.md); the agent adds architecture, kernel, system, zone and its owner's rule.
_LANGUAGE: Final = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})?")
MAX_PORT: Final = 65_535
_GIGABYTE: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Setting:
    """One row: what may be written in the file."""

    section: str
    """TOML table; empty for the top level."""
    name: str
    kind: str
    """``text``, ``path``, ``integer``, ``true or false``, ``list of texts`` or ``table of texts``."""
    default: str
    """As written in TOML; ``required`` or ``none`` where there is none."""
    description: str
    unit: str = ""
    only: str = ""
    """The `kind` of its section that knows it; empty: all."""


# fmt: off
SETTINGS: Final = (
    Setting("", "state_dir", "path", f'"{DEFAULT_STATE}"',
            "Everything the agent remembers: identity, floors, journal. Must survive updates and factory resets."),
    Setting("", "socket", "path", f'"{DEFAULT_SOCKET}"',
            "Local socket of the daemon, for the commands, menus and programs of the owner."),
    Setting("", "socket_group", "text", "none",
            "Members of this group may use the socket too; without it only root and the agent's user may."),
    Setting("", "log_level", "text", '"info"', "`debug`, `info`, `warning` or `error`."),
    Setting("device", "hardware", "text", "as provisioned",
            "When given it must be the provisioned one: an image copied to other hardware stops."),
    Setting("device", "attributes", "table of texts", "{}",
            "Facts for the inventory, e.g. the site; never names of persons. At most 64."),
    Setting("factory", "version", "text", "none", "What the factory put into the slot that is booted first."),
    Setting("factory", "sequence_number", "integer", "0", "Its sequence number."),
    Setting("factory", "digest", "text", "none", "Its image digest, `sha256:<hex>`; makes deltas from it possible."),
    Setting("factory", "length_bytes", "integer", "0", "Its image length.", "bytes"),
    Setting("factory", "slot", "text", '"a"', "The slot it is in."),
    Setting("slots", "kind", "text", "required", "`bundle`, `image`, or a plug-in's."),
    Setting("slots", "directory", "path", "required", "Holds `a`, `b` and the symlink `current`.", only="bundle"),
    Setting("slots", "a", "path", "required", "File or block device of slot A.", only="image"),
    Setting("slots", "b", "path", "required", "File or block device of slot B.", only="image"),
    Setting("slots", "limit_bytes", "integer", "none",
            "Longest image; without it what the device or file system holds.", "bytes"),
    Setting("boot", "kind", "text", "required", "`supervisor`, `uboot`, `grub`, `sim`, or a plug-in's."),
    Setting("boot", "command", "list of texts", "required",
            "The program of the bundle, started in its slot's directory.", only="supervisor"),
    Setting("boot", "stop_timeout_s", "integer", "10", "Time between asking the program to end and ending it.",
            "seconds", only="supervisor"),
    Setting("boot", "user", "text", "as the agent", "System user the program runs as.", only="supervisor"),
    Setting("boot", "environment", "table of texts", "{}", "Added to the program's environment.", only="supervisor"),
    Setting("boot", "config", "path", '"/etc/fw_env.config"', "Where U-Boot's environment is.", only="uboot"),
    Setting("boot", "accept_single_copy", "true or false", "false",
            "Take an environment without redundancy, which a power cut can destroy.", only="uboot"),
    Setting("boot", "path", "path", '"/boot/grub/grubenv"', "GRUB's environment block.", only="grub"),
    Setting("boot", "parameter", "text", '"firmament.slot"',
            "Name of the kernel parameter by which the boot loader says which slot it started.", only="uboot grub"),
    Setting("boot", "restart", "list of texts", '["systemctl", "reboot"]', "Command that restarts the machine.",
            only="uboot grub"),
    Setting("health", "kind", "text", "required",
            "`command`, `http`, `systemd`, or a plug-in's. `[[health]]` may be repeated: all must be healthy."),
    Setting("health", "timeout_s", "integer", "5", "Longest time one question may take.", "seconds"),
    Setting("health", "command", "list of texts", "required", "Healthy when it exits with 0.", only="command"),
    Setting("health", "url", "text", "required", "Healthy when it answers 2xx; loopback only.", only="http"),
    Setting("health", "expect", "text", '""', "Must occur in the answer.", only="http"),
    Setting("health", "unit", "text", "required", "Healthy while it is active and does not restart.", only="systemd"),
    Setting("trial", "deadline_s", "integer", "60", "By when a new image must have proven itself.", "seconds"),
    Setting("trial", "interval_s", "integer", "1", "Between two rounds of checks.", "seconds"),
    Setting("trial", "passes", "integer", "2", "Healthy rounds in a row that prove an image."),
    Setting("policy", "mode", "text", '"automatic"',
            "`automatic`, `ask` (the owner agrees first), `window` (only while it is open) or `manual` (by command)."),
    Setting("policy", "security", "text", "as mode", "The mode for security updates."),
    Setting("policy", "feature", "text", "as mode", "The mode for all other updates."),
    Setting("policy", "window", "text", "none", 'Daily, in device-local time, e.g. `"02:00-04:00"`.'),
    Setting("policy", "timezone", "text", "the system's", 'Name of a time zone, e.g. `"Europe/Berlin"`.'),
    Setting("policy", "fetch_outside_window", "true or false", "false",
            "Whether the download may come before it opens."),
    Setting("policy", "poll_interval_s", "integer", "3600",
            "Between two polls when the server has no wish.", "seconds"),
    Setting("policy", "first_poll_within_s", "integer", "30", "Chance delay before the first poll.", "seconds"),
    Setting("policy", "full_poll_s", "integer", "21600",
            "A poll with a signed answer at least so often; between, the device may only ask whether anything changed. "
            "0: every poll.", "seconds"),
    Setting("policy", "min_battery_percent", "integer", "0", "Below it nothing is installed.", "percent"),
    Setting("policy", "battery_file", "path", "none", "E.g. `/sys/class/power_supply/BAT0/capacity`."),
    Setting("policy", "power_file", "path", "none", "E.g. `/sys/class/power_supply/AC/online`."),
    Setting("policy", "repository_parcels", "true or false", "false",
            "Install parcels that an author signed and no director: sites without a server."),
    Setting("policy", "metered_file", "path", "none", "Holds `1` while the link costs money by volume."),
    Setting("policy", "metered", "text", '"any"',
            "What is fetched then: `any` (unless the release wants another link), `security` updates only, or `none`."),
    Setting("policy", "postpone_days", "integer", "14",
            "How long a security update may be put off, from when the owner was first asked.", "days"),
    Setting("policy", "postpone_times", "integer", "3", "How often a security update may be put off."),
    Setting("owner", "language", "text", '"en"', 'Language of the owner, e.g. `"de"`; notes and sentences follow it.'),
    Setting("owner", "offline_s", "integer", "120", "How long the device is usually away for the restart; it is said.",
            "seconds"),
    Setting("transfer", "max_rate_bytes_per_s", "integer", "0", "Payload bytes per second at most; 0: no limit.",
            "bytes per second"),
    Setting("transfer", "min_rate_bytes_per_s", "integer", "256",
            "A peer below this rate over `rate_window_s` is given up.", "bytes per second"),
    Setting("transfer", "rate_window_s", "integer", "60", "Over which the minimum rate is measured.", "seconds"),
    Setting("transfer", "deadline_s", "integer", "86400", "Longest time for one payload, resumed or not.", "seconds"),
    Setting("transfer", "request_deadline_s", "integer", "60", "Longest time for any other exchange.", "seconds"),
    Setting("transfer", "connect_timeout_s", "integer", "15", "Longest time to connect, TLS included.", "seconds"),
    Setting("transfer", "idle_timeout_s", "integer", "30", "Longest silence of a peer.", "seconds"),
    Setting("transfer", "retry_wait_ms", "integer", "500",
            "Wait after a dropped connection; doubles while nothing comes. A command waits up to ten times as long "
            "between its tries.", "milliseconds"),
    Setting("page", "listen", "text", "none",
            "Serve the owner's page here, e.g. `127.0.0.1:8734` or the address of a USB gadget. Not on open networks."),
    Setting("payload", "memory_bytes", "integer", "67108864",
            "Memory that applying a payload may take; methods that may need more are not stated to the server.",
            "bytes"),
    Setting("payload", "limit_bytes", "integer", "0",
            "Longest payload that is stored before it is applied; 0: what is free.", "bytes"),
    Setting("payload", "base_urls", "list of texts", "[]",
            "Caches or CDNs (http or https) asked for payload bytes before the server, each the base of "
            "`<product>/<version>/`. What they send is checked like any bytes."),
    Setting("payload", "neighbours", "list of texts", "[]",
            "Agents or caches on the local network, e.g. `http://192.168.1.20:8735/`, asked before `base_urls`; one "
            "that is away, slow or wrong is left within seconds."),
    Setting("share", "listen", "text", "none",
            "Offer fetched payloads to others on the local network here, e.g. `192.168.1.20:8735`. What is not sealed "
            "can be read there by everybody."),
    Setting("share", "max_rate_bytes_per_s", "integer", "4194304", "All neighbours together; 0: no limit.",
            "bytes per second"),
    Setting("share", "limit_bytes", "integer", "268435456",
            "What payloads kept for others may take on storage, beside the slots.", "bytes"),
    Setting("wake", "url", "text", "none",
            "Listen to this MQTT broker for hints that there may be something, e.g. `mqtts://broker.example:8883`; a "
            "hint only ever makes the agent ask earlier."),
    Setting("wake", "ca", "path", "none", "PEM file of the CA to trust as the broker; needed with `mqtts`."),
    Setting("wake", "username", "text", '""', "Name to give to the broker, beside the device id as client id."),
    Setting("wake", "password_file", "path", "none", "Holds its password; mode 600, with `mqtts` only."),
    Setting("wake", "tenant", "integer", "1", "The tenant's number in the topic."),
    Setting("wake", "min_interval_s", "integer", "60", "Hints make the agent ask at most once in so long.", "seconds"),
    Setting("hooks", "directory", "path", "none",
            "Scripts `on_offer`, `on_progress`, `on_restart_in`, `on_done`, `on_failed`, where they exist."),
    Setting("hooks", "timeout_s", "integer", "10", "A hook that runs longer is ended.", "seconds"),
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Factory:
    """What was in the first slot when the device left the factory."""

    version: str
    sequence_number: int
    digest: Digest
    length_bytes: int
    slot: str


@dataclass(frozen=True, slots=True)
class HookSettings:
    """Where hook scripts are, and how long each may take."""

    directory: Path | None = None
    timeout_s: int = 10


@dataclass(frozen=True, slots=True)
class OwnerSettings:
    """What is said to the owner, and how."""

    language: str = "en"
    offline_s: int = 120


@dataclass(frozen=True, slots=True)
class PageSettings:
    """Where the owner's page is served; see page.py."""

    host: str
    port: int
    language: str


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """The file as values; slots, boot control and health checks are made of theirs in compose.py."""

    path: Path
    state_directory: Path
    socket: Path
    socket_group: str
    log_level: str
    hardware: str
    attributes: Mapping[str, str]
    factory: Factory | None
    slots: Fields
    boot: Fields
    health: tuple[Fields, ...]
    trial: TrialSettings = field(default_factory=TrialSettings)
    policy: Policy = field(default_factory=Policy)
    transfer: TransferSettings = field(default_factory=TransferSettings)
    payloads: PayloadSettings = field(default_factory=PayloadSettings)
    hooks: HookSettings = field(default_factory=HookSettings)
    owner: OwnerSettings = field(default_factory=OwnerSettings)
    page: PageSettings | None = None
    """None: there is no page."""
    share: ShareSettings | None = None
    """None: nothing is offered to others nearby."""
    wake: WakeSettings | None = None
    """None: nobody is listened to."""


def settings_table() -> tuple[Setting, ...]:
    """Return every setting, section by section, for the reference page."""
    return SETTINGS


def read_settings(disk: Disk, path: Path) -> AgentSettings:
    """Read the file; raises FileError or SettingError, which name file and setting."""
    with setting_errors(path):
        return parse_settings(_table(disk, path), path)


@contextlib.contextmanager
def setting_errors(path: Path) -> Iterator[None]:
    """Turn what a reader of fields says into a SettingError about this file."""
    try:
        yield
    except MalformedError as error:
        raise SettingError(error.problem, **{**error.facts, "path": path}) from error


def _table(disk: Disk, path: Path) -> dict[str, Any]:
    try:
        data = read_file(disk, path, limit_bytes=MAX_CONFIG_LENGTH_BYTES)
        return toml.decode(data, limit_bytes=MAX_CONFIG_LENGTH_BYTES, what="The settings file")
    except (MalformedError, TooLargeError) as error:
        raise SettingError(error.problem, **{**error.facts, "path": path}) from error


def parse_settings(table: dict[str, Any], path: Path) -> AgentSettings:
    """Read a decoded file; raises SettingError or MalformedError."""
    top = Fields(table, what="settings")
    _refuse_unknown(table, top)
    device = top.object("device", optional=True)
    hooks = top.object("hooks", optional=True)
    level = top.text("log_level", default="info")
    if level not in {"debug", "info", "warning", "error"}:
        raise SettingError("log_level is not one of the known words", found=level)
    return AgentSettings(
        path=path,
        state_directory=_path(top, "state_dir", DEFAULT_STATE),
        socket=_path(top, "socket", DEFAULT_SOCKET),
        socket_group=top.text("socket_group", max_length=32, default=""),
        log_level=level,
        hardware=device.text("hardware", pattern=HARDWARE) if "hardware" in device else "",
        attributes=device.text_map("attributes", max_items=MAX_OWN_ATTRIBUTES, max_length=256, optional=True),
        factory=_factory(top.object("factory")) if "factory" in top else None,
        slots=top.object("slots"),
        boot=top.object("boot"),
        health=tuple(top.objects("health", max_items=MAX_HEALTH_CHECKS, optional=True)),
        trial=TrialSettings.from_fields(top.object("trial", optional=True)),
        policy=Policy.from_fields(top.object("policy", optional=True)),
        transfer=_transfer(top.object("transfer", optional=True)),
        owner=(owner := _owner(top.object("owner", optional=True))),
        page=_page(top.object("page", optional=True), owner.language),
        payloads=PayloadSettings.from_fields(top.object("payload", optional=True)),
        share=_share(top.object("share", optional=True)),
        wake=WakeSettings.from_fields(top.object("wake", optional=True)),
        hooks=HookSettings(
            directory=_path(hooks, "directory", "/") if "directory" in hooks else None,
            timeout_s=hooks.integer("timeout_s", minimum=1, maximum=600, default=10),
        ),
    )


def _owner(fields: Fields) -> OwnerSettings:
    return OwnerSettings(
        language=fields.text("language", pattern=_LANGUAGE, default="en"),
        offline_s=fields.integer("offline_s", minimum=1, maximum=86_400, default=120),
    )


def _page(fields: Fields, language: str) -> PageSettings | None:
    listen = _listen(fields, what="page")
    return None if listen is None else PageSettings(*listen, language)


def _share(fields: Fields) -> ShareSettings | None:
    listen = _listen(fields, what="share")
    rate = fields.integer("max_rate_bytes_per_s", maximum=_GIGABYTE, default=4 * 1024**2)
    limit = fields.integer("limit_bytes", default=256 * 1024**2)
    return None if listen is None else ShareSettings(*listen, max_rate_bytes_per_s=rate, limit_bytes=limit)


def _listen(fields: Fields, *, what: str) -> tuple[str, int] | None:
    listen = fields.text("listen", default="")
    if not listen:
        return None
    host, _, port = listen.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        number = int(port)
    except ValueError:
        raise SettingError(
            f"The address of the {what} is not well formed", found=listen, expected="127.0.0.1:8734"
        ) from None
    if not 0 <= number <= MAX_PORT or address.is_unspecified or not (address.is_private or address.is_link_local):
        raise SettingError(f"The {what} is for the device's own or a local address", found=listen)
    return str(address), number


def _refuse_unknown(table: dict[str, Any], top: Fields) -> None:
    sections = {setting.section for setting in SETTINGS if setting.section}
    for name in table:
        if name in sections:
            for fields in top.objects(name, max_items=MAX_HEALTH_CHECKS) if name == "health" else (top.object(name),):
                _refuse_unknown_in(name, fields)
        elif name not in {setting.name for setting in SETTINGS if not setting.section}:
            raise SettingError("There is no such setting", setting=name)


def _refuse_unknown_in(section: str, fields: Fields) -> None:
    rows = [setting for setting in SETTINGS if setting.section == section]
    kind = fields.value.get("kind")
    kinds = {word for row in rows for word in row.only.split()} | {"sim"}
    if isinstance(kind, str) and kind not in kinds:
        return  # a plug-in's own names
    known = {row.name for row in rows if not row.only or str(kind) in row.only.split()}
    for name in fields.value:
        if name not in known:
            raise SettingError("There is no such setting", setting=f"{section}.{name}", kind=kind or "")


def _path(fields: Fields, name: str, default: str) -> Path:
    path = Path(fields.text(name, max_length=MAX_PATH_LENGTH, default=default))
    if not path.is_absolute():
        raise SettingError("The path must be absolute", setting=f"{fields.what}.{name}", found=path)
    return path


def _factory(fields: Fields) -> Factory:
    algorithm, _, value = fields.text("digest", max_length=140).partition(":")
    if algorithm not in ALLOWED:
        raise SettingError("The digest is not well formed", setting="factory.digest", expected="sha256:<hex>")
    return Factory(
        version=fields.text("version", pattern=VERSION),
        sequence_number=fields.integer("sequence_number", default=0),
        digest=Digest.from_json({algorithm: value}, what="factory.digest"),
        length_bytes=fields.integer("length_bytes", maximum=MAX_IMAGE_LENGTH_BYTES, default=0),
        slot=fields.text("slot", max_length=1, default="a"),
    )


def _transfer(fields: Fields) -> TransferSettings:
    default = TransferSettings()
    settings = TransferSettings(
        connect_timeout_s=_seconds(fields, "connect_timeout_s", default.connect_timeout_s),
        idle_timeout_s=_seconds(fields, "idle_timeout_s", default.idle_timeout_s),
        request_deadline_s=_seconds(fields, "request_deadline_s", default.request_deadline_s),
        deadline_s=_seconds(fields, "deadline_s", default.deadline_s),
        min_rate_bytes_per_s=fields.integer(
            "min_rate_bytes_per_s", maximum=_GIGABYTE, default=default.min_rate_bytes_per_s
        ),
        rate_window_s=_seconds(fields, "rate_window_s", default.rate_window_s),
        max_rate_bytes_per_s=fields.integer(
            "max_rate_bytes_per_s", maximum=_GIGABYTE, default=default.max_rate_bytes_per_s
        ),
        retry_wait_ms=fields.integer("retry_wait_ms", minimum=1, maximum=60_000, default=default.retry_wait_ms),
    )
    if 0 < settings.max_rate_bytes_per_s < settings.min_rate_bytes_per_s:
        raise SettingError(
            "The highest rate is below the lowest",
            max_rate_bytes_per_s=settings.max_rate_bytes_per_s,
            min_rate_bytes_per_s=settings.min_rate_bytes_per_s,
        )
    return settings


def _seconds(fields: Fields, name: str, default: float) -> int:
    return fields.integer(name, minimum=1, maximum=30 * 86_400, default=int(default))


def require_settings(disk: Disk, path: Path) -> AgentSettings:
    """As `read_settings`, saying how to make the file when there is none."""
    if not disk.exists(path):
        raise FileError(
            "There are no settings; write them, or let `firmament-agent install-service` write a skeleton", path=path
        )
    return read_settings(disk, path)
