"""A 300 MB image is made within 32 MiB above a bare interpreter, by both versions of refdelta, sealed or not."""

import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from firmament.payload.readers import BytesReader
from firmament.payload.refdelta import container, wire
from firmament.payload.refdelta.views import aligned
from firmament.payload.sealed import seal

LENGTH = 300 * 1000 * 1000
COPIES = 100_000
MODES = bytes((129, 2, 4, 0)) + bytes(28)
"""Every kind of block in each chunk; more of them take time, and no memory."""
CONTENTS = 64 * 1000 * 1000
"""What the compressed file in the image of the second version unpacks to."""
AT = 100 * 1000 * 1000
"""Where that file lies in the old image: not where the new file's contents are copied from, which are zeros."""
LEVEL, MEMORY, STRATEGY = 6, 8, 0
LIMIT_KIB = 32 * 1024

APPLY = """
import sys
from pathlib import Path

def peak_kib():  # not ru_maxrss, which counts what the parent had before this program replaced it
    return next(int(row.split()[1]) for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))

bare = peak_kib()
from firmament.payload.methods import METHODS, Job
from firmament.payload.readers import FileReader
old, source = FileReader(Path(sys.argv[1])), FileReader(Path(sys.argv[2]))
if sys.argv[4] == "sealed":
    from firmament.payload.sealed import Opener
    source = Opener(source, source.length_bytes, bytes(32), max_plain_length_bytes=source.length_bytes)
made = 0
for offset, piece in METHODS[sys.argv[5]].apply(Job(source, source.length_bytes, int(sys.argv[3]), old, old.length_bytes)):
    assert offset == made
    made += len(piece)
assert made == int(sys.argv[3])
print(peak_kib() - bare)
"""


LARGEST_WINDOWS = (22, 20, 20, 22, 20)
OUR_WINDOWS = (16, 19, 20, 20, 21)
"""Logarithms of the windows of a frame: what the format allows, and what the encoder takes for images of this size."""


def payload(old_length: int = LENGTH + 4096, length: int = LENGTH, windows: Sequence[int] = LARGEST_WINDOWS) -> bytes:
    """As many copies as 400 MB of recompiled packages have, some blocks dense, some predicted as code."""
    each = length // COPIES
    blocks = -(-length // 4096)
    modes = MODES * (blocks // len(MODES)) + bytes(blocks % len(MODES))
    dense = sum(4096 for block in range(blocks) if modes[block] & 128) - (4096 * blocks - length) * (modes[-1] > 127)
    rows = [0, length, 0, length, 0, 1, 0, 0]
    region = b"\0" + wire.signed_varints(rows)
    moves = [0] + [(-1) ** index * 4096 for index in range(COPIES - 1)]
    head = [
        wire.signed_varints(moves),
        wire.varints([0] * COPIES),
        wire.varints([each] * COPIES),
        region,
        region,
        b"",
        b"",
    ]
    frame = [modes, b"", b"", bytes(dense), bytes(length - each * COPIES)]
    start = wire.MAGIC + b"\1" + wire.varints((old_length, length))

    def group(parts: list[bytes], windows: Sequence[int]) -> bytes:
        import lzma

        heads, data = b"", b""
        for part, log2 in zip(parts, windows, strict=True):
            packed = lzma.compress(part, format=lzma.FORMAT_RAW, filters=[wire.lzma_filter(93, log2, 1)])
            heads += b"\1" + wire.varints([len(part)])
            if part:
                heads += bytes((wire.LZMA, 93, log2)) + wire.varints([len(packed)])
                data += packed
        return heads + data

    frames = group(frame, windows)
    return start + wire.varints((1, length, len(frames))) + group(head, (22, 20, 20, 22, 20, 20, 20)) + frames


def payload_over_compressed_files(packed: bytes) -> bytes:
    """The same with a compressed file of 64 MB in both images."""
    rest = LENGTH - 4096 - len(packed)
    unpacked = aligned(4096 + CONTENTS) + rest
    behind = aligned(LENGTH + 4096) + CONTENTS
    parts = [wire.varints([4096, len(packed), CONTENTS, LEVEL, MEMORY, STRATEGY, 0]), b"", b"", b""]
    parts += [wire.varints([AT, len(packed), CONTENTS]), *[b""] * 6]
    head = wire.MAGIC + bytes((container.FORMAT_VERSION,)) + wire.varints((LENGTH + 4096, LENGTH, unpacked))
    return head + wire.write_group(parts, most_log2=20) + payload(behind, unpacked, OUR_WINDOWS)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["refdelta/1", "refdelta/2"])
def test_a_300_mb_image_takes_less_than_32_mib(tmp_path: Path, method: str):
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -15, MEMORY, STRATEGY)
    packed = packer.compress(bytes(CONTENTS)) + packer.flush()
    with (tmp_path / "old").open("wb") as sparse:
        sparse.truncate(LENGTH + 4096)
        if method == "refdelta/2":
            sparse.seek(AT)
            sparse.write(packed)
    made = payload() if method == "refdelta/1" else payload_over_compressed_files(packed)
    (tmp_path / "plain").write_bytes(made)
    with (tmp_path / "sealed").open("wb") as out:
        seal(BytesReader(made), len(made), bytes(32), out.write)
    used = {}
    for kind in ("plain", "sealed"):
        command = [sys.executable, "-c", APPLY, tmp_path / "old", tmp_path / kind, str(LENGTH), kind, method]
        used[kind] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 1024 < max(used.values()) <= LIMIT_KIB, used
