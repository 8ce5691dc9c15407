"""Rules: what operators set for a tenant, a group or a device, and what holds for given devices."""

from __future__ import annotations

from datetime import UTC, tzinfo
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from firmament.core.consent import STRICTNESS, Mode, Window
from firmament.errors import FirmamentError, MalformedError, NotFoundError
from firmament.server import events
from firmament.server.consent.model import BUILT_IN, Level, Rule, Ruling
from firmament.server.events import Event
from firmament.server.inventory.attributes import ZONE
from firmament.server.inventory.query_sql import FROM, Sql
from firmament.server.inventory.search import condition
from firmament.server.inventory.store import get_device
from firmament.server.scope import Action

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from firmament.core.manifest import UpdateClass
    from firmament.server.database.port import Connection, Row
    from firmament.server.scope import Scope

SETTABLE: Final = (Level.TENANT, Level.GROUP, Level.DEVICE)
OWNER_ATTRIBUTE: Final = "policy."
"""Devices report their owner's rule as the attributes ``policy.security``, ``policy.feature`` and ``policy.window``."""
MAX_RULES: Final = 5000
CHUNK: Final = 500


def set_rule(
    connection: Connection,
    scope: Scope,
    *,
    level: Level,
    subject: str,
    update_class: UpdateClass,
    mode: Mode,
    window: Window | None,
    now: datetime,
) -> None:
    """Say how updates of a class go; who and when is kept. Raises MalformedError, NotFoundError, ForbiddenError."""
    _require(connection, scope, level, subject)
    if (mode is Mode.WINDOW) != (window is not None):
        raise MalformedError("A window belongs to the mode `window`, and that mode needs one", mode=mode.value)
    connection.execute(
        "INSERT INTO consent_rule(tenant_id, level, subject, update_class, mode, span, set_by, set_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant_id, level, subject, update_class) DO UPDATE SET "
        "mode = excluded.mode, span = excluded.span, set_by = excluded.set_by, set_at = excluded.set_at",
        (
            scope.tenant_id,
            level.value,
            subject,
            update_class.value,
            mode.value,
            str(window) if window is not None else "",
            scope.actor,
            int(now.timestamp()),
        ),
    )
    events.append(
        connection,
        scope,
        Event.CONSENT_RULE_CHANGED,
        now,
        subject=subject or level.value,
        level=level.value,
        update_class=update_class.value,
        mode=mode.value,
        window=str(window) if window is not None else None,
    )


def clear_rule(
    connection: Connection, scope: Scope, *, level: Level, subject: str, update_class: UpdateClass, now: datetime
) -> None:
    """Take a rule away, so that the next more general one holds; raises NotFoundError when there is none."""
    _require(connection, scope, level, subject)
    gone = connection.execute(
        "DELETE FROM consent_rule WHERE tenant_id = ? AND level = ? AND subject = ? AND update_class = ?",
        (scope.tenant_id, level.value, subject, update_class.value),
    )
    if gone.rowcount != 1:
        raise NotFoundError("There is no such rule", level=level.value, subject=subject[:80])
    events.append(
        connection,
        scope,
        Event.CONSENT_RULE_CHANGED,
        now,
        subject=subject or level.value,
        level=level.value,
        update_class=update_class.value,
        mode=None,
    )


def list_rules(connection: Connection, scope: Scope) -> list[dict[str, Any]]:
    """Return the rules that were set, general ones first, with who set them when."""
    scope.require(Action.READ)
    scope.require_unlimited("Reading consent rules")
    rows = connection.execute(
        "SELECT level, subject, update_class, mode, span, set_by, set_at FROM consent_rule WHERE tenant_id = ? "
        "ORDER BY level DESC, subject, update_class LIMIT ?",
        (scope.tenant_id, MAX_RULES),
    )
    return [
        {
            "level": row["level"],
            "subject": row["subject"],
            "update_class": row["update_class"],
            "mode": row["mode"],
            "window": row["span"] or None,
            "set_by": row["set_by"],
            "set_at": row["set_at"],
        }
        for row in rows
    ]


def rulings(
    connection: Connection, scope: Scope, device_rows: Sequence[int], update_class: UpdateClass, now: datetime
) -> dict[int, Ruling]:
    """Return what holds for each device, by row id; a handful of statements for any number of devices per chunk."""
    rules = _rules(connection, scope, update_class)
    found: dict[int, Ruling] = {}
    for start in range(0, len(device_rows), CHUNK):
        found.update(_chunk(connection, scope, rules, device_rows[start : start + CHUNK], update_class, now))
    return found


def asked_at_least(
    connection: Connection, scope: Scope, device_row: int, update_class: UpdateClass, now: datetime
) -> Mode:
    """Return what the operators' rule asks of one device; a window is the server's own business (`decide`)."""
    rules = _rules(connection, scope, update_class)
    if not any(rules.values()):
        return Mode.AUTOMATIC  # one look at an empty table for every poll with an open attempt
    ruling = _chunk(connection, scope, rules, [device_row], update_class, now)[device_row]
    mode = ruling.operator.mode
    return mode if STRICTNESS[mode] >= STRICTNESS[Mode.ASK] else Mode.AUTOMATIC


def count_modes(
    connection: Connection, scope: Scope, where: Sql, update_class: UpdateClass, now: datetime
) -> dict[str, int]:
    """Return how many devices of a condition (`inventory.search.condition`) each mode holds for; opted out asks."""
    counts = {mode.value: 0 for mode in Mode}
    rules = _rules(connection, scope, update_class)
    if not rules[Level.GROUP] and not rules[Level.DEVICE]:
        for ruling, count in _alike(connection, scope, rules[Level.TENANT].get("") or BUILT_IN, where, update_class):
            counts[Mode.ASK if ruling.asks else ruling.holding.mode] += count
        return counts
    for rows in _pages(connection, where):
        for ruling in _chunk(connection, scope, rules, rows, update_class, now).values():
            counts[Mode.ASK if ruling.asks else ruling.holding.mode] += 1
    return counts


def _anybody_said(connection: Connection, scope: Scope, names: Sequence[str]) -> bool:
    """Whether one owner of the tenant said anything: where nobody did, all devices are alike."""
    for name in names:
        said = connection.execute(
            "SELECT 1 FROM device_attribute WHERE tenant_id = ? AND name = ? LIMIT 1", (scope.tenant_id, name)
        ).fetchone()
        if said is not None:
            return True
    chosen = connection.execute("SELECT 1 FROM owner_choice WHERE tenant_id = ? LIMIT 1", (scope.tenant_id,)).fetchone()
    return chosen is not None


def _alike(
    connection: Connection, scope: Scope, operator: Rule, where: Sql, update_class: UpdateClass
) -> Iterator[tuple[Ruling, int]]:
    """Yield (ruling, how many devices), where the operator's rule is one for all: counted by the database."""
    asked = (OWNER_ATTRIBUTE + update_class.value, OWNER_ATTRIBUTE + "window")
    if not _anybody_said(connection, scope, asked):
        row = connection.execute(f"SELECT COUNT(*) AS n FROM {FROM} WHERE {where.text}", where.parameters).fetchone()
        yield Ruling(operator, _owner({}, update_class), None), row["n"]
        return
    for row in connection.execute(
        "SELECT said.value AS mode, span.value AS span, choice.opted_out_at IS NOT NULL AS is_out, COUNT(*) AS n "
        f"FROM {FROM} LEFT JOIN device_attribute said ON said.device_id = d.id AND said.name = ? "
        "LEFT JOIN device_attribute span ON span.device_id = d.id AND span.name = ? "
        f"LEFT JOIN owner_choice choice ON choice.device_id = d.id WHERE {where.text} GROUP BY 1, 2, 3",
        (*asked, *where.parameters),
    ):
        told = {name: row[key] for name, key in zip(asked, ("mode", "span"), strict=True) if row[key] is not None}
        yield Ruling(operator, _owner(told, update_class), 0 if row["is_out"] else None), row["n"]


def count_asking(connection: Connection, scope: Scope, product: str, update_class: UpdateClass, now: datetime) -> int:
    """Return how many devices of a product ask their owner; at least 1 where the tenant's own rule is to ask."""
    tenant = _rules(connection, scope, update_class)[Level.TENANT].get("")
    where = condition(connection, scope, f'product = "{product}"', now)
    found = count_modes(connection, scope, where, update_class, now)[Mode.ASK]
    return max(found, int(tenant is not None and tenant.mode is Mode.ASK))


def _pages(connection: Connection, where: Sql) -> Iterator[list[int]]:
    after = 0
    while True:
        rows = connection.execute(
            f"SELECT d.id FROM {FROM} WHERE {where.text} AND d.id > ? ORDER BY d.id LIMIT ?",
            (*where.parameters, after, CHUNK),
        ).fetchall()
        if not rows:
            return
        after = int(rows[-1]["id"])
        yield [int(row["id"]) for row in rows]


def _rules(connection: Connection, scope: Scope, update_class: UpdateClass) -> dict[Level, dict[str, Rule]]:
    found: dict[Level, dict[str, Rule]] = {level: {} for level in SETTABLE}
    for row in connection.execute(
        "SELECT level, subject, mode, span, set_by, set_at FROM consent_rule "
        "WHERE tenant_id = ? AND update_class = ? ORDER BY subject LIMIT ?",
        (scope.tenant_id, update_class.value, MAX_RULES),
    ):
        found[Level(row["level"])][row["subject"]] = _rule(row)
    return found


def _rule(row: Row) -> Rule:
    window = Window.parse(row["span"]) if row["span"] else None
    return Rule(Mode(row["mode"]), window, Level(row["level"]), row["subject"], row["set_by"], row["set_at"])


def _chunk(
    connection: Connection,
    scope: Scope,
    rules: Mapping[Level, Mapping[str, Rule]],
    device_rows: Sequence[int],
    update_class: UpdateClass,
    now: datetime,
) -> dict[int, Ruling]:
    marks = ", ".join("?" * len(device_rows))
    by_group: dict[int, Rule] = {}
    for name, rule in rules[Level.GROUP].items():
        # Of two groups the stricter rule holds.
        for row_id in _members(connection, scope, name, device_rows, now):
            known = by_group.get(row_id)
            if known is None or STRICTNESS[rule.mode] > STRICTNESS[known.mode]:
                by_group[row_id] = rule
    facts: dict[int, dict[str, str]] = {}
    for row in connection.execute(
        f"SELECT device_id, name, value FROM device_attribute WHERE tenant_id = ? AND device_id IN ({marks}) "
        "AND name IN (?, ?, ?)",
        (scope.tenant_id, *device_rows, OWNER_ATTRIBUTE + update_class.value, OWNER_ATTRIBUTE + "window", ZONE),
    ):
        facts.setdefault(row["device_id"], {})[row["name"]] = row["value"]
    found: dict[int, Ruling] = {}
    for row in connection.execute(
        "SELECT d.id, d.uid, o.opted_out_at FROM device d LEFT JOIN owner_choice o ON o.device_id = d.id "
        f"WHERE d.tenant_id = ? AND d.id IN ({marks})",
        (scope.tenant_id, *device_rows),
    ):
        told = facts.get(row["id"], {})
        operator = (
            rules[Level.DEVICE].get(row["uid"]) or by_group.get(row["id"]) or rules[Level.TENANT].get("") or BUILT_IN
        )
        found[row["id"]] = Ruling(operator, _owner(told, update_class), row["opted_out_at"], _zone(told.get(ZONE)))
    return found


def _members(connection: Connection, scope: Scope, group: str, device_rows: Sequence[int], now: datetime) -> list[int]:
    try:
        where = condition(connection, scope, f'group = "{group}"', now)
    except (MalformedError, NotFoundError):
        return []  # the group is gone: its rule waits for one of that name
    marks = ", ".join("?" * len(device_rows))
    rows = connection.execute(
        f"SELECT d.id FROM {FROM} WHERE {where.text} AND d.id IN ({marks})",
        (*where.parameters, *device_rows),
    )
    return [int(row["id"]) for row in rows]


def _owner(told: Mapping[str, str], update_class: UpdateClass) -> Rule | None:
    """Read what a device says of its owner's rule; what cannot be read is taken as not said."""
    try:
        mode = Mode(told.get(OWNER_ATTRIBUTE + update_class.value, ""))
        window = Window.parse(told.get(OWNER_ATTRIBUTE + "window", "")) if mode is Mode.WINDOW else None
    except (ValueError, FirmamentError):
        return None
    return Rule(mode, window, Level.OWNER)


def _zone(name: str | None) -> tzinfo:
    try:
        return ZoneInfo(name) if name else UTC
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC


def _require(connection: Connection, scope: Scope, level: Level, subject: str) -> None:
    scope.require(Action.SET_CONSENT)
    if level not in SETTABLE:
        raise MalformedError("A rule is set for the tenant, a group or a device", level=level.value)
    if level is Level.DEVICE:
        get_device(connection, scope, subject)
        return
    scope.require_unlimited("A rule for many devices")
    if level is Level.TENANT and subject:
        raise MalformedError("A tenant's rule has no subject", subject=subject[:80])
    if level is Level.GROUP:
        known = connection.execute(
            "SELECT 1 FROM device_group WHERE tenant_id = ? AND name = ?", (scope.tenant_id, subject)
        ).fetchone()
        if known is None:
            raise NotFoundError("There is no such group", group=subject[:80])
