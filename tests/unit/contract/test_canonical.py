"""Canonical bytes: one value, one digest; everything ambiguous is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.canonical import MAX_DEPTH, MAX_INTEGER, b64url, b64url_decode, canonical, digest, strict_loads
from remit.errors import CanonicalError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(-MAX_INTEGER, MAX_INTEGER)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            {"recipient": "UK12345678901234567890", "amount": 98.70},
            "sha-256:f2CV2rlSlPQq4lZ5-g4k1_p6qIRqOUvGUeteqLupbeA",
        ),
        (
            {"recipient": "UK12345678901234567890", "amount": 98.71},
            "sha-256:v_C3gweS2HbR70AFOgUAo_cHLrTLUlahqlvekqPyXkc",
        ),
        ({"amount": 100.0, "recipient": "X"}, "sha-256:zMFLYgdvnErOxPXxz05XoqfKr7m4LievRsS8rtXoPls"),
        ({"recipient": "X", "amount": 100}, "sha-256:zMFLYgdvnErOxPXxz05XoqfKr7m4LievRsS8rtXoPls"),
    ],
)
def test_digest_equals_the_published_vectors(value: object, expected: str) -> None:
    assert digest(value) == expected


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":1}}',
        b'{"a":NaN}',
        b'{"a":1e400}',
        b'{"a":1e16}',
        b'{"a":-Infinity}',
        b'{"a":9007199254740992}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":"\\ud800"}',
        b'{"a":["x\\u0000y"]}',
        b'{"a\\u0000":1}',
        b"\xff",
        b"",
        b'{"a":1',
        b"[" * 100_000,
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    ],
)
def test_malformed_json_is_refused(raw: bytes) -> None:
    with pytest.raises(CanonicalError):
        strict_loads(raw)


def test_escaped_backslash_before_u0000_is_no_nul() -> None:
    assert strict_loads(b'{"a":"\\\\u0000"}') == {"a": "\\u0000"}


def test_refusal_never_quotes_the_text() -> None:
    with pytest.raises(CanonicalError) as refusal:
        strict_loads(b'{"password":"hunter2","password":"hunter3"}')
    assert "hunter" not in str(refusal.value)


@given(VALUES)
def test_canonical_bytes_survive_a_round_trip(value: object) -> None:
    once = canonical(value)
    assert canonical(json.loads(once)) == once


@given(st.dictionaries(st.text(), st.integers(-1000, 1000), min_size=2, max_size=5))
def test_key_order_keeps_the_digest(value: dict[str, int]) -> None:
    assert digest(dict(reversed(value.items()))) == digest(value)


@given(st.binary(max_size=80))
def test_base64url_has_one_spelling(raw: bytes) -> None:
    text = b64url(raw)
    assert b64url_decode(text) == raw
    with pytest.raises(CanonicalError):
        b64url_decode(text + "=")


@pytest.mark.parametrize("text", ["QQ", "QR", "A", "A+", "A/", " QQ", "QQ\n"])
def test_only_canonical_base64url_is_read(text: str) -> None:
    if text == "QQ":
        assert b64url_decode(text) == b"A"
    else:
        with pytest.raises(CanonicalError):
            b64url_decode(text)
