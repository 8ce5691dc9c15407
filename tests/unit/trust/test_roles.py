"""Hybrid by arithmetic: what a threshold guarantees, found by trying every set of signers."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmament.errors import MalformedError, ThresholdNotMetError
from firmament.trust import keys, roles
from firmament.trust.keys import KeyKind
from firmament.trust.roles import RoleKeys


class FakeKey:
    def __init__(self, keytype, number):
        self.keytype, self.keyid, self.keyval = keytype, f"{keytype}{number}", {"public": str(number)}


def fake(classical, post_quantum):
    return tuple(FakeKey("ed25519", n) for n in range(classical)) + tuple(
        FakeKey("ml-dsa", n) for n in range(post_quantum)
    )


@given(st.integers(0, 4), st.integers(0, 4), st.integers(1, 8))
def test_the_minimum_is_what_the_worst_set_of_signers_gives(classical, post_quantum, threshold):
    found = fake(classical, post_quantum)
    if not 1 <= threshold <= len(found):
        return
    worst = min(
        min(sum(key.keytype == kind for key in signers) for kind in ("ed25519", "ml-dsa"))
        for signers in combinations(found, threshold)
    )
    assert roles.hybrid_minimum(found, threshold) == worst


@pytest.mark.parametrize(
    ("pairs", "minimum", "threshold"), [(1, 1, 2), (2, 1, 3), (4, 2, 6), (4, 4, 8)], ids=["1", "2", "4-2", "4-4"]
)
def test_the_thresholds_of_the_design(pairs, minimum, threshold):
    assert roles.hybrid_threshold(pairs, minimum=minimum) == threshold
    assert roles.hybrid_minimum(fake(pairs, pairs), threshold) == minimum


@pytest.mark.parametrize(("pairs", "minimum"), [(0, 1), (1, 0), (1, 2), (2, -1)])
def test_impossible_thresholds_are_refused(pairs, minimum):
    with pytest.raises(MalformedError):
        roles.hybrid_threshold(pairs, minimum=minimum)


def test_the_trap_two_of_four_is_refused():
    """Case 17: two Ed25519 keys alone meet 2 of (2 + 2)."""
    trap = RoleKeys(fake(2, 2), 2)
    assert not trap.is_hybrid
    with pytest.raises(ThresholdNotMetError, match="not hybrid"):
        roles.require_hybrid("targets", trap)
    roles.require_hybrid("targets", RoleKeys(fake(2, 2), 3))


@pytest.mark.parametrize(("classical", "post_quantum", "threshold"), [(3, 0, 2), (0, 2, 2), (3, 1, 3), (1, 1, 1)])
def test_other_roles_that_only_look_hybrid_are_refused(classical, post_quantum, threshold):
    with pytest.raises(ThresholdNotMetError):
        roles.require_hybrid("targets", RoleKeys(fake(classical, post_quantum), threshold))


@pytest.mark.parametrize("threshold", [0, -1, 3])
def test_a_threshold_out_of_reach_is_refused(threshold):
    with pytest.raises(MalformedError):
        RoleKeys(fake(1, 1), threshold)


def test_no_key_and_too_many_keys_are_refused():
    for found in ((), fake(33, 0)):
        with pytest.raises(MalformedError):
            RoleKeys(found, 1)


def test_real_keys_are_told_apart():
    assert [keys.is_post_quantum(keys.generate(kind, rsa_bits=2048).public_key) for kind in KeyKind] == [
        kind is KeyKind.ML_DSA_65 for kind in KeyKind
    ]
