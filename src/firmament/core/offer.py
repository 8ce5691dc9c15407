r"""What an owner reads before they decide about an update: fixed order, plain words, their language.

*What it does* (the author's release notes), *what changes for you*, *if it fails*, then size and
signatures (console.md §1.4). The author writes the notes in as many languages as they like; the
sentences around them are here. Of what was shown a digest goes into the consent event, so that
years later it can be said what somebody agreed to; device and server make the text with this code.

    text = offer_text(facts, wanted="de")
    "\n".join(text.lines())
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from firmament.core.digest import Digest
from firmament.core.manifest import UpdateClass

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

FALLBACK: Final = "en"
MINUTE_S: Final = 60

# fmt: off
PHRASES: Final[dict[str, dict[str, str]]] = {
    "en": {
        "title": "Update to {version}?",
        "security": "This is a security update.",
        "does": "What it does",
        "no-notes": "The author of this update wrote nothing about it.",
        "changes": "What changes for you",
        "restart": "The device restarts once and is away for about {minutes} min.",
        "data": "Settings and data stay.",
        "fails": "If it fails",
        "back": "The device goes back to {running} on its own.",
        "back-unknown": "The device goes back to what it runs now on its own.",
        "facts": "{size} · signatures verified",
    },
    "de": {
        "title": "Auf {version} aktualisieren?",
        "security": "Das ist ein Sicherheits-Update.",
        "does": "Was es tut",
        "no-notes": "Der Hersteller hat dazu nichts geschrieben.",
        "changes": "Was sich für Sie ändert",
        "restart": "Das Gerät startet einmal neu und ist etwa {minutes} Min. nicht erreichbar.",
        "data": "Einstellungen und Daten bleiben.",
        "fails": "Wenn es misslingt",
        "back": "Das Gerät kehrt von selbst zu {running} zurück.",
        "back-unknown": "Das Gerät kehrt von selbst zum jetzigen Stand zurück.",
        "facts": "{size} · Signaturen geprüft",
    },
    "fr": {
        "title": "Passer à {version} ?",
        "security": "C'est une mise à jour de sécurité.",
        "does": "Ce qu'elle fait",
        "no-notes": "L'auteur de cette mise à jour n'a rien écrit à son sujet.",
        "changes": "Ce qui change pour vous",
        "restart": "L'appareil redémarre une fois et reste indisponible environ {minutes} min.",
        "data": "Réglages et données sont conservés.",
        "fails": "En cas d'échec",
        "back": "L'appareil revient de lui-même à {running}.",
        "back-unknown": "L'appareil revient de lui-même à son état actuel.",
        "facts": "{size} · signatures vérifiées",
    },
    "pt": {
        "title": "Atualizar para {version}?",
        "security": "Esta é uma atualização de segurança.",
        "does": "O que faz",
        "no-notes": "O autor desta atualização não escreveu nada sobre ela.",
        "changes": "O que muda para si",
        "restart": "O aparelho reinicia uma vez e fica indisponível cerca de {minutes} min.",
        "data": "Definições e dados mantêm-se.",
        "fails": "Se falhar",
        "back": "O aparelho volta sozinho a {running}.",
        "back-unknown": "O aparelho volta sozinho ao que tem agora.",
        "facts": "{size} · assinaturas verificadas",
    },
}
# fmt: on


@dataclass(frozen=True, slots=True)
class OfferFacts:
    """What the text is made of."""

    version: str
    running: str
    """Version that runs now; empty if it is not known."""
    update_class: UpdateClass
    notes: Mapping[str, str]
    """Release notes for owners, by language tag."""
    length_bytes: int
    """What is downloaded."""
    offline_s: int
    """How long the device is usually away for the restart."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it."""

    heading: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OfferText:
    """The text as shown."""

    language: str
    """Language tag of the notes if there are any, else of the sentences around them."""
    title: str
    sections: tuple[Section, ...]
    facts: str

    def lines(self) -> Iterator[str]:
        """Yield it line by line, without trailing line ends."""
        yield self.title
        for section in self.sections:
            yield ""
            yield section.heading
            yield from (f"  {line}" for line in section.lines)
        yield ""
        yield self.facts

    @property
    def digest(self) -> Digest:
        """SHA-256 of the UTF-8 of its lines, joined by line feeds."""
        return Digest.of("\n".join(self.lines()).encode())


def offer_text(facts: OfferFacts, *, wanted: str) -> OfferText:
    """Return the text in the language `wanted`, as far as there is one."""
    language = choose_language(facts.notes, wanted)
    phrases = PHRASES[choose_language(PHRASES, language or wanted) or FALLBACK]
    notes = facts.notes.get(language, "").strip()
    does = [line.rstrip() for line in printable(notes).splitlines() if line.strip()] or [phrases["no-notes"]]
    if facts.update_class is UpdateClass.SECURITY:
        does.append(phrases["security"])
    minutes = max(1, -(-facts.offline_s // MINUTE_S))
    back = phrases["back"].format(running=facts.running) if facts.running else phrases["back-unknown"]
    return OfferText(
        language=language or choose_language(PHRASES, wanted) or FALLBACK,
        title=phrases["title"].format(version=facts.version),
        sections=(
            Section(phrases["does"], tuple(does)),
            Section(phrases["changes"], (phrases["restart"].format(minutes=minutes), phrases["data"])),
            Section(phrases["fails"], (back,)),
        ),
        facts=phrases["facts"].format(size=size(facts.length_bytes)),
    )


def choose_language(available: Iterable[str], wanted: str) -> str:
    """Return the best of the language tags there are: exact, same language, English, any; empty for none."""
    tags = sorted(available)
    base = wanted.partition("-")[0]
    for fits in (
        lambda tag: tag == wanted,
        lambda tag: tag == base,
        lambda tag: tag.partition("-")[0] == base,
        lambda tag: tag.partition("-")[0] == FALLBACK,
        bool,
    ):
        found = next((tag for tag in tags if fits(tag)), "")
        if found:
            return found
    return ""


def printable(text: str) -> str:
    """Return text that cannot move a cursor or recolour a screen, whoever wrote it; lines stay lines."""
    return "".join(
        c if c.isprintable() or c == "\n" else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def size(length_bytes: int) -> str:
    """Write a length for people, ``142.1 MB``."""
    value = float(length_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:  # noqa: PLR2004 - decimal units
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
