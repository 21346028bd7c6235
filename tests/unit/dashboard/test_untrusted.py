"""Foreign text on the screen: nothing invisible, nothing that becomes markup, and the design's own spelling of both."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.components.untrusted import SHOWN, span, untrusted


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("zero\u200bwidth", "zero⟨U+200B⟩width"),
        ("tab\there\r", "tab⟨U+0009⟩here⟨U+000D⟩"),
        ("two\nlines", "two\nlines"),
        ("\ue000\u2028", "⟨U+E000⟩⟨U+2028⟩"),
        ("e\u0301", "é"),
        (12.5, "12.5"),
    ],
)
def test_invisible_characters_are_spelled_out(value: object, shown: str) -> None:
    assert untrusted(value) == shown


def test_what_is_cut_says_how_much() -> None:
    assert untrusted("x" * 130) == "x" * 120 + "…(+10)"
    assert untrusted("x" * 130, None) == "x" * 130


def test_a_code_span_cannot_be_left() -> None:
    assert span("a`b``c\nd") == "`` aˋbˋˋc⏎d ``"  # noqa: RUF001  (the look-alike is the point)


@given(st.text())
def test_nothing_shown_is_invisible(text: str) -> None:
    assert all(unicodedata.category(c) not in SHOWN or c == "\n" for c in untrusted(text, None))


@given(st.text())
def test_no_text_ends_its_own_code_span(text: str) -> None:
    inside = span(text, None)[3:-3]
    assert "`" not in inside
    assert "\n" not in inside
