"""The table of payload methods: how image bytes travel (architecture.md decision 8).

    method = METHODS["refdelta/1"]
    payload = method.encode(old_bytes, new_bytes)                       # author's bench
    for offset, data in method.apply(job, start=stored):                # device
        slot.write_at(offset, data)

A method is a value: name, format version, encoder, applier, a bound on the device's memory. Every
applier yields the image from any byte on, so that the one number of bytes already durable is the
whole resumable state; whatever it has to do again after a power cut it does without fetching.

`whole`, `xz`, `inplace` and `refdelta` need the standard library only. The others are libraries that win on
some pairs (docs/performance/delta.md); a device that has them says so (`applicable`), and is then
offered their payloads too.
"""

from __future__ import annotations

import importlib.util
import io
import lzma
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import (
    DependencyMissingError,
    MalformedPayloadError,
    PrecursorMismatchError,
    UnknownMethodError,
)
from firmament.payload.readers import Reader, read_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB: Final = 1024**2
PIECE_LENGTH_BYTES: Final = 64 * 1024
XZ_DICTIONARY_BYTES: Final = 8 * MIB
_XZ_MEMORY_BYTES: Final = 10 * MIB


@dataclass(frozen=True, slots=True)
class Job:
    """What an applier works on; the lengths are the signed ones, and ceilings."""

    payload: Reader
    payload_length_bytes: int
    image_length_bytes: int
    precursor: Reader | None = None
    precursor_length_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the table."""

    name: str
    version: int
    is_delta: bool
    encode: Callable[[bytes, bytes], bytes]
    """(precursor or empty, image) -> payload; on the author's bench, all in memory."""
    open: Callable[[Job], Iterator[bytes]] | None
    """The image from its beginning, in pieces of any length; None if `resume` does it."""
    resume: Callable[[Job, int], Iterator[tuple[int, bytes]]] | None
    """The image from a byte on."""
    memory_bytes: Callable[[Job], int]
    """Upper bound on what applying adds to the device's memory."""
    library: str | None = None
    """Package that the device needs beside this one."""
    works: Callable[[], bool] = lambda: True
    """Whether what is there does as the method needs."""
    pays: Callable[[bytes, bytes], bool] = lambda _old, _new: True
    """Whether making a payload can be worth its time; told in a small part of it."""

    @property
    def key(self) -> str:
        """``name/version``, as devices state it."""
        return f"{self.name}/{self.version}"

    def is_available(self) -> bool:
        """Whether this machine has what the method needs."""
        return (self.library is None or importlib.util.find_spec(self.library) is not None) and self.works()

    def apply(self, job: Job, *, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) of the image in order, from `start` to its end and not a byte more.

        Raises MalformedPayloadError, PrecursorMismatchError, DependencyMissingError, and what the
        readers raise. That the image is the signed one is for the caller to check.
        """
        if not self.is_available():
            raise DependencyMissingError("This payload method needs a package", method=self.key, package=self.library)
        if self.is_delta and job.precursor is None:
            raise PrecursorMismatchError("A delta needs the image it starts from", method=self.key)
        if self.resume is not None:
            yield from self.resume(job, start)
            return
        assert self.open is not None
        offset = 0
        for piece in self.open(job):
            end = offset + len(piece)
            if end > job.image_length_bytes:
                raise MalformedPayloadError("A payload makes more than the signed image", limit=job.image_length_bytes)
            if end > start:
                first = max(start - offset, 0)
                yield offset + first, piece[first:] if first else piece
            offset = end
        if offset != job.image_length_bytes:
            raise MalformedPayloadError(
                "A payload makes less than the signed image", expected=job.image_length_bytes, got=offset
            )


def find(name: str, version: int) -> Method:
    """Return the row a manifest names; raises UnknownMethodError."""
    method = METHODS.get(f"{name}/{version}")
    if method is None:
        raise UnknownMethodError("The payload's method is not known", method=name, version=version)
    return method


def applicable(*, memory_bytes: int | None = None) -> tuple[str, ...]:
    """Return what this device states it can apply, best first.

    `memory_bytes` leaves out methods that may need more for an image of 64 MiB.
    """
    sample = Job(NOTHING, 64 * MIB, 64 * MIB, NOTHING, 64 * MIB)
    return tuple(
        method.key
        for method in METHODS.values()
        if method.is_available() and (memory_bytes is None or method.memory_bytes(sample) <= memory_bytes)
    )


class _Nothing:
    def read_at(self, offset: int, length_bytes: int) -> bytes:  # noqa: ARG002 - an empty reader
        return b""


NOTHING: Final = _Nothing()
"""A reader without bytes, where only the lengths of a `Job` are asked about."""


# --- whole images ----------------------------------------------------------------------------


def _resume_whole(job: Job, start: int) -> Iterator[tuple[int, bytes]]:
    if job.payload_length_bytes != job.image_length_bytes:
        raise MalformedPayloadError("A whole payload is the image itself", expected=job.image_length_bytes)
    while start < job.image_length_bytes:
        piece = job.payload.read_at(start, min(PIECE_LENGTH_BYTES, job.image_length_bytes - start))
        if not piece:
            raise MalformedPayloadError("A payload is cut short", offset=start)
        yield start, piece
        start += len(piece)


def _encode_xz(_: bytes, image: bytes) -> bytes:
    preset = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": XZ_DICTIONARY_BYTES}
    return lzma.compress(image, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=[preset])


def _open_xz(job: Job) -> Iterator[bytes]:
    try:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
        offset = 0
        while not decoder.eof:
            data = b""
            if decoder.needs_input:
                data = job.payload.read_at(offset, min(PIECE_LENGTH_BYTES, job.payload_length_bytes - offset))
                offset += len(data)
                if not data:
                    raise MalformedPayloadError("A payload is cut short", offset=offset)
            piece = decoder.decompress(data, PIECE_LENGTH_BYTES)
            if piece:
                yield piece
    except (lzma.LZMAError, EOFError) as error:
        raise MalformedPayloadError("A payload does not decompress", reason=error) from error
    if decoder.unused_data or offset != job.payload_length_bytes:
        raise MalformedPayloadError("A payload goes on after its end", length=job.payload_length_bytes)


# --- refdelta --------------------------------------------------------------------------------


def _encode_refdelta(old: bytes, new: bytes) -> bytes:
    _need("numpy", "hdiffpatch")
    from firmament.payload.refdelta.encoder import encode

    return encode(old, new)


def _resume_refdelta(job: Job, start: int) -> Iterator[tuple[int, bytes]]:
    from firmament.payload.refdelta.applier import Applier  # a device that asks what there is need not load it

    assert job.precursor is not None
    applier = Applier(
        job.payload,
        job.payload_length_bytes,
        job.precursor,
        precursor_length_bytes=job.precursor_length_bytes,
        image_length_bytes=job.image_length_bytes,
    )
    yield from applier.pieces(start=start)


def _zlib_is_classic() -> bool:
    from firmament.payload.refdelta.repack import deflate_is_classic

    return deflate_is_classic()


def _encode_refdelta_2(old: bytes, new: bytes) -> bytes:
    _need("numpy", "hdiffpatch")
    from firmament.payload.refdelta.outer import encode

    return encode(old, new)


def _pays(old: bytes, new: bytes) -> bool:
    from firmament.payload.refdelta.outer import pays

    return pays(old, new)


def _resume_refdelta_2(job: Job, start: int) -> Iterator[tuple[int, bytes]]:
    from firmament.payload.refdelta.container import ViewApplier  # as above

    assert job.precursor is not None
    applier = ViewApplier(
        job.payload,
        job.payload_length_bytes,
        job.precursor,
        precursor_length_bytes=job.precursor_length_bytes,
        image_length_bytes=job.image_length_bytes,
    )
    yield from applier.pieces(start=start)


# --- in place --------------------------------------------------------------------------------


def _encode_inplace(old: bytes, new: bytes) -> bytes:
    _need("numpy", "hdiffpatch")
    from firmament.payload.inplace.encoder import encode

    return encode(old, new)


def _is_for_microcontrollers(old: bytes, new: bytes) -> bool:
    from firmament.payload.inplace.encoder import is_for

    return is_for(old, new)


def _open_inplace(job: Job) -> Iterator[bytes]:
    """Make it in memory: a device that has room for both images has room for this too (16 MiB at most)."""
    from firmament.payload.inplace.applier import image

    assert job.precursor is not None
    yield image(job.payload, job.payload_length_bytes, job.precursor, image_length_bytes=job.image_length_bytes)


# --- libraries -------------------------------------------------------------------------------


def _need(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise DependencyMissingError("Making this payload needs a package", package=package, extra="delta")


def _library(name: str) -> Any:
    _need(name)
    return import_module(name)


def _inputs(job: Job) -> tuple[bytes, bytes]:
    assert job.precursor is not None
    old = read_all(job.precursor, job.precursor_length_bytes)
    return old, read_all(job.payload, job.payload_length_bytes)


def _encode_hdiff(old: bytes, new: bytes) -> bytes:
    library = _library("hdiffpatch")
    found: bytes = library.diff(old, new, compression=library.COMPRESSION_LZMA2, validate=False)
    return found


def _open_hdiff(job: Job) -> Iterator[bytes]:
    library = _library("hdiffpatch")
    old, payload = _inputs(job)
    try:
        yield library.apply(old, payload)
    except (library.HDiffPatchError, ValueError, RuntimeError) as error:
        raise MalformedPayloadError("A payload does not apply", reason=error) from error


def _encode_bsdiff(old: bytes, new: bytes) -> bytes:
    found: bytes = _library("bsdiff4").diff(old, new)
    return found


def _open_bsdiff(job: Job) -> Iterator[bytes]:
    library = _library("bsdiff4")
    old, payload = _inputs(job)
    try:
        yield library.patch(old, payload)
    except (ValueError, OSError, RuntimeError) as error:
        raise MalformedPayloadError("A payload does not apply", reason=error) from error


def _encode_zstd(old: bytes, new: bytes) -> bytes:
    library = _library("zstandard")
    window = max(10, min(31, (len(old) + len(new)).bit_length()))
    settings = library.ZstdCompressionParameters.from_level(
        19, window_log=window, enable_ldm=True, write_checksum=False, write_content_size=True
    )
    words = library.ZstdCompressionDict(old, dict_type=library.DICT_TYPE_RAWCONTENT) if old else None
    found: bytes = library.ZstdCompressor(compression_params=settings, dict_data=words).compress(new)
    return found


def _open_zstd(job: Job) -> Iterator[bytes]:
    library = _library("zstandard")
    old, payload = _inputs(job)
    words = library.ZstdCompressionDict(old, dict_type=library.DICT_TYPE_RAWCONTENT)
    decoder = library.ZstdDecompressor(dict_data=words, max_window_size=1 << 31)
    try:
        yield from decoder.read_to_iter(payload, write_size=PIECE_LENGTH_BYTES)
    except library.ZstdError as error:
        raise MalformedPayloadError("A payload does not apply", reason=error) from error


def _encode_detools(old: bytes, new: bytes) -> bytes:
    import tempfile

    library = _library("detools")
    with tempfile.TemporaryDirectory() as directory:
        names = [Path(directory, name) for name in ("old", "new", "payload")]
        names[0].write_bytes(old)
        names[1].write_bytes(new)
        # hdiffpatch is the better matcher, but maps its files into memory, which an empty one cannot be
        kind = {"algorithm": "hdiffpatch", "patch_type": "hdiffpatch"} if old and new else {}
        library.create_patch_filenames(*map(str, names), compression="lzma", **kind)
        return names[2].read_bytes()


def _open_detools(job: Job) -> Iterator[bytes]:
    library = _library("detools")
    old, payload = _inputs(job)
    out = io.BytesIO()
    try:
        library.apply_patch(io.BytesIO(old), io.BytesIO(payload), out)
    except (library.Error, ValueError, EOFError, lzma.LZMAError) as error:
        raise MalformedPayloadError("A payload does not apply", reason=error) from error
    yield out.getvalue()


def _everything(job: Job) -> int:
    return 2 * MIB + job.payload_length_bytes + job.precursor_length_bytes + 2 * job.image_length_bytes


def _two(_: Job) -> int:
    return 48 * MIB


_ROWS: Final = (
    Method("refdelta", 2, True, _encode_refdelta_2, None, _resume_refdelta_2, _two, None, _zlib_is_classic, _pays),  # noqa: FBT003
    Method("refdelta", 1, True, _encode_refdelta, None, _resume_refdelta, lambda _: 32 * MIB),  # noqa: FBT003 - a table
    Method("hdiff", 1, True, _encode_hdiff, _open_hdiff, None, _everything, "hdiffpatch"),  # noqa: FBT003
    Method("detools", 1, True, _encode_detools, _open_detools, None, _everything, "detools"),  # noqa: FBT003
    Method("bsdiff", 1, True, _encode_bsdiff, _open_bsdiff, None, _everything, "bsdiff4"),  # noqa: FBT003
    Method("zstd-patch", 1, True, _encode_zstd, _open_zstd, None, _everything, "zstandard"),  # noqa: FBT003
    Method(
        "inplace",
        1,
        True,  # noqa: FBT003
        _encode_inplace,
        _open_inplace,
        None,
        lambda job: MIB + 2 * job.image_length_bytes,
        pays=_is_for_microcontrollers,
    ),
    Method("xz", 1, False, _encode_xz, _open_xz, None, lambda _: 12 * MIB),  # noqa: FBT003
    Method("whole", 1, False, lambda _, image: image, None, _resume_whole, lambda _: MIB),  # noqa: FBT003
)
IN_PLACE: Final = "inplace/1"
"""For devices with one slot: only made when asked for, with the flash of those devices (`inplace.encoder.Shape`)."""
METHODS: Final = {method.key: method for method in _ROWS}
"""Every method, by ``name/version``. A version is never changed, only added."""
