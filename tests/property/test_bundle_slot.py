"""Any tree survives packing, unpacking in any pieces, a power cut anywhere, and reading back."""

from contextlib import closing
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from firmament.agent.slots.bundle import BundleSlot
from firmament.agent.slots.port import Label
from firmament.core import bundle
from firmament.core.bundle import Entry, EntryKind
from firmament.core.digest import Digest
from firmament.core.manifest import Image
from firmament.errors import FirmamentError
from firmament.sim.disk import SimDisk
from firmament.sim.faults import Survives

APP = Path("/opt/app")
names = st.sampled_from(["a", "b.py", "c-d", "lib", "main", "x" * 110, "z9"])
leaves = st.binary(max_size=1500) | st.just("link")
trees = st.dictionaries(
    names, st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=3), max_leaves=8), max_size=5
)


def members(tree, prefix=""):
    for name in sorted(tree):
        what, path = tree[name], prefix + name
        if isinstance(what, dict):
            yield Entry(path, EntryKind.DIRECTORY), b""
            yield from members(what, path + "/")
        elif what == "link":
            yield Entry(path, EntryKind.SYMLINK, link="target"), b""
        else:
            yield Entry(path, EntryKind.FILE, is_executable=len(what) % 2 == 1, length_bytes=len(what)), what


def pack(tree):
    return b"".join(bundle.header(e) + data + bundle.padding(len(data)) for e, data in members(tree)) + bundle.END


@given(trees, trees, st.integers(0, 10_000), st.integers(1, 3000), st.sampled_from(Survives))
def test_any_tree_over_any_other_with_a_cut_anywhere(old, new, cut, piece, survives):
    disk = SimDisk()
    for tree, stop in ((old, 10**9), (new, cut)):
        data = pack(tree)
        image = Image(Digest.of(data), len(data))
        with closing(BundleSlot(disk, Label.B, APP)) as slot:
            slot.begin(image)
            for start in range(0, min(stop, len(data)), piece):
                slot.write(data[start : start + piece])
                offset = slot.checkpoint()
    disk.lose_power(survives)
    with closing(BundleSlot(disk, Label.B, APP)) as slot:
        start = slot.resume(image, offset if cut else 0)
        assert start == (offset if cut else 0)
        slot.write(data[start:])
        slot.finish()
        slot.verify(image)


@given(st.binary(max_size=4000), st.integers(1, 700))
def test_any_bytes_as_a_bundle_raise_only_our_errors_and_stay_inside(data, piece):
    disk = SimDisk()
    disk.put(Path("/etc/passwd"), b"root")
    image = Image(Digest.of(data), len(data))
    with closing(BundleSlot(disk, Label.B, APP)) as slot:
        slot.begin(image)
        try:
            for start in range(0, len(data), piece):
                slot.write(data[start : start + piece])
            slot.finish()
        except FirmamentError:
            pass
        else:
            slot.verify(image)
    assert disk.list(Path("/")) == ["etc", "opt"]
    assert disk.list(APP) == ["b"]
