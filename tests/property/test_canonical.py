"""One byte string for one value, and nothing but our errors for any bytes."""

import contextlib
import json

import strategies
from hypothesis import given
from hypothesis import strategies as st

from firmament.core import canonical
from firmament.errors import MalformedError, TooLargeError

json_like_bytes = (
    st.binary(max_size=200)
    | st.text(max_size=80).map(lambda text: text.encode(errors="surrogatepass"))
    | st.text('{}[]",:0123456789eE.-truefalsn \\u\ud800\ufeff', max_size=60).map(
        lambda text: text.encode(errors="surrogatepass")
    )
)


@given(strategies.json_values)
def test_what_is_encoded_is_decoded_again(value):
    encoded = canonical.encode(value)
    assert canonical.decode(encoded, limit_bytes=len(encoded), what="value") == value


@given(strategies.json_values, st.integers(0, 3))
def test_the_spelling_does_not_matter(value, indent):
    spelled = json.dumps(value, indent=indent, ensure_ascii=bool(indent % 2)).encode()
    decoded = canonical.decode(spelled, limit_bytes=len(spelled), what="value")
    assert canonical.encode(decoded) == canonical.encode(value)


@given(json_like_bytes)
def test_any_bytes_give_a_value_with_a_canonical_form_or_our_error(data):
    try:
        value = canonical.decode(data, limit_bytes=150, what="input")
    except (MalformedError, TooLargeError):
        return
    assert canonical.decode(canonical.encode(value), limit_bytes=10_000, what="again") == value


@given(json_like_bytes)
def test_objects_only(data):
    with contextlib.suppress(MalformedError, TooLargeError):
        assert isinstance(canonical.decode_object(data, limit_bytes=100, what="input"), dict)
