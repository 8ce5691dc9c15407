"""What commands that choose devices share: the server's options as one value, counts, confirmation."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

from firmament.cli.common import may_ask, output_options
from firmament.cli.operator_client import connect, server_options
from firmament.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def with_server(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the server's options and ``--json``; they arrive as ``server``, which connects when called."""

    @functools.wraps(function)
    def wrapped(
        *args: Any,
        server_url: str | None,
        ca: Path | None,
        workspace: Path | None,
        token_file: Path | None,
        **kwargs: Any,
    ) -> Any:
        return function(*args, server=lambda: connect(server_url, ca, workspace, token_file), **kwargs)

    return server_options(output_options(wrapped))


def require_count(expected: int | None, found: int) -> None:
    """Raise ConflictError when the number of devices is not the one somebody saw."""
    if expected is not None and expected != found:
        raise ConflictError("The number of devices has changed since you looked", expected=expected, found=found)


def confirm_count(count: int, *, is_sure: bool) -> None:
    """Let a person type the number of devices; without a terminal a flag is needed."""
    if is_sure:
        return
    if not may_ask():
        raise click.UsageError("This changes devices: give --expect-count or --yes")
    typed = click.prompt("Type the number of devices to go on", err=True, default="", show_default=False)
    if typed.strip() != str(count):
        raise click.Abort


def count_text(counted: dict[str, Any]) -> str:
    """Write a count, with a plus where counting stopped."""
    return f"{counted['count']:,}".replace(",", " ") + ("+" if counted.get("is_capped") else "")
