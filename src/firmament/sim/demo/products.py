"""The two product lines of the demonstration: what an author's build would put on the bench.

`thermo` is a directory that the agent installs as a bundle and really runs: the program in
`thermo_app` and a configuration per version. `gateway` is a 64 MiB ext4 file system made by
mkfs.ext4, installed into A/B files. Both are the same bytes for the same version, so a release
can be made again and compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import DependencyMissingError, FileError

if TYPE_CHECKING:
    from collections.abc import Iterable

THERMO: Final = "thermo"
GATEWAY: Final = "gateway"
THERMO_APP: Final = Path(__file__).parent / "thermo_app"
IMAGE_LENGTH_BYTES: Final = 64 * 1024 * 1024
CALIBRATION_LENGTH_BYTES: Final = 12 * 1024 * 1024
# A table that the thermometer ships with; it makes a bundle long enough to cut the power inside it.
FIRMWARE_LENGTH_BYTES: Final = 16 * 1024 * 1024
MODEM_FIRMWARE: Final = "/lib/firmware/modem.bin"
"""The file whose absence makes a gateway image unhealthy."""
SYSTEM_TOOLS: Final = "/usr/local/sbin:/usr/sbin:/sbin"
# Debian leaves these out of an ordinary user's PATH.
_BUILD_TIME: Final = 1_735_689_600
# 2025-01-01T00:00:00Z: every time in an image, so that a build can be repeated.
_VOLUME_ID: Final = "0f6b1f8e-7d0a-4c6f-9a51-6a1f0c9d2e01"
_HASH_SEED: Final = "0f6b1f8e-7d0a-4c6f-9a51-6a1f0c9d2e02"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of both products."""

    name: str
    notes: str
    """For the owner of the device."""
    is_healthy: bool = True


VERSIONS: Final = (
    Version("1.0", "The first version: a LED that blinks."),
    Version("1.1", "Adds the temperature sensor."),
    Version("1.2", "Moves the sensor to a bus that no device has.", is_healthy=False),
    Version("1.3", "Blinks faster."),
    Version("1.4", "Blinks slower and saves power."),
)
_LED_HZ: Final = {"1.3": 4.0, "1.4": 0.5}


def version(name: str) -> Version:
    """Return a version of the table by its name."""
    return next(found for found in VERSIONS if found.name == name)


def build_thermo(directory: Path, wanted: Version) -> Path:
    """Write the thermometer's program for one version into a new `directory`; raises FileError."""
    configuration: dict[str, Any] = {"version": wanted.name, "led_hz": _LED_HZ.get(wanted.name, 1.0)}
    if not wanted.is_healthy:
        configuration["sensor_bus"] = "/dev/i2c-77"
    elif wanted.name != VERSIONS[0].name:
        configuration["sensor_bus"] = "simulated"
    try:
        directory.mkdir(parents=True)
        shutil.copy(THERMO_APP / "main.py", directory / "main.py")
        (directory / "app.json").write_text(json.dumps(configuration) + "\n", encoding="utf-8")
        (directory / "calibration.bin").write_bytes(_noise(f"thermo {wanted.name}", CALIBRATION_LENGTH_BYTES))
    except OSError as error:
        raise FileError("The bundle cannot be written", path=directory, reason=error.strerror or error) from error
    return directory


def build_gateway(path: Path, wanted: Version, *, workspace: Path) -> Path:
    """Write the gateway's file system image for one version to `path`.

    `workspace` is a directory for the files before they are in the image; its sub-directory is
    removed again. Raises FileError, or DependencyMissingError without e2fsprogs.
    """
    root = workspace / f"{path.name}.root"
    try:
        _write_root(root, wanted)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(IMAGE_LENGTH_BYTES)
        # hash_seed and -U: directory hashes and the volume's name are random otherwise.
        options = f"hash_seed={_HASH_SEED},root_owner=0:0,lazy_itable_init=1,nodiscard"
        run_tool(["mkfs.ext4", "-q", "-F", "-m", "0", "-L", GATEWAY, "-U", _VOLUME_ID, "-E", options, "-d", root, path])
        _settle_times(path, root)
    except OSError as error:
        raise FileError("The image cannot be built", path=path, reason=error.strerror or error) from error
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return path


def read_from_image(image: Path, name: str) -> bytes | None:
    """Return a file out of an ext4 image without mounting it, None if it holds no such file."""
    found = run_tool(["debugfs", "-R", f"cat {name}", image])
    return None if b"File not found" in found.stderr else found.stdout


def tool(name: str) -> str:
    """Return the path of a system tool; raises DependencyMissingError."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_TOOLS}")
    if found is None:
        raise DependencyMissingError(
            "A tool that the demonstration needs is not installed", missing=name, install="apt-get install e2fsprogs"
        )
    return found


def run_tool(argv: Iterable[str | Path]) -> subprocess.CompletedProcess[bytes]:
    """Run a tool of e2fsprogs with the clock of the build; raises FileError if it fails."""
    name, *rest = argv
    environment = {**os.environ, "E2FSPROGS_FAKE_TIME": str(_BUILD_TIME), "SOURCE_DATE_EPOCH": str(_BUILD_TIME)}
    done = subprocess.run([tool(str(name)), *rest], env=environment, capture_output=True, check=False, timeout=120)
    if done.returncode != 0:
        raise FileError(
            "A tool could not make or read the image", tool=name, reason=done.stderr.decode(errors="replace").strip()
        )
    return done


def _write_root(root: Path, wanted: Version) -> None:
    files = {
        "etc/os-release": f'ID=gateway\nVERSION_ID="{wanted.name}"\nPRETTY_NAME="Gateway {wanted.name}"\n'.encode(),
        "etc/gateway-version": f"{wanted.name}\n".encode(),
        "opt/gateway/main.bin": _noise(f"gateway {wanted.name}", FIRMWARE_LENGTH_BYTES),
    }
    if wanted.is_healthy:
        files[MODEM_FIRMWARE.removeprefix("/")] = _noise("modem", 64 * 1024)
    for name, data in files.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        place.chmod(0o644)
    for place in (root, *root.rglob("*")):
        if place.is_dir():
            place.chmod(0o755)
        os.utime(place, (_BUILD_TIME, _BUILD_TIME))


def _settle_times(image: Path, root: Path) -> None:
    """Overwrite the change times, which mkfs.ext4 copies from the files and nobody can set there."""
    names = ["/", *(f"/{place.relative_to(root)}" for place in sorted(root.rglob("*")))]
    script = image.with_suffix(".debugfs")
    script.write_text(
        "".join(f"sif {name} ctime @{_BUILD_TIME}\nsif {name} ctime_extra 0\n" for name in names), encoding="ascii"
    )
    try:
        run_tool(["debugfs", "-w", "-f", script, image])
    finally:
        script.unlink()


def _noise(seed: str, length_bytes: int) -> bytes:
    # Looks like compiled code to anything that would compress it, and is the same every time.
    return hashlib.shake_128(seed.encode()).digest(length_bytes)
