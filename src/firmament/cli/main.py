"""The `firmament` command: for authors, operators and simulations. Devices use `firmament-agent`."""

from __future__ import annotations

from typing import Final, NoReturn

import click

from firmament import __version__
from firmament.cli.common import output_options
from firmament.cli.program import LazyCommand, LazyGroup

COMMANDS: Final = {
    "login": LazyCommand("firmament.cli.operator:login", "Sign in to a firmware server."),
    "logout": LazyCommand("firmament.cli.operator:logout", "Make the token useless and forget it."),
    "whoami": LazyCommand("firmament.cli.session:whoami", "Say who the token speaks for."),
    "status": LazyCommand("firmament.cli.session:status", "Say what needs you."),
    "config": LazyCommand("firmament.cli.config_commands:group", "Settings of this command: list, get, set, profiles."),
    "completion": LazyCommand("firmament.cli.shell:completion", "Print the completion script of a shell."),
    "man": LazyCommand("firmament.cli.shell:man", "Print or write manual pages."),
    "init": LazyCommand("firmament.cli.init:command", "Make an author's workspace with a small hybrid key set."),
    "key": LazyCommand("firmament.cli.key:group", "Generate, list, rotate keys; hold the root ceremony."),
    "product": LazyCommand("firmament.cli.product:group", "Add product lines to a workspace."),
    "release": LazyCommand("firmament.cli.release:group", "Build, sign, publish, inspect releases."),
    "server": LazyCommand(
        "firmament.cli.server:group",
        "Set up, run and check a firmware server.",
        "server",
    ),
    "rollout": LazyCommand("firmament.cli.rollout:group", "Plan, start, watch and steer rollouts."),
    "group": LazyCommand("firmament.cli.group:group", "Name devices by a query or by hand."),
    "parcel": LazyCommand(
        "firmament.cli.parcel:group", "Carry updates to devices without a network, and receipts back."
    ),
    "device": LazyCommand("firmament.cli.device:group", "Enrol, list, assign devices."),
    "operator": LazyCommand("firmament.cli.operator:group", "People and tokens of a firmware server."),
    "consent": LazyCommand("firmament.cli.consent:group", "Which updates ask their owner, and what owners said."),
    "audit": LazyCommand("firmament.cli.audit:group", "Read, export and verify the chain of what happened."),
    "notify": LazyCommand("firmament.cli.notify:group", "Notifications: whom the server tells, and what it told."),
    "vulnerability": LazyCommand("firmament.cli.vulnerability:group", "Which devices still run what has a CVE."),
    "compliance": LazyCommand("firmament.cli.compliance:group", "Evidence for regulators: who got which fix when."),
    "sim": LazyCommand("firmament.cli.sim:group", "Simulated devices, fleets and faults."),
    "demo": LazyCommand("firmament.cli.demo:command", "Play the whole main job in this terminal.", "all"),
}

PROFILE_VARIABLE: Final = "FIRMAMENT_PROFILE"
EPILOG: Final = """Exit codes: 0 done; 1 failed; 2 usage; 3 what was watched or planned ended badly; 5 nothing to do;
6 timed out waiting; 10 restart needed; 11 waiting for the
user; 20-39 trust; 40-49 not for this device; 50-59 transfer; 60-69 slot; 70-79 state; 80-89 request; 90-99 policy;
100-109 this machine; 110-119 proof or person missing; 120-123 a repeated request; 130 interrupted."""


@click.group(cls=LazyGroup, lazy=COMMANDS, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="firmament", message="%(prog)s %(version)s")
@click.option("--profile", envvar=PROFILE_VARIABLE, show_envvar=True, help="Settings to use; see firmament config.")
@output_options
def program(profile: str | None) -> None:
    """Secure over-the-air firmware updates: sign, publish, serve, install, prove healthy or revert."""
    if profile:
        from firmament.cli.config import choose_profile

        choose_profile(profile)


def main() -> NoReturn:
    """Entry point of the `firmament` command."""
    program.main(prog_name="firmament")
