"""Identifiers: what was checked once is safe in a path, a URL, a log line and SQL."""

import pytest

from firmament.core import ids
from firmament.errors import MalformedError

GOOD = {
    ids.PRODUCT: ["a", "thermo-gateway", "x2", "a" * 63],
    ids.VERSION: ["1", "1.0", "2.14.0-rc.1+build_7", "v" * 64],
    ids.HARDWARE: ["rpi4", "STM32.F4_x-1", "h" * 64],
    ids.UUID: ["01234567-89ab-cdef-0123-456789abcdef"],
    ids.TARGET_PATH: ["thermo/1.0/app.tar", "a", "a/b/c/d/e/f/g/h", "X/1.0+1/A_b-c.img"],
}
BAD = {
    ids.PRODUCT: ["", "-a", "a-", "A", "a_b", "a.b", "a/b", "a" * 64, "a\n", "é", ".."],
    ids.VERSION: ["", "-1", "1-", ".", "..", "1/2", "1 0", "1\n", "v" * 65, "%2e"],
    ids.HARDWARE: ["", "*", "rpi*", "a b", "..", "h" * 65, "a+b"],
    ids.UUID: ["", "01234567-89AB-cdef-0123-456789abcdef", "0123456789abcdef0123456789abcdef", "../", "x" * 36],
    ids.TARGET_PATH: [
        "", "/a", "a/", "a//b", "../a", "a/../b", ".hidden", "a/.b", "a\\b", "a b", "a%2f", "a\x00", "a\n", "-a",
        "a/b/c/d/e/f/g/h/i", "ａ",  # noqa: RUF001 - a letter of another script
    ],
}  # fmt: skip


@pytest.mark.parametrize(("grammar", "text"), [(g, t) for g, ts in GOOD.items() for t in ts])
def test_well_formed(grammar, text):
    assert ids.check(text, grammar, what="it") == text


@pytest.mark.parametrize(("grammar", "text"), [(g, t) for g, ts in BAD.items() for t in ts])
def test_not_well_formed(grammar, text):
    with pytest.raises(MalformedError, match="it is not well formed"):
        ids.check(text, grammar, what="it")


def test_a_release_is_named_by_product_and_version():
    assert ids.release_id("thermo", "1.0") == "thermo/1.0"
    with pytest.raises(MalformedError, match="The product name"):
        ids.release_id("../thermo", "1.0")
    with pytest.raises(MalformedError, match="The version"):
        ids.release_id("thermo", "1/0")


def test_a_long_wrong_name_is_not_repeated_whole():
    with pytest.raises(MalformedError) as caught:
        ids.product_name("X" * 10_000)
    assert len(caught.value.facts["found"]) == 80
