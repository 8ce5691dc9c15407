"""The footprint is a test, not a claim: what a device imports, and what an installation costs."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import base_install

MIB = 1024 * 1024

MEASURE = """
import json, os, pathlib, sys, time

def peak_rss_bytes():
    # Not ru_maxrss: that remembers the process this one was forked from.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

def written_bytes():
    return int(pathlib.Path("/proc/self/io").read_text().partition("wchar: ")[2].split()[0])

def used_bytes(directory):
    return sum(path.lstat().st_blocks * 512 for path in pathlib.Path(directory).rglob("*"))
"""


def python(code: str, *arguments: object) -> dict:
    done = subprocess.run(
        [sys.executable, "-I", "-c", MEASURE + textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_base_is_what_a_device_needs():
    assert {"firmament", "tuf", "securesystemslib", "cryptography", "urllib3", "click"} == base_install.BASE


def test_a_device_imports_no_server_dependency():
    """Every module of the agent, in an interpreter that has the standard library and the base only."""
    loaded = python(
        """
        import importlib, pkgutil
        exec(sys.argv[1])
        import firmament.agent
        names = [found.name for found in pkgutil.walk_packages(firmament.agent.__path__, "firmament.agent.")]
        for name in names:
            importlib.import_module(name)
        parts = sorted({name.split(".")[1] for name in sys.modules if name.startswith("firmament.")})
        print(json.dumps({"names": names, "parts": parts, "rss": peak_rss_bytes()}))
        """,
        base_install.CODE,
    )
    assert len(loaded["names"]) > 20
    assert not {"server", "console", "release", "sim", "cli"} & set(loaded["parts"])


INSTALL = """
from firmament.agent.slots.port import CHECKPOINT_BYTES, Label
from firmament.core.digest import Digest
from firmament.core.manifest import Image
from firmament.durable import RealDisk

def install(make, chunks, directory, checkpoint_bytes=CHECKPOINT_BYTES):
    import hashlib
    digest, length = hashlib.sha256(), 0
    for chunk in chunks():
        digest.update(chunk)
        length += len(chunk)
    image = Image(Digest("sha256", digest.digest()), length)
    before, peak_used, since = written_bytes(), 0, 0
    slot = make()
    slot.begin(image)
    for chunk in chunks():
        slot.write(chunk)
        since += len(chunk)
        if since >= checkpoint_bytes:
            slot.checkpoint()
            peak_used, since = max(peak_used, used_bytes(directory)), 0
    slot.finish()
    slot.verify(image)
    slot.close()
    print(json.dumps({
        "length": length, "rss": peak_rss_bytes(), "written": written_bytes() - before,
        "used": max(peak_used, used_bytes(directory)),
    }))
"""


@pytest.mark.slow
def test_installing_512_mib_takes_64_mib_of_memory_one_pass_and_no_second_copy(tmp_path):
    room = os.statvfs(tmp_path)
    if room.f_bavail * room.f_frsize < 1200 * MIB:
        pytest.skip("less than 1.2 GiB free for the image")
    slot = tmp_path / "b.img"
    slot.write_bytes(b"old image" * 1000)
    cost = python(
        INSTALL
        + textwrap.dedent("""
            from firmament.agent.slots.image import ImageSlot
            path = pathlib.Path(sys.argv[1])
            block = os.urandom(65536 - 8)  # one pseudorandom block, made different by a counter
            def chunks():
                return (block + number.to_bytes(8, "big") for number in range(512 * 1024 * 1024 // 65536))
            install(lambda: ImageSlot(RealDisk(), Label.B, path), chunks, path.parent)
        """),
        slot,
    )
    slot.unlink()
    assert cost["length"] == 512 * MIB
    assert cost["rss"] <= 64 * MIB
    assert cost["length"] <= cost["written"] <= cost["length"] * 1.001
    assert cost["used"] <= cost["length"] * 1.02


@pytest.mark.slow
def test_unpacking_a_bundle_takes_64_mib_of_memory_and_one_pass(tmp_path):
    """2,000 small files and one of 64 MiB: neither their number nor their length costs memory."""
    cost = python(
        INSTALL
        + textwrap.dedent("""
            from firmament.agent.slots.bundle import BundleSlot
            from firmament.core import bundle
            from firmament.core.bundle import Entry, EntryKind
            directory = pathlib.Path(sys.argv[1])
            block = os.urandom(65536)
            def chunks():
                yield bundle.header(Entry("files", EntryKind.DIRECTORY))
                for number in range(2000):
                    yield bundle.header(Entry(f"files/{number:05}.py", EntryKind.FILE, length_bytes=2048)) + block[:2048]
                yield bundle.header(Entry("model.bin", EntryKind.FILE, length_bytes=64 * 1024 * 1024))
                for number in range(1024):
                    yield block
                yield bundle.END
            install(lambda: BundleSlot(RealDisk(), Label.B, directory), chunks, directory)
        """),
        tmp_path / "app",
    )
    files = 2001 * 4096  # each of the small files and their directory take a block
    assert cost["rss"] <= 64 * MIB
    assert cost["written"] <= cost["length"]
    assert cost["used"] <= cost["length"] * 1.02 + files


def test_the_measuring_is_not_blind():
    """A program that keeps what it writes is seen."""
    cost = python("""
        kept = b"kept" * (25 * 1024 * 1024)
        with open("/dev/null", "wb") as sink:
            sink.write(kept)
        print(json.dumps({"rss": peak_rss_bytes(), "written": written_bytes()}))
    """)
    assert cost["rss"] > 100 * MIB
    assert cost["written"] >= 100 * MIB


def test_no_module_of_the_agent_was_overlooked():
    import firmament.agent

    here = Path(firmament.agent.__file__).parent
    assert not [path for path in here.rglob("*.py") if not (path.parent / "__init__.py").exists()]
