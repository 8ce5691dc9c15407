"""The nginx of deploy/ in front of a real server: devices prove themselves, payloads come from nginx."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from support.databases import fresh_database
from support.server_world import Client, World, sha256
from support.swift import free_port

CONFIGURATION = Path(__file__).parents[2] / "deploy/nginx/firmament.conf"
SECRET = "the-secret-of-server-and-nginx-0123456789"
DATA = os.urandom(3_000_000)
PATH = f"/v1/image/targets/thermo/1.1/{sha256(DATA)}.firmware.img"
START_S = 20


class Nginx:
    """A process of Debian's nginx with the file of deploy/, its places replaced by the test's."""

    def __init__(self, directory, server, store_url):
        directory.mkdir()
        self.ca, self.port = server.ca, free_port()
        self.url = f"https://localhost:{self.port}"
        secret = directory / "firmament-secret.conf"
        secret.write_text(f'proxy_set_header X-Firmament-Front "{SECRET}";\n')
        text = CONFIGURATION.read_text()
        for old, new in (
            ("/var/lib/firmament-server", str(server.directory)),
            ("/etc/nginx/firmament-secret.conf", str(secret)),
            ("127.0.0.1:4443", f"127.0.0.1:{server.port}"),
            ("listen 443 ", f"listen 127.0.0.1:{self.port} "),
            ("updates.example", "localhost"),
            ("proxy_pass https://s3.example/;", f"proxy_pass {store_url}/;"),
            ("proxy_pass https://firmament;", f"proxy_pass {server.url.partition('://')[0]}://firmament;"),
            ("Host s3.example", f"Host {store_url.partition('://')[2]}"),
        ):
            assert old in text, old
            text = text.replace(old, new)
        (directory / "site.conf").write_text(text)
        places = "".join(
            f"{kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        self.log = directory / "error.log"
        user = "user root;\n" if os.getuid() == 0 else ""
        (directory / "nginx.conf").write_text(
            f"{user}pid {directory}/pid;\ndaemon off;\nworker_processes 1;\nerror_log {self.log};\nevents {{ }}\n"
            f"http {{\naccess_log off;\n{places}include {directory}/site.conf;\n}}\n"
        )
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        command = [program, "-p", str(directory), "-c", str(directory / "nginx.conf")]
        tried = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
        assert tried.returncode == 0, tried.stderr
        assert "warn" not in tried.stderr
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        for _ in range(START_S * 20):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                break
            time.sleep(0.05)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)


@pytest.fixture(scope="module", params=["directory", "s3"])
def world(request, tmp_path_factory, database_kind):
    directory = tmp_path_factory.mktemp("nginx")
    server = directory / "server"
    server.mkdir()
    (server / "front-secret").write_text(SECRET + "\n")
    (server / "front-secret").chmod(0o600)
    options = fresh_database(database_kind) | {"front_secret_file": "front-secret", "front_prefix": "/_firmament/"}
    store = None
    if request.param == "s3":
        store = request.getfixturevalue("swift")
        options |= store.settings(server, f"nginx-{database_kind}/")
    # nginx and server speak plain HTTP on one database and TLS on the other: neither knows of the other's choice.
    is_plain = (request.param, database_kind) == ("directory", "postgresql")
    plain = {"FIRMAMENT_SERVER_FRONT_SCHEME": "http", "FIRMAMENT_SERVER_HOST": "127.0.0.1"}
    made = World(directory, database=options, env=plain if is_plain else None).begin()
    made.publish_release("thermo", "1.1", 2, DATA)
    made.store = store
    made.nginx = Nginx(directory / "nginx", made.server, store.url if store else "http://127.0.0.1:1")
    made.fronted = made.device()
    made.fronted.connect(made.nginx)  # a certificate of the server's CA, shown to nginx
    yield made
    made.nginx.stop()
    made.close()


def test_a_device_polls_and_downloads_through_nginx(world):
    device = world.fronted
    assert device.poll().status == 200
    whole = device.client.ask("GET", PATH)
    assert (whole.status, whole.body == DATA) == (200, True)
    assert whole.headers["server"].startswith("nginx")
    assert whole.headers["cache-control"] == "public, max-age=31536000, immutable"
    part = device.client.ask("GET", PATH, headers={"range": "bytes=1000000-1999999", "if-range": whole.headers["etag"]})
    assert (part.status, part.body == DATA[1_000_000:2_000_000]) == (206, True)
    assert part.headers["content-range"] == f"bytes 1000000-1999999/{len(DATA)}"
    assert device.client.ask("GET", PATH, headers={"range": f"bytes={len(DATA)}-"}).status == 416
    head = device.client.ask("HEAD", PATH)
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(DATA)), b"")
    for answer in (whole, part, head):
        told = " ".join((*answer.headers, *answer.headers.values())).lower()
        for word in ("accel", "_firmament", "x-amz", "x-trans", str(world.server.directory)):
            assert word not in told
    assert device.client.ask("GET", "/v1/image/metadata/timestamp.json").headers["cache-control"] == "no-cache"


def test_nobody_gets_at_the_inner_paths_or_at_payloads_without_a_certificate(world):
    with Client(world.nginx) as nobody:
        assert nobody.ask("GET", PATH).code == "request/unauthenticated"
        for client in (nobody, world.fronted.client):
            for name in (PATH.removeprefix("/v1/image/targets/"), ""):
                assert client.ask("GET", f"/_firmament/targets/{name}").status == 404
            # Errors of this path are told as an outage: to whoever guesses it as well.
            assert client.ask("GET", "/_firmament/store/firmament/").status == 503
    # Without nginx the server sends payloads itself, and tells no inner path; without TLS nobody proves a key to it.
    other = world.device()
    if world.server.url.startswith("http:"):
        assert other.client.ask("GET", PATH).code == "request/unauthenticated"
        return
    direct = other.client.ask("GET", PATH)
    assert (direct.status, direct.body == DATA) == (200, True)
    assert "x-accel-redirect" not in direct.headers
    other.close()


def test_what_nginx_says_is_believed_from_nginx_only(world):
    chain = (world.fronted.directory / "chain.pem").read_text()
    forged = {"x-firmament-certificate": re.sub(r"\s", "%0A", chain), "x-firmament-address": "192.0.2.1"}
    with Client(world.nginx) as nobody, Client(world.server) as direct:
        assert nobody.ask("GET", PATH, headers=forged).code == "request/unauthenticated"
        assert direct.ask("GET", PATH, headers=forged).code == "request/unauthenticated"
        guessed = direct.ask("GET", PATH, headers={**forged, "x-firmament-front": "x" * len(SECRET)})
        assert (guessed.status, guessed.code) == (403, "request/forbidden")
        right = {"x-firmament-front": SECRET, "x-firmament-address": "192.0.2.1"}
        assert direct.ask("GET", PATH, headers={**right, "x-firmament-address": "here"}).code == "request/forbidden"
        own = (world.server.directory / "tls" / "ca.pem").read_text().replace("\n", "%0A").replace(" ", "%20")
        assert direct.ask("GET", PATH, headers={**right, "x-firmament-certificate": own}).code == "request/forbidden"
    assert SECRET not in world.server.log.read_text()


def test_people_and_uploads_go_through_nginx_as_well(world):
    with Client(world.nginx, token=world.admin.token) as admin:
        data = os.urandom(2_000_000)
        assert admin.ask("PUT", f"/api/v1/blobs/{sha256(data)}", data).status == 201
        assert admin.ask("GET", "/api/v1/devices").status == 200


def test_a_store_that_is_away_is_told_in_our_words(world):
    if world.store is None:
        missing = next((world.server.directory / "repository/targets").rglob(f"{sha256(DATA)}*"))
        assert missing.stat().st_mode & 0o777 == 0o640  # nginx reads it as a member of the group
        assert {path.stat().st_mode & 0o777 for path in list(missing.parents)[:4]} == {0o750}
        aside = missing.rename(missing.with_name("aside"))
        assert world.fronted.client.ask("GET", PATH).code == "request/not-found"
        aside.rename(missing)
        return
    assert world.fronted.client.ask("GET", PATH).status == 200
    world.store.kill("object", "proxy")
    try:
        answer = world.fronted.client.ask("GET", PATH)
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert str(world.store.ports["proxy"]).encode() not in answer.body
    finally:
        world.store.start("object", "proxy")
    assert world.fronted.client.ask("GET", PATH).body == DATA
