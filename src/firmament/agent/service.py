"""Install the agent as a systemd service, in Debian's places, below any root directory.

Ours are the unit, sysusers and tmpfiles: they are replaced when they differ (local changes belong
into drop-ins). The settings are the owner's: a skeleton is written once and never touched again.
Nothing is started or enabled: in an image under construction there is nobody to ask.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from firmament.agent.settings import SETTINGS
from firmament.durable import PRIVATE_MODE, PUBLIC_MODE, RealDisk, make_directory_durably, read_file, replace_durably
from firmament.errors import FirmamentError

if TYPE_CHECKING:
    from firmament.durable import Disk

PROGRAM: Final = "firmament-agent"
SHIPPED_PROGRAM: Final = "/usr/bin/firmament-agent"
SETTINGS_FILE: Final = "etc/firmament/agent.toml"
FILES: Final = {
    "firmament-agent.service": "etc/systemd/system/firmament-agent.service",
    "firmament-agent.sysusers": "etc/sysusers.d/firmament-agent.conf",
    "firmament-agent.tmpfiles": "etc/tmpfiles.d/firmament-agent.conf",
}
DIRECTORIES: Final = {"etc/firmament/hooks": 0o755, "var/lib/firmament": 0o700}
MAX_UNIT_LENGTH_BYTES: Final = 64 * 1024
_NEEDED: Final = frozenset({"slots", "boot"})


@dataclass(frozen=True, slots=True)
class Step:
    """What was done to one path: ``wrote``, ``updated``, ``unchanged`` or ``kept``."""

    did: str
    path: Path


def install(root: Path, *, disk: Disk | None = None, program: str | None = None) -> list[Step]:
    """Write everything below `root`; returns what was done. Raises FileError, ReadOnlyError or DiskFullError."""
    disk = disk or RealDisk()
    program = program or program_path(root)
    steps = []
    for directory, mode in DIRECTORIES.items():
        path = root / directory
        steps.append(Step("unchanged" if disk.exists(path) else "wrote", path))
        make_directory_durably(disk, path, mode=mode)
    for name, place in FILES.items():
        text = unit(name).replace(SHIPPED_PROGRAM, program)
        steps.append(_put(disk, root / place, text.encode()))
    path = root / SETTINGS_FILE
    if disk.exists(path):
        steps.append(Step("kept", path))
    else:
        make_directory_durably(disk, path.parent, mode=0o755)
        replace_durably(disk, path, skeleton().encode(), mode=PRIVATE_MODE)
        steps.append(Step("wrote", path))
    return steps


def unit(name: str) -> str:
    """Return a file of ``units/`` as it is shipped."""
    return resources.files("firmament.agent").joinpath("units", name).read_text()


def program_path(root: Path) -> str:
    """Return where the service finds the command: that of this interpreter, if `root` holds it."""
    beside = Path(sys.executable).with_name(PROGRAM)
    found = str(beside) if beside.exists() else shutil.which(PROGRAM)
    if found is None:
        return SHIPPED_PROGRAM
    if root == Path("/"):
        return found
    return f"/{Path(found).relative_to(root)}" if Path(found).is_relative_to(root) else SHIPPED_PROGRAM


def skeleton() -> str:
    """Return a settings file in which every setting stands with its default, as a comment."""
    lines = [
        "# Settings of the Firmament agent. Every setting is shown with its default.",
        "# [slots] and [boot] must be filled in; whom to trust is provisioned, not set here.",
    ]
    for section, rows in itertools.groupby(SETTINGS, key=lambda setting: setting.section):
        if section:
            header = f"[[{section}]]" if section == "health" else f"[{section}]"
            lines += ["", header if section in _NEEDED else f"# {header}"]
        for row in rows:
            only = f" ({row.only} only)" if row.only else ""
            lines.append(f"# {row.description}{only}")
            value = row.default if _is_toml(row.default) else f"…  # {row.default}"
            lines.append(f"#{row.name} = {value}")
    return "\n".join(lines) + "\n"


def _is_toml(default: str) -> bool:
    return default[0] in '"[{0123456789' or default in {"true", "false"}


def _put(disk: Disk, path: Path, data: bytes) -> Step:
    before = b""
    if disk.exists(path):
        try:
            before = read_file(disk, path, limit_bytes=MAX_UNIT_LENGTH_BYTES)
        except FirmamentError:
            before = b"?"
        if before == data:
            return Step("unchanged", path)
    make_directory_durably(disk, path.parent, mode=0o755)
    replace_durably(disk, path, data, mode=PUBLIC_MODE)
    return Step("updated" if before else "wrote", path)
