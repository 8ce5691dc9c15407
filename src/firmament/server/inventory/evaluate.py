"""What a query says about one device whose facts are at hand; the compiled SQL must agree (a property test)."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from firmament.server.inventory.query import And, Compare, Everything, Has, In, Kind, Node, Not, Or, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_ORDER: Final[dict[str, Callable[[int, int], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Facts:
    """One device, as the query language sees it."""

    texts: Mapping[str, frozenset[str]]
    """Field or ``attr.NAME`` to its values; a field that is not there has none."""
    numbers: Mapping[str, int] = field(default_factory=dict)
    ages_s: Mapping[str, int] = field(default_factory=dict)
    """Absent: it never happened."""


def matches(node: Node, facts: Facts) -> bool:
    """Whether a query selects the device."""
    match node:
        case Everything():
            return True
        case Not():
            return not matches(node.item, facts)
        case And():
            return all(matches(item, facts) for item in node.items)
        case Or():
            return any(matches(item, facts) for item in node.items)
        case Has():
            return _has(node, facts)
        case In():
            if kind_of(node.name) is Kind.NUMBER:
                return facts.numbers[node.name] in node.values
            return bool(facts.texts.get(node.name, frozenset()) & set(node.values))
        case Compare():
            return _compare(node, facts)


def _has(node: Has, facts: Facts) -> bool:
    kind = kind_of(node.name)
    if kind is Kind.NUMBER:
        return node.name in facts.numbers
    if kind is Kind.AGE:
        return node.name in facts.ages_s
    return bool(facts.texts.get(node.name))


def _compare(node: Compare, facts: Facts) -> bool:
    kind = kind_of(node.name)
    if kind is Kind.TEXT:
        values, wanted = facts.texts.get(node.name, frozenset()), str(node.value)
        if node.operator == "~":
            return any(value.startswith(wanted) for value in values)
        return (wanted in values) == (node.operator == "=")
    assert isinstance(node.value, int)  # the parser made it one
    if kind is Kind.NUMBER:
        return _ORDER[node.operator](facts.numbers[node.name], node.value)
    age_s = facts.ages_s.get(node.name)
    if age_s is None:
        return node.operator in {">", ">="}
    return _ORDER[node.operator](age_s, node.value)
