"""What people are shown of arguments holds no secret, by the registry's mark, by name, or by looks."""

from __future__ import annotations

from typing import Any

import pytest

from remit.projection.display import redact_arguments, redact_text

JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJlbW1hIn0.c2ln"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"amount": 98.7, "to": "UK12"}, {"amount": 98.7, "to": "UK12"}),
        ({"password": "hunter2"}, {"password": "redacted (7 chars)"}),
        ({"apiKey": "x" * 32, "pageToken": "p"}, {"apiKey": "redacted (32 chars)", "pageToken": "p"}),
        ({"login": {"user": "emma", "secrets": ["a", "b"]}}, {"login": {"user": "emma", "secrets": "redacted"}}),
        ({"max_tokens": 5, "has_password": True, "pin": None}, {"max_tokens": 5, "has_password": True, "pin": None}),
        ({"note": f"use {JWT} now"}, {"note": f"use redacted ({len(JWT)} chars) now"}),
        ({"lines": ["Bearer abcdefghijklmnop123", 1]}, {"lines": ["redacted (26 chars)", 1]}),
    ],
)
def test_secrets_are_hidden_by_name_and_by_looks(arguments: dict[str, Any], expected: dict[str, Any]) -> None:
    assert redact_arguments(arguments) == expected


def test_marked_arguments_are_hidden_whatever_they_hold() -> None:
    assert redact_arguments({"iban": "UK12", "n": 4, "to": "x"}, {"iban", "n"}) == {
        "iban": "redacted (4 chars)", "n": "redacted", "to": "x",
    }  # fmt: skip


def test_everything_is_hidden_while_the_registry_is_unknown() -> None:
    assert redact_arguments({"to": "UK12"}, None) == {"to": "redacted (4 chars)"}


def test_text_loses_its_tokens_only() -> None:
    assert redact_text(None) is None
    assert redact_text(f"token {JWT}!") == f"token redacted ({len(JWT)} chars)!"
