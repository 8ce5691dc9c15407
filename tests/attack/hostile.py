"""A server in the attacker's hands, and the real agent as a process of its own, over HTTPS.

`HostileServer` is the whole valid world of support/world.py behind a real TLS socket with client
certificates; a story breaks one thing of it: the files, the director's answers (`on_poll`), or the
bytes on the way (`tap`, `send`). It writes down what was asked, as evidence.

`Victim` is a device: provisioned by `firmament-agent provision`, everything it does is a run of the
real command. Its trust anchors are those of the honest world, whoever answers later.
"""

import base64
import contextlib
import http.server
import ipaddress
import json
import os
import ssl
import subprocess
import sys
import threading
import tomllib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from support import documents, programs
from support.world import HARDWARE, PRODUCT, Answer, World

from firmament.core import bundle
from firmament.protocol.v1.messages import decode_enrol_request, decode_report, decode_report_batch

AGENT = "from firmament.cli.agent import main; main()"
COMMAND_DEADLINE_S = 60


def make_bundle(version: str, *, extra: dict[str, bytes] | None = None) -> bytes:
    """A bundle whose program waits until it is ended; `healthy` is what the health check looks for."""
    files = {"healthy": b"yes\n", "main.py": b"import signal\nsignal.pause()\n", "version": version.encode()}
    made = bytearray()
    for path, data in sorted({**files, **(extra or {})}.items()):
        made += bundle.header(bundle.Entry(path, bundle.EntryKind.FILE, length_bytes=len(data)))
        made += data + bundle.padding(len(data))
    return bytes(made + bundle.END)


# --- certificates ----------------------------------------------------------------------------


class Authority:
    """A CA that issues for servers and devices; an attacker makes one of his own."""

    def __init__(self, name: str = "honest") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._issue(self.name, self.key.public_key(), ca=True)

    def _issue(self, subject, public_key, *, ca=False, names=(), usage=None, begins=None, ends=None):
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins or now - timedelta(days=1))
            .not_valid_after(ends or now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if ca:
            use = dict.fromkeys(
                (
                    "content_commitment",
                    "key_encipherment",
                    "data_encipherment",
                    "key_agreement",
                    "encipher_only",
                    "decipher_only",
                ),
                False,
            )
            builder = builder.add_extension(
                x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **use), critical=True
            )
        return builder.sign(self.key, hashes.SHA256())

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def server(self, directory: Path, *, names=("localhost", "127.0.0.1"), begins=None, ends=None) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = [
            x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name) for name in names
        ]
        certificate = self._issue(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]),
            key.public_key(),
            names=alternatives,
            usage=ExtendedKeyUsageOID.SERVER_AUTH,
            begins=begins,
            ends=ends,
        )
        path = directory / f"server-{certificate.serial_number}.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return path

    def device(self, request_pem: str, device_id: str) -> str:
        request = x509.load_pem_x509_csr(request_pem.encode())
        certificate = self._issue(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id)]),
            request.public_key(),
            usage=ExtendedKeyUsageOID.CLIENT_AUTH,
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode()


# --- the server ------------------------------------------------------------------------------


class HostileServer:
    """A `World` behind TLS. `world` is honest until the story begins."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.world = World(directory / "world")
        now = datetime.now(UTC).replace(microsecond=0)
        self.world.clock.set(now)
        self.world.image.clock = self.world.clock
        self.world.image.put_root(1)
        self.world.image.publish()
        self.world.put_director_root(1)
        self.world.version = iter(range(int(now.timestamp()), int(now.timestamp()) + 10**6))
        self.authority = Authority()
        self.asked: list[str] = []
        """``METHOD path [range]`` of every request, in order: the evidence."""
        self.reports: list = []
        self.send = None
        """`send(handler, path, answer) -> bool`: put bytes on the socket by hand; True when done."""
        self.mutual = True
        self._start(self.authority.server(directory))

    def _start(self, certificate: Path, port: int = 0) -> None:
        server = self
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.load_verify_locations(cadata=self.authority.pem)
        context.verify_mode = ssl.CERT_OPTIONAL

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def _serve(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length) if length else b""
                server._answer(self, body)

            do_GET = do_POST = do_HEAD = _serve  # noqa: N815 - names of http.server

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:  # a victim that hangs up is what we want
                pass

        self._http = Server(("127.0.0.1", port), Handler, bind_and_activate=True)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def restart(self, certificate: Path) -> None:
        """Come back on the same port with another certificate."""
        port = self.port
        self.close()
        self._start(certificate, port)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def _answer(self, handler, body: bytes) -> None:
        path, asked_range = handler.path, handler.headers.get("range")
        self.asked.append(f"{handler.command} {path}" + (f" {asked_range}" if asked_range else ""))
        if path == "/v1/enrol":
            request = decode_enrol_request(body)
            chain = self.authority.device(request.csr_pem, self.world.device_id)
            answer = Answer(
                200,
                json.dumps({"v": 1, "device_id": self.world.device_id, "certificate_chain_pem": chain}).encode(),
            )
        elif self.mutual and not handler.connection.getpeercert():
            answer = Answer(401, b'{"type":"request/unauthenticated","detail":"no certificate"}')
        else:
            headers = {"Range": asked_range} if asked_range else {}
            answer = self.world.answer(path, body, headers)
            if path == "/v1/report":
                for item in decode_report_batch(body).envelopes:
                    self.reports.append(decode_report(base64.b64decode(item["payload"])))
            if self.world.tap:
                answer = self.world.tap(handler.command, path, answer)
        with contextlib.suppress(OSError):
            if self.send is not None and self.send(handler, path, answer):
                handler.close_connection = True
                return
            handler.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() != "content-length":
                    handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(answer.body)))
            handler.end_headers()
            if handler.command != "HEAD":
                handler.wfile.write(answer.body)

    # --- what an author does -----------------------------------------------------------------

    def release(self, version: str, sequence_number: int, data: bytes | None = None, **changes):
        return self.world.release(version, sequence_number, make_bundle(version) if data is None else data, **changes)


# --- the device ------------------------------------------------------------------------------


@dataclass
class Ran:
    """One run of the agent's command."""

    exit_code: int
    out: str
    err: str

    @property
    def code(self) -> str:
        """The error code it printed, empty when there was none."""
        with contextlib.suppress(ValueError, IndexError):
            return documents.loads(self.err.strip().splitlines()[-1]).get("code", "")
        return ""

    @property
    def json(self) -> dict:
        return documents.loads(self.out)


@dataclass
class Victim:
    """A device of its own, in its own folder."""

    directory: Path
    server: HostileServer
    transfer: dict[str, int] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    """Put before the command, e.g. ``faketime``."""

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.state = self.directory / "state"
        self.app = self.directory / "app"
        self.app.mkdir()
        self.config = self.directory / "agent.toml"
        self.configure()

    def configure(self, **transfer: int) -> None:
        settings = {
            "connect_timeout_s": 5,
            "idle_timeout_s": 5,
            "request_deadline_s": 20,
            "retry_wait_ms": 5,
            **self.transfer,
            **transfer,
        }
        self.config.write_text(
            f"""
state_dir = "{self.state}"
socket = "{self.directory / "agent.sock"}"
[slots]
kind = "bundle"
directory = "{self.app}"
[boot]
kind = "supervisor"
command = ["{sys.executable}", "-S", "main.py"]
stop_timeout_s = 2
[[health]]
kind = "command"
command = ["test", "-f", "{self.app}/current/healthy"]
[trial]
deadline_s = 10
interval_s = 1
passes = 1
[policy]
mode = "automatic"
poll_interval_s = 3600
[transfer]
"""
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )
        tomllib.loads(self.config.read_text())

    def run(self, *arguments: str, prefix: tuple[str, ...] | None = None, deadline_s: int = COMMAND_DEADLINE_S) -> Ran:
        prefix = self.prefix if prefix is None else prefix
        words = ["--config", str(self.config), *arguments, "--json"]
        environment = {**os.environ, "PYTHONWARNINGS": "error"}
        if not prefix:
            done = programs.run(["firmament-agent", *words], timeout=deadline_s, env=environment)
        else:
            done = subprocess.run(
                [*prefix, sys.executable, "-c", AGENT, *words],
                check=False,
                capture_output=True,
                text=True,
                timeout=deadline_s,
                env=environment,
            )
        return Ran(done.returncode, done.stdout, done.stderr)

    def provision(self) -> None:
        path = self.directory / "provision.json"
        path.write_text(
            json.dumps(
                {
                    "v": 1,
                    "server_url": self.server.url,
                    "ca_pem": self.server.authority.pem,
                    "token": "one-time",
                    "product": PRODUCT,
                    "hardware": HARDWARE,
                    "image_root": self.server.world.image.files["1.root.json"].decode(),
                    "director_root": self.server.world.director_files["1.root.json"].decode(),
                }
            )
        )
        path.chmod(0o600)
        done = self.run("provision", str(path), prefix=())
        assert done.exit_code == 0, done.err

    def status(self) -> dict:
        done = self.run("status", prefix=())
        assert done.exit_code == 0, done.err
        return done.json

    @property
    def installed(self) -> str:
        """The version in the slot that starts, read from the storage."""
        path = self.app / "current" / "version"
        return path.read_text() if path.exists() else ""
