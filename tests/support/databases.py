"""Every test of the server on both databases: SQLite, and a real PostgreSQL that the tests start.

A test or fixture that asks for `database_kind` runs once for each, and whatever starts a server or
opens its database asks (tests/architecture/test_both_databases.py). What cannot or need not says why:

    @pytest.mark.one_database("postgresql", because="SQLite is for one server")    # or as `pytestmark`

From there:

    def test_a_service(connection): ...               # a migrated database, through the port's Connection
    def test_more(target): ...                        # a `Target`, for open_database, command_database, migrate
    World(tmp_path, database=fresh_database(database_kind))    # a whole server on it

One cluster a test process, started at the first need below a directory of its own, as an
unprivileged user (PostgreSQL refuses root), without fsync: it is as fast as SQLite. It dies with
the test process. Each database is a copy of a migrated template. `Cluster(fsync=True)` is for
tests that kill PostgreSQL.
"""

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import psycopg
import pytest
from support.life import die_with_parent, own_directory

from firmament.server.database import connection as sqlite
from firmament.server.database import postgres
from firmament.server.database.migrate import migrate
from firmament.server.database.target import PostgresTarget, Target

KINDS = ("sqlite", "postgresql")
USER = "postgres"  # Debian's package makes it
START_DEADLINE_S = 30


def binaries() -> Path:
    """Where Debian keeps the server's programs (not on PATH)."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    assert found, "PostgreSQL is not installed: run `make packages`"
    return found[-1].parent


class Cluster:
    """A PostgreSQL of our own on loopback."""

    def __init__(self, *, fsync: bool = False, directory: Path | None = None) -> None:
        self.directory = own_directory("firmament-postgres-") if directory is None else directory
        self.as_user = {"user": USER, "group": USER, "extra_groups": []} if os.getuid() == 0 else {}
        if self.as_user:
            shutil.chown(self.directory, USER, USER)
        self.data = self.directory / "data"
        self.log = self.directory / "log"
        self.password = "not a secret"
        password_file = self.directory / "password"
        password_file.write_text(self.password)
        password_file.chmod(0o644)
        subprocess.run(
            [
                binaries() / "initdb",
                *(
                    "-D",
                    self.data,
                    "-U",
                    "firmament",
                    "-E",
                    "UTF8",
                    "--locale=C.UTF-8",
                    "--no-sync",
                    "--no-instructions",
                ),
                *("--auth=scram-sha-256", f"--pwfile={password_file}"),
            ],
            check=True,
            capture_output=True,
            cwd=self.directory,
            env={"PATH": os.environ["PATH"], "TZ": "UTC"},
            **self.as_user,
        )
        password_file.chmod(0o600)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        settings = {
            "listen_addresses": "'127.0.0.1'",
            "port": self.port,
            "unix_socket_directories": f"'{self.directory}'",
            "max_connections": 200,
            "shared_buffers": "64MB",
        }
        if not fsync:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())
        self.process: subprocess.Popen | None = None
        self.count = 0
        self.start()

    def start(self) -> None:
        """Start, or start again after `kill`."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [binaries() / "postgres", "-D", self.data],
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={"PATH": os.environ["PATH"], "TZ": "UTC"},
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one C call, before any thread of ours
                **self.as_user,
            )
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            try:
                psycopg.connect(self.url("postgres"), password=self.password).close()
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"PostgreSQL did not start:\n{self.log.read_text()}") from None
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """As kill -9 of everything that belongs to it, or the power."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.process.kill()
        self.process.wait()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)

    def stop(self) -> None:
        """Stop at once and forget everything."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def url(self, name: str) -> str:
        return f"postgresql://firmament@127.0.0.1:{self.port}/{name}"

    def target(self, name: str) -> PostgresTarget:
        return PostgresTarget(self.url(name), self.password, readers=2)

    def create(self, name: str, *, template: str = "template0") -> str:
        with psycopg.connect(self.url("postgres"), password=self.password, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def fresh(self) -> str:
        """Make a migrated database; return its name."""
        if not self.count:
            migrate(self.target(self.create("migrated")))
        self.count += 1
        return self.create(f"test{self.count}", template="migrated")

    def drop(self, name: str) -> None:
        with psycopg.connect(self.url("postgres"), password=self.password, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@lru_cache(maxsize=1)
def cluster() -> Cluster:
    """This test process's cluster."""
    made = Cluster()
    atexit.register(made.stop)
    return made


def fresh_database(kind: str) -> dict[str, str]:
    """Make a database; return the settings of a server that shall use it."""
    if kind == "sqlite":
        return {}
    assert kind == "postgresql"
    found = cluster()
    return {
        "database": found.url(found.fresh()),
        "database_password_file": str(found.directory / "password"),
    }


@lru_cache(maxsize=1)
def _migrated_file() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "firmament.db"
        migrate(path)
        return path.read_bytes()


def fresh_target(kind: str, directory: Path) -> Target:
    """Make a migrated database; return how to open it."""
    if kind == "sqlite":
        path = directory / "firmament.db"
        path.write_bytes(_migrated_file())
        path.chmod(0o600)
        return path
    return cluster().target(cluster().fresh())


def kept(database: Mapping[str, str], directory: Path) -> Callable[[], None]:
    """Copy the database of a stopped server in `directory`; return what puts the copy back."""
    if "database" not in database:
        rows, copy = directory / "database", directory.parent / f"{directory.name}-database"
        shutil.copytree(rows, copy)

        def put_back() -> None:
            shutil.rmtree(rows)
            shutil.copytree(copy, rows)

        return put_back
    name = database["database"].rpartition("/")[2]
    old = cluster().create(f"{name}-kept", template=name)

    def swap() -> None:
        cluster().drop(name)
        cluster().create(name, template=old)

    return swap


def forget(made: Target | Mapping[str, str]) -> None:
    """Remove what `fresh_target` or `fresh_database` made: hundreds of databases would take minutes at the end."""
    url = made.url if isinstance(made, PostgresTarget) else "" if isinstance(made, Path) else made.get("database", "")
    if cluster.cache_info().currsize and url.startswith(cluster().url("")):
        with contextlib.suppress(psycopg.OperationalError):  # a test may have ended it all
            cluster().drop(url.rpartition("/")[2])


@contextlib.contextmanager
def opened(target: Target):
    """A `port.Connection` on a target, each statement a transaction of its own; errors are the house's."""
    if isinstance(target, Path):
        with contextlib.closing(sqlite.connect(target)) as connection:
            yield connection
    else:
        with contextlib.closing(postgres.connect(target)) as connection:
            yield connection


@pytest.fixture(scope="module")
def database_kind(request) -> str:
    """Run once on each database, or on the one that `one_database` names."""
    return request.param


def pytest_generate_tests(metafunc):
    if "database_kind" in metafunc.fixturenames:
        kinds = [chosen(mark) for mark in metafunc.definition.iter_markers("one_database")][:1] or KINDS
        metafunc.parametrize("database_kind", kinds, indirect=True)


def chosen(mark: pytest.Mark) -> str:
    """The database that a test runs on alone, for a reason that it states."""
    (kind,), because = mark.args, mark.kwargs["because"]
    assert kind in KINDS
    assert because, "say why it does not run on both databases"
    return kind


@pytest.fixture
def target(database_kind, tmp_path):
    """A migrated database."""
    made = fresh_target(database_kind, tmp_path)
    yield made
    forget(made)


@pytest.fixture
def connection(target):
    """A connection to a migrated database."""
    with opened(target) as connection:
        yield connection
