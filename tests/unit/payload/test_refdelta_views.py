"""Refdelta version 2: streams that are unpacked and packed again, and tables of types in another order."""

import base64
import gzip
import io
import json
import lzma
import random
import struct
import subprocess
import zipfile
import zlib
from importlib.resources import files

import pytest

from firmament.errors import MalformedPayloadError
from firmament.payload.methods import METHODS, Job
from firmament.payload.readers import BytesReader
from firmament.payload.refdelta import btf, deflate, types
from firmament.payload.refdelta.repack import EDITED, BitWriter, deflate_is_classic
from firmament.payload.refdelta.unpack import recipe, streams
from firmament.payload.refdelta.views import Contents, Views

TWO = METHODS["refdelta/2"]
VECTORS = json.loads(files("firmament.payload").joinpath("vectors/refdelta-2.json").read_text())["payloads"]


def text(seed: int, length: int) -> bytes:
    """Lines of words, some of which a seed changes: packs to a third."""
    chosen, out = random.Random(seed), bytearray()
    words = [b"%x" % random.Random(7).getrandbits(40 + number % 30) for number in range(400)]
    steady = random.Random(3)
    while len(out) < length:
        word = words[steady.randrange(400)]
        out += (b"changed" if chosen.random() < 0.01 else word) + (b"\n" if steady.random() < 0.1 else b" ")
    return bytes(out[:length])


def apply(payload: bytes, old: bytes, new: bytes, *, start: int = 0) -> bytes:
    job = Job(BytesReader(payload), len(payload), len(new), BytesReader(old), len(old))
    out, at = bytearray(), start
    for offset, piece in TWO.apply(job, start=start):
        assert offset == at
        out += piece
        at += len(piece)
    return bytes(out)


def gnu(data: bytes, level: int = 9) -> bytes:
    return subprocess.run(["gzip", f"-{level}nc"], input=data, capture_output=True, check=True).stdout


def archive(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(3):
            file.writestr(zipfile.ZipInfo(f"part{number}"), data[number * 40_000 :], zipfile.ZIP_DEFLATED)
    return out.getvalue()


def other(data: bytes, every: int = 40) -> bytes:
    """What a packer makes that differs from zlib here and there: some matches are written as literals."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    packed = packer.compress(data) + packer.flush()
    out, whole = BitWriter(), int.from_bytes(packed, "little")
    made = bytearray()
    for block in deflate.blocks(packed):
        assert block.kind == deflate.DYNAMIC
        lengths = (block.literal_lengths, block.distance_lengths)
        writer, place = deflate.TokenWriter(lengths), block.start
        made += out.put(
            whole >> block.begin_bit & (1 << block.first_bit - block.begin_bit) - 1, block.first_bit - block.begin_bit
        )
        for number, (length, distance) in enumerate(
            deflate.read_tokens(deflate.Bits(packed, block.first_bit), *lengths)
        ):
            piece = data[place : place + length]
            if distance and not (number % every == 0 and all(block.literal_lengths[byte] for byte in piece)):
                writer.match(length, distance)
            else:
                for byte in piece:
                    writer.literal(byte)
            place += length
        made += out.put(*writer.end())
    return b"\x1f\x8b\x08\0\0\0\0\0\2\xff" + bytes(made) + out.end() + zlib.crc32(data).to_bytes(4, "little") + bytes(4)


PACKERS = {
    "gzip by zlib": lambda data: gzip.compress(data, 9, mtime=0),
    "zlib": lambda data: b"head" + zlib.compress(data, 6) + b"tail",
    "several in a row": lambda data: (
        gzip.compress(data[:60_000], 6, mtime=0) + gzip.compress(data[60_000:], 1, mtime=0)
    ),
    "an archive": archive,
    "GNU gzip": gnu,
    "GNU gzip -6": lambda data: gnu(data, 6),
    "another packer": other,
}


@pytest.mark.parametrize("packer", PACKERS)
def test_a_compressed_image_becomes_a_delta_of_its_contents(packer):
    old, new = (PACKERS[packer](text(seed, 150_000)) for seed in (1, 2))
    payload = TWO.encode(old, new)
    assert apply(payload, old, new) == new
    plain = METHODS["refdelta/1"].encode(old, new)
    assert len(payload) < len(plain) / 3, (len(payload), len(plain))


def test_it_goes_on_at_any_byte():
    old, new = (gnu(text(seed, 150_000)) + text(seed, 5_000) + gzip.compress(text(seed, 70_000)) for seed in (1, 2))
    payload = TWO.encode(old, new)
    places = random.Random(5)
    for start in (0, 1, 9, 10, 11, len(new) - 1, len(new), *(places.randrange(len(new)) for _ in range(12))):
        assert apply(payload, old, new, start=start) == new[start:]


def test_images_without_anything_inside_are_left_to_version_1():
    old, new = text(1, 9000), text(2, 9000)
    assert not TWO.pays(old, new)
    assert TWO.pays(old, gzip.compress(new))
    assert apply(TWO.encode(old, new), old, new) == new


@pytest.mark.parametrize("strategy", [zlib.Z_HUFFMAN_ONLY, zlib.Z_FIXED, zlib.Z_RLE, None])
def test_a_stream_with_blocks_of_any_kind_comes_back_bit_by_bit(strategy):
    """None: stored blocks. With Z_FIXED the codes are the fixed ones."""
    data = text(4, 50_000)
    level = 0 if strategy is None else 9
    packer = zlib.compressobj(level, zlib.DEFLATED, -15, 8, strategy or 0)
    packed = packer.compress(data) + packer.flush()
    old, new = gzip.compress(data), gzip.compress(b"")[:10] + packed + bytes(8)
    how = recipe(packed, data)
    assert apply(TWO.encode(old, new), old, new) == new
    assert how is None or how.cost_bytes() < len(packed)


def test_tokens_that_are_not_zlibs_are_given_and_the_rest_is_not():
    data = text(1, 100_000)
    packed = other(data, every=400)[10:-8]
    how = recipe(packed, data)
    assert how is not None
    assert {number & 3 for number in how.numbers[1::2]} == {EDITED}
    assert 100 < how.cost_bytes() < len(packed) / 3


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vectors(vector):
    old, new, payload = (lzma.decompress(base64.b64decode(vector[name])) for name in ("old_xz", "new_xz", "payload_xz"))
    assert apply(payload, old, new) == new
    assert apply(payload, old, new, start=len(new) // 2) == new[len(new) // 2 :]


def test_streams_are_found_and_noise_is_not():
    packed = gzip.compress(text(1, 20_000), mtime=0)
    noise = random.Random(1).randbytes(100_000)
    image = noise[:1000] + packed + b"\x1f\x8b\x08\x00 no stream" + zlib.compress(bytes(100)) + noise
    (found,) = streams(image)
    assert found.contents == text(1, 20_000)
    assert image[found.offset : found.offset + found.packed_bytes] == packed[10:-8]


def test_contents_are_read_at_any_offset():
    data = random.Random(2).randbytes(3_000_000)
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = packer.compress(data) + packer.flush()
    views = Views(BytesReader(b"x" * 5000), 5000)
    contents = Contents(BytesReader(packed), 0, len(packed), len(data), 300_000)
    views.add(contents, len(data))
    whole = b"x" * 5000 + bytes(3192) + data
    assert views.length_bytes == len(whole)
    places = random.Random(3)
    for _ in range(60):
        at, count = places.randrange(len(whole)), places.randrange(100_000)
        assert views.read_at(at, count) == whole[at : at + count]
    with pytest.raises(MalformedPayloadError):
        Contents(BytesReader(packed[:-9]), 0, len(packed) - 9, len(data), 300_000).read_at(len(data) - 5, 5)


def test_blocks_and_tokens_are_what_zlib_wrote():
    data = text(6, 200_000)
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = packer.compress(data) + packer.flush()
    walked = list(deflate.blocks(packed))
    assert walked[-1].end == len(data)
    assert walked[-1].is_final
    for block in walked:
        bits = deflate.Bits(packed, block.first_bit)
        writer, place = deflate.TokenWriter((block.literal_lengths, block.distance_lengths)), block.start
        for length, distance in deflate.read_tokens(bits, block.literal_lengths, block.distance_lengths):
            if distance:
                writer.match(length, distance)
            else:
                writer.literal(data[place])
            place += length
        value, count = writer.end()
        assert count == block.end_bit - block.first_bit == bits.at - block.first_bit
        assert value == int.from_bytes(packed, "little") >> block.first_bit & (1 << count) - 1


def test_this_machines_zlib_is_zlib():
    assert deflate_is_classic()
    assert TWO.is_available()


# --- tables of types ---------------------------------------------------------------------------


def table(seed: int) -> tuple[bytes, bytes]:
    """An int, then pairs of a structure and a pointer to it, in an order that the seed chooses; one in 50 is new."""
    chosen = random.Random(seed)
    names, where = bytearray(b"\0"), {}

    def name(label: str) -> int:
        if label not in where:
            where[label] = len(names)
            names.extend(label.encode() + b"\0")
        return where[label]

    out = [struct.pack("<4I", name("int"), 1 << 24, 4, 32)]
    order = list(range(1500))
    for _ in range(40):
        first = chosen.randrange(1400)
        order[first : first + 50] = reversed(order[first : first + 50])
    for label in order:
        number = len(out) + 1
        fresh = "new" if chosen.random() < 0.02 else ""
        members = [struct.pack("<3I", name(f"field{label % 9}_{m}"), 1, 32 * m) for m in range(2 + label % 3)]
        out.append(struct.pack("<3I", name(f"struct_{label}{fresh}"), 4 << 24 | len(members), 16) + b"".join(members))
        out.append(struct.pack("<3I", 0, 2 << 24, number))
    return b"".join(out), bytes(names)


def image_of(types_: bytes, names: bytes) -> bytes:
    header = struct.pack("<5I", 24, 0, len(types_), len(types_), len(names))
    return random.Random(8).randbytes(10_000) + btf.MAGIC + header + types_ + names


def test_a_reordered_table_of_types_is_predicted():
    old, new = table(1), table(2)
    order = types.order(*old, *new)
    made = btf.predict(
        btf.words_of(old[0] + order.added_types),
        old[1] + order.added_names,
        type_runs=(order.type_jumps, order.type_lengths),
        name_runs=(order.name_jumps, order.name_lengths),
    )
    assert made == b"".join(new)
    before, after = image_of(*old), image_of(*new)
    payload = TWO.encode(before, after)
    assert apply(payload, before, after) == after
    assert len(payload) < len(METHODS["refdelta/1"].encode(before, after)) / 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda types_, names: (types_[:-4], names),
        lambda types_, names: (types_[:4] + b"\xff\xff\0\xff" + types_[8:], names),
        lambda types_, names: (types_, names[:-1]),
    ],
    ids=["cut short", "unknown kind", "last name does not end"],
)
def test_what_is_no_table_of_types_is_refused(damage):
    types_, names = damage(*table(1))
    with pytest.raises(MalformedPayloadError):
        btf.predict(btf.words_of(types_), names, type_runs=([0], [1]), name_runs=([0], [1]))


@pytest.mark.parametrize(
    "runs", [([0], [99_999]), ([-1], [1]), ([0], [0]), ([0, 1], [1]), ([0, -1] * 9000, [1] * 18_000)]
)
def test_an_impossible_order_is_refused(runs):
    types_, names = table(1)
    with pytest.raises(MalformedPayloadError):
        btf.predict(btf.words_of(types_), names, type_runs=runs, name_runs=([0], [1]))
