"""Settings of the server: section ``[server]`` of ``firmament.toml``, each with an environment twin.

The twin of ``port`` is ``FIRMAMENT_SERVER_PORT``, and so on; the environment wins over the file.
Unknown names are refused: a setting that is misspelt must not be silently ignored.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from firmament.core import toml
from firmament.errors import FileError, MalformedError, SettingError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ENVIRONMENT_PREFIX: Final = "FIRMAMENT_SERVER_"
MAX_SETTINGS_LENGTH_BYTES: Final = 256 * 1024
_QUIET: Final = re.compile("([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")
_FRONT_PREFIX: Final = re.compile("/[a-z_-]{1,32}/")
SCHEME_CHOICES: Final = ("https", "http")
LOOPBACK_HOSTS: Final = ("127.0.0.1", "::1")
ACCESS_CHOICES: Final = ("enrolled", "public")


def _setting(default: Any, description: str, *, minimum: float | None = None) -> Any:
    return field(default=default, metadata={"description": description, "minimum": minimum})


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What an administrator may change; the reference page is generated from this class."""

    host: str = _setting("0.0.0.0", "Address to listen on.")  # noqa: S104 - devices are elsewhere; without TLS, loopback only
    port: int = _setting(4443, "TCP port; 0 lets the system choose.", minimum=0)
    names: tuple[str, ...] = _setting(("localhost",), "DNS names in the server's certificate.")
    addresses: tuple[str, ...] = _setting(("127.0.0.1",), "IP addresses in the server's certificate.")
    certificate: str = _setting("", "PEM chain of a given server certificate; empty: from the own CA.")
    certificate_key: str = _setting("", "PEM private key of the given certificate.")
    repository_access: str = _setting(
        "enrolled", "Who may fetch metadata and payloads: `enrolled` devices, or `public` for a CDN."
    )
    database: str = _setting("", "`postgresql://USER@HOST/NAME`, without a password; empty: SQLite in the directory.")
    database_password_file: str = _setting("", "File that holds the password of `database`.")
    database_readers: int = _setting(4, "PostgreSQL connections for reading, beside the one that writes.", minimum=1)
    poll_interval_s: int = _setting(1800, "When a device with nothing to do should ask again.", minimum=1)
    poll_interval_active_s: int = _setting(60, "When a device with an open attempt should ask again.", minimum=1)
    rollout_interval_s: float = _setting(
        5.0, "Rollouts are looked at this often: gates, waves, deadlines.", minimum=0.1
    )
    signer_user: str = _setting("", "System user of the isolated signer when the server starts as root.")
    device_certificate_days: int = _setting(3650, "Life of a device certificate.", minimum=1)
    s3_bucket: str = _setting("", "Bucket of an S3-compatible store for payloads; empty: the directory `blobs`.")
    s3_endpoint: str = _setting("", "Its address, `https://host:port`.")
    s3_region: str = _setting("us-east-1", "Its region, as the store calls it.")
    s3_prefix: str = _setting("", "What keys begin with, e.g. `firmament/`; one server, or its replicas, to a prefix.")
    s3_addressing: str = _setting("path", "Where the bucket's name stands: in the `path`, or `virtual`, in the host.")
    s3_access_key_file: str = _setting("", "File that holds the access key's name.")
    s3_secret_key_file: str = _setting("", "File that holds the secret key.")
    s3_ca: str = _setting("", "PEM file of the CA that certifies the store; empty: the system's.")
    blob_grace_hours: int = _setting(
        168, "Collecting payloads leaves alone what was sent or withdrawn less long ago.", minimum=1
    )
    blob_collect_hours: int = _setting(
        24,
        "So often the leader removes payloads that nothing refers to; 0: only `firmament server gc`.",
        minimum=0,
    )
    front_prefix: str = _setting(
        "", "Payloads are left to nginx below this internal path (X-Accel-Redirect), e.g. `/_firmament/`."
    )
    front_secret_file: str = _setting(
        "", "File with the secret by which this server knows its nginx; empty: nobody speaks for devices."
    )
    front_scheme: str = _setting(
        "https",
        "What nginx speaks to this server: `https`, or `http` on a loopback `host` and with `front_secret_file`.",
    )
    max_blob_bytes: int = _setting(64 * 1024**3, "Longest payload that may be uploaded.", minimum=1)
    min_free_bytes: int = _setting(256 * 1024**2, "Uploads are refused when less would stay free.", minimum=0)
    max_connections: int = _setting(10_000, "Open connections in all.", minimum=1)
    max_downloads: int = _setting(256, "Payload downloads at the same time, in all.", minimum=1)
    max_downloads_per_device: int = _setting(4, "Payload downloads at the same time, per device.", minimum=1)
    min_download_bytes_per_s: int = _setting(256, "A reader below this rate is cut off.", minimum=1)
    address_requests_per_s: float = _setting(200.0, "Requests from one address, sustained.", minimum=0.001)
    address_burst: int = _setting(1000, "Requests from one address at once.", minimum=1)
    device_requests_per_s: float = _setting(20.0, "Requests of one device, sustained.", minimum=0.001)
    device_burst: int = _setting(200, "Requests of one device at once.", minimum=1)
    enrolments_per_s: float = _setting(5.0, "Enrolments from one address, sustained.", minimum=0.001)
    enrolment_burst: int = _setting(100, "Enrolments from one address at once.", minimum=1)
    logins_per_minute: float = _setting(10.0, "Sign-in attempts from one address, sustained.", minimum=0.001)
    login_burst: int = _setting(10, "Sign-in attempts from one address at once.", minimum=1)
    public_url: str = _setting("", "Address of the console in notifications; empty: the first name and the port.")
    outbox_networks: tuple[str, ...] = _setting(
        (), "Networks that are not public and that webhooks may go to all the same, e.g. `10.1.0.0/16`."
    )
    outbox_ca: str = _setting("", "PEM file of the CA of webhook, mail and MQTT servers; empty: the system's.")
    smtp_url: str = _setting("", "Mail server: `smtp://`, `smtps://` or `smtp+starttls://`; user:password@ if needed.")
    smtp_from: str = _setting("firmament@localhost", "Sender of notifications by mail.")
    mqtt_url: str = _setting("", "Broker: `mqtt://` or `mqtts://`, with user:password if needed.")
    mqtt_spread_s: int = _setting(60, "Woken devices ask at a random moment within so long.", minimum=0)
    notify_batch_s: int = _setting(30, "News that is not critical waits so long for more.", minimum=0)
    notify_repeat_s: int = _setting(7200, "Critical news is told again after so long, until acknowledged.", minimum=1)
    notify_escalate_s: int = _setting(900, "Critical news goes to escalation outlets after so long.", minimum=1)
    quiet_hours: str = _setting("", "E.g. `22:00-06:00` in `quiet_zone`: only critical news goes out then.")
    quiet_zone: str = _setting("UTC", "Time zone of the quiet hours, e.g. `Europe/Lisbon`.")
    metrics_token: str = _setting("", "Bearer token for `/metrics`; empty: only this machine may read it.")
    checkpoint_every_events: int = _setting(1000, "An audit checkpoint is signed after so many events.", minimum=1)
    checkpoint_interval_s: int = _setting(3600, "And at the latest so long after an event.", minimum=1)
    second_factor_roles: tuple[str, ...] = _setting(
        (), "Roles that must sign in with a second factor (viewer, operator, releaser, approver, admin)."
    )
    oidc_issuer: str = _setting("", "Identity provider (OpenID Connect) for signing in to the console; empty: none.")
    oidc_client_id: str = _setting("", "What the provider calls this server.")
    oidc_client_secret_file: str = _setting("", "File with the client's secret; empty: a public client with PKCE.")
    oidc_ca: str = _setting("", "PEM file of the CA that certifies the provider; empty: the system's.")
    oidc_public_url: str = _setting("https://localhost:4443", "Address of this server, as browsers see it.")
    oidc_scope: str = _setting("openid profile email", "What is asked of the provider.")
    oidc_claim: str = _setting("groups", "Claim of the identity token that says who may do what.")
    oidc_roles: tuple[str, ...] = _setting((), "`claim value=[tenant/]role`; whoever has none of them is not let in.")
    header_deadline_s: float = _setting(15.0, "A request's headers must be complete within this time.", minimum=0.1)
    drain_s: float = _setting(
        0.0, "After SIGTERM `/readyz` says no for so long before connections are refused.", minimum=0
    )
    body_deadline_s: float = _setting(30.0, "A small request body must be complete within this time.", minimum=0.1)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for setting in dataclasses.fields(self):
            minimum = setting.metadata["minimum"]
            value = getattr(self, setting.name)
            if minimum is not None and value < minimum:
                raise SettingError("A setting is too low", setting=setting.name, found=value, minimum=minimum)
        self.quiet_minutes()
        self.quiet_time_zone()
        for network in self.outbox_networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise SettingError("This is not a network", setting="outbox_networks", found=network) from error
        if self.repository_access not in ACCESS_CHOICES:
            raise SettingError(
                "repository_access is not one of the known words",
                found=self.repository_access,
                known=" ".join(ACCESS_CHOICES),
            )
        if self.front_prefix and not _FRONT_PREFIX.fullmatch(self.front_prefix):
            raise SettingError("An internal path is written as /_firmament/", found=self.front_prefix)
        if self.front_prefix and not self.front_secret_file:
            raise SettingError("front_prefix needs front_secret_file: only our nginx may be told where payloads are")
        self._check_front_scheme()
        if bool(self.certificate) != bool(self.certificate_key):
            raise SettingError("A given certificate needs both `certificate` and `certificate_key`")

    def _check_front_scheme(self) -> None:
        if self.front_scheme not in SCHEME_CHOICES:
            raise SettingError(
                "front_scheme is not one of the known words", found=self.front_scheme, known=" ".join(SCHEME_CHOICES)
            )
        if self.is_plain and not (self.front_secret_file and self.host in LOOPBACK_HOSTS):
            raise SettingError(
                "Without TLS the server listens on this machine only, for a front server that it knows by a secret",
                setting="front_scheme",
                host=self.host,
                known=" ".join(LOOPBACK_HOSTS),
            )

    @property
    def is_plain(self) -> bool:
        """Whether TLS ends in the front server, and connections come without it."""
        return self.front_scheme == "http"

    def quiet_minutes(self) -> tuple[int, int]:
        """Return begin and end of the quiet hours in minutes of the day, twice 0 for none; raises SettingError."""
        if not self.quiet_hours:
            return 0, 0
        match = _QUIET.fullmatch(self.quiet_hours)
        if match is None:
            raise SettingError("Quiet hours are written as 22:00-06:00", found=self.quiet_hours)
        begin, begin_minute, end, end_minute = (int(text) for text in match.groups())
        return 60 * begin + begin_minute, 60 * end + end_minute

    def quiet_time_zone(self) -> ZoneInfo:
        """Return the zone of the quiet hours; raises SettingError for one that is not known here."""
        try:
            return ZoneInfo(self.quiet_zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise SettingError(
                "The time zone is not known here", setting="quiet_zone", found=self.quiet_zone
            ) from error


def read_settings(path: Path, environment: Mapping[str, str]) -> ServerSettings:
    """Read the file's ``[server]`` section and the environment; raises FileError or SettingError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SETTINGS_LENGTH_BYTES + 1)
    except OSError as error:
        raise FileError(
            "This is not a server's directory; make one with `firmament server init`",
            path=path,
            reason=error.strerror or error,
        ) from error
    try:
        section = toml.decode(data, limit_bytes=MAX_SETTINGS_LENGTH_BYTES, what="The settings file").get("server", {})
    except (MalformedError, TooLargeError) as error:
        raise SettingError(error.problem, path=path, **error.facts) from error
    if not isinstance(section, dict):
        raise SettingError("[server] must be a section", path=path)
    known = {setting.name: setting for setting in dataclasses.fields(ServerSettings)}
    values: dict[str, Any] = {}
    for name, value in section.items():
        if name not in known:
            raise SettingError("There is no such setting", path=path, setting=f"server.{name}")
        values[name] = _typed(name, value, known[name].default)
    for name, setting in known.items():
        text = environment.get(ENVIRONMENT_PREFIX + name.upper())
        if text is not None:
            values[name] = _from_text(name, text, setting.default)
    return ServerSettings(**values)


def _typed(name: str, value: object, default: object) -> object:
    if isinstance(default, tuple):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif isinstance(default, float):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif type(value) is type(default):
        return value
    raise SettingError("A setting has the wrong type", setting=f"server.{name}", expected=type(default).__name__)


def _from_text(name: str, text: str, default: object) -> object:
    try:
        if isinstance(default, tuple):
            return tuple(item.strip() for item in text.split(",") if item.strip())
        if isinstance(default, int):
            return int(text)
        if isinstance(default, float):
            return float(text)
    except ValueError as error:
        raise SettingError(
            "An environment variable has the wrong type",
            variable=ENVIRONMENT_PREFIX + name.upper(),
            expected=type(default).__name__,
        ) from error
    return text
