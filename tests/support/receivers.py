"""Real receivers, each a process of its own: HTTPS, SMTP (run this file), and Debian's Mosquitto."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

DEADLINE_S = 20


class Receiver:
    """Starts this file as a program; what it got is in a file, one JSON object a line."""

    def __init__(self, directory: Path, kind: str, *, certificate: tuple[Path, Path] | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.got_file, self.answer_file = directory / "got.jsonl", directory / "answer"
        self.got_file.touch()
        port_file = directory / "port"
        arguments = [kind, str(port_file), str(self.got_file), str(self.answer_file), *map(str, certificate or ())]
        self.process = subprocess.Popen([sys.executable, __file__, *arguments])
        wait_for(port_file.exists)
        self.port = int(port_file.read_text())

    def got(self) -> list[dict]:
        return [json.loads(line) for line in self.got_file.read_text().splitlines()]

    def answer(self, status: int) -> None:
        """Answer with this HTTP status from now on."""
        self.answer_file.write_text(str(status))

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=10)


class Mosquitto:
    """Debian's broker on loopback, and its own subscriber."""

    def __init__(self, directory: Path, *, certificate: tuple[Path, Path] | None = None) -> None:
        """With a certificate and its key it speaks TLS alone; without one, plain."""
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        settings = directory / "mosquitto.conf"
        secure = f"certfile {certificate[0]}\nkeyfile {certificate[1]}\n" if certificate else ""
        # As root it would become its own user, who may not read the key.
        settings.write_text(
            f"user root\nlistener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n{secure}"
        )
        trusted = ["--cafile", str(certificate[0])] if certificate else []
        self.process = subprocess.Popen(
            ["/usr/sbin/mosquitto", "-c", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(lambda: answers(self.port))
        self._got = directory / "got"
        with self._got.open("wb") as got:
            self.listener = subprocess.Popen(
                [
                    "mosquitto_sub",
                    "-p",
                    str(self.port),
                    *trusted,
                    "-t",
                    "#",
                    "-F",
                    '{"topic":"%t","retain":%r,"value":%p}',
                ],
                stdout=got,
            )

    def got(self) -> list[dict]:
        return [json.loads(line) for line in self._got.read_text().splitlines()]

    def close(self) -> None:
        for process in (self.listener, self.process):
            process.terminate()
            process.wait(timeout=10)


class MailServer:
    """Debian's aiosmtpd, which puts mail into a maildir: TLS from the start (`smtps`), or after STARTTLS."""

    def __init__(self, directory: Path, certificate: tuple[Path, Path], *, is_smtps: bool) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.mailbox, self.port = directory / "mail", free_port()
        kind = "smtps" if is_smtps else "tls"
        self.process = subprocess.Popen(
            ["/usr/bin/python3", "-m", "aiosmtpd", "-n", "-l", f"localhost:{self.port}",
             f"--{kind}cert", certificate[0], f"--{kind}key", certificate[1],
             "-c", "aiosmtpd.handlers.Mailbox", self.mailbox],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for(lambda: answers(self.port))

    def got(self) -> list[str]:
        return [path.read_text() for path in sorted((self.mailbox / "new").glob("*"))]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=10)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_for(condition, deadline_s: float = DEADLINE_S):
    """Return what `condition` says once it is true."""
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return found


# --- the program ---------------------------------------------------------------------------


def serve_https(listener: socket.socket, got: Path, answer: Path, certificate: str, key: str) -> None:
    import ssl
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = int(answer.read_text()) if answer.exists() else 204
            entry = {"path": self.path, "headers": dict(self.headers), "body": body.decode(), "status": status}
            with got.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            self.send_response(status)
            if status in range(300, 400):
                self.send_header("location", f"https://localhost:{listener.getsockname()[1]}/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(listener.getsockname(), Handler, bind_and_activate=False)
    server.socket = context.wrap_socket(listener, server_side=True)
    server.serve_forever()


def serve_smtp(listener: socket.socket, got: Path) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rwb") as stream:
            mail(stream, got)


def mail(stream, got: Path) -> None:
    """RFC 5321, as much as a client needs."""

    def say(text: str) -> None:
        stream.write(text.encode() + b"\r\n")
        stream.flush()

    say("220 receiver")
    entry = {"to": []}
    while line := stream.readline():
        verb = line.decode().strip().upper()
        if verb.startswith(("EHLO", "HELO")):
            say("250 receiver")
        elif verb.startswith("MAIL FROM"):
            entry["from"] = line.decode().strip()[10:]
            say("250 ok")
        elif verb.startswith("RCPT TO"):
            entry["to"].append(line.decode().strip()[8:])
            say("250 ok")
        elif verb == "DATA":
            say("354 go on")
            lines = []
            while (text := stream.readline()) != b".\r\n":
                lines.append(text.removeprefix(b".").decode())
            entry["data"] = "".join(lines)
            with got.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            say("250 taken")
        elif verb == "QUIT":
            say("221 bye")
            return
        else:
            say("250 ok")


def main() -> None:
    kind, port_file, got, answer, *certificate = sys.argv[1:]
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    temporary = Path(port_file + ".new")
    temporary.write_text(str(port))
    temporary.replace(port_file)
    if kind == "https":
        serve_https(listener, Path(got), Path(answer), *certificate)
    else:
        serve_smtp(listener, Path(got))


if __name__ == "__main__":
    main()
