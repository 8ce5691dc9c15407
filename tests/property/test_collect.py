"""Collecting payloads: whatever is still referred to stays, whatever order things happened in."""

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from support.databases import fresh_target, opened

from firmament.core import canonical
from firmament.core.digest import Digest
from firmament.core.manifest import Image, Manifest, Payload
from firmament.server.database.opening import command_database
from firmament.server.payloads.collect import Collector, doomed
from firmament.server.payloads.port import StoredBlob, StoredTarget
from firmament.server.releases.model import Published
from firmament.server.scope import SERVER

NOW = datetime(2026, 11, 26, tzinfo=UTC)
GRACE = timedelta(days=7)
DIGESTS = [Digest.of(bytes([number])) for number in range(6)]
ages = st.integers(0, 20).map(lambda days: NOW - timedelta(days=days))
some = st.sets(st.sampled_from(DIGESTS))


@given(st.dictionaries(st.sampled_from(DIGESTS), ages), st.lists(st.tuples(st.sampled_from(DIGESTS), ages)), some)
def test_exactly_what_nothing_refers_to_and_is_old_goes(stored, published, referenced):
    names = {f"thermo/{number}/{digest.hex}.x": (digest, at) for number, (digest, at) in enumerate(published)}
    before = NOW - GRACE
    found = doomed(
        [StoredBlob(digest, 1, at) for digest, at in stored.items()],
        [StoredTarget(name, digest, at) for name, (digest, at) in names.items()],
        referenced=referenced,
        before=before,
    )
    gone = {one.digest for one in found}
    recent = {digest for digest, at in [*stored.items(), *names.values()] if at >= before}
    assert gone == ({*stored} | {digest for digest, _ in names.values()}) - referenced - recent
    assert {name for one in found for name in one.names} == {
        name for name, (digest, _) in names.items() if digest in gone
    }


class MemoryBlobs:
    """A store that only counts."""

    def __init__(self, stored):
        self.stored = dict(stored)

    def blobs(self):
        return [StoredBlob(digest, 1, at) for digest, at in self.stored.items()]

    def targets(self):
        return []

    def stored_at(self, digest):
        return self.stored.get(digest)

    def remove(self, digest, names):
        del self.stored[digest]

    def clean(self, before, *, pretend):
        return 0


releases = st.fixed_dictionaries(
    {
        "payload": st.sampled_from(DIGESTS),
        "withdrawn": st.none() | ages,
        "attempt": st.sampled_from([None, 0, 1]),  # none, ended, running
        "sbom": st.none() | st.sampled_from(DIGESTS),
    }
)


def seconds(at):
    return int(at.timestamp())


def write(connection, rows, uploads):
    for table in ("attempt", "sbom", "release", "device", "product", "tenant_blob"):
        connection.execute(f"DELETE FROM {table}")
    connection.execute("INSERT INTO product(id, tenant_id, name, created_at) VALUES (1, 1, 'thermo', 0)")
    for number, row in enumerate(rows, 1):
        manifest = Manifest(
            product="thermo",
            version=str(number),
            sequence_number=number,
            hardware=("x",),
            installer="image",
            image=Image(row["payload"], 1),
            payloads=(Payload("whole", 1, f"thermo/{number}/x", 1, row["payload"]),),
            created_at=NOW,
        )
        connection.execute(
            "INSERT INTO release(id, tenant_id, product_id, version, sequence_number, target, length_bytes, digest, "
            "manifest, published_at, withdrawn_at) VALUES (?, 1, 1, ?, ?, '', 1, '', ?, 0, ?)",
            (
                number,
                str(number),
                number,
                canonical.encode(manifest.to_json()),
                None if row["withdrawn"] is None else seconds(row["withdrawn"]),
            ),
        )
        if row["attempt"] is not None:
            connection.execute(
                "INSERT INTO device(id, tenant_id, uid, product_id, hardware, serial, identity_keyid, identity_key, "
                "hpke_public_key, bucket, enrolled_at) VALUES (?, 1, ?, 1, 'x', '', ?, ?, ?, 0, 0)",
                (number, str(number), str(number), b"", bytes([number])),
            )
            connection.execute(
                "INSERT INTO attempt(id, tenant_id, uid, device_id, release_id, state, active, created_at, updated_at) "
                "VALUES (?, 1, ?, ?, ?, 'offered', ?, 0, 0)",
                (number, str(number), number, number, row["attempt"]),
            )
        if row["sbom"] is not None:
            connection.execute(
                "INSERT INTO sbom(release_id, tenant_id, digest, components, added_at) VALUES (?, 1, ?, 0, 0)",
                (number, str(row["sbom"])),
            )
    for digest, at in uploads.items():
        connection.execute(
            "INSERT INTO tenant_blob(tenant_id, digest, length_bytes, at) VALUES (1, ?, 1, ?)",
            (str(digest), seconds(at)),
        )


def removals(connection):
    query = "SELECT count(*) AS n FROM event WHERE kind = 'blobs.removed'"
    return connection.execute(query).fetchone()["n"]


def test_rows_protect_what_they_name(database_kind, tmp_path):
    target = fresh_target(database_kind, tmp_path)

    @settings(max_examples=25)
    @given(
        st.dictionaries(st.sampled_from(DIGESTS), ages),
        st.lists(releases, max_size=4),
        st.dictionaries(st.sampled_from(DIGESTS), ages),
        st.booleans(),
    )
    def story(stored, rows, uploads, pretend):
        with opened(target) as connection:
            write(connection, rows, uploads)
            earlier = removals(connection)
        before = NOW - GRACE
        kept = {digest for digest, at in (*stored.items(), *uploads.items()) if at >= before}
        for row in rows:
            if row["withdrawn"] is None or row["withdrawn"] >= before or row["attempt"] == 1:
                kept.add(row["payload"])
            if row["sbom"] is not None:
                kept.add(row["sbom"])
        blobs = MemoryBlobs(stored)
        with command_database(target) as database:
            collector = Collector(blobs, lambda _: Published(), grace=GRACE)
            found = collector.collect(database, SERVER, NOW, pretend=pretend)
        gone = {*stored} - kept
        assert found.blobs == len(gone)
        assert {*blobs.stored} == {*stored} - (set() if pretend else gone)
        with opened(target) as connection:
            left = {row["digest"] for row in connection.execute("SELECT digest FROM tenant_blob")}
            told = removals(connection) - earlier
        assert left == {str(digest) for digest in uploads if pretend or digest not in gone}
        assert told == (0 if pretend or not gone else 1)

    story()
