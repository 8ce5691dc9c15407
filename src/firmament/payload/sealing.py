"""Describe a sealed payload: what the author signs about a container and what is inside.

    sealed, chunk_list = seal_payload(reader, payload, key, file.write)

A delta is made first and sealed afterwards (docs/protocol/sealed.md). The result is a payload of
method ``sealed/1`` with the same precursor; its facts name the method inside, the length inside,
and pin the chunk list of the container.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from firmament.core.digest import Digest
from firmament.core.manifest import SEALED, Inner, Payload
from firmament.errors import MalformedError
from firmament.payload import chunks
from firmament.payload.sealed import DEFAULT_LOG2_CHUNK, FORMAT_VERSION, Suite, seal

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmament.payload.readers import Reader

METHOD: Final = f"{SEALED}/{FORMAT_VERSION}"
"""What a device states that holds a wrapping key."""
SUFFIX: Final = ".sealed"
"""Added to the target path of what is inside."""
SUITES: Final = {"aes-256-gcm": Suite.AES_256_GCM, "chacha20-poly1305": Suite.CHACHA20_POLY1305}


def seal_payload(
    source: Reader,
    plain: Payload,
    key: bytes,
    write: Callable[[bytes], object],
    *,
    suite: Suite = Suite.AES_256_GCM,
    log2_chunk: int = DEFAULT_LOG2_CHUNK,
) -> tuple[Payload, bytes]:
    """Write the container of a payload; return the sealed payload and its chunk list."""
    if plain.is_sealed:
        raise MalformedError("This payload is sealed already", target=plain.target)
    maker = chunks.ListMaker()
    length_bytes = 0

    def take(piece: bytes) -> None:
        nonlocal length_bytes
        length_bytes += len(piece)
        maker.add(piece)
        write(piece)

    digest = seal(source, plain.length_bytes, key, take, suite=suite, log2_chunk=log2_chunk)
    chunk_list, pin = maker.finish()
    inner = Inner(plain.method, plain.method_version, plain.length_bytes)
    facts = {**plain.facts, "inner": inner.to_json(), "suite": int(suite), "chunks": pin.to_json()}
    sealed = Payload(
        method=SEALED,
        method_version=FORMAT_VERSION,
        target=plain.target + SUFFIX,
        length_bytes=length_bytes,
        digest=Digest("sha256", bytes.fromhex(digest)),
        precursor_digest=plain.precursor_digest,
        facts=facts,
    )
    return sealed, chunk_list
