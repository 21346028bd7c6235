"""Nothing that others wrote can command the terminal it is printed on."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import pytest
import typer
from rich.table import Table
from rich.text import Text

from remit.cli.output import console, fail, note, print_json, show_reply, table, visible
from remit.commands import Reply

HOSTILE = {
    "escape sequence": "\x1b[2J\x1b[1;1Hok",
    "hyperlink": "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "clear by carriage return": "denied\rok     ",
    "backspace": "no\x08\x08ok",
    "delete": "a\x7fb",
    "C1 control sequence": "\x9b2Jok",
    "next line": "a\x85b",
    "right to left": "pay \u202egro.elpmaxe@ammE",
    "isolate": "\u2067abc\u2069",
    "mark": "a\u200fb\u061cc",
    "zero width": "exam\u200bple\u200d.\u2060com\ufeff",
    "soft hyphen": "pass\u00adword",
    "tags": "a\U000e0041\U000e007f",
    "variation": "a\ufe00\U000e0100",
    "separators": "a\u2028b\u2029c",
    "filler": "a\u3164b\u2800",
    "surrogate": "a\ud83db",
}


def harmless(printed: str) -> bool:
    return all(c == "\n" or unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in printed)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_it_is_shown_by_number(text: str) -> None:
    shown = visible(text)
    assert (harmless(shown), "\n" in shown) == (True, False)
    assert "\\" in text or json.loads(f'"{shown}"') == text


@pytest.mark.parametrize("text", ["", "Bezahle 5 € an Jörg", "日本語", "a/b [bold]", "é"])
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_a_line_break_in_a_value_begins_no_line() -> None:
    assert visible("a\nok  approved\tb") == "a\\u000aok  approved\\u0009b"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_every_way_of_printing_is_guarded(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    table(["what", "why"], [[text, "x"]])
    console().print(Text.assemble(("label", "dim"), text))
    console().print(text, markup=False)
    shown = Table("heading")
    shown.add_row(Text(text))
    console().print(shown)
    note(text)
    with pytest.raises(typer.Exit):
        show_reply(Reply(status="forbidden", detail=text, field=text), as_json=False, key="key-00001")
    with pytest.raises(typer.Exit):
        fail(text)
    out, err = capsys.readouterr()
    assert harmless(out + err), repr(out + err)


@pytest.mark.parametrize("text", [t for t in HOSTILE.values() if "\ud83d" not in t])
def test_json_stays_the_same_json(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    value: dict[str, Any] = {"detail": text, "plain": "é\\u202e", text: [text]}
    print_json(value)
    console().print_json(json.dumps(value))
    printed = capsys.readouterr().out
    first, _, second = printed.partition("\n")
    assert harmless(printed)
    assert json.loads(first) == json.loads(second) == value
