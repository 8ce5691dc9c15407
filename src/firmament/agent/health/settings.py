"""The settings tables ``[[health]]``: all of them must be healthy.

    kind = "command"  command = ["/usr/bin/self-test"]  timeout_s = 5
    kind = "http"     url = "http://127.0.0.1:8080/health"  timeout_s = 5  expect = "ok"
    kind = "systemd"  unit = "thermo.service"  timeout_s = 5

Another kind is an entry point in the group ``firmament.health_checks``: ``read(fields) -> HealthCheck``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from firmament.agent.bootctl.settings import arguments
from firmament.agent.health.checks import DEFAULT_TIMEOUT_S, CommandCheck, HttpCheck, SystemdCheck
from firmament.agent.kinds import HEALTH_CHECKS, read_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from firmament.agent.health.port import HealthCheck
    from firmament.core.fields import Fields

MAX_TIMEOUT_S: Final = 600
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.@\\-]{1,255}")


def checks_from_fields(tables: Iterable[Fields]) -> tuple[HealthCheck, ...]:
    """Read every ``[[health]]``; raises SettingError or MalformedError."""
    return tuple(read_kind(fields, KINDS, group=HEALTH_CHECKS) for fields in tables)


def _timeout_s(fields: Fields) -> int:
    return fields.integer("timeout_s", minimum=1, maximum=MAX_TIMEOUT_S, default=DEFAULT_TIMEOUT_S)


def _command(fields: Fields) -> HealthCheck:
    return CommandCheck(arguments(fields, "command"), timeout_s=_timeout_s(fields))


def _http(fields: Fields) -> HealthCheck:
    url = fields.text("url", max_length=2048)
    return HttpCheck(url, timeout_s=_timeout_s(fields), expect=fields.text("expect", default=""))


def _systemd(fields: Fields) -> HealthCheck:
    return SystemdCheck(fields.text("unit", pattern=_UNIT), timeout_s=_timeout_s(fields))


KINDS: Final[Mapping[str, Callable[..., HealthCheck]]] = {"command": _command, "http": _http, "systemd": _systemd}
