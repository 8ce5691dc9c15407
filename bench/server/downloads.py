"""Rows 6 to 8: whole payloads to fast peers, to a thousand slow ones, and what else waits meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from harness import (
    Line,
    Running,
    Scale,
    at_most,
    cpu_s,
    free_port,
    home,
    limit,
    median,
    process,
    resident_bytes,
    server,
    shown,
    wait_for_port,
)

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
FILE = "thermo/1.0/" + "0" * 64 + ".firmware.img"
URL = f"/v1/image/targets/{FILE}"
INTERNAL = "/_firmament/"
SECRET = "bench-" * 8
"""By which the server knows its nginx."""
SLOW_RATE = 8 * 1024


SEND_BUFFER = "128k"
"""As in deploy/nginx/firmament.conf, and as our server sets it itself."""


def nginx_settings(directory: Path, files: Path, port: int, upstream: int | None, *, capped: bool) -> Path:
    """Write a configuration: files by sendfile, or our server in front of them, reached as in deploy/nginx."""
    if upstream is None:
        places = f"location /v1/image/targets/ {{ alias {files}/; }}"
    else:
        places = (
            "location /v1/ { proxy_pass http://firmament; proxy_http_version 1.1; proxy_buffering off; "
            f'proxy_set_header Connection ""; proxy_set_header X-Firmament-Front {SECRET}; '
            f"proxy_set_header X-Firmament-Address $remote_addr; }} "
            f"location {INTERNAL} {{ internal; alias {files.parent}/; }}"
        )
    path = directory / "nginx.conf"
    path.write_text(
        f"daemon off; user root; worker_processes 1; pid {directory}/pid; error_log {directory}/error;\n"
        "events { worker_connections 4096; }\n"
        "http { access_log off; sendfile on; keepalive_requests 100000;\n"
        + "".join(
            f" {kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        + (f" upstream firmament {{ server 127.0.0.1:{upstream}; keepalive 64; }}" if upstream else "")
        + f" server {{ listen 127.0.0.1:{port}{f' sndbuf={SEND_BUFFER}' if capped else ''}; {places} }} }}\n"
    )
    return path


@contextlib.contextmanager
def nginx(directory: Path, files: Path, upstream: int | None = None, *, capped: bool = False):
    directory.mkdir()
    port = free_port()
    settings = nginx_settings(directory, files, port, upstream, capped=capped)
    with process(["nginx", "-c", str(settings)], stderr=subprocess.DEVNULL) as started:
        wait_for_port(port, started)
        yield Running(started.pid, port)


# --- fast peers --------------------------------------------------------------------------------


def fetch_all(port: int, *, connections: int, files: int, length_bytes: int) -> int:
    """Fetch the file on some connections at once, each several times; return the bytes."""
    request = f"GET {URL} HTTP/1.1\r\nhost: bench\r\n\r\n".encode()
    watch = selectors.DefaultSelector()
    wanted = {}
    for _ in range(connections):
        link = socket.create_connection(("127.0.0.1", port))
        link.sendall(request)
        watch.register(link, selectors.EVENT_READ)
        wanted[link] = [files, -1]
    buffer, got = bytearray(256 * 1024), 0
    while wanted:
        for key, _ in watch.select(10):
            link = key.fileobj
            count = link.recv_into(buffer)
            state = wanted[link]
            if not count:
                raise SystemExit("a download was cut")
            if state[1] < 0:
                head, mark, _ = bytes(buffer[:count]).partition(b"\r\n\r\n")
                if not mark or not head.startswith(b"HTTP/1.1 200"):
                    raise SystemExit(f"unexpected answer: {head[:200]!r}")
                state[1] = length_bytes
                count -= len(head) + 4
            state[1] -= count
            got += count
            if state[1] == 0:
                state[:] = [state[0] - 1, -1]
                if state[0]:
                    link.sendall(request)
                else:
                    watch.unregister(link)
                    link.close()
                    del wanted[link]
    return got


def fast(place: Path, ours: Running, files: Path, scale: Scale, *, accel: Running) -> list[Line]:
    """Row 6."""
    length = (files / FILE).stat().st_size
    spent = defaultdict(list)
    with (
        nginx(place / "plain", files) as sendfile,
        nginx(place / "capped", files, capped=True) as capped,
        nginx(place / "accel", files, accel.port, capped=True) as handing,
    ):
        kinds = {"nginx": sendfile, "capped": capped, "ours": ours, "accel": handing}
        for round_number in range(scale.rounds + 1):
            for kind, target in kinds.items():
                before = cpu_s(target.pid) + (cpu_s(accel.pid) if kind == "accel" else 0)
                got = fetch_all(target.port, connections=8, files=max(1, round(scale.seconds * 8)), length_bytes=length)
                after = cpu_s(target.pid) + (cpu_s(accel.pid) if kind == "accel" else 0)
                if round_number or scale.rounds == 1:
                    spent[kind].append((after - before) / got * 1e9)
    cost = {kind: max(median(values), 1e-3) for kind, values in spent.items()}
    what = f"download of {length // MIB} MiB, 8 connections, CPU"
    handed = f"{what}, handed to nginx (both processes)"
    same = f"nginx sendfile, sndbuf={SEND_BUFFER}"
    return [
        at_most("6", what, cost["ours"], cost["nginx"], 2.2, unit="s/GB", name="nginx sendfile"),
        shown("6", "the same", cost["ours"], cost["capped"], unit="s/GB", name=same),
        at_most("6", handed, cost["accel"], cost["capped"], 1.6, unit="s/GB", name=same),
        shown("6", "the same", cost["accel"], cost["nginx"], unit="s/GB", name="nginx sendfile"),
    ]


# --- slow peers --------------------------------------------------------------------------------


def kernel_bytes(port: int) -> int:
    """What the kernel holds for the sockets of a server: queued to send, received, and kept ahead."""
    text = subprocess.run(["ss", "-tmnH", "sport", "=", f":{port}"], capture_output=True, text=True, check=True).stdout
    return sum(int(number) for number in re.findall(r"[(,](?:r|f|w)(\d+)", text))


@dataclasses.dataclass(slots=True)
class Slow:
    memory_kb: float
    cut: int


def slowly(target: Running, scale: Scale) -> Slow:
    """Open many downloads that take 8 KiB a second each, for a while."""
    before = resident_bytes(target.pid)
    links = []
    for _ in range(scale.slow_downloads):
        link = socket.socket()
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect(("127.0.0.1", target.port))
        link.sendall(f"GET {URL} HTTP/1.1\r\nhost: bench\r\n\r\n".encode())
        link.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        links.append(link)
    cut, end_s, most = set(), time.monotonic() + scale.slow_s, 0.0
    while time.monotonic() < end_s:
        turn_s = time.monotonic()
        for link in links:
            with contextlib.suppress(BlockingIOError):
                try:
                    if not link.recv(SLOW_RATE):
                        cut.add(link)
                except ConnectionError:
                    cut.add(link)
        most = max(most, resident_bytes(target.pid) - before + kernel_bytes(target.port))
        time.sleep(max(0.0, 1.0 - (time.monotonic() - turn_s)))
    for link in links:
        link.close()
    return Slow(most / len(links) / 1024, len(cut))


def slow(place: Path, ours: Running, files: Path, scale: Scale) -> list[Line]:
    """Row 7."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    found = slowly(ours, scale)
    with nginx(place / "slow", files) as sendfile:
        theirs = slowly(sendfile, scale)
    n = f"{scale.slow_downloads:,} downloads at 8 KiB/s"
    return [
        Line(
            "7",
            f"{n}: memory of each, with the kernel's",
            f"{found.memory_kb:.0f} KB",
            f"nginx sendfile: {theirs.memory_kb:.0f} KB",
            found.memory_kb / theirs.memory_kb,
            "<= 450 KB",
            holds=found.memory_kb <= 450,
        ),
        limit("7", f"{n}: cut off within {scale.slow_s:g} s", found.cut, 0, unit="downloads"),
    ]


# --- everybody else meanwhile ------------------------------------------------------------------


def latencies_ms(port: int, seconds: float) -> list[float]:
    """Ask small questions one after the other; return how long each took."""
    request = b"GET /v1/nothing HTTP/1.1\r\nhost: bench\r\n\r\n"
    found, end_s = [], time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", port)) as link:
        while time.monotonic() < end_s:
            started_s = time.monotonic()
            link.sendall(request)
            answer = b""
            while not answer.endswith(b"}"):
                answer += link.recv(65536)
            found.append(1000 * (time.monotonic() - started_s))
            time.sleep(0.002)
    return found


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def meanwhile(ours: Running, files: Path, scale: Scale) -> list[Line]:
    """Row 8."""
    idle, busy = [], []
    length = (files / FILE).stat().st_size
    for _ in range(scale.rounds):
        idle.append(p99(latencies_ms(ours.port, scale.seconds)))
        with process([sys.executable, __file__, str(ours.port), str(length)]):
            time.sleep(0.5)
            busy.append(p99(latencies_ms(ours.port, scale.seconds)))
    what = "99th percentile of a small request during 8 downloads at full speed"
    return [at_most("8", what, median(busy), median(idle), 3, unit="ms", name="idle")]


def measure(place: Path, scale: Scale) -> list[Line]:
    """Rows 6 to 8."""
    where = home(place / "downloads")
    from firmament.server.layout import Layout

    files = Layout(where).targets
    (files / FILE).parent.mkdir(parents=True, exist_ok=True)
    (files / FILE).write_bytes(os.urandom(16 * MIB if scale.rounds > 1 else MIB))
    for each in (files / FILE).parents:
        if each == place:
            break
        each.chmod(0o755)
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(server("poll", home=str(where)))
        other = home(place / "accel-home")
        (Layout(other).targets / FILE).parent.mkdir(parents=True, exist_ok=True)
        (Layout(other).targets / FILE).hardlink_to(files / FILE)
        accel = stack.enter_context(server("accel", home=str(other), accel=INTERNAL, secret=SECRET))
        return [
            *fast(place, ours, files, scale, accel=accel),
            *slow(place, ours, files, scale),
            *meanwhile(ours, files, scale),
        ]


if __name__ == "__main__":
    while True:
        fetch_all(int(sys.argv[1]), connections=8, files=50, length_bytes=int(sys.argv[2]))
