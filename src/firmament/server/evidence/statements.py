"""Statements about vulnerabilities that an operator brings: OSV, CycloneDX VEX, or a simple form. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from firmament.errors import MalformedError
from firmament.server.evidence.order import compare
from firmament.server.evidence.reader import objects, read_object, word
from firmament.server.evidence.sbom import Component, read_purl

if TYPE_CHECKING:
    from firmament.core.fields import Fields

MAX_STATEMENT_LENGTH_BYTES: Final = 16 * 1024 * 1024
MAX_STATEMENTS: Final = 1000
MAX_AFFECTED: Final = 1000
MAX_VERSIONS: Final = 5000
NOT_AFFECTED: Final = frozenset({"not_affected", "false_positive", "resolved", "resolved_with_pedigree"})
_OSV_TYPES: Final = {
    "debian": "deb",
    "ubuntu": "deb",
    "alpine": "apk",
    "pypi": "pypi",
    "npm": "npm",
    "crates.io": "cargo",
}


@dataclass(frozen=True, slots=True)
class Affected:
    """A component and the versions that have it: a range, a list, or all."""

    name: str
    ecosystem: str = ""
    introduced: str = ""
    """First bad version; empty: from the beginning."""
    fixed: str = ""
    """First good version again; empty: none yet."""
    last_affected: str = ""
    versions: tuple[str, ...] = ()

    def covers(self, component: Component) -> bool:
        """Whether a component of a release is one of these."""
        if (
            component.name.lower() != self.name.lower()
            and component.name.rpartition("/")[2].lower() != self.name.lower()
        ):
            return False
        if self.ecosystem and component.ecosystem and self.ecosystem != component.ecosystem:
            return False
        if self.versions:
            return component.version in self.versions
        if not component.version:
            return True  # unknown: better told than missed
        return not (
            (self.introduced and self.introduced != "0" and compare(component.version, self.introduced) < 0)
            or (self.fixed and compare(component.version, self.fixed) >= 0)
            or (self.last_affected and compare(component.version, self.last_affected) > 0)
        )

    def to_json(self) -> dict[str, Any]:
        """Write for the database."""
        return {
            "name": self.name,
            "ecosystem": self.ecosystem,
            "introduced": self.introduced,
            "fixed": self.fixed,
            "last_affected": self.last_affected,
            "versions": list(self.versions),
        }


@dataclass(frozen=True, slots=True)
class Statement:
    """One vulnerability."""

    name: str
    summary: str
    severity: str
    affected: tuple[Affected, ...]

    def finds(self, components: tuple[Component, ...]) -> Component | None:
        """Return the first component that is affected."""
        return next((each for each in components if any(one.covers(each) for one in self.affected)), None)


def affected_of_json(value: dict[str, Any]) -> Affected:
    """Read what `to_json` wrote."""
    return Affected(**{**value, "versions": tuple(value["versions"])})


def read_statements(data: bytes) -> list[Statement]:
    """Return the statements of a file, whichever of the three forms it has; raises MalformedError, TooLargeError."""
    fields = read_object(data, limit_bytes=MAX_STATEMENT_LENGTH_BYTES, what="The statement")
    if word(fields, "bomFormat") == "CycloneDX":
        found = _vex(fields)
    elif isinstance(fields.value.get("vulnerabilities"), list):
        found = [_simple(item) for item in objects(fields, "vulnerabilities", limit=MAX_STATEMENTS)]
    elif isinstance(fields.value.get("affected"), list):
        found = [_osv(fields)]
    else:
        found = [_simple(fields)]
    if not found:
        raise MalformedError("The statement names no vulnerability")
    for statement in found:
        if not statement.name or " " in statement.name or "/" in statement.name:
            raise MalformedError("A vulnerability has no usable name", found=statement.name[:80])
        if not statement.affected:
            raise MalformedError("A vulnerability names no affected component", name=statement.name)
    return found


def _osv(fields: Fields) -> Statement:
    aliases = fields.value.get("aliases")
    names = [alias for alias in aliases if isinstance(alias, str)] if isinstance(aliases, list) else []
    name = next((alias for alias in names if alias.startswith("CVE-")), word(fields, "id", limit=128))
    affected: list[Affected] = []
    for item in objects(fields, "affected", limit=MAX_AFFECTED):
        package = item.object("package", optional=True)
        ecosystem = _OSV_TYPES.get(word(package, "ecosystem").partition(":")[0].lower(), "")
        component = word(package, "name", limit=256)
        ranges = [
            entry for entry in objects(item, "ranges", limit=100) if word(entry, "type") in {"ECOSYSTEM", "SEMVER"}
        ]
        for entry in ranges:
            affected += _events(entry, component, ecosystem)
        if not ranges and component:
            affected.append(Affected(component, ecosystem, versions=_versions(item)))
    database = fields.object("database_specific", optional=True)
    severity = word(database, "severity", limit=32).lower() or _first_rating(fields, "severity", "score")
    return Statement(name, word(fields, "summary") or word(fields, "details"), severity, tuple(affected))


def _events(entry: Fields, component: str, ecosystem: str) -> list[Affected]:
    found: list[Affected] = []
    introduced: str | None = None
    for event in objects(entry, "events", limit=1000):
        if start := word(event, "introduced", limit=256):
            introduced = start
        elif introduced is not None and (fixed := word(event, "fixed", limit=256)):
            found.append(Affected(component, ecosystem, introduced=introduced, fixed=fixed))
            introduced = None
        elif introduced is not None and (last := word(event, "last_affected", limit=256)):
            found.append(Affected(component, ecosystem, introduced=introduced, last_affected=last))
            introduced = None
    if introduced is not None:
        found.append(Affected(component, ecosystem, introduced=introduced))
    return found


def _vex(fields: Fields) -> list[Statement]:
    references = {
        word(item, "bom-ref"): (word(item, "name", limit=256), word(item, "version", limit=256))
        for item in objects(fields, "components", limit=MAX_AFFECTED)
    }
    found: list[Statement] = []
    for item in objects(fields, "vulnerabilities", limit=MAX_STATEMENTS):
        if word(item.object("analysis", optional=True), "state") in NOT_AFFECTED:
            continue
        affected: list[Affected] = []
        for target in objects(item, "affects", limit=MAX_AFFECTED):
            reference = word(target, "ref")
            ecosystem, name, version = read_purl(reference)
            if not name:
                name, version = references.get(reference, ("", ""))
            versions = [
                word(entry, "version", limit=256)
                for entry in objects(target, "versions", limit=MAX_VERSIONS)
                if word(entry, "status") in {"affected", ""} and word(entry, "version")
            ]
            if name:
                affected.append(Affected(name, ecosystem, versions=tuple(versions or ([version] if version else []))))
        severity = _first_rating(item, "ratings", "severity")
        found.append(Statement(word(item, "id", limit=128), word(item, "description"), severity, tuple(affected)))
    return found


def _simple(fields: Fields) -> Statement:
    affected = [
        Affected(
            name=word(item, "name", limit=256),
            ecosystem=word(item, "ecosystem", limit=32).lower(),
            introduced=word(item, "introduced", limit=256),
            fixed=word(item, "fixed", limit=256),
            last_affected=word(item, "last_affected", limit=256),
            versions=_versions(item),
        )
        for item in objects(fields, "affects", limit=MAX_AFFECTED)
        if word(item, "name")
    ]
    name = word(fields, "name", limit=128) or word(fields, "id", limit=128)
    return Statement(name, word(fields, "summary"), word(fields, "severity", limit=32).lower(), tuple(affected))


def _versions(item: Fields) -> tuple[str, ...]:
    found = item.value.get("versions")
    if not isinstance(found, list):
        return ()
    return tuple(version[:256] for version in found[:MAX_VERSIONS] if isinstance(version, str))


def _first_rating(fields: Fields, name: str, field: str) -> str:
    ratings = (word(entry, field, limit=64).lower() for entry in objects(fields, name, limit=100))
    return next((rating for rating in ratings if rating), "")
