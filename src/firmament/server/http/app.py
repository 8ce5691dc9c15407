"""The composition root: puts one server together, runs it, and takes it apart in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import logging
import os
import signal
import socket
import uuid
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from firmament import __version__
from firmament.errors import (
    AddressInUseError,
    FirmamentError,
    ForbiddenError,
    LocalError,
    MalformedError,
    NotFoundError,
    OverloadedError,
)
from firmament.log import logger
from firmament.server import leader, seen, versions
from firmament.server.audit.checkpoints import Checkpoints, Rhythm
from firmament.server.authority import load_authority, load_certificate
from firmament.server.database.migrate import migrate
from firmament.server.database.opening import open_database
from firmament.server.database.target import database_target
from firmament.server.http.connection import DeviceConnection
from firmament.server.http.device_api import PREFIX, DeviceApi, extend_horizon
from firmament.server.http.downloads import CutOffError, Downloads
from firmament.server.http.front import make_front
from firmament.server.http.late_routes import LateRoute
from firmament.server.http.messages import GoneError, answer, new_request_id, problem, unexpected
from firmament.server.http.once import Once
from firmament.server.http.operator_api import OperatorApi
from firmament.server.http.operator_base import REFUSALS
from firmament.server.http.tls import make_context, server_certificate
from firmament.server.inventory import history
from firmament.server.inventory.service import Registrar
from firmament.server.inventory.store import LinkReader
from firmament.server.keys import load_director_keys, read_online_keyids
from firmament.server.leader import FencedDatabase, Leadership
from firmament.server.limits import TokenBuckets
from firmament.server.lock import locked
from firmament.server.outbox.compose import make_out
from firmament.server.parts import Parts
from firmament.server.payloads import upkeep
from firmament.server.payloads.collect import Collector
from firmament.server.payloads.custody import load_custodian
from firmament.server.payloads.opening import open_blobs
from firmament.server.payloads.store import ServerDisk
from firmament.server.payloads.upkeep import Upkeep
from firmament.server.people.vault import load_vault
from firmament.server.releases.generations import Generations
from firmament.server.releases.service import Publisher
from firmament.server.releases.serving import served_by
from firmament.server.rollouts import board
from firmament.server.rollouts.board import Board
from firmament.server.rollouts.pace import Pace, run_round
from firmament.server.seen import LastSeen
from firmament.server.signer_client import SignerClient
from firmament.server.versions import ReplyVersions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from firmament.core.clock import Clock
    from firmament.server.database.port import Database
    from firmament.server.database.target import Target
    from firmament.server.http.front import Front
    from firmament.server.http.messages import AsgiScope, Receive, Send
    from firmament.server.http.short import Short
    from firmament.server.layout import Layout
    from firmament.server.settings import ServerSettings

log = logger("server")

BACKLOG: Final = 2048
SEND_BUFFER_BYTES: Final = 128 * 1024
# Without a cap the kernel keeps up to 2.3 MB per slow download (stack.md §2).
GRACEFUL_SHUTDOWN_S: Final = 2
KEEP_ALIVE_S: Final = 15
REFRESH_CHECK_S: Final = 3600.0
HORIZON_CHECK_S: Final = 10.0
CHECKPOINT_CHECK_S: Final = 10.0
CATCH_UP_S: Final = 1.0
"""Devices' requests look by themselves; this is for a web server that reads the directory."""
OPERATOR_PATHS: Final = ("/api/", "/health", "/readyz", "/metrics", "/openapi.json")
"""What the operator API answers itself; other paths belong to the pages, when there are any."""


class Pages(Protocol):
    """What a floor above may serve beside the operator API, over that API: the console."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer one request."""

    async def start(self) -> None:
        """Begin; the server takes requests from now on."""

    async def stop(self) -> None:
        """End every answer that would otherwise go on for ever."""


class Server:
    """One firmware server: everything `server run` holds, from lock to signer."""

    def __init__(
        self,
        layout: Layout,
        settings: ServerSettings,
        clock: Clock,
        *,
        make_pages: Callable[[ASGIApp], Pages] | None = None,
    ) -> None:
        self._layout = layout
        self._settings = settings
        self._clock = clock
        self._pace = Pace()
        self._make_pages = make_pages
        self._tasks: list[asyncio.Task[None]] = []

    def run(self, *, on_ready: Callable[[str, int], None]) -> None:
        """Serve until SIGTERM or SIGINT. `on_ready` gets address and port once connections are taken.

        Raises LockedError, AddressInUseError, KeyFileError, SettingError, CorruptStateError.
        """
        with locked(self._layout), listen(self._settings.host, self._settings.port) as listener:
            disk = ServerDisk()
            migrate(database_target(self._layout, self._settings))
            signer = SignerClient(self._layout.signer, user=self._settings.signer_user)
            signer.start()
            try:
                self._serve(disk, listener, signer, on_ready)
            finally:
                signer.close()

    def _serve(
        self, disk: ServerDisk, listener: socket.socket, signer: SignerClient, on_ready: Callable[[str, int], None]
    ) -> None:
        layout, settings = self._layout, self._settings
        certificate = server_certificate(disk, layout, settings, self._clock.now())
        context = make_context(disk, certificate, layout.device_ca / "ca.pem")
        target = database_target(layout, settings)
        database = open_database(target, self._clock)
        try:
            leadership = self._leadership(target)
            port = listener.getsockname()[1]
            reached = FencedDatabase(database) if database.is_shared else database
            parts = self._parts(disk, signer, reached, leadership, port)
            front = make_front(disk, layout, settings, load_certificate(disk, layout.device_ca / "ca.pem"), self._clock)
            application = Application(parts, self._make_pages, front)
            config = uvicorn.Config(
                application,
                http=DeviceConnection,
                ws="none",
                loop="uvloop",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
                backlog=BACKLOG,
            )
            config.load()
            config.ssl = None if settings.is_plain else context
            DeviceConnection.head_deadline_s = settings.header_deadline_s
            DeviceConnection.max_connections = settings.max_connections
            DeviceConnection.short = application.short
            quiet_uvicorn()
            server = _UvicornServer(config, self, parts, on_ready, application.pages)
            server.run(sockets=[listener])
        finally:
            database.close()

    def _leadership(self, target: Target) -> Leadership:
        replica_id = str(uuid.uuid4())
        if isinstance(target, Path):
            return Leadership(None, self._clock, replica_id)
        from firmament.server.database.leader_lock import LeaderLock

        return Leadership(LeaderLock(target, self._clock, replica_id), self._clock, replica_id)

    def _parts(
        self, disk: ServerDisk, signer: SignerClient, database: Database, leadership: Leadership, port: int
    ) -> Parts:
        layout, settings = self._layout, self._settings
        blobs = open_blobs(disk, layout, settings, self._clock)
        if settings.s3_bucket or not database.is_shared:  # else others may be receiving there
            blobs.sweep()
        try:
            blobs.check()
        except OverloadedError as error:
            # Polls and reports do not need it; what does is answered with 503 until it is back.
            log.warning("store.away", reason=str(error))
        collector = Collector(
            blobs, served_by(disk, layout, settings), grace=timedelta(hours=settings.blob_grace_hours)
        )
        publisher = Publisher(
            generations=Generations(disk, layout),
            blobs=blobs,
            signer=signer,
            database=database,
            online_keyids=read_online_keyids(disk, layout.online_public),
            clock=self._clock,
        )
        vault = load_vault(disk, layout.people_key)
        return Parts(
            settings=settings,
            layout=layout,
            clock=self._clock,
            database=database,
            leadership=leadership,
            link_reader=LinkReader(database),
            director_keys=load_director_keys(disk, layout.director),
            reply_versions=ReplyVersions(),
            registrar=Registrar(load_authority(disk, layout.device_ca), settings.device_certificate_days),
            blobs=blobs,
            publisher=publisher,
            checkpoints=Checkpoints(
                database,
                signer,
                self._clock,
                Rhythm(every_events=settings.checkpoint_every_events, interval_s=settings.checkpoint_interval_s),
            ),
            out=make_out(settings, layout, database, self._clock, publisher, vault, port=port),
            upkeep=Upkeep(
                collector,
                database,
                database_target(layout, settings),
                self._clock,
                interval=timedelta(hours=settings.blob_collect_hours),
            ),
            last_seen=LastSeen(),
            board=Board(),
            address_limit=TokenBuckets(rate_per_s=settings.address_requests_per_s, burst=settings.address_burst),
            device_limit=TokenBuckets(rate_per_s=settings.device_requests_per_s, burst=settings.device_burst),
            enrolment_limit=TokenBuckets(rate_per_s=settings.enrolments_per_s, burst=settings.enrolment_burst),
            login_limit=TokenBuckets(rate_per_s=settings.logins_per_minute / 60, burst=settings.login_burst),
            name_limit=TokenBuckets(rate_per_s=settings.logins_per_minute / 60, burst=settings.login_burst),
            vault=vault,
            custodian=load_custodian(disk, layout.content),
        )

    # --- background work -------------------------------------------------------------------

    async def start(self, parts: Parts, port: int) -> None:
        """Mend what a crash left, and start the loops."""
        leadership = parts.leadership
        leadership.port = port
        await parts.publisher.recover()
        now_s = int(self._clock.now().timestamp())
        stored = await parts.database.read(versions.read_horizon)
        parts.reply_versions.begin(versions.first_floor(stored, now_s, is_shared=parts.database.is_shared))
        await extend_horizon(parts, now_s)
        await leadership.beat()
        if leadership.epoch is not None:
            # Before the first answer: after some days of standstill the timestamp has expired.
            await _guarded(self._refresh, parts)
            await _guarded(self._count_versions, parts)
        for work, interval_s in (
            (self._beat, leader.BEAT_S),
            (self._flush_seen, seen.FLUSH_INTERVAL_S),
            (self._extend_horizon, HORIZON_CHECK_S),
            (self._catch_up, CATCH_UP_S),
            (self._refresh_board, board.REFRESH_S),
        ):
            self._tasks.append(asyncio.create_task(_every(interval_s, work, parts)))
        # What only the leader of several servers does.
        led_work: list[tuple[Callable[[Parts], Awaitable[None]], float]] = [
            (self._refresh, REFRESH_CHECK_S),
            (self._count_versions, history.EVERY_S),
            (self._checkpoint, CHECKPOINT_CHECK_S),
            (self._roll_out, parts.settings.rollout_interval_s),
            (self._collect, upkeep.CHECK_S),
            *((_without_parts(send), interval_s) for send, interval_s in parts.out.loops),
        ]
        for leads, interval_s in led_work:
            led = leadership.do(interval_s, functools.partial(_guarded, leads, parts))
            self._tasks.append(asyncio.create_task(led))

    async def stop(self, parts: Parts) -> None:
        """Stop the loops and write what they still hold."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await parts.leadership.leave()
        with contextlib.suppress(FirmamentError):
            await self._flush_seen(parts)
            if not parts.database.is_shared:
                # No request is answered any more: nothing above this was handed out.
                horizon = parts.reply_versions.last()
                await parts.database.submit(lambda connection: versions.write_horizon(connection, horizon))
        await parts.database.end()

    async def _flush_seen(self, parts: Parts) -> None:
        while rows := parts.last_seen.take():
            await parts.database.submit(lambda connection, rows=rows: seen.write_seen(connection, rows))  # type: ignore[misc]  # bound now

    async def _extend_horizon(self, parts: Parts) -> None:
        await extend_horizon(parts, int(self._clock.now().timestamp()))

    async def _beat(self, parts: Parts) -> None:
        await parts.leadership.beat()

    async def _catch_up(self, parts: Parts) -> None:
        await parts.publisher.catch_up()

    async def _checkpoint(self, parts: Parts) -> None:
        await parts.checkpoints.make_due()

    async def _collect(self, parts: Parts) -> None:
        await parts.upkeep.collect_due()

    async def _roll_out(self, parts: Parts) -> None:
        await run_round(parts.database, self._clock, self._pace)
        await self._refresh_board(parts)

    async def _refresh_board(self, parts: Parts) -> None:
        await parts.database.read(parts.board.refresh)

    async def _count_versions(self, parts: Parts) -> None:
        counts = await parts.database.read(history.count_today)
        now = self._clock.now()
        await parts.database.submit(lambda connection: history.write_day(connection, counts, now))

    async def _refresh(self, parts: Parts) -> None:
        await parts.publisher.refresh()


async def _every(interval_s: float, work: Callable[[Parts], Awaitable[None]], parts: Parts) -> None:
    while True:
        await asyncio.sleep(interval_s)
        await _guarded(work, parts)


def _without_parts(work: Callable[[], Awaitable[None]]) -> Callable[[Parts], Awaitable[None]]:
    async def with_parts(_parts: Parts) -> None:
        await work()

    with_parts.__name__ = work.__name__
    return with_parts


async def _guarded(work: Callable[[Parts], Awaitable[None]], parts: Parts) -> None:
    try:
        await work(parts)
    except FirmamentError as error:
        name = getattr(work, "__name__", "")
        log.error("background.failed", work=name, code=error.code, reason=str(error))  # noqa: TRY400 - a sentence
    except Exception as error:  # noqa: BLE001 - a defect of one turn must not end the loop for ever
        unexpected(error, "")


class _UvicornServer(uvicorn.Server):
    """uvicorn's server with our start and stop inside its loop."""

    _exit_at_s: float | None = None

    def __init__(
        self,
        config: uvicorn.Config,
        server: Server,
        parts: Parts,
        on_ready: Callable[[str, int], None],
        pages: Pages | None,
    ) -> None:
        super().__init__(config)
        self._pages = pages
        self._firmament = server
        self._parts = parts
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT, and return: uvicorn's own version ends the process by the signal."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        assert sockets
        await self._firmament.start(self._parts, sockets[0].getsockname()[1])
        if self._pages is not None:
            await self._pages.start()
        await super().startup(sockets)
        # What is there now stays: some 170 000 objects, most of them the framework's, which the collector
        # would walk again and again for what polls leave behind.
        gc.freeze()
        host, port = sockets[0].getsockname()[:2]
        log.info("server.started", host=host, port=port, pid=os.getpid(), version=__version__)
        self._on_ready(host, port)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Say "not ready" for a while before taking no more connections; a second signal ends that."""
        drain_s = self._parts.settings.drain_s
        if sig != signal.SIGTERM or self._parts.is_draining or not drain_s:
            super().handle_exit(sig, frame)
            return
        self._parts.is_draining = True
        self._exit_at_s = self._parts.clock.monotonic_s() + drain_s

    async def on_tick(self, counter: int) -> bool:
        if self._exit_at_s is not None and self._parts.clock.monotonic_s() >= self._exit_at_s:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._parts.is_draining = True
        self._parts.out.stopping.set()
        if self._pages is not None:
            await self._pages.stop()  # before uvicorn waits for open answers
        await super().shutdown(sockets)
        await self._firmament.stop(self._parts)
        log.info("server.stopped")


class Application:
    """ASGI: devices first, then the operator's framework, then the pages over it."""

    def __init__(
        self, parts: Parts, make_pages: Callable[[ASGIApp], Pages] | None = None, front: Front | None = None
    ) -> None:
        self._parts = parts
        self._front = front
        settings = parts.settings
        downloads = Downloads(
            max_in_all=settings.max_downloads,
            max_per_peer=settings.max_downloads_per_device,
            min_rate_bytes_per_s=settings.min_download_bytes_per_s,
        )
        self._devices = DeviceApi(parts, downloads, front)
        self.operators = Once(make_operator_app(parts), parts)
        self.pages = make_pages(self.operators) if make_pages is not None else None

    @property
    def short(self) -> Short:
        """Who answers conditional polls."""
        return self._devices.conditional

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Dispatch one request."""
        if scope["type"] != "http":
            return
        if self._front is not None:
            try:
                self._front.admit(scope)
            except FirmamentError as error:
                log.warning("front.refused", code=error.code, reason=str(error))
                status, headers, body = problem(error, new_request_id())
                await answer(send, status, headers, body)
                return
        if scope["path"].startswith(PREFIX):
            with contextlib.suppress(CutOffError):
                await self._devices(scope, receive, send)
            return
        await self._operate(scope, receive, send)

    async def _operate(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        request_id = new_request_id()
        scope["state"]["request_id"] = request_id
        started_s = self._parts.clock.monotonic_s()
        address = scope["client"][0] if scope.get("client") else ""
        status = 0

        async def noting(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._parts.address_limit.require(address, started_s, what="requests from this address")
            await self._answering(scope)(scope, receive, noting)
        except GoneError:
            pass
        except FirmamentError as error:
            status, headers, body = problem(error, request_id)
            await answer(send, status, headers, body)
        except Exception as error:  # noqa: BLE001 - logged with its trace; the framework has answered
            unexpected(error, request_id)
        log.info(
            "request.done",
            request_id=request_id,
            method=scope["method"],
            path=scope["path"],
            status=status,
            address=address,
            duration_s=round(self._parts.clock.monotonic_s() - started_s, 4),
        )

    def _answering(self, scope: AsgiScope) -> ASGIApp:
        # Pages are for people: a device gets problem+json on every path.
        is_device = scope["state"].get("peer") is not None
        if self.pages is None or is_device or scope["path"].startswith(OPERATOR_PATHS):
            return self.operators
        return self.pages


def make_operator_app(parts: Parts) -> FastAPI:
    """Build the framework's application; its documentation pages would load foreign scripts, so none."""
    app = FastAPI(
        title="Firmament operator API", version=__version__, docs_url=None, redoc_url=None, responses=REFUSALS
    )
    app.router.route_class = LateRoute
    OperatorApi(parts, app.router)
    app.add_exception_handler(FirmamentError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    return app


def _respond(request: Request, error: FirmamentError) -> Response:
    status, headers, body = problem(error, request.scope["state"].get("request_id", ""))
    plain = {name.decode(): value.decode() for name, value in headers if name != b"x-request-id"}
    return Response(body, status_code=status, headers=plain)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FirmamentError)
    return _respond(request, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:  # noqa: PLR2004 - HTTP's own number
        return _respond(request, NotFoundError("There is no such path", path=request.url.path[:80]))
    if error.status_code == 405:  # noqa: PLR2004 - HTTP's own number
        return _respond(request, MalformedError("This path does not take that method", method=request.method))
    return _respond(request, ForbiddenError("The request was refused", status=error.status_code))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    names = " ".join(".".join(str(part) for part in item["loc"]) for item in error.errors())
    return _respond(request, MalformedError("A parameter is missing or wrong", parameters=names[:200]))


# --- the machine ---------------------------------------------------------------------------


@contextlib.contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """Bind the socket, with a capped send buffer; raises AddressInUseError or LocalError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        try:
            listener.bind((host, port))
        except OSError as error:
            kind = AddressInUseError if error.errno == errno.EADDRINUSE else LocalError
            raise kind("The server cannot listen there", host=host, port=port, reason=error.strerror) from error
        listener.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        yield listener


def quiet_uvicorn() -> None:
    """Keep uvicorn's own lines out: each request has its line here, with a request id."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        found = logging.getLogger(name)
        found.handlers[:] = []
        found.propagate = False
        found.setLevel(logging.CRITICAL + 1)
