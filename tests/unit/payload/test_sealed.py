import json
from importlib.resources import files

import pytest

from firmament.errors import SealedError
from firmament.payload.sealed import Opener, Suite, new_key, seal, sealed_length_bytes

CHUNK = 4096
STRIDE = CHUNK + 16


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[tuple[int, int]] = []

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        self.reads.append((offset, length_bytes))
        return self.data[offset : offset + length_bytes]


PLAIN = bytes(range(256)) * 40 + b"end"  # two whole chunks and a part
KEY = bytes(range(32))


def sealed(plain: bytes = PLAIN, suite: Suite = Suite.AES_256_GCM, key: bytes = KEY) -> bytes:
    out = bytearray()
    seal(Bytes(plain), len(plain), key, out.extend, suite=suite, log2_chunk=12)
    return bytes(out)


def opened(container: bytes, key: bytes = KEY, limit: int = 1 << 20) -> bytes:
    return b"".join(Opener(Bytes(container), len(container), key, max_plain_length_bytes=limit).chunks())


@pytest.mark.parametrize("suite", Suite)
@pytest.mark.parametrize("length", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 17])
def test_what_was_sealed_comes_out_again(suite, length):
    plain = (PLAIN * 2)[:length]
    container = sealed(plain, suite)
    assert len(container) == sealed_length_bytes(length, 12)
    assert opened(container) == plain
    assert length < 16 or plain[:16] not in container


def test_two_seals_of_the_same_payload_differ():
    assert sealed() != sealed()


def test_the_digest_returned_is_that_of_the_container():
    import hashlib

    out = bytearray()
    assert seal(Bytes(PLAIN), len(PLAIN), KEY, out.extend, log2_chunk=12) == hashlib.sha256(out).hexdigest()


CONTAINER = sealed()
CHUNKS = [CONTAINER[64 + i * STRIDE : 64 + (i + 1) * STRIDE] for i in range(3)]
SHORTER = CONTAINER[:8] + (2 * CHUNK).to_bytes(8, "big") + CONTAINER[16 : 64 + 2 * STRIDE]
DAMAGE = {
    "cut inside the header": CONTAINER[:40],
    "cut at a chunk": CONTAINER[: 64 + 2 * STRIDE],
    "cut within a chunk": CONTAINER[:-5],
    "chunks swapped": CONTAINER[:64] + CHUNKS[1] + CHUNKS[0] + CHUNKS[2],
    "chunk dropped": CONTAINER[:64] + CHUNKS[0] + CHUNKS[2],
    "chunk repeated": CONTAINER[:64] + CHUNKS[0] + CHUNKS[0] + CHUNKS[2],
    "byte appended": CONTAINER + b"x",
    "header shortened to a chunk": SHORTER,
    "other magic": b"X" + CONTAINER[1:],
    "other version": CONTAINER[:4] + b"\2" + CONTAINER[5:],
    "other suite": CONTAINER[:5] + b"\2" + CONTAINER[6:],
    "unknown suite": CONTAINER[:5] + b"\3" + CONTAINER[6:],
    "chunk size too small": CONTAINER[:6] + b"\x0b" + CONTAINER[7:],
    "chunk size too big": CONTAINER[:6] + b"\x15" + CONTAINER[7:],
    "reserved byte set": CONTAINER[:7] + b"\1" + CONTAINER[8:],
    "file id changed": CONTAINER[:20] + bytes([CONTAINER[20] ^ 1]) + CONTAINER[21:],
    "salt changed": CONTAINER[:63] + bytes([CONTAINER[63] ^ 1]) + CONTAINER[64:],
    "spliced from another file": sealed()[: 64 + STRIDE] + CONTAINER[64 + STRIDE :],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused(damage):
    with pytest.raises(SealedError) as refusal:
        opened(DAMAGE[damage])
    assert refusal.value.code == "trust/sealed"


def test_another_key_is_refused():
    with pytest.raises(SealedError):
        opened(CONTAINER, key=new_key())


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length_is_refused(length):
    with pytest.raises(SealedError):
        opened(CONTAINER, key=bytes(length))
    with pytest.raises(SealedError):
        sealed(key=bytes(length))


def test_a_claim_above_the_ceiling_is_refused_before_anything_is_read():
    source = Bytes(CONTAINER)
    with pytest.raises(SealedError):
        Opener(source, len(CONTAINER), KEY, max_plain_length_bytes=len(PLAIN) - 1)
    assert source.reads == [(0, 64)]


def test_opening_resumes_at_a_chunk_and_reads_nothing_before_it():
    source = Bytes(CONTAINER)
    opener = Opener(source, len(CONTAINER), KEY, max_plain_length_bytes=1 << 20)
    source.reads.clear()
    assert b"".join(opener.chunks(first=1)) == PLAIN[CHUNK:]
    assert min(offset for offset, _ in source.reads) == 64 + STRIDE


def test_it_reads_like_a_file():
    opener = Opener(Bytes(CONTAINER), len(CONTAINER), KEY, max_plain_length_bytes=1 << 20)
    assert opener.length_bytes == len(PLAIN)
    assert opener.read_at(CHUNK - 3, 7) == PLAIN[CHUNK - 3 : CHUNK + 4]
    assert opener.read_at(len(PLAIN) - 2, 100) == PLAIN[-2:]
    assert opener.read_at(len(PLAIN), 100) == b""


def test_a_chunk_outside_is_refused():
    opener = Opener(Bytes(CONTAINER), len(CONTAINER), KEY, max_plain_length_bytes=1 << 20)
    with pytest.raises(SealedError):
        opener.chunk(3)


def test_a_source_that_ends_early_is_not_sealed():
    with pytest.raises(SealedError):
        seal(Bytes(b"short"), 6, KEY, lambda _: None)
    with pytest.raises(SealedError):
        seal(Bytes(b""), 0, KEY, lambda _: None, log2_chunk=11)


@pytest.mark.parametrize(
    "vector",
    json.loads(files("firmament.payload").joinpath("vectors/sealed-1.json").read_text())["containers"],
    ids=lambda v: v["name"],
)
def test_vectors(vector):
    raw = {name: bytes.fromhex(value) for name, value in vector.items() if name not in {"name", "suite", "log2_chunk"}}
    out = bytearray()
    seal(
        Bytes(raw["plain"]),
        len(raw["plain"]),
        raw["key"],
        out.extend,
        suite=Suite[vector["suite"]],
        log2_chunk=vector["log2_chunk"],
        identity=(raw["file_id"], raw["salt"]),
    )
    assert bytes(out) == raw["sealed"]
    assert opened(raw["sealed"], raw["key"]) == raw["plain"]
