"""The manifest: what is written is read back, and what is not a manifest is refused by our errors."""

import copy

import strategies
from hypothesis import given
from hypothesis import strategies as st

from firmament.core import canonical
from firmament.core.manifest import MAX_MANIFEST_LENGTH_BYTES, Manifest, decode
from firmament.errors import MalformedError, TooLargeError, UnknownManifestError

REFUSALS = (MalformedError, TooLargeError, UnknownManifestError)


@given(strategies.manifests)
def test_a_manifest_survives_the_wire(manifest):
    data = canonical.encode(manifest.to_json())
    assert decode(canonical.decode(data, limit_bytes=MAX_MANIFEST_LENGTH_BYTES, what="manifest")) == manifest


@given(strategies.manifests, strategies.texts, strategies.json_values)
def test_unknown_fields_change_nothing(manifest, name, value):
    known = manifest.to_json() | {"allow_downgrade": manifest.allow_downgrade}
    assert decode({f"x-{name}": value} | known) == manifest


@given(strategies.manifests, st.data())
def test_any_value_in_any_place_is_a_manifest_or_one_of_our_errors(manifest, data):
    value = copy.deepcopy(manifest.to_json())
    place = value
    while True:
        key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        place = inner
    if data.draw(st.booleans()) or isinstance(place, list):
        place[key] = data.draw(strategies.json_values | st.floats())
    else:
        del place[key]
    try:
        found = decode(value)
    except REFUSALS:
        return
    assert isinstance(found, Manifest)
    assert decode(found.to_json()) == found


@given(strategies.json_values)
def test_any_json_is_refused_by_our_errors(value):
    try:
        decode(value)
    except REFUSALS as error:
        refusal = error
    assert refusal.facts or refusal.problem
