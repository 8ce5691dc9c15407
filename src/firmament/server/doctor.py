"""Check a server's directory: each finding says what was seen and, if not good, what to do."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from tuf.api.metadata import Snapshot, Timestamp

from firmament.core.finding import Finding, Verdict
from firmament.errors import FirmamentError
from firmament.server import leader, versions
from firmament.server.authority import load_certificate
from firmament.server.database.migrate import revision
from firmament.server.database.opening import command_database
from firmament.server.database.target import database_target
from firmament.server.keys import DIRECTOR_ROLES, SIGNER_ROLES
from firmament.server.payloads.content_keys import count_lost
from firmament.server.payloads.custody import key_files, read_keyids
from firmament.server.payloads.opening import open_blobs
from firmament.server.releases import shared
from firmament.server.releases.generations import Generations
from firmament.trust import repository
from firmament.trust.repository import TIMESTAMP_FILE
from firmament.trust.roles import ROOT_LIFETIME, ROOT_RENEWAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from firmament.core.clock import Clock
    from firmament.server.database.port import Connection
    from firmament.server.layout import Layout
    from firmament.server.payloads.store import ServerDisk
    from firmament.server.releases.model import Published
    from firmament.server.settings import ServerSettings

PLAUSIBLE_FROM: Final = datetime(2026, 1, 1, tzinfo=UTC)
WARN_ROLE: Final = {"root": ROOT_LIFETIME - ROOT_RENEWAL, "snapshot": timedelta(days=5), "timestamp": timedelta(days=1)}
WARN_TARGETS: Final = timedelta(days=30)
WARN_CERTIFICATE: Final = timedelta(days=25)


class Doctor:
    """Looks, changes nothing."""

    def __init__(self, disk: ServerDisk, layout: Layout, settings: ServerSettings, clock: Clock) -> None:
        self._disk = disk
        self._layout = layout
        self._settings = settings
        self._clock = clock
        self._now = clock.now()

    def findings(self) -> Iterator[Finding]:
        """Yield every finding; a check that cannot run is a finding too."""
        checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
            ("clock", self._time),
            ("permissions", self._permissions),
            ("certificates", self._certificates),
            ("repository", self._repository),
            ("signer", self._signer),
            ("database", self._database),
            ("content keys", self._content_keys),
            ("space", self._space),
            ("store", self._store),
        )
        for name, check in checks:
            try:
                yield from check()
            except (FirmamentError, OSError, sqlite3.Error) as error:
                hint = error.hint if isinstance(error, FirmamentError) else "Check the path and its permissions."
                yield Finding(name, Verdict.BAD, str(getattr(error, "problem", error)), hint)

    def _time(self) -> Iterator[Finding]:
        if self._now < PLAUSIBLE_FROM:
            yield Finding("clock", Verdict.BAD, f"the clock says {self._now:%Y-%m-%d}", "Set the clock; run NTP.")
            return
        newest = 0
        target = database_target(self._layout, self._settings)
        if target != self._layout.database or self._layout.database.exists():
            with command_database(target, read_only=True) as database:
                newest = database.read(_newest_record)
        if newest > self._now.timestamp() + 60:
            yield Finding(
                "clock",
                Verdict.BAD,
                f"the clock is {int(newest - self._now.timestamp())} s behind what was recorded before",
                "Set the clock; run NTP.",
            )
        else:
            yield Finding("clock", Verdict.GOOD, f"{self._now:%Y-%m-%d %H:%M} UTC, not behind the newest record")

    def _permissions(self) -> Iterator[Finding]:
        layout = self._layout
        private = [layout.tls / "ca.key", layout.device_ca / "ca.key"]
        if not self._settings.database:
            private.append(layout.database)
        if self._settings.database_password_file:
            private.append(layout.directory / self._settings.database_password_file)
        private += [layout.director / f"{role}.pem" for role in DIRECTOR_ROLES]
        private += [layout.signer / f"{role}.pem" for role in SIGNER_ROLES]
        private += [path for path in [layout.signer / "audit.pem"] if path.exists()]  # made at the first start
        private += key_files(self._disk, layout.content)
        if not self._settings.certificate:
            private.append(layout.tls / "server.key")
        for path in private:
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                yield Finding("permissions", Verdict.BAD, f"{path} has mode {mode:04o}", f"Run: chmod 600 {path}")
        settings = self._settings
        for name in (settings.s3_access_key_file, settings.s3_secret_key_file, settings.front_secret_file):
            path = layout.directory / name
            if name and stat.S_IMODE(path.stat().st_mode) & 0o007:
                # An administrator's own file may be the server's by group, as Kubernetes mounts secrets.
                yield Finding("permissions", Verdict.BAD, f"{path} may be used by everybody", f"Run: chmod o= {path}")
        if self._layout.settings.stat().st_mode & 0o022:
            path = self._layout.settings
            yield Finding("permissions", Verdict.BAD, f"{path} may be written by others", f"Run: chmod 644 {path}")
        yield Finding("permissions", Verdict.GOOD, f"{len(private)} private files were looked at")

    def _content_keys(self) -> Iterator[Finding]:
        keyids = read_keyids(self._disk, self._layout.content)
        with command_database(database_target(self._layout, self._settings), read_only=True) as database:
            lost = database.read(lambda connection: count_lost(connection, keyids))
        if lost:
            action = "Put content/ back from a backup, or run `firmament release give-keys`."
            yield Finding("content keys", Verdict.BAD, f"{lost} are wrapped for a key file that is not here", action)
        else:
            yield Finding("content keys", Verdict.GOOD, "all are wrapped for a key file that is here")

    def _certificates(self) -> Iterator[Finding]:
        settings, layout = self._settings, self._layout
        given = layout.directory / settings.certificate if settings.certificate else layout.tls / "server.pem"
        action = (
            "Replace the given certificate."
            if settings.certificate
            else "Restart the server: it renews its certificate at start."
        )
        yield self._expiry("server certificate", given, action)
        if not settings.certificate:
            yield self._expiry("server CA", layout.ca, "Make a new CA and provision devices with it.")
        yield self._expiry("device CA", layout.device_ca / "ca.pem", "Make a new device CA and enrol devices again.")

    def _expiry(self, name: str, path: Path, action: str) -> Finding:
        expires = load_certificate(self._disk, path).not_valid_after_utc
        return self._time_left(name, expires, WARN_CERTIFICATE, action)

    def _time_left(self, name: str, expires: datetime, warn: timedelta, action: str) -> Finding:
        left = expires - self._now
        if left <= timedelta(0):
            return Finding(name, Verdict.BAD, f"expired on {expires:%Y-%m-%d %H:%M} UTC", action)
        verdict = Verdict.WARNING if left <= warn else Verdict.GOOD
        days = left.days or f"{left.total_seconds() / 86400:.1f}"
        return Finding(name, verdict, f"good for {days} days", action if verdict is Verdict.WARNING else "")

    def _repository(self) -> Iterator[Finding]:
        published = self._published()
        if published.root is None:
            yield Finding(
                "repository",
                Verdict.WARNING,
                "no root is trusted yet",
                "Publish as an administrator, or import it with `firmament server trust`.",
            )
            return
        yield self._time_left(
            "image root", published.root.signed.expires, WARN_ROLE["root"], "Hold a root ceremony and publish it."
        )
        assert published.director_root is not None
        yield self._time_left(
            "director root",
            published.director_root.signed.expires,
            WARN_ROLE["root"],
            "Hold a root ceremony and publish it.",
        )
        if not published.timestamp_version:
            yield Finding("repository", Verdict.WARNING, "nothing is published yet", "Run `firmament release publish`.")
            return
        assert published.targets is not None
        for name, metadata in {"targets": published.targets, **published.products}.items():
            yield self._time_left(
                f"role {name}", metadata.signed.expires, WARN_TARGETS, "Sign the role again and publish it."
            )
        yield from self._online_roles(published)
        yield from self._payloads(published)

    def _published(self) -> Published:
        if self._settings.database:
            with command_database(database_target(self._layout, self._settings), read_only=True) as database:
                found = database.read(shared.load)
            if found is not None:
                return found
        return Generations(self._disk, self._layout).load()

    def _online_roles(self, published: Published) -> Iterator[Finding]:
        action = "Start the server, or look in its log why the signer cannot renew."
        timestamp = repository.read(published.image_files[TIMESTAMP_FILE], Timestamp, what="timestamp")
        yield self._time_left("role timestamp", timestamp.signed.expires, WARN_ROLE["timestamp"], action)
        name = f"{published.snapshot_version}.snapshot.json"
        snapshot = repository.read(published.image_files[name], Snapshot, what="snapshot")
        yield self._time_left("role snapshot", snapshot.signed.expires, WARN_ROLE["snapshot"], action)

    def _payloads(self, published: Published) -> Iterator[Finding]:
        blobs = open_blobs(self._disk, self._layout, self._settings, self._clock)
        missing = [
            path
            for metadata in published.products.values()
            for path, target in metadata.signed.targets.items()
            if blobs.target_length_bytes(repository.target_file_name(target)) != target.length
        ]
        if missing:
            yield Finding(
                "payloads",
                Verdict.BAD,
                f"{len(missing)} published payloads are missing or cut short, e.g. {missing[0]}",
                "Upload and publish the release again.",
            )
        else:
            yield Finding("payloads", Verdict.GOOD, "every published payload is there")

    def _signer(self) -> Iterator[Finding]:
        owner = self._layout.signer.stat().st_uid
        if owner == self._layout.directory.stat().st_uid:
            yield Finding(
                "signer",
                Verdict.WARNING,
                "its keys belong to the same user as the server: a process of its own, but the same rights",
                "Start as root with `signer_user` set, and give that user the directory `signer`.",
            )
        else:
            yield Finding("signer", Verdict.GOOD, f"its keys belong to another user (uid {owner})")
        if os.path.lexists(self._layout.signer / "state.json"):
            yield Finding("signer", Verdict.GOOD, "it remembers what it signed")

    def _database(self) -> Iterator[Finding]:
        target = database_target(self._layout, self._settings)
        with command_database(target, read_only=True) as database:
            if target == self._layout.database:
                yield database.read(_damage)
            else:
                yield Finding("database", Verdict.GOOD, f"answers, at schema {revision(target)}")
                yield from self._replicas(database.read(leader.peers))
            admins = database.read(_count_admins)
        if not admins:
            yield Finding(
                "people", Verdict.WARNING, "no administrator", "Run `firmament operator add NAME --role admin`."
            )

    def _replicas(self, found: list[dict[str, Any]]) -> Iterator[Finding]:
        if not found:
            yield Finding("replicas", Verdict.WARNING, "no server runs", "Run `firmament server run`.")
            return
        newest = max(peer["seen_at"] for peer in found)
        if newest < self._now.timestamp() - leader.PEER_SEEN_S:
            yield Finding(
                "replicas",
                Verdict.WARNING,
                f"no server was heard of for {int(self._now.timestamp() - newest)} s",
                "Run `firmament server run`.",
            )
            return
        for peer in found:
            age_s = None if peer["leads_since"] is None else newest - peer["leads_since"]
            role = "follower" if age_s is None else f"leader, holds the lock for {age_s} s"
            yield Finding("replicas", Verdict.GOOD, f"{peer['host']}:{peer['port']} (pid {peer['pid']}): {role}")
        if found[0]["leads_since"] is None:
            yield Finding("replicas", Verdict.WARNING, "nobody leads", "Look in the logs for `leader.`.")

    def _store(self) -> Iterator[Finding]:
        settings = self._settings
        if not settings.s3_bucket:
            return
        place = f"the bucket {settings.s3_bucket} of {settings.s3_endpoint}"
        open_blobs(self._disk, self._layout, settings, self._clock).check()
        if settings.s3_endpoint.startswith("http://"):
            yield Finding(
                "store",
                Verdict.WARNING,
                f"{place} answers, but without TLS: whoever is on the way can read payloads",
                "Give the store a certificate and use https://.",
            )
        else:
            yield Finding("store", Verdict.GOOD, f"{place} answers")

    def _space(self) -> Iterator[Finding]:
        usage = shutil.disk_usage(self._layout.directory)
        text = f"{usage.free // 2**20} MiB free"
        if usage.free < self._settings.min_free_bytes:
            yield Finding("space", Verdict.BAD, text, "Free space; uploads are refused now.")
        elif usage.free < 4 * self._settings.min_free_bytes:
            yield Finding("space", Verdict.WARNING, text, "Free space soon.")
        else:
            yield Finding("space", Verdict.GOOD, text)


def _newest_record(connection: Connection) -> int:
    newest = connection.execute("SELECT COALESCE(max(at), 0) AS at FROM event").fetchone()["at"]
    return max(int(newest), versions.read_horizon(connection) - versions.BLOCK_S - versions.AHEAD_S)


def _damage(connection: Connection) -> Finding:
    found = [row["quick_check"] for row in connection.execute("PRAGMA quick_check(5)")]
    if found != ["ok"]:
        return Finding("database", Verdict.BAD, f"damaged: {found[0]}", "Restore the newest backup.")
    return Finding("database", Verdict.GOOD, "intact")


def _count_admins(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) AS n FROM person WHERE disabled = 0 AND role = 'admin'").fetchone()
    return int(row["n"])
