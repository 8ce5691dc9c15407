import base64
import json
import lzma
from importlib.resources import files

import pytest
from unit.payload.images import arm64, changed, functions, thumb

from firmament.errors import FirmamentError, MalformedPayloadError, PrecursorMismatchError
from firmament.payload.readers import BytesReader
from firmament.payload.refdelta import wire
from firmament.payload.refdelta.applier import Applier
from firmament.payload.refdelta.encoder import encode
from firmament.payload.refdelta.regions import Code, Region, Regions
from firmament.payload.refdelta.scan import scan


def applier(payload: bytes, old: bytes, length: int) -> Applier:
    return Applier(
        BytesReader(payload),
        len(payload),
        BytesReader(old),
        precursor_length_bytes=len(old),
        image_length_bytes=length,
    )


def applied(payload: bytes, old: bytes, length: int, start: int = 0) -> bytes:
    out = bytearray()
    at = start
    for offset, piece in applier(payload, old, length).pieces(start=start):
        assert offset == at
        out += piece
        at += len(piece)
    return bytes(out)


BODIES = functions()
OLD, NEW = arm64(BODIES), arm64(changed(BODIES))
OLD_THUMB, NEW_THUMB = thumb(BODIES), thumb(changed(BODIES))
PAYLOAD = encode(OLD, NEW)
PAYLOAD_THUMB = encode(OLD_THUMB, NEW_THUMB)


def test_arm64_references_are_predicted():
    assert applied(PAYLOAD, OLD, len(NEW)) == NEW
    differing = sum(a != b for a, b in zip(OLD, NEW, strict=False))
    assert differing > 10_000
    assert len(PAYLOAD) < 400  # ten functions grew by one instruction; nothing else is new


def test_thumb_references_are_predicted():
    assert applied(PAYLOAD_THUMB, OLD_THUMB, len(NEW_THUMB)) == NEW_THUMB
    assert len(PAYLOAD_THUMB) < 500


def test_an_elf_image_is_recognised_within_a_file_system():
    import struct

    code = OLD[:0x4000]
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 183, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0x1000, 0x1000, 0x1000, len(code), len(code), 0x1000)
    elf = (header + segment).ljust(0x1000, b"\0") + code
    (found,) = scan(b"\1" * 0x2000 + elf).rows
    assert (found.offset, found.address, found.length_bytes, found.code) == (0x3000, 0x1000, len(code), Code.ARM64)


def test_an_mcu_image_is_recognised_at_its_address():
    rows = scan(OLD_THUMB).rows
    assert (rows[0].address, rows[0].code) == (0x08010000, Code.THUMB)
    assert scan(b"nothing that is known" * 100).rows == ()


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"", b""), (b"", b"x"), (b"x", b""), (b"abc" * 9000, b"abc" * 9000), (b"", bytes(200_000)), (OLD, OLD_THUMB)],
)
def test_odd_pairs_round_trip(old, new):
    assert applied(encode(old, new), old, len(new)) == new


@pytest.mark.parametrize("start", [0, 1, 4095, 4096, 65535, 65536, 65537, len(NEW) - 1, len(NEW)])
def test_it_resumes_at_any_byte(start):
    assert applied(PAYLOAD, OLD, len(NEW), start) == NEW[start:]


def test_it_resumes_in_every_frame(monkeypatch):
    from firmament.payload.refdelta import encoder

    monkeypatch.setattr(encoder, "FRAME_IMAGE_BYTES", 128 * 1024)
    monkeypatch.setattr(encoder, "_JOINED_BYTES", 0)
    old = bytes(range(256)) * 2000
    new = old[:100_000] + b"new" * 50_000 + old[120_000:]
    payload = encode(old, new)
    assert payload[10] > 1 or payload[9] > 1  # several frames
    for start in (0, 1, 70_000, 131_072, 131_073, 300_000, len(new) - 1):
        assert applied(payload, old, len(new), start) == new[start:]


def test_the_wrong_precursor_is_noticed_by_its_length():
    with pytest.raises(PrecursorMismatchError) as refusal:
        applied(PAYLOAD, OLD + b"x", len(NEW))
    assert refusal.value.code == "applicability/precursor-mismatch"


def test_a_precursor_that_shrinks_is_noticed():
    found = Applier(
        BytesReader(PAYLOAD),
        len(PAYLOAD),
        BytesReader(OLD[:1000]),
        precursor_length_bytes=len(OLD),
        image_length_bytes=len(NEW),
    )
    with pytest.raises(PrecursorMismatchError):
        list(found.pieces())


def test_another_image_length_than_signed_is_refused():
    with pytest.raises(MalformedPayloadError) as refusal:
        applied(PAYLOAD, OLD, len(NEW) + 1)
    assert refusal.value.code == "trust/malformed-payload"


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 8, 12, 20, 40, len(PAYLOAD) // 2, len(PAYLOAD) - 1])
def test_a_payload_that_is_cut_is_refused(cut):
    with pytest.raises(MalformedPayloadError):
        applied(PAYLOAD[:cut], OLD, len(NEW))


def test_a_payload_with_something_behind_it_is_refused():
    with pytest.raises(MalformedPayloadError):
        applied(PAYLOAD + b"\0", OLD, len(NEW))


@pytest.mark.parametrize("payload", [PAYLOAD, PAYLOAD_THUMB])
def test_no_flipped_byte_gets_past_the_checks_as_another_kind_of_failure(payload):
    old, new = (OLD, NEW) if payload is PAYLOAD else (OLD_THUMB, NEW_THUMB)
    outcomes = set()
    for place in range(len(payload)):
        bad = bytearray(payload)
        bad[place] ^= 0x55
        try:
            got = applied(bytes(bad), old, len(new))
        except FirmamentError:
            outcomes.add("refused")
        else:
            assert len(got) == len(new)  # the signed digest of the image finds these
            outcomes.add("another image")
    assert "refused" in outcomes


HEAD = wire.MAGIC + b"\1"


def forged(old_length: int, new_length: int, columns: list[bytes], frame: list[bytes]) -> bytes:
    return HEAD + wire.varints((old_length, new_length, 0)) + wire.write_group([*columns, *frame])


@pytest.mark.parametrize(
    ("columns", "frame", "why"),
    [
        ([b"\0", b"\0", b"\x0b", b"", b"", b"", b""], [b"\0", b"", b"", b"", b""], "copy longer than the precursor"),
        ([b"\1", b"\0", b"\2", b"", b"", b"", b""], [b"\0", b"", b"", b"", b""], "copy before the precursor"),
        ([b"\0", b"\7", b"\4", b"", b"", b"", b""], [b"\0", b"", b"", b"", b""], "copy past the image"),
        ([b"\0", b"\0", b"\0", b"", b"", b"", b""], [b"\0", b"", b"", b"", b""], "empty copy"),
        ([b"\0", b"\0", b"", b"", b"", b"", b""], [b"\0", b"", b"", b"", b""], "columns of different lengths"),
        ([b"\x80", b"", b"", b"", b"", b"", b""], [b"\0", b"", b"", b"", b""], "number without an end"),
        ([b"\xff" * 9 + b"\1", b"", b"", b"", b"", b"", b""], [b"\0", b"", b"", b"", b""], "number too long"),
        ([b""] * 7, [b"\x40", b"", b"", b"", b"x" * 10], "unknown mode"),
        ([b""] * 7, [b"\0\0", b"", b"", b"", b"x" * 10], "too many modes"),
        ([b""] * 7, [b"", b"", b"", b"", b"x" * 10], "no modes"),
        ([b""] * 7, [b"\0", b"", b"", b"", b"x" * 9], "too few new bytes"),
        ([b""] * 7, [b"\0", b"", b"", b"", b"x" * 11], "too many new bytes"),
        ([b""] * 7, [b"\0", b"\1", b"", b"", b"x" * 10], "gap without a value"),
        ([b""] * 7, [b"\0", b"\1", b"\1\1", b"", b"x" * 10], "value without a gap"),
        ([b""] * 7, [b"\0", b"\x0a", b"\1", b"", b"x" * 10], "difference past the image"),
        ([b""] * 7, [b"\0", b"\xff" * 9, b"", b"", b"x" * 10], "gaps that go on past the image"),
        ([b""] * 7, [b"\x80", b"", b"", b"x", b"x" * 10], "dense bytes that nobody uses"),
        ([b""] * 3 + [b"\0\1"] + [b""] * 3, [b"\0", b"", b"", b"", b"x" * 10], "half a region"),
        ([b""] * 3 + [b"\2"] + [b""] * 3, [b"\0", b"", b"", b"", b"x" * 10], "unknown kind of region table"),
        ([b""] * 5 + [b"\1", b""], [b"\0", b"", b"", b"", b"x" * 10], "correction without a value"),
        ([b""] * 5 + [b"\1\0", b"\1\1"], [b"\0", b"", b"", b"", b"x" * 10], "two corrections at one label"),
    ],
)
def test_forged_tables_are_refused(columns, frame, why):
    with pytest.raises(MalformedPayloadError):
        applied(forged(10, 10, columns, frame), bytes(10), 10)


def test_a_forged_payload_that_is_well_formed_applies():
    assert applied(forged(10, 10, [b""] * 7, [b"\0", b"", b"", b"", b"x" * 10]), bytes(10), 10) == b"x" * 10


def region(**changes: int) -> Region:
    known = {"offset": 0, "length_bytes": 8, "address": 0, "memory_bytes": 8, "object": 0, "code": 0, "link_base": 0}
    return Region(**{**known, "anchor": 0, **changes})


@pytest.mark.parametrize(
    "rows",
    [
        [region(length_bytes=11)],
        [region(offset=3)],
        [region(address=-1)],
        [region(memory_bytes=4)],
        [region(memory_bytes=1 << 41)],
        [region(object=1 << 20)],
        [region(code=9)],
        [region(offset=0), region(offset=4, length_bytes=4)],
        [region(anchor=1 << 41)],
        [region(offset=-8)],
    ],
)
def test_regions_outside_the_image_or_in_each_other_are_refused(rows):
    with pytest.raises(MalformedPayloadError):
        Regions.decode(Regions(rows).encode(), image_length_bytes=10)


def test_regions_are_written_as_differences_where_that_is_shorter():
    rows = [region(offset=n * 8, address=n * 4096, object=n) for n in range(50)]
    one, other = Regions(rows), Regions([*rows[:49], region(offset=392, address=9999, object=49)])
    data = other.encode(one)
    assert len(data) < len(other.encode()) / 2
    assert Regions.decode(data, image_length_bytes=400, like=one).rows == other.rows
    with pytest.raises(MalformedPayloadError):
        Regions.decode(data, image_length_bytes=400, like=Regions(rows[:3]))


def lzma_stream(data: bytes, properties: int, log2: int) -> bytes:
    packed = lzma.compress(data, format=lzma.FORMAT_RAW, filters=[wire.lzma_filter(93, 12)])
    return bytes((wire.LZMA, properties, log2)) + wire.varints([len(packed)]) + packed


@pytest.mark.parametrize(
    ("pack", "why"),
    [
        (b"\1\x0a" + lzma_stream(b"x" * 10, 93, 23), "window above the ceiling"),
        (b"\1\x0a" + lzma_stream(b"x" * 10, 225, 12), "impossible properties"),
        (b"\1\x0a\7\1x", "unknown codec"),
        (b"\1\x0a\1\3abc", "no deflate stream"),
        (b"\1\x0a\0\x7fabc", "packed length past the end"),
        (b"\0", "no stream in a pack"),
        (b"\2\x0a\x0a\0\x14" + b"x" * 20, "more streams than there are"),
        (b"\1" + wire.varints([1 << 33]) + b"\0\0", "stream above the ceiling"),
    ],
)
def test_forged_streams_are_refused(pack, why):
    def read() -> bytes:
        (stream,) = wire.open_group(
            BytesReader(pack), wire.Cursor(BytesReader(pack), 0, len(pack)), 1, most_bytes=1 << 30
        )
        return stream.read(10)

    with pytest.raises(MalformedPayloadError):
        read()


def test_windows_together_have_a_ceiling():
    pack = b"".join(b"\1\x0a" + lzma_stream(b"x" * 10, 93, 22)[:3] + b"\0" for _ in range(4))
    with pytest.raises(MalformedPayloadError) as refusal:
        wire.open_group(BytesReader(pack), wire.Cursor(BytesReader(pack), 0, len(pack)), 4, most_bytes=1 << 30)
    assert refusal.value.facts["windows"] == 4 << 22


def test_a_bomb_stops_at_the_length_it_states():
    bomb = lzma_stream(bytes(50_000_000), 93, 12)
    pack = b"\1\x0a" + bomb
    (stream,) = wire.open_group(BytesReader(pack), wire.Cursor(BytesReader(pack), 0, len(pack)), 1, most_bytes=100)
    assert stream.read(10) == bytes(10)
    with pytest.raises(MalformedPayloadError):
        stream.read(1)


VECTORS = json.loads(files("firmament.payload").joinpath("vectors/refdelta-1.json").read_text())["payloads"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vectors(vector):
    old, new, payload = (lzma.decompress(base64.b64decode(vector[name])) for name in ("old_xz", "new_xz", "payload_xz"))
    assert applied(payload, old, len(new)) == new
