"""``[wake]`` of the agent's settings: the broker to listen to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from firmament.errors import SettingError

if TYPE_CHECKING:
    from firmament.core.fields import Fields

PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
MIN_INTERVAL_S: Final = 10
MAX_TENANT: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class WakeSettings:
    """Where to listen, and as whom."""

    host: str
    port: int
    ca: Path | None
    """None: without TLS."""
    username: str
    password_file: Path | None
    tenant: int
    min_interval_s: int

    @classmethod
    def from_fields(cls, fields: Fields) -> WakeSettings | None:
        """Read the section; None without a `url`. Raises SettingError or MalformedError."""
        url = fields.text("url", max_length=512, default="")
        if not url:
            return None
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in PORTS or not parts.hostname or port == 0 or parts.path or parts.query or parts.username:
            raise SettingError(
                "The address of the broker is not well formed",
                setting="wake.url",
                expected="mqtts://broker.example:8883",
            )
        ca, password = _path(fields, "ca"), _path(fields, "password_file")
        if (parts.scheme == "mqtts") != (ca is not None):
            raise SettingError("`ca` belongs to mqtts, and mqtts needs it", setting="wake.ca")
        username = fields.text("username", max_length=256, default="")
        if password is not None and (ca is None or not username):
            raise SettingError("A password travels by mqtts alone, with a username", setting="wake.password_file")
        return cls(
            host=parts.hostname,
            port=port or PORTS[parts.scheme],
            ca=ca,
            username=username,
            password_file=password,
            tenant=fields.integer("tenant", minimum=1, maximum=MAX_TENANT, default=1),
            min_interval_s=fields.integer("min_interval_s", minimum=MIN_INTERVAL_S, maximum=86_400, default=60),
        )


def _path(fields: Fields, name: str) -> Path | None:
    text = fields.text(name, max_length=4096, default="")
    if text and not Path(text).is_absolute():
        raise SettingError("The path must be absolute", setting=f"wake.{name}", found=text)
    return Path(text) if text else None
