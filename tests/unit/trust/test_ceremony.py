"""The root ceremony: a file passes from hand to hand, and is done only with both thresholds."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from tuf.api.metadata import Root

from firmament.core import canonical
from firmament.errors import ConflictError, FirmamentError, KeyFileError, SignatureError, ThresholdNotMetError
from firmament.trust import ceremony, keys, repository
from firmament.trust.ceremony import Which
from firmament.trust.keys import KeyKind
from firmament.trust.roles import TOP_LEVEL, RoleKeys, hybrid_threshold

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
LATER = NOW + timedelta(days=365)


@pytest.fixture(scope="module")
def custodians():
    """Four people with a P-256 and an ML-DSA key each, as trust.md has it."""
    return [(keys.generate(KeyKind.ECDSA_P256), keys.generate(KeyKind.ML_DSA_65)) for _ in range(4)]


@pytest.fixture(scope="module")
def online():
    return keys.generate(KeyKind.ED25519)


def root_keys(people, minimum=2):
    found = tuple(signer.public_key for person in people for signer in person)
    return RoleKeys(found, hybrid_threshold(len(people), minimum=minimum))


def all_roles(root, online):
    return {role: root if role in {"root", "targets"} else RoleKeys((online.public_key,), 1) for role in TOP_LEVEL}


def carry(held):
    """To another machine and back."""
    return ceremony.read(held.to_bytes())


@pytest.fixture
def first(custodians, online):
    held = ceremony.start(None, which=Which.IMAGE, roles=all_roles(root_keys(custodians), online), expires_at=LATER)
    for person in custodians[:3]:
        held = carry(held)
        for signer in person:
            held.sign(signer)
    return held.finish()


def test_three_of_four_custodians_make_the_first_root(first):
    root = repository.read(first, Root, what="root")
    assert root.signed.version == 1
    assert len(root.signatures) == 6


def test_every_custodian_appends_and_nothing_is_finished_early(custodians, online):
    held = ceremony.start(None, which=Which.IMAGE, roles=all_roles(root_keys(custodians), online), expires_at=LATER)
    for count, signer in enumerate([signer for person in custodians for signer in person][:5], 1):
        held = carry(held)
        held.sign(signer)
        assert len(held.progress().new_signed) == count
        with pytest.raises(ThresholdNotMetError) as caught:
            held.finish()
        assert caught.value.facts["new"] == f"{count} of 6"
        missing = caught.value.facts["missing"].split()
        assert len(missing) == 8 - count
        assert signer.public_key.keyid[:12] not in missing


def test_the_first_root_is_described_whole(custodians, online):
    held = ceremony.start(None, which=Which.IMAGE, roles=all_roles(root_keys(custodians), online), expires_at=LATER)
    lines = held.changes()
    assert lines[:2] == ["version 1, first root", "expires 2027-11-20T12:00:00Z"]
    assert sum(line.startswith("root: + ") for line in lines) == 8
    assert "snapshot: threshold 1 of 1" in lines
    with pytest.raises(ConflictError):
        held.require_previous(held.draft)


def test_four_of_one_class_are_not_enough(custodians, online):
    """Case 17: all P-256 keys and one ML-DSA key."""
    held = ceremony.start(None, which=Which.IMAGE, roles=all_roles(root_keys(custodians), online), expires_at=LATER)
    for person in custodians:
        held.sign(person[0])
    held.sign(custodians[0][1])
    with pytest.raises(ThresholdNotMetError):
        held.finish()


def test_a_rotation_needs_the_old_and_the_new_threshold(custodians, online, first):
    """Case 12: one custodian leaves, one comes."""
    newcomer = (keys.generate(KeyKind.ECDSA_P256), keys.generate(KeyKind.ML_DSA_65))
    people = [*custodians[:3], newcomer]
    held = ceremony.start(first, which=Which.IMAGE, roles=all_roles(root_keys(people), online), expires_at=LATER)
    lines = held.changes({newcomer[0].public_key.keyid: "dora-yubikey"})
    assert "version 1 -> 2" in lines
    assert any(line.startswith("root: + dora-yubikey ecdsa-p256") for line in lines)
    assert sum(line.startswith("root: - ") for line in lines) == 2
    for person in (*custodians[:2], newcomer):
        for signer in person:
            held.sign(signer)
    progress = held.progress()  # the new threshold is met, the old one is not
    assert (len(progress.new_signed), len(progress.old_signed)) == (6, 4)
    with pytest.raises(ThresholdNotMetError) as caught:
        held.finish()
    assert caught.value.facts["old"] == "4 of 6"
    for signer in custodians[3]:  # the one who leaves may still sign for the old root
        held.sign(signer)
    assert repository.read(held.finish(), Root, what="root").signed.version == 2


def test_a_stranger_has_no_say(first, custodians, online):
    held = ceremony.start(first, which=Which.IMAGE, roles=all_roles(root_keys(custodians), online), expires_at=LATER)
    with pytest.raises(KeyFileError):
        held.sign(keys.generate(KeyKind.ED25519))
    assert not held.draft.signatures


def test_a_signer_that_signs_something_else_is_found_out(first, custodians, online):
    class Broken:
        public_key = custodians[0][0].public_key

        def sign(self, payload):
            return custodians[0][0].sign(payload + b"x")

    held = ceremony.start(first, which=Which.IMAGE, roles=all_roles(root_keys(custodians), online), expires_at=LATER)
    with pytest.raises(SignatureError):
        held.sign(Broken())
    assert not held.draft.signatures


def test_an_exchanged_previous_root_is_found_out_by_the_custodians_own_copy(first, custodians, online):
    """Whoever carries the file makes a root of his own keys "the one before", so that nothing seems to change."""
    mallory = [(keys.generate(KeyKind.ECDSA_P256), keys.generate(KeyKind.ML_DSA_65)) for _ in range(4)]
    forged = ceremony.start(None, which=Which.IMAGE, roles=all_roles(root_keys(mallory), online), expires_at=LATER)
    for person in mallory:
        for signer in person:
            forged.sign(signer)
    held = carry(
        ceremony.start(
            forged.finish(), which=Which.IMAGE, roles=all_roles(root_keys(mallory), online), expires_at=LATER
        )
    )
    with pytest.raises(ConflictError):
        held.require_previous(repository.read(first, Root, what="root"))
    genuine = ceremony.start(first, which=Which.IMAGE, roles=all_roles(root_keys(custodians), online), expires_at=LATER)
    genuine.require_previous(repository.read(first, Root, what="root"))


def test_the_diff_names_thresholds_expiry_and_the_trap(first, custodians, online):
    weak = RoleKeys(root_keys(custodians).keys, 4)
    held = ceremony.start(
        first, which=Which.IMAGE, roles=all_roles(root_keys(custodians), online) | {"targets": weak}, expires_at=NOW
    )
    lines = held.changes()
    assert "targets: threshold 6 of 8 -> 4 of 8 (NOT hybrid: one class of keys alone is enough)" in lines
    assert any(line.startswith("expires 2027") for line in lines)
    with pytest.raises(ThresholdNotMetError):
        ceremony.require_hybrid_root(held)


def test_a_renewal_says_that_nothing_else_changes(first, custodians, online):
    held = ceremony.start(first, which=Which.IMAGE, roles=all_roles(root_keys(custodians), online), expires_at=LATER)
    assert held.changes() == ["version 1 -> 2", "nothing else: no key, threshold or expiry"]


def changed(held, **fields):
    return canonical.encode(json.loads(held.to_bytes()) | fields)


def test_strange_ceremony_files_are_refused(first, custodians, online):
    held = ceremony.start(first, which=Which.IMAGE, roles=all_roles(root_keys(custodians), online), expires_at=LATER)
    unsigned = json.loads(first)
    unsigned["signatures"] = []
    cases = {
        "empty": b"",
        "not-json": b"{",
        "huge": b" " * 2_000_000,
        "other-version": changed(held, v=2),
        "other-repository": changed(held, repository="other"),
        "no-draft": changed(held, draft="{}"),
        "unsigned-previous": changed(held, previous=json.dumps(unsigned)),
        "draft-without-previous": changed(held, previous=None),
        "draft-is-previous": changed(held, draft=first.decode()),
    }
    for name, data in cases.items():
        with pytest.raises(FirmamentError) as caught:
            ceremony.read(data)
        assert caught.value.code != "firmament", name


def test_an_unknown_signed_field_is_shown(first, custodians, online):
    held = ceremony.start(first, which=Which.IMAGE, roles=all_roles(root_keys(custodians), online), expires_at=LATER)
    held.draft.signed.unrecognized_fields["x-strange"] = 1
    assert "field that this tool does not know: x-strange" in carry(held).changes()
