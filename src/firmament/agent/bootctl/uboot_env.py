"""U-Boot's environment on storage: the format, and how a copy is replaced.

Byte-compatible with U-Boot (env/common.c, env_import_redund) and with libubootenv's
fw_printenv and fw_setenv, and configured by the same ``fw_env.config``:

    single      CRC-32 (4 bytes, little endian) | name=value NUL ... NUL | padding
    redundant   CRC-32 | flags (1 byte)         | name=value NUL ... NUL | padding

The CRC covers what follows the header. Of two valid copies the one with the higher flags counts,
0 being the successor of 255. A change is written whole into the *other* copy with flags + 1: as
long as its CRC is wrong, because the power went in the middle, the old copy counts. So a
redundant environment is atomic on any storage, without trust in sectors or file systems.

A single copy is written in place; power lost in the middle leaves a wrong CRC, and U-Boot falls
back to its compiled-in variables. It is refused unless the settings accept that risk.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from firmament.errors import BootControlError, SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from firmament.durable import Disk

MAX_CONFIG_BYTES: Final = 16 * 1024
# fw_env.config has one line per copy and comments; Debian's template is 1 KiB.
MIN_ENVIRONMENT_BYTES: Final = 64
MAX_ENVIRONMENT_BYTES: Final = 1024 * 1024
# CONFIG_ENV_SIZE is 4 KiB to 512 KiB on the boards in U-Boot's tree.
_CRC: Final = struct.Struct("<I")
_CRC_FLAGS: Final = struct.Struct("<IB")
_FLAGS: Final = 256
_REDUNDANT_COPIES: Final = 2


@dataclass(frozen=True, slots=True)
class Place:
    """Where one copy of the environment lies."""

    path: Path
    offset: int
    length_bytes: int


def parse_config(text: str) -> tuple[Place, ...]:
    """Read ``fw_env.config``: device, offset, size [, sector size [, sectors]] per copy; ``#`` comments.

    As fw_printenv reads it: the offset is decimal, or hexadecimal after ``0x``; the size is
    always hexadecimal. Raises SettingError for what it cannot mean, and for MTD character
    devices, which must be erased before they are written.
    """
    places: list[Place] = []
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            path, offset, length = Path(words[0]), int(words[1], 0), int(words[2], 16)
        except (IndexError, ValueError):
            raise SettingError("A line of fw_env.config is not `device offset size`", line=line[:80]) from None
        if not path.is_absolute() or offset < 0 or not MIN_ENVIRONMENT_BYTES <= length <= MAX_ENVIRONMENT_BYTES:
            raise SettingError("A line of fw_env.config is out of range", line=line[:80])
        if path.name.startswith("mtd") and not path.name.startswith("mtdblock"):
            raise SettingError("MTD character devices are not supported for the environment", device=path)
        places.append(Place(path, offset, length))
    if len(places) not in {1, _REDUNDANT_COPIES} or len({place.length_bytes for place in places}) != 1:
        raise SettingError("fw_env.config must name one or two copies of the same size", found=len(places))
    first, last = places[0], places[-1]
    if first is not last and first.path == last.path and abs(first.offset - last.offset) < first.length_bytes:
        raise SettingError("The two copies in fw_env.config overlap", device=first.path)
    return tuple(places)


def decode_copy(data: bytes, *, redundant: bool) -> tuple[dict[str, bytes], int] | None:
    """Return the variables and flags of one copy, None if its CRC is wrong."""
    header = _CRC_FLAGS if redundant else _CRC
    body = data[header.size :]
    crc, *rest = header.unpack_from(data)
    if zlib.crc32(body) != crc:
        return None
    variables: dict[str, bytes] = {}
    for entry in body.split(b"\0"):
        if not entry:
            break  # an empty entry ends the list; what follows is padding
        name, equals, value = entry.partition(b"=")
        if name and equals:
            variables[name.decode("latin-1")] = value
    return variables, rest[0] if rest else 0


def encode_copy(variables: Mapping[str, bytes], *, length_bytes: int, flags: int | None) -> bytes:
    """Return one copy, variables sorted as fw_setenv and U-Boot write them; `flags` None: single."""
    entries = sorted((name.encode("latin-1"), value) for name, value in variables.items())
    body = b"".join(name + b"=" + value + b"\0" for name, value in entries) + b"\0"
    header = _CRC if flags is None else _CRC_FLAGS
    room = length_bytes - header.size
    if len(body) > room:
        raise BootControlError("The U-Boot environment is full", needed_bytes=len(body), size_bytes=room)
    body = body.ljust(room, b"\0")
    crc = zlib.crc32(body)
    return (_CRC.pack(crc) if flags is None else _CRC_FLAGS.pack(crc, flags)) + body


def newer(first: int, second: int) -> int:
    """Return 0 or 1: which of two valid copies counts, by their flags (env_import_redund)."""
    if (first, second) == (_FLAGS - 1, 0):
        return 1
    if (first, second) == (0, _FLAGS - 1):
        return 0
    return 1 if second > first else 0


class UBootEnvironment:
    """The environment at the places that fw_env.config names."""

    def __init__(self, disk: Disk, places: Sequence[Place], *, accept_single_copy: bool = False) -> None:
        if len(places) == 1 and not accept_single_copy:
            raise SettingError(
                "A single copy of the U-Boot environment does not survive a power cut while it is written",
                setting="accept_single_copy",
                advice="use CONFIG_SYS_REDUNDAND_ENVIRONMENT and two lines in fw_env.config",
            )
        self._disk = disk
        self._places = tuple(places)

    def read(self) -> dict[str, bytes]:
        """Return the variables; raises BootControlError when no copy is valid.

        Nothing is guessed then: writing only our own variables would take the board's compiled-in
        ones away. ``saveenv`` in U-Boot, or ``fw_setenv -f`` with its defaults, makes a first copy.
        """
        return self._read()[0]

    def write(self, variables: Mapping[str, bytes]) -> None:
        """Replace the environment, atomically if it is redundant."""
        _, current, flags = self._read()
        if len(self._places) == 1:
            self._write(0, encode_copy(variables, length_bytes=self._places[0].length_bytes, flags=None))
            return
        self._write(
            1 - current,
            encode_copy(variables, length_bytes=self._places[0].length_bytes, flags=(flags + 1) % _FLAGS),
        )

    def _read(self) -> tuple[dict[str, bytes], int, int]:
        redundant = len(self._places) == _REDUNDANT_COPIES
        copies = [decode_copy(self._bytes(place), redundant=redundant) for place in self._places]
        valid = [index for index, copy in enumerate(copies) if copy is not None]
        if not valid:
            raise BootControlError(
                "The U-Boot environment has no valid copy; run saveenv in U-Boot once",
                places=" ".join(str(place.path) for place in self._places),
            )
        current = valid[0]
        if len(valid) == _REDUNDANT_COPIES:
            assert copies[0] is not None
            assert copies[1] is not None
            current = newer(copies[0][1], copies[1][1])
        found = copies[current]
        assert found is not None
        return found[0], current, found[1]

    def _bytes(self, place: Place) -> bytes:
        reader = self._disk.open_reader(place.path)
        try:
            data = reader.read_at(place.offset, place.length_bytes)
        finally:
            reader.close()
        if len(data) != place.length_bytes:
            raise BootControlError(
                "The U-Boot environment lies past the end of its device",
                path=place.path,
                offset=place.offset,
                size_bytes=place.length_bytes,
            )
        return data

    def _write(self, index: int, data: bytes) -> None:
        place = self._places[index]
        writer = self._disk.open_writer(place.path, create=False)
        try:
            writer.write_at(place.offset, data)
            writer.sync()
        finally:
            writer.close()
