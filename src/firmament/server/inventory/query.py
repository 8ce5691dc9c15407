r"""The query language: which devices. Pure: text to tree and back, with exact error positions.

    product=thermo and (tag in (beta, lab) or attr.os~"debian 1") and not state=quarantined and seen<2h

Grammar::

    query      = [ or ]                                    nothing selects every device
    or         = and { "or" and }
    and        = not { "and" not }
    not        = "not" not | "(" or ")" | "has" field | field comparison
    comparison = operator value | "in" "(" value { "," value } ")"
    operator   = "=" | "!=" | "<" | "<=" | ">" | ">=" | "~"        ~ is "begins with"
    value      = word | string in double quotes, with \" and \\

Versions are labels and are never compared (ADR-0005): ``sequence<42`` is the way to say "older".
A field that has several values (`tag`, `group`, `state`, `error`) equals each of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from firmament.core.fields import MAX_INTEGER
from firmament.errors import MalformedError

MAX_QUERY_LENGTH: Final = 4000
MAX_DEPTH: Final = 32
MAX_TERMS: Final = 200
# A deeper or longer one is made by a machine; SQLite's own limit on expression depth is 1000.
KEYWORDS: Final = frozenset({"and", "or", "not", "in", "has"})
ATTRIBUTE: Final = "attr."


class Kind(StrEnum):
    """What a field's values are."""

    TEXT = "text"
    NUMBER = "number"
    AGE = "age"
    """Seconds since something happened; never counts as an endless age."""


FIELDS: Final[dict[str, Kind]] = {
    "id": Kind.TEXT,
    "serial": Kind.TEXT,
    "product": Kind.TEXT,
    "hardware": Kind.TEXT,
    "version": Kind.TEXT,
    "group": Kind.TEXT,
    "site": Kind.TEXT,
    "tag": Kind.TEXT,
    "gateway": Kind.TEXT,
    "state": Kind.TEXT,
    "error": Kind.TEXT,
    "sequence": Kind.NUMBER,
    "bucket": Kind.NUMBER,
    "seen": Kind.AGE,
}
OPERATORS: Final[dict[Kind, tuple[str, ...]]] = {
    Kind.TEXT: ("=", "!=", "~"),
    Kind.NUMBER: ("=", "!=", "<", "<=", ">", ">="),
    Kind.AGE: ("<", "<=", ">", ">="),
}
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGE: Final = re.compile(r"([0-9]{1,9})([smhdw])")
_WORD: Final = re.compile(r"[A-Za-z0-9_.:+@/*-]+")
_TOKEN: Final = re.compile(
    r"(?P<word>[A-Za-z0-9_.:+@/*-]+)|(?P<string>\"(?:[^\"\\]|\\[\"\\])*\")|(?P<op>!=|<=|>=|=|<|>|~)|(?P<mark>[(),])"
)


@dataclass(frozen=True, slots=True)
class Everything:
    """The empty query."""


@dataclass(frozen=True, slots=True)
class Compare:
    """`name operator value`; numbers and ages are integers."""

    name: str
    operator: str
    value: str | int
    position: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class In:
    """`name in (values)`."""

    name: str
    values: tuple[str | int, ...]
    position: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Has:
    """`has name`: there is any value."""

    name: str
    position: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Not:
    """`not item`."""

    item: Node


@dataclass(frozen=True, slots=True)
class And:
    """All of two or more; none of them is an `And`."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Any of two or more; none of them is an `Or`."""

    items: tuple[Node, ...]


Node = Everything | Compare | In | Has | Not | And | Or


def kind_of(name: str) -> Kind:
    """Return what a known field's values are; reported attributes are text."""
    return Kind.TEXT if name.startswith(ATTRIBUTE) else FIELDS[name]


def parse(text: str) -> Node:
    """Read a query; raises MalformedError with `position` (from 0), `found` and `expected`."""
    if len(text) > MAX_QUERY_LENGTH:
        raise MalformedError("The query is too long", length=len(text), limit=MAX_QUERY_LENGTH)
    return _Parser(text).query()


def show(node: Node) -> str:
    """Write a query in its usual form; `parse` reads it back to the same tree."""
    match node:
        case Everything():
            return ""
        case Compare():
            return f"{_show_field(node.name)}{node.operator}{_show_value(node.name, node.value)}"
        case In():
            return f"{_show_field(node.name)} in ({', '.join(_show_value(node.name, value) for value in node.values)})"
        case Has():
            return f"has {_show_field(node.name)}"
        case Not():
            return f"not {_show_inside(node.item, (And, Or))}"
        case And():
            return " and ".join(_show_inside(item, (Or,)) for item in node.items)
        case Or():
            return " or ".join(show(item) for item in node.items)


def names_in(node: Node) -> set[str]:
    """Return every field a query asks about."""
    match node:
        case Everything():
            return set()
        case Compare() | In() | Has():
            return {node.name}
        case Not():
            return names_in(node.item)
        case And() | Or():
            return {name for item in node.items for name in names_in(item)}


def _show_inside(node: Node, kinds: tuple[type, ...]) -> str:
    return f"({show(node)})" if isinstance(node, kinds) else show(node)


def _show_field(name: str) -> str:
    rest = name.removeprefix(ATTRIBUTE)
    return name if rest == name or _WORD.fullmatch(rest) else ATTRIBUTE + _quote(rest)


def _show_value(name: str, value: str | int) -> str:
    if isinstance(value, int):
        return f"{value}s" if kind_of(name) is Kind.AGE else str(value)
    return value if _WORD.fullmatch(value) and value.lower() not in KEYWORDS else _quote(value)


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


class _Parser:
    """Recursive descent over the tokens; every refusal names its position and what fits there."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._split(text))
        self._at = 0
        self._terms = 0

    def query(self) -> Node:
        if self._peek().kind == "end":
            return Everything()
        node = self._or(0)
        if self._peek().kind != "end":
            self._fail("and", "or", "the end")
        return node

    def _split(self, text: str) -> list[_Token]:
        tokens: list[_Token] = []
        position = 0
        while position < len(text):
            if text[position].isspace():
                position += 1
                continue
            match = _TOKEN.match(text, position)
            if match is None:
                expected = "a closing quotation mark" if text[position] == '"' else "a word or a quoted text"
                raise _refusal(position, text[position], expected)
            kind, found = match.lastgroup or "", match.group()
            if kind == "word" and found.lower() in KEYWORDS:
                kind, found = "keyword", found.lower()
            tokens.append(_Token(kind, found, position))
            position = match.end()
        tokens.append(_Token("end", "the end", len(text)))
        return tokens

    def _or(self, depth: int) -> Node:
        items = [self._and(depth)]
        while self._take("keyword", "or"):
            items.append(self._and(depth))
        return _joined(Or, items)

    def _and(self, depth: int) -> Node:
        items = [self._not(depth)]
        while self._take("keyword", "and"):
            items.append(self._not(depth))
        return _joined(And, items)

    def _not(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise MalformedError("The query is nested too deeply", position=self._peek().position, limit=MAX_DEPTH)
        if self._take("keyword", "not"):
            return Not(self._not(depth + 1))
        if self._take("mark", "("):
            node = self._or(depth + 1)
            if not self._take("mark", ")"):
                self._fail("and", "or", ")")
            return node
        return self._term()

    def _term(self) -> Node:
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise MalformedError("The query has too many terms", position=self._peek().position, limit=MAX_TERMS)
        if self._take("keyword", "has"):
            position = self._peek().position
            return Has(self._field(), position)
        position = self._peek().position
        name = self._field()
        kind = kind_of(name)
        if self._take("keyword", "in"):
            return In(name, self._values(name), position)
        token = self._peek()
        if token.kind != "op":
            self._fail(*OPERATORS[kind], "in")
        if token.text not in OPERATORS[kind]:
            if name == "version":
                raise _refusal(
                    token.position, token.text, "= != ~ or in: versions are labels; compare sequence instead"
                )
            self._fail(*OPERATORS[kind], *(() if kind is Kind.AGE else ("in",)))
        self._at += 1
        return Compare(name, token.text, self._value(name), position)

    def _field(self) -> str:
        token = self._peek()
        if token.kind != "word":
            self._fail("a field", "not", "has", "(")
        if token.text == ATTRIBUTE and self._tokens[self._at + 1].kind == "string":
            self._at += 2
            return ATTRIBUTE + self._filled(_unquote(self._tokens[self._at - 1].text), self._tokens[self._at - 1])
        if token.text not in FIELDS and not (token.text.startswith(ATTRIBUTE) and len(token.text) > len(ATTRIBUTE)):
            self._fail(*FIELDS, "attr.NAME")
        self._at += 1
        return token.text

    def _values(self, name: str) -> tuple[str | int, ...]:
        if kind_of(name) is Kind.AGE:
            self._at -= 1
            self._fail(*OPERATORS[Kind.AGE])
        if not self._take("mark", "("):
            self._fail("(")
        values = [self._value(name)]
        while self._take("mark", ","):
            values.append(self._value(name))
        if not self._take("mark", ")"):
            self._fail(",", ")")
        return tuple(values)

    def _value(self, name: str) -> str | int:
        token, kind = self._peek(), kind_of(name)
        if token.kind not in {"word", "string"}:
            self._fail({Kind.TEXT: "a value", Kind.NUMBER: "a whole number", Kind.AGE: "an age such as 2h"}[kind])
        text = _unquote(token.text) if token.kind == "string" else token.text
        self._at += 1
        if kind is Kind.NUMBER:
            if not (text.isascii() and text.isdigit()) or int(text) > MAX_INTEGER:
                raise _refusal(token.position, token.text, "a whole number")
            return int(text)
        if kind is Kind.AGE:
            match = _AGE.fullmatch(text)
            if match is None:
                raise _refusal(token.position, token.text, "an age such as 30s, 5m, 2h, 3d or 1w")
            return int(match[1]) * _UNITS_S[match[2]]
        return self._filled(text, token)

    def _filled(self, text: str, token: _Token) -> str:
        if not text:
            raise _refusal(token.position, token.text, "a text that is not empty; say: not has FIELD")
        if "\0" in text:
            raise _refusal(token.position, token.text, "a text without NUL characters")
        return text

    def _peek(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, kind: str, text: str) -> bool:
        token = self._peek()
        if token.kind == kind and token.text == text:
            self._at += 1
            return True
        return False

    def _fail(self, *expected: str) -> None:
        token = self._peek()
        raise _refusal(token.position, token.text, *expected)


def _joined(kind: type[And | Or], items: list[Node]) -> Node:
    if len(items) == 1:
        return items[0]
    flat: list[Node] = []
    for item in items:
        # Parentheses that change nothing leave no trace in the tree.
        if isinstance(item, kind):
            flat.extend(item.items)
        else:
            flat.append(item)
    return kind(tuple(flat))


def _unquote(text: str) -> str:
    return re.sub(r"\\([\"\\])", r"\1", text[1:-1])


def _refusal(position: int, found: str, *expected: str) -> MalformedError:
    return MalformedError(
        "The query cannot be read", position=position, found=found[:40], expected=" | ".join(expected)
    )
