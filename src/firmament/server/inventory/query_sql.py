"""A query as portable, parameterised SQL over `device d JOIN product p LEFT JOIN device_seen s`.

Nothing of a query's text enters the statement: names come from the tables below, values are
parameters. Each term is a look-up by key or index; `product`, `sequence` and the like are columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import NotFoundError
from firmament.server.inventory.model import Mark
from firmament.server.inventory.query import (
    ATTRIBUTE,
    And,
    Compare,
    Everything,
    Has,
    In,
    Kind,
    Node,
    Not,
    Or,
    kind_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FROM: Final = "device d JOIN product p ON p.id = d.product_id LEFT JOIN device_seen s ON s.device_id = d.id"

_COLUMNS: Final = {
    "id": "d.uid",
    "serial": "d.serial",
    "product": "p.name",
    "hardware": "d.hardware",
    "version": "d.version",
    "sequence": "d.sequence_number",
    "bucket": "d.bucket",
}
_TABLES: Final = {
    "tag": (("device_tag x", "x.device_id = d.id", "x.tag"),),
    "site": (("device_place x JOIN site y ON y.id = x.site_id", "x.device_id = d.id", "y.name"),),
    "gateway": (("device_place x JOIN device y ON y.id = x.gateway_id", "x.device_id = d.id", "y.uid"),),
    "error": (
        ("device_failure x", "x.device_id = d.id", "x.code"),
        ("attempt x", "x.device_id = d.id AND x.active = 1 AND x.code <> ''", "x.code"),
    ),
    "state": (("attempt x", "x.device_id = d.id AND x.active = 1", "x.state"),),
}
IDLE: Final = "idle"
DISABLED: Final = "disabled"
QUARANTINED: Final = "quarantined"
_MARKED: Final = "EXISTS (SELECT 1 FROM device_mark x WHERE x.device_id = d.id AND x.mark = '{}')"
_STATES: Final = {
    IDLE: "NOT EXISTS (SELECT 1 FROM attempt x WHERE x.device_id = d.id AND x.active = 1)",
    DISABLED: "d.disabled = 1",
    QUARANTINED: "EXISTS (SELECT 1 FROM device_quarantine x WHERE x.device_id = d.id)",
    **{mark.value: _MARKED.format(mark.value) for mark in Mark},
}
"""States that are not those of an open attempt."""


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A group: the devices its query selects, or those that were put in when it has none."""

    row_id: int
    query: Node | None


@dataclass(frozen=True, slots=True)
class Sql:
    """A condition and its parameters, in order."""

    text: str
    parameters: tuple[Any, ...] = ()

    def negated(self) -> Sql:
        """Return the opposite; no term is ever NULL."""
        return Sql(f"NOT ({self.text})", self.parameters)


def compile_query(node: Node, *, now_s: int, groups: Mapping[str, GroupRow] | None = None) -> Sql:
    """Return the condition for a WHERE clause; raises NotFoundError for a group that is not there."""
    return _Compiler(now_s, groups or {}).node(node)


class _Compiler:
    def __init__(self, now_s: int, groups: Mapping[str, GroupRow]) -> None:
        self._now_s = now_s
        self._groups = groups

    def node(self, node: Node) -> Sql:
        match node:
            case Everything():
                return Sql("1 = 1")
            case Not():
                return self.node(node.item).negated()
            case And():
                return _join(" AND ", [self.node(item) for item in node.items])
            case Or():
                return _join(" OR ", [self.node(item) for item in node.items])
            case Has():
                return self._has(node.name)
            case In():
                return _join(" OR ", [self._equals(node.name, value, node.position) for value in node.values])
            case Compare():
                return self._compare(node)

    def _compare(self, node: Compare) -> Sql:
        kind = kind_of(node.name)
        if kind is Kind.AGE:
            assert isinstance(node.value, int)  # the parser made it one
            then_s = self._now_s - node.value
            if node.operator in {"<", "<="}:
                sign = {"<": ">", "<=": ">="}[node.operator]
                return Sql(f"(s.last_seen IS NOT NULL AND s.last_seen {sign} ?)", (then_s,))
            sign = {">": "<", ">=": "<="}[node.operator]
            return Sql(f"(s.last_seen IS NULL OR s.last_seen {sign} ?)", (then_s,))
        if kind is Kind.NUMBER:
            sign = "<>" if node.operator == "!=" else node.operator
            return Sql(f"{_COLUMNS[node.name]} {sign} ?", (node.value,))
        if node.operator == "~":
            return self._begins(node)
        equal = self._equals(node.name, node.value, node.position)
        return equal if node.operator == "=" else equal.negated()

    def _equals(self, name: str, value: str | int, position: int) -> Sql:
        if name in _COLUMNS:
            return Sql(f"{_COLUMNS[name]} = ?", (value,))
        if name == "group":
            return self._in_group(str(value), position)
        if name == "state" and value in _STATES:
            return Sql(_STATES[str(value)])
        return self._exists(name, "= ?", (value,))

    def _begins(self, node: Compare) -> Sql:
        prefix = str(node.value)
        if node.name in _COLUMNS:
            return Sql(f"substr({_COLUMNS[node.name]}, 1, {len(prefix)}) = ?", (prefix,))
        if node.name == "group":
            found = [name for name in self._groups if name.startswith(prefix)]
            return _join(" OR ", [self._in_group(name, node.position) for name in found])
        more = [Sql(text) for name, text in _STATES.items() if node.name == "state" and name.startswith(prefix)]
        return _join(" OR ", [self._exists(node.name, None, (prefix,)), *more])

    def _exists(self, name: str, condition: str | None, parameters: Sequence[Any]) -> Sql:
        """Look among a field's rows; without a condition the parameter is a prefix."""
        if name.startswith(ATTRIBUTE):
            rows: Any = (("device_attribute x", "x.device_id = d.id AND x.name = ?", "x.value"),)
            before: tuple[Any, ...] = (name.removeprefix(ATTRIBUTE),)
        else:
            rows, before = _TABLES[name], ()
        found = []
        for table, where, column in rows:
            text = f"{column} {condition}" if condition else f"substr({column}, 1, {len(parameters[0])}) = ?"
            sql = f"EXISTS (SELECT 1 FROM {table} WHERE {where} AND {text})"
            found.append(Sql(sql, (*before, *parameters)))
        return _join(" OR ", found)

    def _has(self, name: str) -> Sql:
        if name in {"sequence", "bucket", "state"}:
            return Sql("1 = 1")
        if name == "seen":
            return Sql("s.last_seen IS NOT NULL")
        if name in _COLUMNS:
            return Sql(f"{_COLUMNS[name]} <> ''")
        if name == "group":
            return _join(" OR ", [self._in_group(found, 0) for found in self._groups])
        return self._exists(name, "<> ?", ("",))

    def _in_group(self, name: str, position: int) -> Sql:
        group = self._groups.get(name)
        if group is None:
            raise NotFoundError("There is no such group", group=name[:80], position=position)
        if group.query is not None:
            return self.node(group.query)
        return Sql(
            "EXISTS (SELECT 1 FROM device_group_member x WHERE x.device_id = d.id AND x.group_id = ?)", (group.row_id,)
        )


def _join(word: str, parts: Sequence[Sql]) -> Sql:
    if not parts:
        return Sql("1 = 0")
    if len(parts) == 1:
        return parts[0]
    return Sql(
        "(" + word.join(part.text for part in parts) + ")", tuple(value for part in parts for value in part.parameters)
    )
