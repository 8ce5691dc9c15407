"""Bills of materials, statements and the fold: pure parts."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmament.errors import FirmamentError, MalformedError, TooLargeError
from firmament.server.evidence import sbom
from firmament.server.evidence.compliance import Fold
from firmament.server.evidence.order import compare
from firmament.server.evidence.sbom import Change, Component, read_purl, read_sbom
from firmament.server.evidence.statements import Affected, affected_of_json, read_statements

SBOM = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.6",
    "components": [
        {
            "type": "library",
            "name": "openssl",
            "version": "3.0.11-1",
            "purl": "pkg:deb/debian/openssl@3.0.11-1?arch=arm64",
            "licenses": [{"license": {"id": "Apache-2.0"}}],
            "components": [{"name": "libcrypto", "version": "3.0.11-1"}],
        },
        {"name": "core", "group": "org.x", "version": "1.0"},
        {"name": "core", "group": "org.x", "version": "1.0"},
    ],
}


def read(value):
    return read_sbom(json.dumps(value).encode())


def test_components_are_read_each_once_nested_ones_too():
    assert read(SBOM) == (
        Component("libcrypto", "3.0.11-1"),
        Component("openssl", "3.0.11-1", "deb", "pkg:deb/debian/openssl@3.0.11-1?arch=arm64", "Apache-2.0"),
        Component("org.x/core", "1.0"),
    )


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"bomFormat": "SPDX"}, MalformedError),
        ({"specVersion": "9.9"}, MalformedError),
        ({"components": []}, MalformedError),
        ({"components": [{"name": str(n)} for n in range(sbom.MAX_COMPONENTS + 1)]}, TooLargeError),
    ],
)
def test_what_is_no_usable_bill_is_refused(changes, error):
    with pytest.raises(error):
        read({**SBOM, **changes})
    deep = {"name": "x"}
    for _ in range(20):
        deep = {"name": "x", "components": [deep]}
    with pytest.raises(TooLargeError):
        read({**SBOM, "components": [deep]})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["components", "name", "version", "purl", "licenses", "license", "id", "affected", "ranges", "events",
                         "introduced", "fixed", "versions", "vulnerabilities", "affects", "ref", "bomFormat", "package"])
        | st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(JSON)
def test_any_json_is_read_or_an_error_of_ours(value):
    data = json.dumps(value).encode()
    for reader in (read_sbom, read_statements):
        with contextlib.suppress(FirmamentError):
            reader(data)
    if isinstance(value, dict):
        with contextlib.suppress(FirmamentError):
            read({**value, "bomFormat": "CycloneDX", "specVersion": "1.5"})
        with contextlib.suppress(FirmamentError):
            read_statements(json.dumps({**value, "bomFormat": "CycloneDX"}).encode())


def test_two_releases_are_compared_by_component():
    old = [Component("a", "1"), Component("b", "1"), Component("c", "1"), Component("c", "2")]
    new = [Component("a", "2"), Component("c", "1"), Component("c", "2"), Component("d", "")]
    assert sbom.diff(old, new) == [Change("a", "1", "2"), Change("b", "1", ""), Change("d", "", "?")]


def test_package_urls():
    assert read_purl("pkg:npm/%40scope/name@1.0%2B1") == ("npm", "name", "1.0+1")
    assert read_purl("no purl") == ("", "", "")


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1.9", "1.10"), ("1.0~rc1", "1.0"), ("1.0-rc.1", "1.0"), ("1.0a1", "1.0b1"), ("1.0", "1:0.1"), ("1.0.dev1", "1.0"),
        ("3.0.11-1", "3.0.11-1+deb12u1-1"), ("1.1.1k", "1.1.1l"), ("2.0-alpha", "2.0-beta"), ("1.0", "1.0.1"), ("v1.2", "1.3"),
    ],
)  # fmt: skip
def test_versions_have_the_order_that_people_expect(older, newer):
    assert compare(older, newer) == -1
    assert compare(newer, older) == 1


@given(st.text("0123456789.~-+abrc:", max_size=12), st.text("0123456789.~-+abrc:", max_size=12))
def test_the_order_is_one(one, other):
    assert compare(one, one) == 0
    assert compare(one, other) == -compare(other, one)


def test_equal_versions_in_different_spellings():
    assert compare("1.0", "1.0.0") == 0
    assert compare("v1.0", "1.0+build.5") == 0


OSV = {
    "id": "DSA-1",
    "aliases": ["CVE-2026-1"],
    "summary": "Overflow",
    "severity": [{"type": "CVSS_V3", "score": "CVSS:3.1/AV:N"}],
    "affected": [
        {
            "package": {"ecosystem": "Debian:12", "name": "openssl"},
            "ranges": [
                {"type": "ECOSYSTEM", "events": [{"introduced": "3.0"}, {"fixed": "3.0.12"}, {"introduced": "3.2"}]}
            ],
        },
        {"package": {"name": "listed"}, "versions": ["1", "2"]},
    ],
}
VEX = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.6",
    "components": [{"bom-ref": "r1", "name": "zlib", "version": "1.2"}],
    "vulnerabilities": [
        {
            "id": "CVE-2026-2",
            "ratings": [{"score": 9.8, "severity": "critical"}],
            "affects": [{"ref": "r1"}, {"ref": "pkg:pypi/x@1", "versions": [{"version": "1.1", "status": "affected"}]}],
        },
        {"id": "CVE-2026-3", "analysis": {"state": "not_affected"}, "affects": [{"ref": "r1"}]},
    ],
}


def statements(value):
    return read_statements(json.dumps(value).encode())


def test_osv_ranges_lists_and_aliases():
    [found] = statements(OSV)
    assert (found.name, found.severity) == ("CVE-2026-1", "cvss:3.1/av:n")
    covers = lambda version, name="openssl": found.finds((Component(name, version, "deb"),)) is not None  # noqa: E731
    assert [covers(version) for version in ("2.9", "3.0", "3.0.11-1", "3.0.12", "3.1", "3.2", "4")] == [
        False, True, True, False, False, True, True,
    ]  # fmt: skip
    assert covers("1", "listed")
    assert not covers("3", "listed")
    assert found.finds((Component("openssl", "3.0.1", "pypi"),)) is None, "another ecosystem"
    assert found.finds((Component("openssl", ""),)) is not None, "unknown is told"


def test_vex_says_what_is_affected_and_what_not():
    [found] = statements(VEX)
    assert (found.name, found.severity) == ("CVE-2026-2", "critical")
    assert found.finds((Component("zlib", "1.2"),)) is not None
    assert found.finds((Component("zlib", "1.3"),)) is None
    assert found.finds((Component("x", "1.1", "pypi"),)) is not None


def test_the_simple_form_and_what_is_refused():
    simple = {"name": "CVE-2026-4", "affects": [{"name": "a", "fixed": "2", "introduced": "1"}]}
    [found] = statements(simple)
    assert statements({"vulnerabilities": [simple]}) == [found]
    assert found.affected == (Affected("a", introduced="1", fixed="2"),)
    assert affected_of_json(found.affected[0].to_json()) == found.affected[0]
    assert statements({"name": "C", "affects": [{"name": "a", "last_affected": "2"}]})[0].finds((Component("a", "2"),))
    for wrong in ({}, {"name": "x y", "affects": [{"name": "a"}]}, {"name": "C"}, {"vulnerabilities": []}):
        with pytest.raises(MalformedError):
            statements(wrong)


def test_the_fold_says_who_got_which_fix_when():
    fold = Fold(since=10, until=100)

    def happen(at, kind, subject, **facts):
        fold.add({"at": at, "kind": kind, "subject": subject, "facts": facts})

    happen(5, "release.published", "thermo/0.9")
    happen(10, "release.published", "thermo/1.0")
    happen(11, "sbom.added", "thermo/1.0", components=7)
    happen(20, "attempt.moved", "d1", release="thermo/1.0", state="confirmed")
    happen(30, "attempt.moved", "d2", release="thermo/1.0", state="confirmed")
    happen(31, "attempt.moved", "d3", release="thermo/1.0", state="reverted")
    happen(32, "attempt.moved", "d3", release="thermo/1.0", state="downloading")
    happen(40, "consent.answered", "d4", answer="opt-out")
    happen(41, "consent.answered", "d5", answer="opt-out")
    happen(42, "consent.answered", "d5", answer="opt-in")
    happen(50, "vulnerability.stated", "CVE-1")
    happen(51, "report.refused", "d1")
    happen(100, "attempt.moved", "d9", release="thermo/1.0", state="confirmed")
    result = fold.result()
    assert result["releases"] == [
        {
            "release": "thermo/1.0",
            "published_at": 10,
            "withdrawn_at": None,
            "sbom_components": 7,
            "confirmed": 2,
            "first_confirmed_at": 20,
            "last_confirmed_at": 30,
            "not_kept": 1,
        }
    ]
    assert (result["consent"], result["opt_outs"]) == ({"opt-in": 1, "opt-out": 2}, 1)
    assert (result["vulnerabilities"], result["refusals"]) == ([{"name": "CVE-1", "known_at": 50}], 1)
