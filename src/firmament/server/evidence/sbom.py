"""CycloneDX JSON 1.4 to 1.6, as much as is needed to answer "who has this component": pure, with ceilings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from firmament.errors import MalformedError, TooLargeError
from firmament.server.evidence.reader import objects, read_object, word

if TYPE_CHECKING:
    from collections.abc import Iterable

    from firmament.core.fields import Fields

MAX_SBOM_LENGTH_BYTES: Final = 64 * 1024 * 1024
# A Debian image of 4000 packages is below 10 MB as CycloneDX JSON.
MAX_COMPONENTS: Final = 50_000
MAX_NESTING: Final = 8
SPEC_VERSIONS: Final = ("1.4", "1.5", "1.6")
_PURL: Final = re.compile(r"pkg:([a-zA-Z0-9.+-]+)/(?:([^@?#]+)/)?([^/@?#]+)(?:@([^?#]+))?(?:[?#].*)?")


@dataclass(frozen=True, order=True, slots=True)
class Component:
    """One component of a release."""

    name: str
    version: str
    ecosystem: str = ""
    """Type of its package URL, e.g. ``deb``, ``pypi``; empty when there is none."""
    purl: str = ""
    licence: str = ""


def read_sbom(data: bytes) -> tuple[Component, ...]:
    """Return the components, each once, sorted; raises MalformedError, TooLargeError."""
    fields = read_object(data, limit_bytes=MAX_SBOM_LENGTH_BYTES, what="The bill of materials")
    if word(fields, "bomFormat") != "CycloneDX":
        raise MalformedError("The bill of materials is not CycloneDX JSON", expected="bomFormat CycloneDX")
    if (version := word(fields, "specVersion")) not in SPEC_VERSIONS:
        raise MalformedError("This version of CycloneDX is not known", found=version, known=" ".join(SPEC_VERSIONS))
    found: set[Component] = set()
    _collect(fields, found, 0)
    if not found:
        raise MalformedError("The bill of materials names no component")
    return tuple(sorted(found))


def _collect(fields: Fields, found: set[Component], depth: int) -> None:
    if depth > MAX_NESTING:
        raise TooLargeError("Components are nested deeper than allowed", limit=MAX_NESTING)
    for item in objects(fields, "components", limit=MAX_COMPONENTS):
        name = word(item, "name", limit=256)
        if name:
            purl = word(item, "purl")
            ecosystem, _, _ = read_purl(purl)
            group = word(item, "group", limit=256)
            full = f"{group}/{name}" if group else name
            found.add(Component(full, word(item, "version", limit=256), ecosystem, purl, _licence(item)))
        if len(found) > MAX_COMPONENTS:
            raise TooLargeError("The bill of materials has too many components", limit=MAX_COMPONENTS)
        _collect(item, found, depth + 1)


def read_purl(purl: str) -> tuple[str, str, str]:
    """Return type, name and version of a package URL; empty texts for anything else."""
    match = _PURL.fullmatch(purl)
    if match is None:
        return "", "", ""
    return match[1].lower(), unquote(match[3]), unquote(match[4] or "")


def _licence(item: Fields) -> str:
    names: list[str] = []
    for entry in objects(item, "licenses", limit=100):
        expression = word(entry, "expression", limit=128)
        licence = entry.value.get("license")
        if not expression and isinstance(licence, dict):
            value = licence.get("id") or licence.get("name")
            expression = value[:128] if isinstance(value, str) else ""
        if expression:
            names.append(expression)
    return " AND ".join(names)[:256]


@dataclass(frozen=True, slots=True)
class Change:
    """One component that two releases have differently; an empty version means absent."""

    name: str
    old: str
    new: str


def diff(old: Iterable[Component], new: Iterable[Component]) -> list[Change]:
    """Return what was added, removed and changed, by name."""
    before, after = _by_name(old), _by_name(new)
    return [
        Change(name, ", ".join(before.get(name, ())), ", ".join(after.get(name, ())))
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def _by_name(components: Iterable[Component]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for component in components:
        found.setdefault(component.name, set()).add(component.version or "?")
    return {name: sorted(versions) for name, versions in found.items()}
