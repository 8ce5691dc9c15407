"""What an owner reads: order, languages, and a digest of exactly what was shown."""

import pytest

from firmament.core.digest import Digest
from firmament.core.manifest import UpdateClass
from firmament.core.offer import PHRASES, OfferFacts, choose_language, offer_text, size

NOTES = {"en": "Fixes readings.\n\nFaster start.", "de": "Werte stimmen.", "pt-BR": "Corrige leituras."}


def facts(**changes):
    return OfferFacts(
        **{
            "version": "2.14.0", "running": "2.13.4", "update_class": UpdateClass.SECURITY, "notes": NOTES,
            "length_bytes": 18_400_000, "offline_s": 120, **changes,
        }
    )  # fmt: skip


def test_the_order_is_fixed():
    assert list(offer_text(facts(), wanted="en").lines()) == [
        "Update to 2.14.0?",
        "",
        "What it does",
        "  Fixes readings.",
        "  Faster start.",
        "  This is a security update.",
        "",
        "What changes for you",
        "  The device restarts once and is away for about 2 min.",
        "  Settings and data stay.",
        "",
        "If it fails",
        "  The device goes back to 2.13.4 on its own.",
        "",
        "18.4 MB · signatures verified",
    ]


@pytest.mark.parametrize(
    ("wanted", "notes", "sentences"),
    [("de", "de", "de"), ("de-AT", "de", "de"), ("pt", "pt-BR", "pt"), ("pt-BR", "pt-BR", "pt"), ("ja", "en", "en"), ("", "en", "en")],
)  # fmt: skip
def test_notes_and_sentences_are_in_one_language(wanted, notes, sentences):
    text = offer_text(facts(), wanted=wanted)
    assert text.language == notes
    assert text.sections[0].heading == PHRASES[sentences]["does"]
    assert NOTES[notes].splitlines()[0] in text.sections[0].lines


def test_without_notes_it_says_so():
    text = offer_text(facts(notes={}, running="", update_class=UpdateClass.FEATURE), wanted="fr")
    assert text.language == "fr"
    assert text.sections[0].lines == (PHRASES["fr"]["no-notes"],)
    assert text.sections[2].lines == (PHRASES["fr"]["back-unknown"],)


def test_an_author_with_one_odd_language_is_still_understood():
    assert offer_text(facts(notes={"ja": "更新"}), wanted="de").sections[0].lines[0] == "更新"


def test_the_digest_is_of_exactly_what_is_shown():
    text = offer_text(facts(), wanted="de")
    assert text.digest == Digest.of("\n".join(text.lines()).encode())
    assert text.digest != offer_text(facts(), wanted="en").digest


def test_every_language_has_every_sentence():
    assert {frozenset(phrases) for phrases in PHRASES.values()} == {frozenset(PHRASES["en"])}


def test_choosing_a_language():
    assert choose_language([], "de") == ""
    assert choose_language(["fr", "de"], "es") == "de", "any, when there is no English"


@pytest.mark.parametrize(
    ("length", "text"), [(0, "0 B"), (999, "999 B"), (18_400_000, "18.4 MB"), (2_000_000_000_000, "2000.0 GB")]
)
def test_sizes(length, text):
    assert size(length) == text
