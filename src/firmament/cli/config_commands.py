"""``firmament config``: see, set and choose settings of this command."""

from __future__ import annotations

from pathlib import Path

import click

from firmament.cli import config
from firmament.cli.common import output, output_options
from firmament.errors import NotFoundError

_setting = click.argument("name", type=click.Choice(config.NAMES))


@click.group("config")
def group() -> None:
    """List, get and set settings of this command; choose a profile."""


@group.command("list")
@click.option("--origin", is_flag=True, help="Say where each value is from.")
@output_options
def list_(origin: bool) -> None:  # noqa: FBT001 - click's shape
    """List the settings in force."""
    out, found = output(), config.everything()
    rows = [[item.name, item.value, *([item.origin] if origin else [])] for item in found]
    out.document(
        "config",
        {"settings": [{"name": item.name, "value": item.value, "origin": item.origin} for item in found]},
        lines=out.table(rows, header=["SETTING", "VALUE", *(["ORIGIN"] if origin else [])]),
    )


@group.command()
@_setting
@output_options
def get(name: str) -> None:
    """Print the value in force of one setting."""
    found = config.lookup(name)
    output().document(
        "config",
        {"settings": [{"name": found.name, "value": found.value, "origin": found.origin}]},
        lines=[found.value],
    )


@group.command("set")
@_setting
@click.argument("value")
@click.option("--profile", default="", help="In this profile; without it for all.")
@click.option("--system", is_flag=True, help="In the system's file instead of yours.")
@output_options
def set_(name: str, value: str, profile: str, system: bool) -> None:  # noqa: FBT001 - click's shape
    """Set NAME to VALUE in your settings file; an empty VALUE takes it out."""
    path = config.system_file() if system else config.user_file()
    if name == "profile":
        raise click.UsageError("A profile is chosen with `firmament config use NAME`")
    if next(row for row in config.SETTINGS if row.name == name).is_path and value:
        value = str(Path(value).absolute())
    config.write(path.absolute(), {name: value or None}, profile=profile)
    found = {"name": name, "value": value, "origin": str(path)}
    output().document("config", {"settings": [found]}, lines=[f"{name} = {value}   ({path})"])
    output().next_command("firmament config list --origin")


@group.command()
@click.argument("profile", default="")
@output_options
def use(profile: str) -> None:
    """Use the settings of PROFILE from now on; without PROFILE, of none."""
    path = config.user_file()
    known = {name for each in (path, config.system_file()) for name in config.read(each).get("profile_settings", {})}
    if profile and profile not in known:
        raise NotFoundError("There is no such profile", profile=profile, known=" ".join(sorted(known)) or "none")
    config.write(path.absolute(), {"use": profile or None})
    found = {"name": "profile", "value": profile, "origin": str(path)}
    output().document("config", {"settings": [found]}, lines=[f"Using profile {profile or 'none'}."])


@group.command()
@output_options
def path() -> None:
    """Print where settings are looked for, strongest first."""
    places = {
        "project": str((Path() / config.PROJECT_FILE).absolute()),
        "user": str(config.user_file()),
        "system": str(config.system_file()),
    }
    lines = [f"{what:8} {place}{'' if Path(place).exists() else '   (not there)'}" for what, place in places.items()]
    output().document("config-path", places, lines=lines)
