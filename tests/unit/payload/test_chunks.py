import pytest

from firmament.core.fields import Fields
from firmament.errors import DigestMismatchError, MalformedError
from firmament.payload import chunks

SIZE = 4096
DATA = bytes(range(256)) * 40  # 10 240: two pieces and a half


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_at(self, offset: int, length_bytes: int) -> bytes:
        return self.data[offset : offset + length_bytes]


def made(data: bytes = DATA) -> chunks.ChunkList:
    listed, pin = chunks.make([data], SIZE)
    return chunks.ChunkList(listed, pin=pin, payload_length_bytes=len(data))


def test_how_the_payload_is_cut_into_calls_does_not_matter():
    assert chunks.make([DATA], SIZE) == chunks.make((DATA[i : i + 777] for i in range(0, len(DATA), 777)), SIZE)


def test_a_good_part_is_kept_and_an_unfinished_piece_is_not():
    assert made().good_prefix_bytes(Bytes(DATA), len(DATA)) == len(DATA)
    assert made().good_prefix_bytes(Bytes(DATA[:9000]), 9000) == 8192
    assert made().good_prefix_bytes(Bytes(b""), 0) == 0


def test_a_poisoned_piece_is_found_where_it_is():
    bad = DATA[:5000] + bytes([DATA[5000] ^ 1]) + DATA[5001:]
    assert made().good_prefix_bytes(Bytes(bad), len(bad)) == 4096
    with pytest.raises(DigestMismatchError):
        made().check(1, bad[4096:8192])
    made().check(0, bad[:4096])


def test_a_list_that_is_not_the_signed_one_is_refused():
    listed, pin = chunks.make([DATA], SIZE)
    with pytest.raises(DigestMismatchError):
        chunks.ChunkList(bytes(len(listed)), pin=pin, payload_length_bytes=len(DATA))
    with pytest.raises(MalformedError):
        chunks.ChunkList(listed, pin=pin, payload_length_bytes=len(DATA) + SIZE)


def test_the_pin_travels_in_the_manifest():
    _, pin = chunks.make([DATA], SIZE)
    assert chunks.ChunkPin.from_fields(Fields(pin.to_json(), what="chunks")) == pin
    with pytest.raises(MalformedError):
        chunks.ChunkPin.from_fields(Fields({**pin.to_json(), "length_bytes": 1}, what="chunks"))
