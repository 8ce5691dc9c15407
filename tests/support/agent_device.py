"""A device in a directory and its real `firmament-agent`, for tests with real processes."""

import contextlib
import json
import os
import subprocess
import textwrap
import time

from support import documents, programs

AGENT = "firmament-agent"


class Device:
    """One device in a directory: settings, state, slots, and the command."""

    def __init__(self, directory, world, *, policy="", boot='kind = "sim"', extra=""):
        self.directory = directory
        self.world = world
        self.config = directory / "agent.toml"
        self.socket = directory / "agent.sock"
        self.env = {}
        directory.mkdir(parents=True, exist_ok=True)
        self.config.write_text(
            textwrap.dedent(f"""
            state_dir = "{directory}/state"
            socket = "{self.socket}"
            [slots]
            kind = "image"
            a = "{directory}/a.img"
            b = "{directory}/b.img"
            [boot]
            {boot}
            [trial]
            deadline_s = 5
            [policy]
            first_poll_within_s = 0
            {policy}
            """)
            + extra
        )
        (directory / "a.img").write_bytes(b"factory")

    def run(self, *arguments, json_too=True, code=None):
        done = programs.run(
            [AGENT, "--config", self.config, *arguments, *(["--json"] if json_too else [])],
            env={**os.environ, **self.env},
        )
        assert "Traceback" not in done.stderr
        if code is not None:
            assert done.returncode == code, done.stderr
        self.stderr = done.stderr
        self.code = done.returncode
        return documents.loads(done.stdout) if json_too and done.stdout else done.stdout

    def error(self, *arguments):
        self.run(*arguments)
        return documents.loads(self.stderr.splitlines()[-1])

    def cut_off(self):
        """Take the network away: nobody listens any more where its server was."""
        facts = self.directory / "state" / "enrolment" / "enrolment.json"
        facts.write_text(facts.read_text().replace(self.world.server.url, "https://localhost:1"))

    def write_provisioning(self):
        """Write the file that an operator makes, with a token of its own."""
        file = self.directory / "provisioning.json"
        author = self.world.author
        file.write_text(
            json.dumps(
                {
                    "v": 1,
                    "server_url": self.world.server.url,
                    "ca_pem": self.world.server.ca.read_text(),
                    "token": self.world.enrolment_token(),
                    "product": "thermo",
                    "hardware": "rpi4",
                    "image_root": author.root("image").decode(),
                    "director_root": author.root("director").decode(),
                }
            )
        )
        return file

    def provision(self):
        self.device_id = self.run("provision", str(self.write_provisioning()), code=0)["device_id"]
        return self

    @contextlib.contextmanager
    def daemon(self):
        process = programs.Program(
            [AGENT, "--config", self.config, "run"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self.env},
        )
        try:
            until = time.monotonic() + 20
            while not self.socket.exists() and process.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            self.log = process.communicate(timeout=30)[0].decode()
            assert "Traceback" not in self.log, self.log


def until(condition, *, limit_s=20.0):
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {limit_s} s: {condition()!r}")
