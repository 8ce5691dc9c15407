"""Where both commands begin: version and completion are told before anything is imported."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `firmament` command (console.md §4.1: start-up decides how it feels)."""
    if _is_answered("firmament"):
        return
    from firmament.cli.main import main as everything

    everything()


def agent() -> None:
    """Entry point of the `firmament-agent` command."""
    if _is_answered("firmament-agent"):
        return
    from firmament.cli.agent import main as everything

    everything()


def _is_answered(program: str) -> bool:
    if sys.argv[1:] == ["--version"]:
        from firmament import __version__

        print(f"{program} {__version__}")
        return True
    if len(sys.argv) > 1:
        return False
    from firmament.cli import complete

    return complete.main(program)
