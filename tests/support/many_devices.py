"""A hundred thousand devices in a stopped server's database, by bulk insert: for pages, not for protocols."""

import contextlib
import json
import random
import sqlite3
import time
import uuid
from pathlib import Path

VERSIONS = (("2.13.4", 5, 0.61), ("2.13.1", 4, 0.17), ("2.12.0", 3, 0.12), ("2.9.3", 2, 0.06), ("2.14.0", 6, 0.04))
SITES = ("porto-03", "lyon-01", "lyon-02", "turin-04", "oslo-07", "gdansk-02", "graz-11")
PREFIXES = {"thermo": "TH", "pump": "PU"}


def fill(directory: Path, count: int) -> None:
    """Insert `count` devices with versions, sites, tags and times of last contact."""
    chance, now = random.Random(3), int(time.time())
    with contextlib.closing(sqlite3.connect(directory / "database/firmament.db")) as db, db:
        db.execute("PRAGMA synchronous = OFF")
        products = dict(db.execute("SELECT name, id FROM product"))
        first = db.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM device").fetchone()[0]
        first_site = db.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM site").fetchone()[0]
        db.executemany(
            "INSERT INTO site(id, tenant_id, name, created_at) VALUES (?, 1, ?, ?)",
            [(first_site + i, name, now) for i, name in enumerate(SITES)],
        )
        devices, seen, places, tags = [], [], [], []
        weights = [share for _, _, share in VERSIONS]
        for number in range(count):
            row = first + number
            product = "thermo" if number % 5 else "pump"
            version, sequence, _ = chance.choices(VERSIONS, weights)[0]
            uid = str(uuid.UUID(int=chance.getrandbits(128), version=4))
            devices.append((
                row, 1, uid, products[product], chance.choice(("rev-a", "rev-b", "rev-c")),
                f"{PREFIXES[product]}-{number + 1:06}", uid, uid.encode(), uid.encode(), number % 1000, now - 86_400 * 90, version, sequence,
                json.dumps({"os": "debian 12"}),
            ))  # fmt: skip
            is_quiet = chance.random() < 0.07
            seen.append((row, now - (chance.randrange(90_000, 900_000) if is_quiet else chance.randrange(3, 1800)), ""))
            places.append((row, 1, first_site + number % len(SITES)))
            if number % 40 == 0:
                tags.append((row, 1, "beta"))
        db.executemany(
            "INSERT INTO device(id, tenant_id, uid, product_id, hardware, serial, identity_keyid, identity_key, "
            "hpke_public_key, bucket, enrolled_at, version, sequence_number, attributes) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            devices,
        )
        db.executemany("INSERT INTO device_seen(device_id, last_seen, address) VALUES (?, ?, ?)", seen)
        db.executemany("INSERT INTO device_place(device_id, tenant_id, site_id) VALUES (?, ?, ?)", places)
        db.executemany(
            "INSERT INTO version_day(tenant_id, product_id, day, version, devices) VALUES (1, ?, ?, ?, ?)",
            past(count, products, now // 86_400),
        )
        columns = [row[1] for row in db.execute("PRAGMA table_info(device_tag)")]
        assert {"device_id", "tenant_id", "tag"} <= set(columns)
        db.executemany("INSERT INTO device_tag(device_id, tenant_id, tag) VALUES (?, ?, ?)", tags)
        db.execute("ANALYZE")


def past(count: int, products: dict[str, int], today: int) -> list[tuple[int, int, str, int]]:
    """Counts of the 29 days before today: older versions give way to newer ones."""
    rows = []
    for ago in range(1, 30):
        newest = 0.04 * max(0.0, 1 - ago / 6)
        newer = 0.61 * max(0.0, 1 - ago / 24)
        shares = {"2.14.0": newest, "2.13.4": newer, "2.12.0": 0.12, "2.9.3": 0.06}
        shares["2.13.1"] = 1 - sum(shares.values())
        for name, part in (("thermo", 0.8), ("pump", 0.2)):
            rows += [
                (products[name], today - ago, version, int(count * part * share)) for version, share in shares.items()
            ]
    return rows
