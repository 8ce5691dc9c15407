"""Devices that fetch from each other: a real agent gives, a real agent takes, and the server counts what it was asked."""

import shutil
import socket
import subprocess
from types import SimpleNamespace

import pytest
from attack.hostile import HostileServer, Victim
from attack.payloads import SECRET, image_of, publish, sealed_whole
from support import programs
from support.agent_device import until
from support.sockets import RawServer

from firmament.core.digest import Digest


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A giver with 1.0 (whole, in a slot) and 1.1 (sealed, as a file), its daemon running; a taker with 1.0."""
    directory = tmp_path_factory.mktemp("neighbours")
    server = HostileServer(directory / "server")
    giver, taker = (Victim(directory / name, server) for name in ("giver", "taker"))
    url = f"http://127.0.0.1:{free_port()}/"
    giver.config.write_text(giver.config.read_text() + f'[share]\nlisten = "{url[7:-1]}"\n')
    packed = sealed_whole()
    found = SimpleNamespace(server=server, giver=giver, taker=taker, url=url, packed=packed)
    for device in (giver, taker):
        device.provision()
    first = server.release("1.0", 1)
    install(found, giver, "1.0")
    publish(SimpleNamespace(world=server.world, victim=giver), packed, confidential=True)
    install(found, giver, "1.1")
    command = ["firmament-agent", "--config", giver.config, "run"]
    daemon = programs.Program(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: answers(url))
        server.world.assign(first)
        take_from(found, url)
        found.asked_for_the_first = install(found, taker, "1.0")
        publish(SimpleNamespace(world=server.world, victim=taker), packed, confidential=True)
        found.copied = directory / "copy"
        shutil.copytree(taker.directory, found.copied, symlinks=True)
        yield found
    finally:
        daemon.terminate()
        daemon.wait(20)
        server.close()


@pytest.fixture
def taker(world):
    """The taker with 1.0 again, 1.1 published and assigned."""
    shutil.rmtree(world.taker.directory)
    shutil.copytree(world.copied, world.taker.directory, symlinks=True)
    return world.taker


def answers(url):
    host, port = url[7:-1].split(":")
    with socket.socket() as one:
        return one.connect_ex((host, int(port))) == 0


def take_from(world, url):
    world.taker.configure()
    world.taker.config.write_text(world.taker.config.read_text() + f'[payload]\nneighbours = ["{url}"]\n')


def install(world, device, version):
    """Install what is assigned; return what the server was asked for of payloads."""
    world.server.asked.clear()
    ran = device.run("all", "--yes")
    assert ran.exit_code == 0, ran.err
    assert device.installed == version
    return [line for line in world.server.asked if "/targets/" in line]


def read(url, path):
    """Ask a neighbour by hand; return its whole answer."""
    host, port = url[7:-1].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as one:
        one.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        with one.makefile("rb") as answer:
            return answer.read()


def test_every_payload_byte_comes_from_the_neighbour(world, taker):
    assert world.asked_for_the_first == [], "1.0, from the slot of the giver"
    take_from(world, world.url)
    assert install(world, taker, "1.1") == [], "1.1, sealed, from its file"
    assert (taker.app / "current" / "recipe").read_bytes() == SECRET * 40


def test_69_what_was_sealed_is_given_sealed_and_the_image_not_at_all(world):
    """Somebody in the local network asks a giver for what was sealed: he gets the container, and never the image."""
    sealed = world.packed.payloads[0]
    answer = read(world.url, f"/any/1.1/{sealed.digest.hex}.x")
    assert answer.endswith(world.packed.files[sealed.target])
    assert SECRET not in answer
    assert read(world.url, f"/any/1.1/{Digest.of(image_of('1.1')).hex}.x").startswith(b"HTTP/1.1 404")


class Neighbour:
    """A neighbour that answers with what `body(data, offset)` makes of the sealed payload."""

    def __init__(self, world, body):
        self.data = world.packed.files[world.packed.payloads[0].target]
        self.body = body
        self.raw = RawServer(self.answer)

    def answer(self, connection, head):
        asked = [line for line in head.decode().lower().splitlines() if line.startswith("range:")]
        offset = int(asked[0].partition("=")[2].partition("-")[0]) if asked else 0
        sent = self.body(self.data, len(self.raw.requests))
        if sent is None:
            return False
        status = f"206 P\r\nContent-Range: bytes {offset}-{len(self.data) - 1}/{len(self.data)}" if asked else "200 OK"
        connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(self.data) - offset}\r\n\r\n".encode())
        connection.sendall(sent[offset:])
        return False


def test_69_a_poisoned_piece_is_found_and_only_it_is_fetched_from_the_server(world, taker):
    """A neighbour changes a byte of a sealed payload."""
    spoiled = len(world.packed.files[world.packed.payloads[0].target]) - 1000
    neighbour = Neighbour(world, lambda data, _: data[:spoiled] + bytes([data[spoiled] ^ 1]) + data[spoiled + 1 :])
    take_from(world, neighbour.raw.url + "/")
    asked = install(world, taker, "1.1")
    neighbour.raw.close()
    assert len(neighbour.raw.requests) == 1, "it is not asked again"
    chunk_list, piece = asked
    assert chunk_list.endswith(".chunks")
    start = int(piece.partition("bytes=")[2].partition("-")[0])
    assert 0 < start <= spoiled


def test_69_a_neighbour_that_goes_away_is_continued_by_the_server(world, taker):
    """A neighbour is switched off in the middle of a transfer."""
    neighbour = Neighbour(world, lambda data, nth: data[:100_000] if nth == 1 else None)
    take_from(world, neighbour.raw.url + "/")
    (asked,) = install(world, taker, "1.1")
    neighbour.raw.close()
    assert asked.endswith("bytes=100000-"), "what the neighbour brought is not fetched again"
