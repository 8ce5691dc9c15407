"""Measure in-place deltas of microcontroller images beside detools' in-place format.

    python bench/delta/inplace.py CORPUS [--report docs/performance/inplace.md]

Every payload is applied to a copy of the old image and compared: ours by its device code on a NOR flash that counts
erases, and once more after a power cut at every hundredth operation; detools' by its own reader. Memory of ours is
the format's own accounting, asserted while it is applied; detools' is what its decoder needs at least.
"""

import argparse
import hashlib
import io
import sys
import time
from pathlib import Path

import detools

from firmament.payload.inplace.applier import Applier, Areas
from firmament.payload.inplace.encoder import Shape, encode
from firmament.payload.inplace.wire import MAX_RAM_BYTES, read_header
from firmament.payload.readers import BytesReader
from firmament.sim.faults import PowerCut
from firmament.sim.nor import NorFlash, Power

MEMORY_BYTES = 512 * 1024
SEGMENT_BYTES = 4096
PAIRS = ("a1-mcu-fix", "a2-mcu-feat")
DETOOLS = {
    "detools in-place lzma": {"compression": "lzma"},
    "detools in-place heatshrink, window 256": {"compression": "heatshrink"},
    "detools in-place heatshrink, window 4096": {
        "compression": "heatshrink",
        "heatshrink_window_sz2": 12,
        "heatshrink_lookahead_sz2": 7,
    },
}
RINGS = (1, 4)
EVERY = 100
PAGE = """# In-place deltas of microcontroller images

`make bench-delta` rebuilds the corpus and writes this page with

    {command}

One slot of 512 KiB, erase blocks of 4096 bytes; a1 is a one-line fix, a2 an upgrade of three libraries, both 0.42 MB of
Cortex-M code. Bytes of the payload; for ours how often blocks of slot and scratch area were erased, together; memory of
the device by the format's own accounting, for ours asserted while it was applied. Each was applied and compared; ours
also after a power cut at every hundredth flash operation.

{table}
detools' LZMA has a dictionary as large as the encoder's preset asks for, which is above 32 KiB: it stands here for its
bytes. Its in-place reader does not take a data format, the one that predicts references.

in-place bytes vs the best in-place competitor: {ratios}
"""


def ours(old, new, ring):
    shape = Shape(memory_bytes=MEMORY_BYTES, log2_block=SEGMENT_BYTES.bit_length() - 1, ring_blocks=ring)
    begun = time.process_time()
    payload = encode(old, new, shape)
    made_s = time.process_time() - begun
    header, _ = read_header(BytesReader(payload), len(payload))
    begun = time.process_time()
    erases, operations = run(payload, old, new, header, ())
    applied_s = time.process_time() - begun
    for cut in range(EVERY // 2, operations, EVERY):
        run(payload, old, new, header, (cut,))
    return len(payload), header.ram_bytes, erases, made_s, applied_s


def run(payload, old, new, header, cuts):
    power = Power()
    part = {"block": header.block, "power": power}
    areas = Areas(
        NorFlash.of(MEMORY_BYTES, old, **part),
        NorFlash.of(header.ring_blocks * header.block, **part),
        NorFlash.of(2 * header.block, **part),
    )
    left = list(cuts)
    while True:
        power.cut_at = left.pop(0) if left else None
        applier = Applier(
            BytesReader(payload),
            len(payload),
            areas,
            precursor_digest=hashlib.sha256(old).digest(),
            image_digest=hashlib.sha256(new).digest(),
        )
        try:
            applier.run()
        except PowerCut:
            continue
        assert bytes(areas.slot.data[: len(new)]) == new
        assert applier.ledger.peak_bytes <= header.ram_bytes <= MAX_RAM_BYTES
        return sum(areas.slot.erases) + sum(areas.ring.erases), power.operations


def theirs(old, new, settings):
    out = io.BytesIO()
    begun = time.process_time()
    detools.create_patch(
        io.BytesIO(old), io.BytesIO(new), out, patch_type="in-place", memory_size=MEMORY_BYTES,
        segment_size=SEGMENT_BYTES, use_mmap=False, **settings,
    )  # fmt: skip
    made_s = time.process_time() - begun
    memory = io.BytesIO(old.ljust(MEMORY_BYTES, b"\xff"))
    begun = time.process_time()
    length = detools.apply_patch_in_place(memory, io.BytesIO(out.getvalue()))
    applied_s = time.process_time() - begun
    assert memory.getvalue()[:length] == new
    return len(out.getvalue()), made_s, applied_s


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    rows, ratios = [], []
    for pair in PAIRS:
        old, new = ((options.corpus / "pairs" / pair / side).read_bytes() for side in ("old", "new"))
        lengths = []
        for name, settings in DETOOLS.items():
            length, made_s, applied_s = theirs(old, new, settings)
            ram = (
                "not bounded"
                if settings["compression"] == "lzma"
                else f"{1 << settings.get('heatshrink_window_sz2', 8)} and more"
            )
            lengths.append(length)
            rows.append((pair, name, length, "", ram, made_s, applied_s))
        for ring in RINGS:
            length, ram, erases, made_s, applied_s = ours(old, new, ring)
            rows.append((pair, f"**inplace/1**, scratch of {ring}", length, erases, ram, made_s, applied_s))
            if ring == 1:
                ratios.append(f"{pair[:2]} {length / min(lengths):.2f}")
    lines = ["| pair | method | bytes | erases | memory, bytes |", "|---|---|---:|---:|---:|"]
    lines += [
        f"| {pair} | {name} | {length:,} | {erases} | {ram if isinstance(ram, str) else f'{ram:,}'} |"
        for pair, name, length, erases, ram, _, _ in rows
    ]
    table = "\n".join(lines) + "\n"
    for row in rows:
        print(*row[:2], *row[2:5], f"made in {row[5]:.1f} s, applied in {row[6]:.1f} s of CPU", sep="  ")
    print("in-place bytes vs the best in-place competitor:", ", ".join(ratios))
    if options.report:
        command = "CORPUS/venv/bin/python bench/delta/inplace.py CORPUS --report docs/performance/inplace.md"
        options.report.write_text(PAGE.format(table=table, ratios=", ".join(ratios), command=command))


sys.exit(main())
