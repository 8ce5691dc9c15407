"""Structured logs on the standard library: an event name and fields, JSON or one readable line.

    log = logger("agent.runner")
    log.info("attempt.staged", attempt_id=..., slot="b", duration_s=12.1)

Fields whose name looks like a secret are dropped before any handler sees them (trust.md §10,
case 57). Field names are those of house.md 2.5. Nothing here configures logging on import;
`configure` is called once by a command.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any, Final

SECRET: Final = re.compile(r"pass|secret|token|private|cek|pin$|cookie|authorization|nonce|otp", re.IGNORECASE)
DROPPED: Final = "(dropped)"
_SHAPED: Final = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bBearer\s+\S", re.IGNORECASE)


class Logger:
    """A named logger that takes an event and fields; bind() adds fields to every later event."""

    def __init__(self, target: logging.Logger, bound: dict[str, Any]) -> None:
        self._target = target
        self._bound = bound

    def bind(self, **fields: object) -> Logger:
        """Return a logger that adds these fields to each event."""
        return Logger(self._target, {**self._bound, **fields})

    @property
    def is_debugging(self) -> bool:
        """Whether `debug` would reach anyone: whoever speaks very often asks first."""
        return self._target.isEnabledFor(logging.DEBUG)

    def debug(self, event: str, **fields: object) -> None:
        """Say what only a developer needs."""
        self._say(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Say that something expected happened."""
        self._say(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Say that something was refused or retried."""
        self._say(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Say that something failed and a person should look."""
        self._say(logging.ERROR, event, fields)

    def _say(self, level: int, event: str, fields: dict[str, object]) -> None:
        if self._target.isEnabledFor(level):
            self._target.log(level, event, extra={"fields": clean({**self._bound, **fields})})


def logger(name: str) -> Logger:
    """Return the logger for a part of the house, e.g. ``agent.runner``."""
    return Logger(logging.getLogger(f"firmament.{name}"), {})


def clean(fields: dict[str, Any]) -> dict[str, Any]:
    """Drop values named or shaped like secrets, at any depth; `keyid` and digests stay."""
    return {name: DROPPED if SECRET.search(str(name)) else _clean_value(value) for name, value in fields.items()}


def _clean_value(value: Any) -> Any:
    if isinstance(value, dict):
        return clean(value)
    if isinstance(value, list | tuple):
        return [_clean_value(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value.decode(errors="replace") if isinstance(value, bytes | bytearray) else str(value)
    return DROPPED if _SHAPED.search(text) else text


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        always: dict[str, Any] = {
            "at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "part": record.name,
            "event": record.getMessage(),
        }
        line = {**always, **getattr(record, "fields", {}), **always}  # no field can pose as one of these
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class ReadableFormatter(logging.Formatter):
    """``12:00:01 info  agent.runner attempt.staged slot=b``, for a terminal."""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        fields = " ".join(f"{name}={_one_word(value)}" for name, value in getattr(record, "fields", {}).items())
        part = record.name.removeprefix("firmament.")
        text = (
            f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower():7} {part} {record.getMessage()} {fields}"
        )
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text.rstrip()


def _one_word(value: object) -> str:
    """Quote whatever is not one plain word: a value from outside must not forge a second line."""
    text = str(value)
    return text if text.isprintable() and not set(' ="') & set(text) and text else json.dumps(text)


def configure(*, level: str = "info", json_lines: bool | None = None) -> None:
    """Send this house's logs to stderr, readable on a terminal and JSON otherwise."""
    handler = logging.StreamHandler(sys.stderr)
    as_json = not sys.stderr.isatty() if json_lines is None else json_lines
    handler.setFormatter(JsonFormatter() if as_json else ReadableFormatter())
    root = logging.getLogger("firmament")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
