"""What a poll costs the server, as a ratio to the least that the same HTTP server can do.

Three servers run side by side, each in a process of its own, over plain TCP (TLS costs the same
for all, see docs): a raw ASGI hello; the poll without the director's three signatures; the whole
poll. One driver asks each in turn, round after round, and reads from /proc what CPU the server
used per request. Only the ratios mean anything on another machine.

    python bench/poll.py [--rows 100000] [--rounds 5] [--requests 4000]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

CONNECTIONS = 32
KINDS = ("hello", "unsigned", "poll")
KEYID = "0" * 64
BAR = 1.7
# From a prototype that answered a GET with a bearer token: no body, no strict decoder, no second look-up
# for the open attempt. The real poll does all three, so the bar is a goal to measure against.


def device_id(number: int) -> str:
    return str(uuid.UUID(int=number))


# --- the servers -----------------------------------------------------------------------------


async def hello(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


def prepare(directory: Path, rows: int) -> None:
    from firmament.core.clock import SystemClock
    from firmament.server.database.connection import connect, transact
    from firmament.server.layout import Layout
    from firmament.server.payloads.store import ServerDisk
    from firmament.server.setup import initialise

    layout = Layout(directory)
    initialise(ServerDisk(), layout, names=["localhost"], addresses=[], options={"port": 0}, now=SystemClock().now())

    def fill(connection):
        connection.execute("INSERT INTO product(tenant_id, name, created_at) VALUES (1, 'bench', 0)")
        connection.executemany(
            "INSERT INTO device(tenant_id, uid, product_id, hardware, serial, identity_keyid, identity_key, "
            "hpke_public_key, bucket, enrolled_at, version, sequence_number, boot_id) "
            "VALUES (1, ?, 1, 'rpi4', '', ?, x'00', ?, 0, 0, '1.0', 1, 'a')",
            ((device_id(n), f"{KEYID}{n}", n.to_bytes(1216)) for n in range(rows)),
        )

    with contextlib.closing(connect(layout.database)) as connection:
        transact(connection, fill)


def serve(kind: str, directory: Path, descriptor: int) -> None:
    import uvicorn

    from firmament.core.clock import SystemClock
    from firmament.server.authority import PeerIdentity
    from firmament.server.database.connection import SqliteDatabase
    from firmament.server.http import app, device_api
    from firmament.server.http.connection import DeviceConnection
    from firmament.server.layout import Layout
    from firmament.server.payloads.store import ServerDisk
    from firmament.server.settings import ServerSettings

    listener = socket.socket(fileno=descriptor)
    settings = ServerSettings(address_requests_per_s=1e9, device_requests_per_s=1e9)
    layout = Layout(directory)
    database = SqliteDatabase(layout.database)
    server = app.Server(layout, settings, SystemClock())
    parts = server._parts(ServerDisk(), None, database)
    application = hello
    if kind != "hello":
        inner = app.Application(parts)

        async def application(scope, receive, send):
            # Stands for the TLS layer: who the peer is, as if read from its certificate.
            number = int(dict(scope["headers"])[b"x-bench"])
            scope["state"]["peer"] = PeerIdentity(device_id(number), f"{KEYID}{number}")
            await inner(scope, receive, send)

    if kind == "unsigned":
        constant = device_api.make_reply(
            parts.director_keys,
            device_id=device_id(0),
            nonce=bytes(16),
            assignment=None,
            now=SystemClock().now(),
            version=1,
            poll_after_s=1800,
        )
        device_api.make_reply = lambda *_, **__: constant
    config = uvicorn.Config(
        application, http=DeviceConnection, ws="none", loop="uvloop", lifespan="off", log_config=None, access_log=False
    )
    config.load()
    app.quiet_uvicorn()
    app._UvicornServer(config, _WithoutSigner(server), parts, lambda *_: None).run(sockets=[listener])
    database.close()


class _WithoutSigner:
    """The server's background work without the signer, which a poll never asks."""

    def __init__(self, server) -> None:
        self.server = server

    async def start(self, parts) -> None:
        self.flushing = asyncio.create_task(self._flush(parts))

    async def _flush(self, parts) -> None:
        while True:
            await asyncio.sleep(5)
            await self.server._flush_seen(parts)

    async def stop(self, parts) -> None:
        self.flushing.cancel()


# --- the driver ------------------------------------------------------------------------------


def request(number: int) -> bytes:
    body = json.dumps(
        {
            "v": 1,
            "nonce": f"{number:032x}",
            "version": "1.0",
            "sequence_number": 1,
            "image_digest": "",
            "boot_id": "a",
            "attributes": {},
            "methods": ["whole/1"],
            "agent_level": 1,
        }
    ).encode()
    head = f"POST /v1/poll HTTP/1.1\r\nhost: bench\r\nx-bench: {number}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def ask(port: int, requests: int, rows: int, rng: random.Random) -> None:
    async def one_connection(count: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(count):
            writer.write(request(rng.randrange(rows)))
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"unexpected answer: {head!r}")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(one_connection(requests // CONNECTIONS) for _ in range(CONNECTIONS)))


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(rows: int, rounds: int, requests: int) -> dict[str, list[float]]:
    """Return microseconds of server CPU per request, per kind and round."""
    rng = random.Random(1)
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        servers = {}
        for kind in KINDS:
            place = Path(directory) / kind
            prepare(place, rows if kind != "hello" else 1)
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            process = subprocess.Popen(
                [sys.executable, __file__, "--serve", kind, str(place), str(listener.fileno())],
                pass_fds=[listener.fileno()],
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            servers[kind] = (process.pid, listener.getsockname()[1])
        for kind in KINDS:
            asyncio.run(ask(servers[kind][1], CONNECTIONS * 10, rows, rng))  # warm
        for _ in range(rounds):
            for kind, (pid, port) in servers.items():
                before = cpu_s(pid)
                asyncio.run(ask(port, requests, rows, rng))
                found[kind].append((cpu_s(pid) - before) / (requests // CONNECTIONS * CONNECTIONS) * 1e6)
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--serve", nargs=3)
    options = parser.parse_args()
    if options.serve:
        kind, directory, descriptor = options.serve
        serve(kind, Path(directory), int(descriptor))
        return 0
    found = measure(options.rows, options.rounds, options.requests)
    base = statistics.median(found["hello"])
    print(f"poll, {options.rows} devices in SQLite, plain TCP keep-alive, {CONNECTIONS} connections")
    for kind in KINDS:
        middle = statistics.median(found[kind])
        spread = (max(found[kind]) - min(found[kind])) / middle
        print(f"  {kind:9} {middle:7.1f} us CPU a request   {middle / base:5.2f} x hello   spread {spread:.0%}")
    ratio = statistics.median(found["unsigned"]) / base
    print(f"poll without signatures / hello: {ratio:.2f} (bar {BAR}) {'reached' if ratio <= BAR else 'NOT reached'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
