"""Firmament's programs for tests: real processes with real sockets, forked from one that has imported them.

Tests start hundreds of these, and most of what a start costs is importing: a second of processor
time for a server. So each test process keeps a *nursery* for each program: an interpreter that
imports what the program is made of, does nothing else, and makes a child for every start. A
child is what ``python -c "...; main()"`` would be: it has its own environment, directory,
descriptors and signals, and ends as an interpreter ends. That a program also starts from nothing
is for other tests to see: start-up and footprint, the demonstrations, README's story, everything
that runs `.venv/bin/firmament`.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

MAX_REQUEST_BYTES = 128 * 1024
STATUS = struct.Struct("=ii")
"""What a nursery says of a child: its process id and 0, and at its end its id and status as `waitpid` gives them."""
PARTS = {
    "firmament": ("firmament.cli", "firmament.console", "firmament.release", "firmament.server", "uvloop"),
    "firmament-agent": ("firmament.cli.agent", "firmament.agent"),
}
LATE = (
    "firmament.cli.demo",
    "firmament.cli.menu",
    "firmament.cli.sim",
    "firmament.cli.sweep",
    "firmament.server.database.migrations",
)
"""Large and hardly used, or run by what reads them."""
MAINS = {"firmament": "firmament.cli.main", "firmament-agent": "firmament.cli.agent"}


class Nursery:
    """Makes children of one program, for one test process; `warnings` as Python's variable says it."""

    def __init__(self, program: str, warnings: str) -> None:
        self.requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.requests.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_REQUEST_BYTES)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", __file__, program],
                stdin=theirs.fileno(),
                cwd="/",
                env={**os.environ, "PYTHONWARNINGS": warnings},
            )
        atexit.register(self.close)

    def bear(self, request: dict[str, object], descriptors: list[int]) -> None:
        data = json.dumps(request).encode()
        assert len(data) <= MAX_REQUEST_BYTES
        socket.send_fds(self.requests, [data], descriptors)

    def close(self) -> None:
        self.requests.close()
        self.process.wait()


nursery = functools.cache(Nursery)


def interpreter(environment: Mapping[str, str]) -> dict[str, str]:
    """What the environment tells the interpreter itself, but for warnings."""
    return {name: text for name, text in environment.items() if name.startswith("PYTHON") and name != "PYTHONWARNINGS"}


class Program(subprocess.Popen):
    """`subprocess.Popen` for ``[program, *arguments]``; its news comes from the nursery, whose child it is.

    Only what is told to its interpreter in another way than to ours is started from nothing.
    """

    def __init__(self, arguments, **options) -> None:
        assert not options.keys() - {"stdin", "stdout", "stderr", "env", "cwd", "text"}, options
        self._news = None
        program, *words = map(str, arguments)
        command = [program, *words]
        self._is_alone = interpreter(options.get("env") or os.environ) != interpreter(os.environ)
        if self._is_alone:
            command = [sys.executable, "-c", f"from {MAINS[program]} import main; main()", *words]
        super().__init__(command, **options)

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        if self._is_alone:
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
            return
        pipes = rest[3:9]
        environment = dict(os.environ if env is None else env)
        request = {"arguments": args, "cwd": str(Path.cwd() if cwd is None else cwd), "env": environment}
        given = [own if fd == -1 else fd for own, fd in enumerate((pipes[0], pipes[3], pipes[5]))]
        news, theirs = socket.socketpair()
        with theirs:
            nursery(args[0], environment.get("PYTHONWARNINGS", "")).bear(request, [theirs.fileno(), *given])
        self._close_pipe_fds(*pipes)
        self._news = news
        self.pid, _ = self._hear()
        self._child_created = True

    def _hear(self) -> tuple[int, int]:
        data = self._news.recv(STATUS.size, socket.MSG_WAITALL)
        if len(data) != STATUS.size:
            self._news.close()
            raise AssertionError("the nursery has ended")
        return STATUS.unpack(data)

    def _try_wait(self, wait_flags):
        if self._is_alone:
            return super()._try_wait(wait_flags)
        if wait_flags & os.WNOHANG and not select.select([self._news], [], [], 0)[0]:
            return 0, 0
        pid, status = self._hear()
        self._news.close()
        return pid, status

    def _internal_poll(self, *arguments, **options):
        if self._is_alone:
            return super()._internal_poll(*arguments, **options)
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid:
                        self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def run(arguments, *, timeout: float = 60, check: bool = False, typed=None, **options) -> subprocess.CompletedProcess:
    """`subprocess.run` for ``[program, *arguments]``: given what is `typed`, with text; what it says is captured."""
    options = {"stdin": None if typed is None else subprocess.PIPE, "text": True, **options}
    with Program(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        try:
            out, err = process.communicate(typed, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


# --- in the nursery ------------------------------------------------------------------------


def bring_up(program: str) -> list[str]:
    """Make children until the test process is gone; return in each child, with its arguments."""
    for name in PARTS[program]:
        _import(name)
    requests = socket.socket(fileno=os.dup(0))
    children: dict[int, tuple[int, socket.socket]] = {}
    gc.collect()
    gc.freeze()
    while True:
        for ready in select.select([requests, *children], [], [])[0]:
            if ready is not requests:
                _say_goodbye(*children.pop(ready), ready)
                continue
            data, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 4)
            if not data:
                sys.exit()
            pid = os.fork()
            if not pid:
                for held in (requests, *(news for _, news in children.values())):
                    held.detach()
                return _become(json.loads(data), descriptors[1:])
            news = socket.socket(fileno=descriptors[0])
            for given in descriptors[1:]:
                os.close(given)
            children[os.pidfd_open(pid)] = (pid, news)
            news.sendall(STATUS.pack(pid, 0))


def _import(name: str) -> None:
    found = importlib.import_module(name)
    for module in pkgutil.iter_modules(getattr(found, "__path__", ()), f"{name}."):
        if module.name not in LATE and not module.name.endswith("__main__"):
            _import(module.name)


def _say_goodbye(pid: int, news: socket.socket, descriptor: int) -> None:
    os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    with news, contextlib.suppress(OSError):  # whoever started it may be gone
        news.sendall(STATUS.pack(pid, status))


def _become(request: dict, descriptors: list[int]) -> list[str]:
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    os.chdir(request["cwd"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, name)
        made = open(  # noqa: SIM115 - open until the process ends
            number,
            "r" if number == 0 else "w",
            encoding=before.encoding,
            errors=before.errors,
            closefd=False,
        )
        made.reconfigure(line_buffering=number == 2 or os.isatty(number), write_through=before.write_through)
        setattr(sys, name, made)
        setattr(sys, f"__{name}__", made)
    return request["arguments"]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        program, *words = bring_up(sys.argv[1])
        sys.argv[:] = ["-c", *words]
    importlib.import_module(MAINS[program]).main()
