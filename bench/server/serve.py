"""One server under measurement: `serve.py '{"kind": ..., "port": ...}'`, plain TCP (TLS costs the same for all).

hello     the least that uvicorn can do: read the body, answer five bytes
fastapi   an empty FastAPI route on the same uvicorn
poll      the whole server; who the peer is comes from a header instead of its certificate
single    the same on PostgreSQL, with a query of its own for each poll
accel     hands downloads to nginx
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from pathlib import Path

import uvicorn

from firmament.core.clock import SystemClock

KEYID = "0" * 64


async def hello(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


def fastapi():
    from fastapi import FastAPI

    app = FastAPI(docs_url=None, redoc_url=None)

    @app.post("/v1/poll")
    async def empty() -> dict[str, str]:
        return {}

    return app


class WithoutSigner:
    """The server's background work that polls need; nothing here asks the isolated signer."""

    def __init__(self, server) -> None:
        self.server = server
        self.flushing = None

    async def start(self, parts, _port: int) -> None:
        from firmament.server import versions
        from firmament.server.http.device_api import extend_horizon

        now_s = int(SystemClock().now().timestamp())
        stored = await parts.database.read(versions.read_horizon)
        parts.reply_versions.begin(versions.first_floor(stored, now_s, is_shared=parts.database.is_shared))
        await extend_horizon(parts, now_s)
        self.flushing = asyncio.create_task(self._flush(parts))

    async def _flush(self, parts) -> None:
        from firmament.server.http.app import HORIZON_CHECK_S, extend_horizon

        for turn in range(10**9):
            await asyncio.sleep(HORIZON_CHECK_S)
            await extend_horizon(parts, int(SystemClock().now().timestamp()))
            if turn % 5 == 0:
                await self.server._flush_seen(parts)

    async def stop(self, parts) -> None:
        self.flushing.cancel()
        await parts.database.end()


class Named:
    """Stands for a `PeerIdentity`, which the server makes once for a connection and not for each request."""

    __slots__ = ("device_id", "keyid")

    def __init__(self, device: bytes) -> None:
        self.device_id = device.decode()
        self.keyid = KEYID + self.device_id[-12:]


def as_peer(inner):
    async def application(scope, receive, send):
        for name, value in scope["headers"]:
            if name == b"x-bench":
                scope["state"]["peer"] = Named(value)
        await inner(scope, receive, send)

    return application


def connection_of(application):
    """Return the server's connection, that takes a header's word for whose it is."""
    from firmament.server.http.connection import DeviceConnection

    class BenchConnection(DeviceConnection):
        short = application.short

        def on_headers_complete(self) -> None:
            for name, value in self.headers:
                if name == b"x-bench":
                    self.scope["state"]["peer"] = Named(value)
            super().on_headers_complete()

    return BenchConnection


def one_query_each(database, target) -> None:
    """Replace the look-ups by what a server without micro-batches does: a pool, a query for each poll."""
    import asyncpg

    pool = None

    async def look_up(query: str, key: str):
        nonlocal pool
        if pool is None:
            pool = asyncio.ensure_future(
                asyncpg.create_pool(target.url, password=target.password, min_size=4, max_size=4)
            )
        return await (await asyncio.shield(pool)).fetchrow(query.replace("?", "$1"), key)

    database.look_up = look_up


def behind_nginx(layout, options) -> dict[str, str]:
    """Let nginx send the payloads, known by the secret that `downloads.py` has it say."""
    if options["kind"] != "accel":
        return {}
    (layout.directory / "front-secret").write_text(options["secret"])
    return {"front_prefix": options["accel"], "front_secret_file": "front-secret"}


def ours(options, listener) -> None:
    from firmament.server.database.opening import open_database
    from firmament.server.database.target import PostgresTarget
    from firmament.server.http import app
    from firmament.server.layout import Layout
    from firmament.server.leader import Leadership
    from firmament.server.payloads.store import ServerDisk
    from firmament.server.settings import ServerSettings

    layout = Layout(Path(options["home"]))
    settings = ServerSettings(
        address_requests_per_s=1e9,
        device_requests_per_s=1e9,
        address_burst=10**9,
        device_burst=10**9,
        repository_access="public",
        max_downloads_per_device=10_000,
        max_downloads=10_000,
        **behind_nginx(layout, options),
    )
    target = (
        PostgresTarget(options["database"], options["password"], readers=2)
        if "database" in options
        else layout.database
    )
    database = open_database(target, SystemClock())
    server = app.Server(layout, settings, SystemClock())
    parts = server._parts(ServerDisk(), None, database, Leadership(None, SystemClock(), "measured"), options["port"])
    if options["kind"] == "single":
        one_query_each(database, target)
    front = app.make_front(
        ServerDisk(), layout, settings, app.load_certificate(ServerDisk(), layout.device_ca / "ca.pem"), SystemClock()
    )
    application = app.Application(parts, None, front)
    config = uvicorn.Config(
        application,
        http=connection_of(application),
        ws="none",
        loop="uvloop",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
    )
    config.load()
    app.quiet_uvicorn()
    logging.getLogger("firmament").setLevel("WARNING")
    app._UvicornServer(config, WithoutSigner(server), parts, lambda *_: None, None).run(sockets=[listener])
    database.close()


def main() -> None:
    options = json.loads(sys.argv[1])
    from firmament.server.http.app import listen

    with listen("127.0.0.1", options["port"]) as listener, contextlib.suppress(KeyboardInterrupt):
        if options["kind"] not in {"hello", "fastapi"}:
            ours(options, listener)
            return
        application = hello if options["kind"] == "hello" else fastapi()
        config = uvicorn.Config(
            application, http="httptools", ws="none", loop="uvloop", lifespan="off", log_config=None, access_log=False
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
