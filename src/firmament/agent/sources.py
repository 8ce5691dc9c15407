"""Where payload bytes may come from, behind one port: a parcel, agents nearby, caches, the server.

Nothing a source says is believed: the caller compares the bytes with what was signed. So a source
only has to say that it has nothing (more), and the next one goes on at that byte. Metadata and
chunk lists come from none of these.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from firmament.agent.resume import MAX_FRUITLESS, TransportSource
from firmament.errors import FileError, MalformedError, TooLargeError, TransferError, TruncatedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from firmament.core.digest import Digest
    from firmament.core.manifest import Payload
    from firmament.durable import Disk

PARCEL_GONE: Final = (FileError, MalformedError, TooLargeError, TruncatedError)
"""What says that a parcel is not there any more, or not what it was."""


class PayloadSource(Protocol):
    """Somewhere payload bytes may be had."""

    @property
    def name(self) -> str:
        """What the log calls it: an address or a path."""
        ...

    def stream(self, payload: Payload, *, offset: int, end: int) -> Iterator[bytes]:
        """Yield bytes from `offset` to `end`; raises SourceGoneError when it has no more of them."""
        ...


class SourceGoneError(Exception):
    """This source brings no more; `cause` is the house's error. The next source goes on."""

    def __init__(self, cause: FileError | MalformedError | TooLargeError | TransferError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class ParcelPayloads:
    """A file that somebody carried here; pulled out, it is a source that is gone."""

    def __init__(self, disk: Disk, path: str, *, piece_bytes: int) -> None:
        self._disk = disk
        self._piece_bytes = piece_bytes
        self.name: Final = path

    def stream(self, payload: Payload, *, offset: int, end: int) -> Iterator[bytes]:
        """See `PayloadSource`."""
        from firmament.agent import parcel  # a device on a network never pays for it

        try:
            yield from parcel.open_payload(
                self._disk, Path(self.name), payload, offset=offset, end=end, piece_bytes=self._piece_bytes
            )
        except PARCEL_GONE as error:
            raise SourceGoneError(error) from error


class HttpPayloads:
    """An agent nearby, a cache or a CDN: asked once, and once more only where the last answer brought something."""

    def __init__(self, base: str, source: TransportSource) -> None:
        self._source = source
        self.name: Final = base

    def stream(self, payload: Payload, *, offset: int, end: int) -> Iterator[bytes]:
        """See `PayloadSource`."""
        url = target_url(self.name, payload.target, payload.digest)
        try:
            yield from self._source.stream(
                url, offset=offset, length_bytes=payload.length_bytes, end=end, max_fruitless=1
            )
        except TransferError as error:
            raise SourceGoneError(error) from error


class ServerPayloads:
    """The server of the enrolment: the last one, so that its errors are the fetch's errors."""

    def __init__(self, base: str, source: TransportSource) -> None:
        self._source = source
        self.name: Final = base

    def stream(self, payload: Payload, *, offset: int, end: int) -> Iterator[bytes]:
        """Yield bytes from `offset` to `end`; raises TransferError."""
        url = target_url(self.name, payload.target, payload.digest)
        yield from self._source.stream(
            url, offset=offset, length_bytes=payload.length_bytes, end=end, max_fruitless=MAX_FRUITLESS
        )


def target_url(base: str, target: str, digest: Digest) -> str:
    """Return the address of a target: it follows from the signed digest alone."""
    directory, _, name = target.rpartition("/")
    return f"{base}{directory}/{digest.hex}.{name}"
