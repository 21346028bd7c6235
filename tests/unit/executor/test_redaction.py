"""Redaction: the registry's pointers, credential names, and values that look like a credential."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.redaction import MAX_DEPTH, parse_pointer, pointer, redact, redact_text
from remit.redaction_names import is_secret_member
from remit.redaction_text import MARK

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
    ("passwordHash", "x", True),
    ("password1", "x", True),
    ("userpassword", "x", True),
    ("db_passwd_old", "x", True),
    ("apiKeys", ["x"], True),
    ("API_KEY_PROD", "x", True),
    ("secret_value", "x", True),
    ("secretId", "x", True),
    ("private_key_pem", "x", True),
    ("pass", "x", True),
    ("smtp_pass", "x", True),
    ("auth", "x", True),
    ("connectionString", "x", True),
    ("AzureStorageConnStr", "x", True),
    ("token_value", "x", True),
    ("cookieJar", "x", True),
    ("pin_code", 1234, True),
    ("password2", 12345, True),
    ("tokens_per_minute", 100, False),
    ("password_expires_at", "2026-01-01", False),
    ("secretName", "bank", False),
    ("auth_method", "otp by mail", False),
    ("author", "x", False),
    ("passenger", "x", False),
    ("bypass", "x", False),
    ("passport", "x", False),
    ("compass", "x", False),
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
    "github_pat_11ABCDEFG0123456789_abcdefghijkl",
    "glpat-abcDEF123456789012",
    "sk_live_abcdefghijklmnop12345678",
    "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    "xapp-1-A012345678-abcdef",
    "ASIAIOSFODNN7EXAMPLE",
    "hvs.CAESIJabcdefghijklmnopqrstu",
]


@pytest.mark.parametrize("secret", VALUES)
def test_a_value_that_looks_like_a_credential_is_cut_out_of_its_text(secret: str) -> None:
    clean = redact({"note": f"see <{secret}> there", "deep": [{"text": secret}]})
    assert clean.paths == ("/note", "/deep/0/text")
    assert "see <" in json.dumps(clean.value)
    assert secret.rsplit(maxsplit=1)[-1] not in json.dumps(clean.value)


TEXTS: list[tuple[str, str]] = [
    ("password: hunter2", "password: [redacted]"),
    ("user: emma\npassword: correct horse battery\nport: 5", "user: emma\npassword: [redacted]\nport: 5"),
    ("Your API key: abc123, keep it.", "Your API key: [redacted], keep it."),
    ("export DB_PASSWORD=hunter2", "export DB_PASSWORD=[redacted]"),
    ("Server=db;User Id=sa;Password=hunter2;Timeout=5", "Server=db;User Id=sa;Password=[redacted];Timeout=5"),
    ("https://x.example/?page=2&access_token=abc&n=1", "https://x.example/?page=2&access_token=[redacted]&n=1"),
    ("login with password='hun ter2' now", "login with password=[redacted] now"),
    ("**Password:** hunter2", "**Password:** [redacted]"),
    ("Authorization: Basic dTpw", "Authorization: [redacted]"),
    ("Cookie: a=b; c=d", "Cookie: [redacted]"),
    ("<password>hunter2</password>", "<password>[redacted]</password>"),
    ("postgres://u:pw@h/db", "postgres://u:[redacted]@h/db"),
    ("see https://u:p@ss@h:8/x and", "see https://u:[redacted]@h:8/x and"),
    ("redis://:pw@h", "redis://:[redacted]@h"),
    ("the secret dGhpcyBpcyBhIHNlY3JldCBvZiBvdXJz== is out", "the secret [redacted] is out"),
    ("token is 0123456789abcdef0123456789abcdef", "token is [redacted]"),
    ('{"login":{"password":"hunter2"},"n":1}', '{"login":{"password":"[redacted]"},"n":1}'),
    (' [{"name": "Authorization", "value": "abc"}]', '[{"name":"Authorization","value":"[redacted]"}]'),
    ('{"a":"{\\"secret\\":\\"abc\\"}"}', '{"a":"{\\"secret\\":\\"[redacted]\\"}"}'),
    ('{"password":"hunter2","password":""}', '{"password":[redacted],"password":""}'),
    ('{"password": "hunter2", cut', '{"password": [redacted], cut'),
    ("{'password': 'hunter2', 'n': 1}", "{'password': [redacted], 'n': 1}"),
    ('got {"apiKey":"abc"} back', 'got {"apiKey":[redacted]} back'),
]


@pytest.mark.parametrize(("text", "expected"), TEXTS)
def test_secrets_in_text_are_found_by_what_stands_before_them(text: str, expected: str) -> None:
    assert redact_text(text) == expected
    assert redact({"x": text}).paths == ("/x",)
    assert redact_text(expected) == expected


PAIRS: list[dict[str, Any]] = [
    {"name": "Authorization", "value": "abc"},
    {"Key": "db_password", "Value": "abc", "PropagateAtLaunch": True},
    {"header": "Set-Cookie", "values": ["abc"]},
    {"name": "private_key", "content": {"d": "abc"}},
]


@pytest.mark.parametrize("record", PAIRS)
def test_a_label_tells_what_its_neighbour_holds(record: dict[str, Any]) -> None:
    assert "abc" not in json.dumps(redact([record]).value)
    harmless = {name: "color" if isinstance(value, str) and value != "abc" else value for name, value in record.items()}
    assert redact(harmless).value == harmless


def test_what_lies_too_deep_to_be_read_is_dropped() -> None:
    value: Any = {"password": "hunter2"}
    for _ in range(2 * MAX_DEPTH):
        value = [value]
    assert "hunter2" not in json.dumps(redact(value).value)
    assert "hunter2" not in json.dumps(redact(json.dumps(value)).value)
    assert "hunter2" not in json.dumps(redact("[" * 20_000 + '"password": "hunter2"').value)


def test_a_hostile_text_is_read_in_time() -> None:
    started = time.perf_counter()
    for piece in (
        "password",
        "a:",
        "a b ",
        "token ",
        "https://a:",
        "-----BEGIN PRIVATE KEY-----",
        '"\\',
        "password:\n",
    ):
        redact_text(piece * (24_576 // len(piece)))
    assert time.perf_counter() - started < 3.0


@pytest.mark.parametrize(
    "text", ["a token of love", "the secret internationalization-of-things", "password:", '{"password":null}', "12:30",
             "the secret garden: a novel", "https://host:8080/path", "[1,2,3]", "{not json", "see note: token of love"]
)  # fmt: skip
def test_text_that_only_speaks_of_secrets_stays(text: str) -> None:
    assert redact_text(text) == text


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
