"""Bundles: one spelling per tree, readable by every tar, and nothing else is accepted (case 56)."""

import io
import subprocess
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmament.core import bundle
from firmament.core.bundle import Entry, EntryKind, Reader
from firmament.core.digest import Digest
from firmament.errors import UnsafeArchiveError

FILE, DIRECTORY, SYMLINK = EntryKind.FILE, EntryKind.DIRECTORY, EntryKind.SYMLINK
LONG = "/".join(["d" * 60] * 3)
TREE = [
    (Entry("bin", DIRECTORY), b""),
    (Entry("bin/run", FILE, is_executable=True, length_bytes=5), b"#!/x\n"),
    (Entry("bin-2", DIRECTORY), b""),
    (Entry("data", DIRECTORY), b""),
    (Entry("data/empty", FILE), b""),
    (Entry("data/exact", FILE, length_bytes=512), b"z" * 512),
    (Entry("data/größe", FILE, length_bytes=1), b"1"),
    (Entry("data/latest", SYMLINK, link="../bin/run"), b""),
    (Entry("d" * 60, DIRECTORY), b""),
    (Entry("/".join(["d" * 60] * 2), DIRECTORY), b""),
    (Entry(LONG, DIRECTORY), b""),
    (Entry(f"{LONG}/{'n' * 120}", FILE, length_bytes=3), b"abc"),
    (Entry("zz", SYMLINK, link=f"{LONG}/{'n' * 120}"), b""),
]
TREE.sort(key=lambda item: bundle.sort_key(item[0].path))


def write(members, end=bundle.END):
    return b"".join(bundle.header(entry) + data + bundle.padding(len(data)) for entry, data in members) + end


def raw(name, flag="0", link="", data=b"", mode=0o644, **fields):
    """A member as some other program writes it."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = flag.encode(), link, len(data), mode
    info.mtime = bundle.BUNDLE_TIME
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bundle.padding(len(data))


def resum(block):
    """Correct the checksum of a header changed by hand."""
    blank = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(blank) + block[156:]


def read(data, step=None):
    reader, members = Reader(), []
    for start in range(0, len(data), step or len(data) or 1):
        for found in reader.feed(data[start : start + (step or len(data))]):
            if isinstance(found, Entry):
                members.append((found, b""))
            else:
                members[-1] = (members[-1][0], members[-1][1] + found)
    reader.finish()
    return members


@pytest.mark.parametrize("step", [None, 1, 100, 511, 512, 513])
def test_a_bundle_reads_back_in_pieces_of_any_size(step):
    assert read(write(TREE), step) == TREE


def test_the_bytes_are_pinned():
    """A device compares an installed tree with this spelling for ever; never change it."""
    assert str(Digest.of(write(TREE))) == "sha256:2f3554243eaeb7c5211ffac865cbbab022c0c16a1980787c6100ba95ab5aeafc"


def test_an_empty_bundle_is_two_zero_blocks():
    assert read(bundle.END) == []


def test_python_and_gnu_tar_read_it(tmp_path):
    path = tmp_path / "b.tar"
    path.write_bytes(write(TREE))
    with tarfile.open(path) as archive:
        assert [(m.name, m.linkname, m.mode, m.uid, m.mtime) for m in archive] == [
            (e.path, e.link, e.mode, 0, bundle.BUNDLE_TIME) for e, _ in TREE
        ]
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "--no-same-owner", "-xf", str(path), "-C", str(out)], check=True, capture_output=True)
    for entry, data in TREE:
        if entry.kind is FILE:
            assert (out / entry.path).read_bytes() == data
            assert (out / entry.path).stat().st_mode & 0o777 == entry.mode
    assert (out / "data/latest").read_bytes() == b"#!/x\n"


def test_pythons_own_writer_makes_the_same_ustar_header():
    """An independent writer agrees with ours on the format itself."""
    for entry, _ in TREE:
        if len(bundle.header(entry)) == bundle.BLOCK:
            name = entry.path + ("/" if entry.kind is DIRECTORY else "")
            expected = raw(name, entry.kind.value, entry.link, mode=entry.mode, size=entry.length_bytes)
            assert bundle.header(entry) == expected[: bundle.BLOCK]


BAD_ENTRIES = {
    "absolute": Entry("/etc/passwd", FILE),
    "parent": Entry("../x", FILE),
    "parent-inside": Entry("a/../x", FILE),
    "dot": Entry("./x", FILE),
    "empty": Entry("", FILE),
    "double-slash": Entry("a//b", FILE),
    "nul": Entry("a\0b", FILE),
    "newline": Entry("a\nb", FILE),
    "backslash": Entry("a\\b", FILE),
    "right-to-left": Entry("a\u202eb", FILE),
    "not-nfc": Entry("e\u0301", FILE),
    "surrogate": Entry("a\udcff", FILE),
    "long-name": Entry("n" * 256, FILE),
    "deep": Entry("/".join("d" * 33), FILE),
    "long-path": Entry("/".join(["n" * 200] * 6), FILE),
    "huge": Entry("a", FILE, length_bytes=8 * 1024**3),
    "directory-with-content": Entry("a", DIRECTORY, length_bytes=1),
    "directory-executable": Entry("a", DIRECTORY, is_executable=True),
    "file-with-link": Entry("a", FILE, link="b"),
    "link-absolute": Entry("a", SYMLINK, link="/etc"),
    "link-empty": Entry("a", SYMLINK, link=""),
    "link-outside": Entry("a/b", SYMLINK, link="../../x"),
    "link-root-parent": Entry("a", SYMLINK, link=".."),
    "link-climbs-later": Entry("a/b/c", SYMLINK, link="x/../y"),
    "link-long": Entry("a", SYMLINK, link="/".join(["n" * 200] * 6)),
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_a_member_outside_the_grammar_is_not_written(name):
    with pytest.raises(UnsafeArchiveError):
        bundle.header(BAD_ENTRIES[name])


GOOD = write([TREE[0]], end=b"")
BAD_ARCHIVES = {
    "absolute": raw("/etc/passwd"),
    "parent": raw("../x"),
    "dot-slash": raw("./x"),
    "link-absolute": raw("a", "2", "/etc", mode=0o777),
    "link-outside": raw("a", "2", "../x", mode=0o777),
    "hard-link": raw("a") + raw("b", "1", "a"),
    "character-device": raw("a", "3"),
    "block-device": raw("a", "4"),
    "fifo": raw("a", "6"),
    "old-file": raw("a", "\0"),
    "sparse": raw("a", "S"),
    "gnu-long-name": raw("a", "L", data=b"abc\0"),
    "global-header": raw("a", "g", data=b"11 path=a\n\n"),
    "setuid": raw("a", mode=0o4755),
    "setgid": raw("a", mode=0o2755),
    "world-writable": raw("a", mode=0o666),
    "owner": raw("a", uid=1000),
    "owner-name": raw("a", uname="root"),
    "other-time": raw("a", mtime=0),
    "duplicate": raw("a") + raw("a"),
    "out-of-order": raw("b") + raw("a"),
    "case-clash": raw("A") + raw("a"),
    "below-file": raw("a") + raw("a/b"),
    "below-symlink": raw("a", "2", "b", mode=0o777) + raw("a/x"),
    "below-nothing": raw("a/b"),
    "directory-without-slash": resum(b"a\0" + raw("a", "5", mode=0o755)[2:]),
    "directory-with-content": raw("a/", "5", data=b"x", mode=0o755),
    "checksum": GOOD[:148] + b"0000000\0" + GOOD[156:],
    "gnu-magic": resum(GOOD[:257] + b"ustar  \0" + GOOD[265:]),
    "size-not-octal": resum(GOOD[:124] + b"0000000000x\0" + GOOD[136:]),
    "base-256-size": resum(GOOD[:124] + b"\x80" + bytes(11) + GOOD[136:]),
    "padding": raw("a", data=b"x")[:-1] + b"x",
    "pax-with-size": raw("././@PaxHeader", "x", data=b"10 size=1\n") + raw("a"),
    "pax-not-needed": raw("././@PaxHeader", "x", data=b"9 path=a\n") + raw("a"),
    "pax-bad-number": raw("././@PaxHeader", "x", data=b"99999 path=a\n") + raw("a"),
    "pax-no-number": raw("././@PaxHeader", "x", data=b"path=a\n") + raw("a"),
    "pax-long-number": raw("././@PaxHeader", "x", data=b"0000011 path=a\n") + raw("a"),
    "pax-zero-number": raw("././@PaxHeader", "x", data=b"0 path=a\n") + raw("a"),
    "pax-not-utf8": raw("././@PaxHeader", "x", data=b"10 path=\xff\n") + raw("a"),
    "pax-huge": raw("././@PaxHeader", "x", size=10**9),
    "pax-empty": raw("././@PaxHeader", "x") + raw("a"),
    "pax-parent": raw("././@PaxHeader", "x", data="14 path=../ü\n".encode()) + raw("a"),
    "pax-twice": raw("././@PaxHeader", "x", data=b"10 path=\xc3\xbc\n" * 2) + raw("?"),
}


def test_the_tool_that_makes_bad_archives_makes_good_ones_too():
    """So that each one below is refused for what it shows."""
    data = raw("A", data=b"x") + raw("a-b/", "5", mode=0o755) + raw("a-b/l", "2", "../A", mode=0o777) + bundle.END
    assert [entry.path for entry, _ in read(data)] == ["A", "a-b", "a-b/l"]


@pytest.mark.parametrize("name", BAD_ARCHIVES)
@pytest.mark.parametrize("step", [None, 100])
def test_an_archive_outside_the_grammar_is_not_read(name, step):
    with pytest.raises(UnsafeArchiveError):
        read(BAD_ARCHIVES[name] + bundle.END, step)


def test_truncation_and_trailing_bytes_are_refused():
    whole = write(TREE)
    for cut in [0, 1, 511, 512, 600, len(whole) - 1024, len(whole) - 512, len(whole) - 1]:
        with pytest.raises(UnsafeArchiveError, match="middle"):
            read(whole[:cut])
    with pytest.raises(UnsafeArchiveError, match="follow"):
        read(whole + b"\0")


def test_an_endless_number_of_members_is_refused(monkeypatch):
    monkeypatch.setattr(bundle, "MAX_MEMBERS", 3)
    with pytest.raises(UnsafeArchiveError, match="too many"):
        read(write([(Entry(name, FILE), b"") for name in "abcd"]))


@given(st.data())
def test_one_changed_byte_of_a_header_is_refused(data):
    """No header byte is free: whatever differs from the one spelling is refused."""
    whole = bytearray(write(TREE[:3]))
    at = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != whole[at]))
    content = range(2 * bundle.BLOCK, 2 * bundle.BLOCK + 5)
    whole[at] = value
    if at in content:
        assert read(bytes(whole)) != TREE[:3]
    else:
        with pytest.raises(UnsafeArchiveError):
            read(bytes(whole))


@given(st.binary(max_size=2000))
def test_any_bytes_are_read_or_refused_and_nothing_else(data):
    try:
        read(data)
    except UnsafeArchiveError:
        return
    assert data == bundle.END


def test_tarfile_agrees_that_links_stay_inside(tmp_path):
    """Python's own extraction filter finds nothing to object to."""
    with tarfile.open(fileobj=io.BytesIO(write(TREE))) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.2, Debian's, has none
        archive.extractall(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {entry.path.partition("/")[0] for entry, _ in TREE}
