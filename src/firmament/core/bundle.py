"""Bundles: a directory tree as one deterministic tar file, and a reader that accepts nothing else.

The same tree always gives the same bytes, so an installed tree can be read back and compared
with the digest its author signed. The grammar (docs/protocol/bundle.md):

* POSIX.1-1988 ustar members, one per directory, file and symlink below the root, which has none.
* Order: depth first, names of a directory in code point order, a directory before its content.
* Every header field follows from (path, kind, executable?, length, link target). Mode is 0755 for
  directories and executables, 0644 for other files, 0777 for symlinks; owner 0/0 without names;
  time is BUNDLE_TIME. A path that ustar cannot hold (longer, or not ASCII), or such a link target,
  is in a POSIX.1-2001 extended header before the member, holding ``linkpath`` and ``path`` only.
* Two zero blocks end it; not one byte follows.

Refused with UnsafeArchiveError (trust.md §10, case 56): absolute paths, ``..``, names that clash
without regard to case, duplicates, members below a symlink, symlinks that leave the root, hard
links, devices, setuid and every header this module would not have written itself.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from firmament.errors import UnsafeArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("BLOCK", "END", "Entry", "EntryKind", "Order", "Reader", "header", "padding", "sort_key")

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
BUNDLE_TIME: Final = 315_532_800
# 1980-01-01, the earliest that zip can hold: Python's zipfile refuses to pack older files. Not the
# release's date, or the read-back would have to know it.
MAX_MEMBERS: Final = 65_536
# A Debian root file system has 40,000; the reader keeps each name in memory, 64 Ki names are 16 MiB.
MAX_PATH_LENGTH_BYTES: Final = 1024
MAX_NAME_LENGTH_BYTES: Final = 255  # NAME_MAX of Linux file systems
MAX_DEPTH: Final = 32
MAX_FILE_LENGTH_BYTES: Final = 8 * 1024**3 - 1  # eleven octal digits
_USTAR_NAME: Final = 100
_USTAR_PREFIX: Final = 155
_PAX_LIMIT: Final = 4 * MAX_PATH_LENGTH_BYTES
_REMEDY: Final = "rename or remove it before building"


class EntryKind(StrEnum):
    """What a member is; the values are ustar's type flags."""

    FILE = "0"
    SYMLINK = "2"
    DIRECTORY = "5"


@dataclass(frozen=True, slots=True)
class Entry:
    """One member. `path` is relative, ``/``-separated, without ``./`` and final slash."""

    path: str
    kind: EntryKind
    is_executable: bool = False
    """Files only; mode 0755 instead of 0644."""
    length_bytes: int = 0
    """Files only."""
    link: str = ""
    """Symlinks only: the target, relative."""

    @property
    def mode(self) -> int:
        """The permission bits that are written and restored."""
        if self.kind is EntryKind.SYMLINK:
            return 0o777
        return 0o755 if self.kind is EntryKind.DIRECTORY or self.is_executable else 0o644


def sort_key(path: str) -> tuple[str, ...]:
    """Return the key that puts members in order: depth first, code points."""
    return tuple(path.split("/"))


# --- write ---------------------------------------------------------------------------------


def header(entry: Entry) -> bytes:
    """Return the bytes before a member's content; raises UnsafeArchiveError for a member not allowed.

    The order among members is checked by `Order`.
    """
    _check_entry(entry)
    name, link = entry.path + ("/" if entry.kind is EntryKind.DIRECTORY else ""), entry.link
    records: dict[str, str] = {}
    split = _split(name)
    if split is None:
        records["path"] = name
        split = b"", name.encode("ascii", "replace")[:_USTAR_NAME]
    link_bytes = link.encode("ascii", "replace")
    if not link.isascii() or len(link_bytes) > _USTAR_NAME:
        records["linkpath"] = link
        link_bytes = link_bytes[:_USTAR_NAME]
    main = _block(split[0], split[1], entry.mode, entry.length_bytes, entry.kind.value, link_bytes)
    if not records:
        return main
    body = b"".join(_pax_record(key, records[key]) for key in sorted(records))
    return _block(b"", b"././@PaxHeader", 0o644, len(body), "x", b"") + body + padding(len(body)) + main


def padding(length_bytes: int) -> bytes:
    """Return the zeros that follow content of this length."""
    return bytes(-length_bytes % BLOCK)


class Order:
    """Checks that members come in order, each below a directory that came before; used by both sides."""

    def __init__(self) -> None:
        self._last: tuple[str, ...] = ()
        self._open: list[str] = []  # the directories on the way to the last member
        self._folded: set[str] = set()

    def accept(self, entry: Entry) -> None:
        """Take the next member; raises UnsafeArchiveError."""
        parts = sort_key(entry.path)
        if parts <= self._last:
            raise UnsafeArchiveError("Members are out of order or appear twice", path=entry.path)
        folded = unicodedata.normalize("NFKC", entry.path.casefold())
        if folded in self._folded:
            raise UnsafeArchiveError("Two names differ in case only", path=entry.path, remedy=_REMEDY)
        if len(self._folded) >= MAX_MEMBERS:
            raise UnsafeArchiveError("The bundle has too many members", limit=MAX_MEMBERS)
        parents = list(parts[:-1])
        if self._open[: len(parents)] != parents:
            raise UnsafeArchiveError("A member lies below something that is no directory", path=entry.path)
        self._open = [*parents, parts[-1]] if entry.kind is EntryKind.DIRECTORY else parents
        self._last = parts
        self._folded.add(folded)


def _check_entry(entry: Entry) -> None:
    parts = entry.path.split("/")
    for part in parts:
        _check_name(part, entry.path)
    if len(parts) > MAX_DEPTH or len(entry.path.encode()) > MAX_PATH_LENGTH_BYTES:
        raise UnsafeArchiveError("A path is too long or too deep", path=entry.path, limit_bytes=MAX_PATH_LENGTH_BYTES)
    if not 0 <= entry.length_bytes <= MAX_FILE_LENGTH_BYTES or (
        entry.length_bytes and entry.kind is not EntryKind.FILE
    ):
        raise UnsafeArchiveError("A member has a length that is not allowed", path=entry.path)
    if entry.is_executable and entry.kind is not EntryKind.FILE:
        raise UnsafeArchiveError("Only files are executable", path=entry.path)
    if entry.kind is EntryKind.SYMLINK:
        _check_link(entry, depth=len(parts) - 1)
    elif entry.link:
        raise UnsafeArchiveError("Only symlinks have a target", path=entry.path)


def _check_name(name: str, path: str) -> None:
    try:
        encoded = name.encode()
    except UnicodeEncodeError as error:
        raise UnsafeArchiveError("A name is not UTF-8", path=ascii(path), remedy=_REMEDY) from error
    if name in {"", ".", ".."} or len(encoded) > MAX_NAME_LENGTH_BYTES:
        raise UnsafeArchiveError("A path has an element that is not allowed", path=ascii(path))
    if "\\" in name or any(unicodedata.category(character) in {"Cc", "Cf", "Zl", "Zp"} for character in name):
        raise UnsafeArchiveError("A name holds a character that is not allowed", path=ascii(path), remedy=_REMEDY)
    if unicodedata.normalize("NFC", name) != name:
        raise UnsafeArchiveError("A name is not in Unicode normal form C", path=ascii(path), remedy=_REMEDY)


def _check_link(entry: Entry, *, depth: int) -> None:
    # ".." only at the front: there it climbs real directories. After a name it could climb from
    # wherever another symlink leads, out of the root.
    parts = entry.link.split("/")
    climbs = 0
    while climbs < len(parts) and parts[climbs] == "..":
        climbs += 1
    if climbs > depth:
        raise UnsafeArchiveError("A symlink leaves the root", path=entry.path, link=ascii(entry.link))
    for part in parts[climbs:]:
        _check_name(part, entry.link)
    if len(entry.link.encode()) > MAX_PATH_LENGTH_BYTES:
        raise UnsafeArchiveError("A symlink's target is too long", path=entry.path)


def _split(name: str) -> tuple[bytes, bytes] | None:
    """Return ustar's (prefix, name), the longest name that fits; None if it cannot hold it."""
    if not name.isascii():
        return None
    encoded = name.encode()
    if len(encoded) <= _USTAR_NAME:
        return b"", encoded
    cut = encoded.find(b"/", len(encoded) - _USTAR_NAME - 1)
    if cut == -1 or cut > _USTAR_PREFIX or cut == len(encoded) - 1:
        return None
    return encoded[:cut], encoded[cut + 1 :]


def _pax_record(key: str, value: str) -> bytes:
    # POSIX.1-2001 pax: "%d %s=%s\n", the number counts itself.
    rest = f" {key}={value}\n".encode()
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def _block(prefix: bytes, name: bytes, mode: int, length: int, flag: str, link: bytes) -> bytes:
    # Field widths: POSIX.1-1988 ustar, pax(1) "ustar Interchange Format".
    fields = (
        name.ljust(100, b"\0"),
        b"%07o\0" % mode,
        b"0000000\0",  # owner
        b"0000000\0",  # group
        b"%011o\0" % length,
        b"%011o\0" % BUNDLE_TIME,
        b" " * 8,
        flag.encode(),
        link.ljust(100, b"\0"),
        b"ustar\00000",
        bytes(64),  # names of owner and group
        bytes(16),  # device numbers, which only devices have
        prefix.ljust(155, b"\0"),
        bytes(12),
    )
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


# --- read ----------------------------------------------------------------------------------


class Reader:
    """Takes the bytes of a bundle in pieces of any size and gives members and their content back.

        for found in reader.feed(chunk):
            found is an Entry: a member begins; else bytes: content of the file that began last
        reader.finish()

    Every header is compared with the one `header` makes, so nothing that is not in the grammar
    gets through. Raises UnsafeArchiveError.
    """

    def __init__(self) -> None:
        self._order = Order()
        self._pending = bytearray()  # header bytes seen so far
        self._wanted = BLOCK
        self._pax: dict[str, str] | None = None
        self._content = 0
        self._padding = 0
        self._is_done = False
        self.offset_bytes = 0
        """How many bytes were fed."""

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Entry | bytes]:
        """Yield what `data` completes; content arrives in pieces."""
        view = memoryview(data)
        self.offset_bytes += len(view)
        while view:
            if self._is_done:
                raise UnsafeArchiveError("Bytes follow the end of the bundle")
            if self._content:
                piece = view[: self._content]
                self._content -= len(piece)
                yield bytes(piece)
            elif self._padding:
                piece = view[: self._padding]
                if any(piece):
                    raise UnsafeArchiveError("The padding is not zero", offset_bytes=self.offset_bytes)
                self._padding -= len(piece)
            else:
                piece = view[: self._wanted - len(self._pending)]
                self._pending += piece
                if len(self._pending) == self._wanted:
                    entry = self._take_header()
                    if entry is not None:
                        yield entry
            view = view[len(piece) :]

    def finish(self) -> None:
        """Say that no more bytes come; raises UnsafeArchiveError if the end is missing."""
        if not self._is_done:
            raise UnsafeArchiveError("The bundle ends in the middle", offset_bytes=self.offset_bytes)

    def _take_header(self) -> Entry | None:
        """Decide about the pending bytes: need more, the end, or a member."""
        seen = bytes(self._pending)
        last = seen[-BLOCK:]
        if seen in {bytes(BLOCK), END}:
            self._wanted, self._is_done = len(END), len(seen) == len(END)
            return None
        if len(seen) == BLOCK and last[156:157] == b"x":
            length = _octal(last[124:136])
            if not 0 < length <= _PAX_LIMIT:
                raise UnsafeArchiveError("An extended header has a length that is not allowed", length_bytes=length)
            self._wanted = BLOCK + length + len(padding(length)) + BLOCK
            self._pax = {}
            return None
        if self._pax is not None:
            self._pax = _pax_records(seen[BLOCK : BLOCK + _octal(seen[124:136])])
        entry = _entry(last, self._pax or {})
        if header(entry) != seen:
            raise UnsafeArchiveError("A header is not written as the release tool writes it", path=ascii(entry.path))
        self._order.accept(entry)
        self._pending.clear()
        self._wanted, self._pax = BLOCK, None
        self._content, self._padding = entry.length_bytes, len(padding(entry.length_bytes))
        return entry


def _entry(block: bytes, pax: dict[str, str]) -> Entry:
    flag = block[156:157].decode("latin-1")
    if flag not in set(EntryKind):
        raise UnsafeArchiveError("A member is neither file, directory nor symlink", type_flag=ascii(flag))
    kind = EntryKind(flag)
    prefix, name, link = _text(block[345:500]), _text(block[:100]), _text(block[157:257])
    path = pax.get("path", f"{prefix}/{name}" if prefix else name)
    if kind is EntryKind.DIRECTORY:
        path = path.removesuffix("/")
    return Entry(
        path=path,
        kind=kind,
        is_executable=kind is EntryKind.FILE and _octal(block[100:108]) == 0o755,  # noqa: PLR2004 - a mode
        length_bytes=_octal(block[124:136]),
        link=pax.get("linkpath", link),
    )


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode("latin-1")  # anything but ASCII fails when the header is compared


def _octal(field: bytes) -> int:
    digits = field.rstrip(b"\0")
    if not digits or set(digits) - set(b"01234567"):
        raise UnsafeArchiveError("A header holds a number that is not octal")
    return int(digits, 8)


def _pax_records(body: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    while body:
        digits, space, _ = body.partition(b" ")
        if not space or not digits.isdigit() or len(digits) > 5:  # noqa: PLR2004 - _PAX_LIMIT has 4 digits
            raise UnsafeArchiveError("An extended header is not well formed")
        record, body = body[: int(digits)], body[int(digits) :]
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        if not equals or not value.endswith(b"\n") or key not in {b"path", b"linkpath"}:
            raise UnsafeArchiveError("An extended header holds something else than paths", key=ascii(key[:20]))
        try:
            found[key.decode()] = value[:-1].decode()
        except UnicodeDecodeError as error:
            raise UnsafeArchiveError("An extended header is not UTF-8") from error
    return found
