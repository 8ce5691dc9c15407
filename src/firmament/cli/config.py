"""Where a setting of `firmament` comes from: flag, environment, project, user, system, default.

The first of these that has it wins (console.md §4.2)::

    --server URL                     a flag of the command
    FIRMAMENT_SERVER                 its environment twin
    ./firmament.toml                 the project: the workspace's [server] section
    ~/.config/firmament/config.toml  the user: [profile.NAME], then the top level
    /etc/firmament/config.toml       the system: likewise
    default

A profile is a named set of settings, chosen by ``--profile``, FIRMAMENT_PROFILE or
``firmament config use NAME``. Secrets are never in these files, only the names of files that
hold them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from firmament.errors import FirmamentError, NotFoundError, SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PROJECT_FILE: Final = "firmament.toml"
SYSTEM_FILE: Final = Path("/etc/firmament/config.toml")
SYSTEM_FILE_VARIABLE: Final = "FIRMAMENT_SYSTEM_CONFIG"
USER_FILE_VARIABLE: Final = "FIRMAMENT_CONFIG"
PROFILE_VARIABLE: Final = "FIRMAMENT_PROFILE"
MAX_LENGTH_BYTES: Final = 64 * 1024
_PROFILE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_META: Final = "firmament.profile"


@dataclass(frozen=True, slots=True)
class Setting:
    """One row: what may be set."""

    name: str
    description: str
    variable: str
    default: str = ""
    project_name: str = ""
    """Its name in the [server] section of a workspace's firmament.toml."""
    is_path: bool = False


SETTINGS: Final = (
    Setting("server", "Address of the server, https://HOST:PORT.", "FIRMAMENT_SERVER", project_name="url"),
    Setting("ca", "PEM file of the CA of the server's certificate.", "FIRMAMENT_CA", project_name="ca", is_path=True),
    Setting("token_file", "File (mode 0600) with an operator token.", "FIRMAMENT_TOKEN_FILE", is_path=True),
    Setting("workspace", "The author's workspace.", "FIRMAMENT_WORKSPACE", default=".", is_path=True),
    Setting("color", "auto, always or never.", "FIRMAMENT_COLOR", default="auto"),
    Setting("profile", "The profile in use.", PROFILE_VARIABLE),
)
NAMES: Final = tuple(setting.name for setting in SETTINGS)


@dataclass(frozen=True, slots=True)
class Found:
    """A value and where it is from."""

    name: str
    value: str
    origin: str


def user_file() -> Path:
    """Return the user's settings file, whether it exists or not."""
    named = os.environ.get(USER_FILE_VARIABLE)
    return Path(named) if named else Path(click.get_app_dir("firmament")) / "config.toml"


def system_file() -> Path:
    """Return the system's settings file."""
    return Path(os.environ.get(SYSTEM_FILE_VARIABLE) or SYSTEM_FILE)


def choose_profile(name: str | None) -> None:
    """Remember ``--profile`` for this run; raises SettingError for a name that cannot be one."""
    if name:
        click.get_current_context().find_root().meta[_META] = _checked(name)


def lookup(name: str, *, given: object = None, project: Path | None = None) -> Found:
    """Return the value in force of one setting, given what the command's flag said (None: nothing).

    `project` is the directory whose firmament.toml counts, the current one by default. Raises
    SettingError for a file that cannot be read as settings.
    """
    setting = next(row for row in SETTINGS if row.name == name)
    found = next(_sources(setting, given, project or Path()), None)
    return found or Found(name, setting.default, "default")


def everything() -> list[Found]:
    """Return every setting in force."""
    return [lookup(name) for name in NAMES]


def _sources(setting: Setting, given: object, project: Path) -> Iterator[Found]:
    if given is not None:
        yield Found(setting.name, str(given), "flag")
    if setting.name == "profile":
        chosen = _chosen_by_flag()
        if chosen:
            yield Found(setting.name, chosen, "flag --profile")
    if value := os.environ.get(setting.variable, "").strip():
        yield Found(setting.name, value, f"environment {setting.variable}")
    if setting.project_name:
        path = project / PROJECT_FILE
        section = read(path).get("server")
        if isinstance(section, dict) and section.get(setting.project_name):
            yield Found(setting.name, _resolved(setting, section[setting.project_name], path), f"project {path}")
    profile = "" if setting.name == "profile" else profile_name()
    for what, path in (("user", user_file()), ("system", system_file())):
        table = read(path)
        of_profile = table.get("profile_settings", {}).get(profile, {}) if profile else {}
        if named := of_profile.get(setting.name):
            yield Found(setting.name, _resolved(setting, named, path), f"profile {profile} in {path}")
        if named := table.get(setting.name):
            yield Found(setting.name, _resolved(setting, named, path), f"{what} {path}")


def profile_name() -> str:
    """Return the profile in use, empty for none; raises NotFoundError if no file has it."""
    name = lookup("profile").value
    if name and not any(name in read(path).get("profile_settings", {}) for path in (user_file(), system_file())):
        raise NotFoundError("There is no such profile", profile=name, file=user_file())
    return name


def _chosen_by_flag() -> str:
    context = click.get_current_context(silent=True)
    return "" if context is None else str(context.find_root().meta.get(_META, ""))


def _resolved(setting: Setting, value: object, file: Path) -> str:
    if not isinstance(value, str):
        raise SettingError("The setting must be a text", setting=setting.name, path=file)
    # A relative path in a file is meant from where the file is, not from where one happens to stand.
    return str(file.parent / Path(value).expanduser()) if setting.is_path else value


def read(path: Path) -> dict[str, Any]:
    """Return a file's settings, empty if there is none; profiles are in ``profile_settings``.

    ``profile`` is two things in TOML: the text that `config use` writes, and the tables
    ``[profile.NAME]``; a file with both keeps the text under ``use``.
    """
    from firmament.core import toml
    from firmament.durable import RealDisk, read_file

    disk = RealDisk()
    if not disk.exists(path):
        return {}
    try:
        table = toml.decode(
            read_file(disk, path, limit_bytes=MAX_LENGTH_BYTES), limit_bytes=MAX_LENGTH_BYTES, what=path.name
        )
    except FirmamentError as error:
        raise SettingError(error.problem, **{**error.facts, "path": path}) from error
    if path.name == PROJECT_FILE:
        return table
    profiles = table.pop("profile", {})
    if not isinstance(profiles, dict) or not all(isinstance(item, dict) for item in profiles.values()):
        raise SettingError("Profiles are sections, [profile.NAME]", path=path)
    unknown = set(table) - set(NAMES) - {"use"}
    unknown |= {name for item in profiles.values() for name in set(item) - set(NAMES)}
    if unknown:
        raise SettingError("There is no such setting", setting=min(unknown), path=path)
    return {**table, "profile": table.get("use", ""), "profile_settings": profiles}


def write(path: Path, changes: Mapping[str, str | None], *, profile: str = "") -> None:
    """Set values in a settings file, None takes one out; every other line stays as it is."""
    from firmament.durable import RealDisk, make_directory_durably, read_file, replace_durably

    read(path)  # refuse to touch what is not ours
    disk = RealDisk()
    lines = []
    if disk.exists(path):
        lines = read_file(disk, path, limit_bytes=MAX_LENGTH_BYTES).decode().splitlines()
    section = f"[profile.{_checked(profile)}]" if profile else ""
    for name, value in changes.items():
        lines = _with(lines, section, name, value)
    make_directory_durably(disk, path.parent)
    replace_durably(disk, path, ("\n".join(lines).strip() + "\n").encode())


def _with(lines: list[str], section: str, name: str, value: str | None) -> list[str]:
    """Return the lines with ``name = value`` in `section`, the top level for an empty one."""
    here, found = section == "", False
    end: int | None = None
    kept: list[str] = []
    for line in lines:
        if line.strip().startswith("["):
            if here and end is None:
                end = len(kept)
            here = line.strip() == section
            if here:
                end = None
        if here and re.match(rf"\s*{re.escape(name)}\s*=", line):
            found = True
            if value is not None:
                kept.append(f"{name} = {_quoted(value)}")
            continue
        kept.append(line)
    if found or value is None:
        return kept
    if section and section not in {line.strip() for line in lines}:
        return [*kept, *([""] if kept else []), section, f"{name} = {_quoted(value)}"]
    place = len(kept) if end is None else end
    while place and not kept[place - 1].strip():
        place -= 1
    return [*kept[:place], f"{name} = {_quoted(value)}", *kept[place:]]


def _quoted(text: str) -> str:
    """Spell a TOML basic string, which is JSON's but for a few escapes that nothing here needs."""
    import json

    return json.dumps(text, ensure_ascii=False)


def _checked(name: str) -> str:
    if not _PROFILE_NAME.fullmatch(name):
        raise SettingError("This cannot be the name of a profile", found=name, expected="e.g. prod, lab-2")
    return name
