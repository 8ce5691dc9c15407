"""`firmament demo`: play the whole main job in this terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from firmament.cli.common import EXIT_FAILED, output, output_options
from firmament.cli.demo_screen import HEADER, cells, is_live, open_screen, rich_console, table
from firmament.core.clock import SystemClock
from firmament.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from firmament.sim.demo.play import Played

PACE_S: Final = 0.7
"""Between two steps of the crowd: slow enough to watch."""


@click.command("demo")
@click.option("--keep", is_flag=True, help="Leave the server and the devices running, and print how to go on.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Play in this new folder and keep it. [default: a temporary one, removed at the end]",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="TCP port of the server. [default: any free]")
@click.option(
    "--stop",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIRECTORY",
    help="End what an earlier --keep left running, and do nothing else.",
)
@click.option("--console", "is_console", is_flag=True, help="Open a console with a live crowd of virtual devices.")
@click.option(
    "--devices", type=click.IntRange(10, 2000), default=120, show_default=True, help="With --console: how many."
)
@click.option("--until-halted", is_flag=True, help="With --console: end when the rollout has stopped by itself.")
@output_options
def command(
    keep: bool,  # noqa: FBT001 - click's shape
    directory: Path | None,
    port: int,
    stop: Path | None,
    is_console: bool,  # noqa: FBT001 - same
    devices: int,
    until_halted: bool,  # noqa: FBT001 - same
) -> int:
    """Play the whole main job: sign, publish, install, prove healthy or revert, refuse.

    Three simulated devices and a server run as real processes of this package; every outcome is
    checked. Exit code 0 only if each is as it must be.

    With --console a crowd of virtual devices lives with a real server instead, a rollout goes out
    and stops by itself, and the web console shows it.
    """
    from firmament.sim.demo.world import stop_kept

    if stop is not None:
        ended = stop_kept(stop.absolute(), SystemClock())
        output().document("demo-stop", {"ended": ended}, lines=[f"Ended {ended} processes."])
        return 0
    folder = (directory or Path(tempfile.mkdtemp(prefix="firmament-demo-"))).absolute()
    if directory is not None and folder.exists() and any(folder.iterdir()):
        raise ConflictError("The folder for the demonstration is not empty", directory=folder)
    is_over = False
    with _ending_in_order():
        try:
            code = (
                _open_console(folder, devices=devices, port=port, until_halted=until_halted)
                if is_console
                else _play(folder, is_kept=keep, port=port)
            )
            is_over = code == 0
        except (KeyboardInterrupt, SystemExit):
            is_over = True
            raise
        finally:
            # After a failure the logs are what counts.
            if is_over and directory is None and not keep:
                shutil.rmtree(folder, ignore_errors=True)
    return code


def _play(folder: Path, *, is_kept: bool, port: int) -> int:
    from firmament.sim.demo.play import Play
    from firmament.sim.demo.world import Differs, World

    clock, out = SystemClock(), output()
    began_s = clock.monotonic_s()
    with open_screen(clock) as screen, World(folder, screen, clock, is_kept=is_kept) as world:
        try:
            played = Play(world, port=port).run()
        except Differs as error:
            world.close()
            screen.failed(str(error))
            out.document("demo", {"ok": False, "differs": str(error), "logs": str(world.logs)})
            out.note(f"\nThe demonstration did not end as it must. Logs: {world.logs}")
            return EXIT_FAILED
        if is_kept:
            world.write_running()
    _show(played, clock.monotonic_s() - began_s)
    if is_kept:
        _show_how_to_go_on(folder, played)
    return 0


def _open_console(folder: Path, *, devices: int, port: int, until_halted: bool) -> int:
    from firmament.sim.crowd.play import ConsoleDemo
    from firmament.sim.demo.world import Differs, World

    clock, out = SystemClock(), output()
    with open_screen(clock) as screen, World(folder, screen, clock) as world:
        demo = ConsoleDemo(world, devices=devices, port=port)
        try:
            opened = demo.open()
            out.note(
                f"\nConsole:   {opened.url}{opened.rollout_path}\n"
                f"Sign in:   {opened.name}   password: {opened.password}\n"
                f"CA:        {opened.ca}   (or accept the browser's warning: this server lives on your machine)\n"
                "The rollout stops by itself within a minute. Ctrl-C ends everything."
            )
            is_told = False
            for _ in demo.live():
                clock.sleep(PACE_S)
                if not is_told and (state := demo.state())["state"] == "halted":
                    is_told = True
                    out.note(f"\nStopped by itself: {state['halt']['sentence']}")
                    if until_halted:
                        out.document("demo-console", {"ok": True, "url": opened.url, "halt": state["halt"]["sentence"]})
                        return 0
        except Differs as error:
            screen.failed(str(error))
            return EXIT_FAILED
        finally:
            demo.close()
    return 0


def _show(played: Played, lasted_s: float) -> None:
    out = output()
    document = {
        "ok": True,
        "duration_s": round(lasted_s, 1),
        "server": played.url,
        "rows": [dataclasses.asdict(row) for row in played.rows],
    }
    if out.as_json or not is_live(sys.stdout, os.environ):
        out.document("demo", document, lines=out.table([cells(row) for row in played.rows], header=HEADER))
    else:
        rich_console(sys.stdout).print(table(played.rows))
    out.note(f"{len(played.rows)} outcomes, each as it must be, in {lasted_s:.0f} s.")


def _show_how_to_go_on(folder: Path, played: Played) -> None:
    from firmament.sim.device import command_path

    device_id = next(iter(played.devices.values()))
    output().note(
        f"""
The server runs on {played.url} (operator API: {played.url}/openapi.json), three devices with it.
  cd {folder}
  export PATH={Path(command_path("firmament")).parent}:$PATH
  export FIRMAMENT_WORKSPACE=author FIRMAMENT_TOKEN_FILE=secrets/token FIRMAMENT_PASSPHRASE_FILE=secrets/passphrase
  firmament device list
  firmament device show {device_id}
  firmament-agent --config devices/thermo-1/agent.toml history
  firmament release list
Stop everything: firmament demo --stop {folder}   (the folder stays; remove it when you are done)"""
    )


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind like Ctrl-C does, so that nothing is left running."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
