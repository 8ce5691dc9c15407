"""The tools that refdelta is compared with: how each is called, and on which pairs it finishes in minutes."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
PYTHON = sys.executable


def library(name):
    """Return the two commands of a Python library, each a process of its own (library.py)."""
    encode = lambda old, new, out: [PYTHON, HERE / "library.py", name, "encode", old, new, out]  # noqa: E731
    apply = lambda old, payload, out: [PYTHON, HERE / "library.py", name, "apply", old, payload, out]  # noqa: E731
    return encode, apply


def window(old):
    return ["-f", "-B", str(max(old.stat().st_size, 1 << 20)), "-s", old]


TOOLS = {
    "hdiffpatch lzma2": library("hdiffpatch-lzma2"),
    "hdiffpatch zstd": library("hdiffpatch-zstd"),
    "detools hdiffpatch": library("detools-hdiffpatch"),
    "detools lzma": library("detools-bsdiff"),
    "detools arm-cortex-m4": library("detools-arm-cortex-m4"),
    "detools aarch64": library("detools-aarch64"),
    "bsdiff": (
        lambda old, new, out: ["bsdiff", old, new, out],
        lambda old, payload, out: ["bspatch", old, out, payload],
    ),
    "zstd -19 --patch-from": (
        lambda old, new, out: ["zstd", "-19", "--long=31", "-qf", f"--patch-from={old}", new, "-o", out],
        lambda old, payload, out: ["zstd", "-d", "--long=31", "-qf", f"--patch-from={old}", payload, "-o", out],
    ),
    "xdelta3 -9": (
        lambda old, new, out: ["xdelta3", "-e", "-9", *window(old), new, out],
        lambda old, payload, out: ["xdelta3", "-d", *window(old), payload, out],
    ),
    "xz -9e (whole)": (
        lambda _, new, out: ["sh", "-c", 'exec xz -9e -T1 -c "$0" > "$1"', new, out],
        lambda _, payload, out: ["sh", "-c", 'exec xz -dc "$0" > "$1"', payload, out],
    ),
}
CHUNKS = "casync 64K"
PUBLISHED = ("hdiffpatch lzma2", "detools hdiffpatch", "bsdiff", "zstd -19 --patch-from", "xz -9e (whole)")
"""What the release tool can publish instead, where the library is there on both ends."""
PACKAGES = ("bsdiff", "xdelta3", "casync", "zstd", "xz-utils")
LIBRARIES = ("bsdiff4", "detools", "hdiffpatch", "numpy", "zstandard")
_LARGE_BYTES = 100_000_000
_FINISH_ON_LARGE = {"hdiffpatch lzma2", "xdelta3 -9", "zstd -19 --patch-from", "xz -9e (whole)", CHUNKS}
_DATA_FORMATS = {"detools arm-cortex-m4": ("a1", "a2"), "detools aarch64": ("a5", "b1")}


def fits(name, pair, size):
    """Whether a tool is run on a pair: the data formats where they were made for it and finish in minutes."""
    if name in _DATA_FORMATS:
        return pair[:2] in _DATA_FORMATS[name]
    return size < _LARGE_BYTES or name in _FINISH_ON_LARGE
