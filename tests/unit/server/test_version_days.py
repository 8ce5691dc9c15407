"""What the field ran, day by day, on both databases."""

from datetime import UTC, datetime, timedelta

import pytest

from firmament.errors import ForbiddenError
from firmament.server.inventory import history
from firmament.server.scope import Role, Scope

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
VIEWER = Scope(1, "person:vera", Role.VIEWER)


@pytest.fixture
def field(connection):
    """Three devices of two products."""
    connection.execute(
        "INSERT INTO product(id, tenant_id, name, created_at) VALUES (1, 1, 'thermo', 0), (2, 1, 'pump', 0)"
    )
    for row, (product, version) in enumerate(((1, "1.0"), (1, "1.1"), (2, "1.0")), start=1):
        connection.execute(
            "INSERT INTO device(id, tenant_id, uid, product_id, hardware, serial, identity_keyid, identity_key, "
            "hpke_public_key, bucket, enrolled_at, version, sequence_number, attributes) "
            "VALUES (?, 1, ?, ?, 'rpi4', '', ?, ?, ?, 0, 0, ?, 1, '{}')",
            (row, f"device-{row}", product, f"key-{row}", b"%d" % row, b"%d" % row, version),
        )
    return connection


def write(connection, now=NOW):
    history.write_day(connection, history.count_today(connection), now)


def days(connection, now=NOW, *, scope=VIEWER, product=None, count=30):
    return history.list_days(connection, scope, product=product, days=count, now=now)


def test_a_day_written_again_is_the_same_day_with_the_newest_counts(field):
    write(field)
    field.execute("UPDATE device SET version = '1.1' WHERE id = 1")
    write(field, NOW + timedelta(hours=1))
    (found,) = days(field)
    assert found["at"] == datetime(2026, 11, 20, tzinfo=UTC).timestamp()
    assert found["total"] == 3
    assert found["versions"] == [
        {"product": "thermo", "version": "1.1", "count": 2},
        {"product": "pump", "version": "1.0", "count": 1},
    ]


def test_days_without_a_server_are_absent_and_old_ones_go(field):
    for ago in (history.KEPT_DAYS + 1, 40, 3):
        write(field, NOW - timedelta(days=ago))
    write(field)
    assert [one["at"] for one in days(field)] == [datetime(2026, 11, day, tzinfo=UTC).timestamp() for day in (17, 20)]
    assert len(days(field, count=history.MAX_DAYS * 2)) == 3  # the oldest was forgotten


def test_a_product_and_a_tenant_see_their_own(field):
    write(field)
    (found,) = days(field, product="pump")
    assert [one["product"] for one in found["versions"]] == ["pump"]
    limited = Scope(1, "person:vera", Role.VIEWER, product="thermo")
    (found,) = days(field, scope=limited)
    assert {one["product"] for one in found["versions"]} == {"thermo"}
    with pytest.raises(ForbiddenError):
        days(field, scope=limited, product="pump")
    assert days(field, scope=Scope(2, "person:zoe", Role.VIEWER)) == []
