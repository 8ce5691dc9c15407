"""`TrustedClient` and `HttpTransport` exactly as the agent uses them, driven by hand.

    tuf-client --metadata-dir D init ROOT
    tuf-client --metadata-url U --metadata-dir D refresh
    tuf-client --metadata-url U --metadata-dir D --target-name T --target-dir TD --target-base-url TU download

Exit code 0, or 1 with the error on stderr. The anchor and the floors lie in the metadata
directory under names that are not ``*.json``, which the suite would read as metadata.
"""

import argparse
import sys
from pathlib import Path

from firmament.agent.fetch import HttpTransport, TransferSettings
from firmament.agent.resume import TransportSource
from firmament.core.clock import SystemClock
from firmament.durable import RealDisk, read_file, replace_durably
from firmament.errors import AnchorMissingError, CorruptStateError, FirmamentError, UnknownTargetError
from firmament.trust.client import MAX_ROOT_LENGTH_BYTES, TrustedClient
from firmament.trust.floors import Floors

ANCHOR = "anchor.root"


def arguments():
    parser = argparse.ArgumentParser()
    for name in ("metadata-url", "metadata-dir", "target-dir", "target-base-url"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--target-name", action="append", default=[])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root")
    commands.add_parser("refresh")
    commands.add_parser("download")
    return parser.parse_args()


def make_client(given, disk, clock, channel):
    home = Path(given.metadata_dir).absolute()
    if not disk.exists(home / ANCHOR):
        raise AnchorMissingError("init was not called", directory=home)
    floors = Floors(disk, home)
    if not floors.exist():
        raise CorruptStateError("The floors are missing", directory=home)
    values = floors.load()
    return TrustedClient(
        disk=disk,
        directory=home,
        anchor=read_file(disk, home / ANCHOR, limit_bytes=MAX_ROOT_LENGTH_BYTES),
        source=TransportSource(channel, clock, payload_deadline_s=600),
        floors=floors,
        metadata_url=given.metadata_url or "http://localhost/",
        targets_url=given.target_base_url,
        targets_directory=Path(given.target_dir).absolute() if given.target_dir else None,
        reference_time=max(filter(None, (clock.now(), values.time))),
    )


def initialise(given, disk, clock, channel):
    home = Path(given.metadata_dir).absolute()
    root = read_file(disk, Path(given.root).absolute(), limit_bytes=MAX_ROOT_LENGTH_BYTES)
    if disk.exists(home / ANCHOR) and read_file(disk, home / ANCHOR, limit_bytes=MAX_ROOT_LENGTH_BYTES) != root:
        disk.remove_tree(home)  # another anchor is another device
    disk.make_directory(home)
    replace_durably(disk, home / ANCHOR, root)
    Floors(disk, home).create()
    make_client(given, disk, clock, channel)


def main():
    given, disk, clock = arguments(), RealDisk(), SystemClock()
    channel = HttpTransport(clock, settings=TransferSettings(), tls=None)
    try:
        if given.command == "init":
            initialise(given, disk, clock, channel)
            return 0
        client = make_client(given, disk, clock, channel)
        client.refresh()
        for name in given.target_name if given.command == "download" else ():
            info = client.get_targetinfo(name)
            if info is None:
                raise UnknownTargetError("No role that is trusted names this target", target=name)
            if client.find_cached_target(info) is None:
                client.download_target(info)
    except FirmamentError as error:
        sys.stderr.write(f"error: {error}\ncode: {error.code}\n")
        return 1
    finally:
        channel.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
