"""Redaction: the registry's pointers, credential names, and values that look like a credential."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.executor.redact import MARK, is_secret_member, parse_pointer, pointer, redact

JWT = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJ4In0.c2lnbmF0dXJl"

NAMES: list[tuple[str, Any, bool]] = [
    ("password", "x", True),
    ("userPassword", "x", True),
    ("PASSWORD", "x", True),
    ("api_key", "x", True),
    ("apiKey", "x", True),
    ("APIKey", "x", True),
    ("X-Api-Key", "x", True),
    ("apikey", "x", True),
    ("accessToken", "x", True),
    ("refresh_token", "x", True),
    ("Authorization", "x", True),
    ("client_secret", {"nested": 1}, True),
    ("Set-Cookie", ["a"], True),
    ("privateKey", "x", True),
    ("session_id", "x", True),
    ("otp", 123456, True),
    ("pin", 1234, True),
    ("tokens", ["a"], True),
    ("tokens", 42, False),
    ("max_tokens", 4096, False),
    ("nextPageToken", "abc", False),
    ("next_token", "abc", False),
    ("password", None, False),
    ("has_password", True, False),
    ("password", "", False),
    ("token_type", "Bearer", False),
    ("key", "value", False),
    ("monkey", "x", False),
    ("keyboard", "x", False),
    ("spinning", "x", False),
    ("secretary", "x", False),
    ("", "x", False),
]


@pytest.mark.parametrize(("name", "value", "expected"), NAMES)
def test_a_member_is_secret_by_its_name(name: str, value: Any, expected: bool) -> None:
    assert is_secret_member(name, value) is expected


VALUES = [
    JWT,
    "eyJhbGciOiJSU0EtT0FFUCJ9.a.b.c.d",
    "Bearer abcdefghijklmnop",
    "authorization: bearer ABCDEFGHIJKLMNOP==",
    "-----BEGIN EC PRIVATE KEY-----\nMHcCAQ\n-----END EC PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\ncut off",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "sk-proj-abcdefghijklmnopqrst",
    "xoxb-123456789012-abcdef",
    "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
]


@pytest.mark.parametrize("secret", VALUES)
def test_a_value_that_looks_like_a_credential_is_cut_out_of_its_text(secret: str) -> None:
    clean = redact({"note": f"see <{secret}> there", "deep": [{"text": secret}]})
    assert clean.paths == ("/note", "/deep/0/text")
    assert "see <" in json.dumps(clean.value)
    assert secret.rsplit(maxsplit=1)[-1] not in json.dumps(clean.value)


@pytest.mark.parametrize(
    "text", ["a token of love", "basic facts", "Bearer of news", "eyJ", "DE89370400440532013000", ""]
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact({"text": text}) == redact({"text": text}).__class__({"text": text})


def test_pointers_name_what_else_must_go() -> None:
    value: Any = {
        "iban": "DE1",
        "people": [{"name": "a", "iban": "DE2"}, {"name": "b", "iban": "DE3"}],
        "a/b": {"~": 1},
    }
    clean = redact(value, ["/iban", "/people/*/iban", "/people/1/name", "/a~1b/~0", "/not/there"])
    assert clean.value == {
        "iban": MARK,
        "people": [{"name": "a", "iban": MARK}, {"name": MARK, "iban": MARK}],
        "a/b": {"~": MARK},
    }
    assert clean.paths == ("/iban", "/people/0/iban", "/people/1/name", "/people/1/iban", "/a~1b/~0")


def test_the_empty_pointer_removes_everything() -> None:
    assert redact({"a": 1}, [""]).value == MARK


def test_a_name_that_is_a_secret_does_not_show_in_its_own_path() -> None:
    clean = redact({JWT: "expires tomorrow"})
    assert JWT not in json.dumps([clean.value, clean.paths])
    assert clean.paths == (f"/{MARK}",)


@pytest.mark.parametrize("value", ["plain", 3, None, True, 1.5, [], {}])
def test_values_without_members_pass(value: Any) -> None:
    assert redact(value).value == value


def test_pointers_are_spelled_as_rfc_6901_says() -> None:
    assert parse_pointer("/a~1b/~0/*") == ("a/b", "~", "*")
    assert pointer(("a/b", "~", "")) == "/a~1b/~0/"
    assert parse_pointer("/") == ("",)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just(JWT),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from(["password", "apiKey", "x", JWT]), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(JSON)
def test_no_token_survives_and_a_second_pass_finds_nothing(value: Any) -> None:
    clean = redact(value)
    assert JWT not in json.dumps([clean.value, clean.paths])
    assert redact(clean.value).value == clean.value
