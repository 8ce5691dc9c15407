"""`firmament sim`: simulated machines around real agents."""

from __future__ import annotations

from pathlib import Path

import click

from firmament.cli.common import output_options
from firmament.cli.sim_fleet import fleet


@click.group()
def group() -> None:
    """Try things out with simulated devices on one machine."""


@group.command()
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    envvar="FIRMAMENT_AGENT_CONFIG",
    show_envvar=True,
    help="The agent's settings (agent.toml).",
)
@output_options
def device(config: Path) -> int:
    """Run a real agent on a simulated machine.

    Plays power and boot loader: starts `firmament-agent run`, starts it again when it asks for a
    restart (exit code 10) or dies. Use it with `[boot] kind = "sim"`. SIGTERM switches it off.
    """
    from firmament import log
    from firmament.core.clock import SystemClock
    from firmament.sim.device import Machine, agent_command, on_signals

    log.configure()
    machine = Machine([agent_command(), "--config", str(config), "run"], SystemClock())
    on_signals(machine.switch_off)
    return machine.run()


group.add_command(fleet)
