"""Kill a publishing process at each of its storage operations, then look at what is left.

    python publish_cuts.py DIRECTORY      prints one JSON object

Every cut happens in a forked child with its own copy of the server's directory; the child's disk
sends it SIGKILL just before operation k. The parent reads the repository, lets another child
recover and publish again, and reads it once more.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.server_world import Author

from firmament.core.clock import SystemClock
from firmament.core.digest import Digest
from firmament.server.database.connection import SqliteDatabase, connect
from firmament.server.keys import read_online_keyids
from firmament.server.layout import Layout
from firmament.server.payloads.ownership import note_blob
from firmament.server.payloads.store import DirectoryBlobs, ServerDisk
from firmament.server.releases.generations import Generations
from firmament.server.releases.model import Submission
from firmament.server.releases.service import Publisher
from firmament.server.scope import SERVER, console
from firmament.server.setup import initialise
from firmament.server.signer import OnlineSigner
from firmament.trust import repository

CHANGES = ("link", "symlink", "replace", "remove", "remove_tree", "sync_directory", "make_directory")


class KillingWriter:
    def __init__(self, disk, writer):
        self.disk, self.writer = disk, writer

    def write_at(self, offset, data):
        self.disk.count()
        # A process that dies may have written a part.
        if self.disk.left == 0 and len(data) > 1:
            self.writer.write_at(offset, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        self.writer.write_at(offset, data)

    def truncate(self, length):
        self.disk.count()
        self.writer.truncate(length)

    def sync(self):
        self.disk.count()
        self.writer.sync()

    def close(self):
        self.writer.close()


class KillingDisk(ServerDisk):
    def __init__(self, left=None):
        self.left, self.done = left, 0

    def count(self):
        self.done += 1
        if self.left is not None:
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1

    def open_writer(self, path, **how):
        self.count()
        return KillingWriter(self, super().open_writer(path, **how))


def _counted(name):
    def method(self, *arguments, **named):
        self.count()
        return getattr(ServerDisk, name)(self, *arguments, **named)

    return method


for _name in CHANGES:
    setattr(KillingDisk, _name, _counted(_name))


class LocalSigner:
    """The signer without its process: its storage operations are counted as well."""

    def __init__(self, signer):
        self.signer = signer

    async def publish(self, served, versions):
        self.signer.adopt(served.snapshot_version, served.timestamp_version)
        return self.signer.publish(dict(versions))


async def publish(layout, submission, disk, expected=None):
    with contextlib.closing(SqliteDatabase(layout.database)) as database:
        clock = SystemClock()
        blobs = DirectoryBlobs(disk, layout.blobs, layout.targets, max_length_bytes=2**30, min_free_bytes=0)
        publisher = Publisher(
            generations=Generations(disk, layout),
            blobs=blobs,
            signer=LocalSigner(OnlineSigner(disk, layout.signer, clock)),
            database=database,
            online_keyids=read_online_keyids(disk, layout.online_public),
            clock=clock,
        )
        await publisher.recover()
        if expected is not None:
            assert indexed(layout) == expected, indexed(layout)  # a restart alone mends the index
        if submission is not None:
            await publisher.publish(console("test"), submission)


def in_child(layout, submission, disk, expected=None):
    """Run one publish in a child; return its exit status, or minus the signal."""
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(publish(layout, submission, disk, expected))
        except BaseException as error:  # noqa: BLE001 - a child of a fork must not go on
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0 if disk.left is None else 42)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def look(layout):
    """Return what is served, after checking that it is whole."""
    published = Generations(ServerDisk(), layout).load()
    root = published.root.signed
    for role, name in (("timestamp", "timestamp.json"), ("snapshot", f"{published.snapshot_version}.snapshot.json")):
        metadata = repository.Metadata.from_bytes(published.image_files[name])
        repository.verify(root, role, metadata)
    for metadata in published.products.values():
        for target in metadata.signed.targets.values():
            path = layout.targets / repository.target_file_name(target)
            assert Digest.of(path.read_bytes()).hex == target.hashes["sha256"], path
    return {
        "root": root.version,
        "director": published.director_root.signed.version,
        "roles": {name: metadata.signed.version for name, metadata in published.products.items()},
    }


def indexed(layout):
    with contextlib.closing(sqlite3.connect(layout.database)) as connection:
        rows = connection.execute("SELECT version FROM release WHERE withdrawn_at IS NULL ORDER BY version")
        return [row[0] for row in rows]


def main():
    base = Path(sys.argv[1])
    layout = Layout(base / "original")
    clock = SystemClock()
    initialise(ServerDisk(), layout, names=["localhost"], addresses=["127.0.0.1"], options={"port": 0}, now=clock.now())
    author = Author(json.loads(layout.online_public.read_text()))

    def submit(value):
        def encode(files):
            return {name: text.encode() for name, text in files.items()}

        return Submission(encode(value["metadata"]), encode(value.get("director_roots", {})))

    def upload():
        blobs = DirectoryBlobs(ServerDisk(), layout.blobs, layout.targets, max_length_bytes=2**30, min_free_bytes=0)
        for data in author.blobs.values():
            upload = blobs.receive(Digest.of(data), expected_bytes=None)
            upload.write(data)
            length = upload.finish()
            with contextlib.closing(connect(layout.database)) as database:
                note_blob(database, SERVER, Digest.of(data), length_bytes=length, now=clock.now())
        author.blobs.clear()

    author.release("thermo", "1.0", 1, b"one")
    upload()
    assert in_child(layout, submit(author.first()), KillingDisk()) == 0
    # The next publish changes everything at once: both roots, and a release that replaces one.
    author.targets["thermo"].clear()
    author.release("thermo", "1.1", 2, b"two")
    upload()
    update = Submission(
        {"2.root.json": author.root("image", version=2), **author.product("thermo")},
        {"2.root.json": author.root("director", version=2)},
    )
    old = look(layout)
    results = {"cuts": 0, "old": 0, "new": 0, "operations": 0}
    k = 0
    while True:
        copy = Layout(base / "cut")
        shutil.rmtree(copy.directory, ignore_errors=True)
        # Hard links are part of what is tested, so the copy keeps them.
        subprocess.run(["cp", "-a", layout.directory, copy.directory], check=True)
        code = in_child(copy, update, KillingDisk(k))
        if code == 42:
            break
        assert code == -signal.SIGKILL, (k, code)
        found = look(copy)
        new = {"root": 2, "director": 2, "roles": {**old["roles"], "thermo": old["roles"]["thermo"] + 1}}
        assert found in (old, new), (k, found)
        results["new" if found == new else "old"] += 1
        expected = ["1.1"] if found == new else ["1.0"]
        assert in_child(copy, update, KillingDisk(), expected) == 0, k  # restart, and publish again
        assert look(copy) == new, k
        assert indexed(copy) == ["1.1"], k
        left = {path.name for path in (copy.repository / "generations").iterdir()}
        assert len(left) <= 2, left
        results["cuts"] += 1
        k += 1
    results["operations"] = k
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
