"""Redaction against a corpus of secrets in every dress, and of harmless text that must stay as it is."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from remit.projection.display import redact_arguments
from remit.redaction import redact, redact_text

CORPUS: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "data" / "redaction_corpus.json").read_bytes()
)
HOSTILE = (
    "password is ", "password for a ", "pin for ", "secret to ", "login / ", "mysql -u a ", "  password: |\n", "password (",
    'name="password"\r\n', "- name: password\n", "a,password\n", "Private-Lines: 1\n", "%3Fpassword%3D", 'password=\\"',
    "cGFzc3dvcmQ6aHVudGVyMng ", "x@", "password:\n\n", " --a", "://a.slack.com/", "password:&a ",
)  # fmt: skip
"""Pieces that a rule could try again from every place."""


def texts_of(value: Any) -> str:
    """Return everything that can be read in a value, names of members included, with JSON in strings as it is spelled."""
    if isinstance(value, dict):
        return "\n".join(f"{name}\n{texts_of(member)}" for name, member in value.items())
    return "\n".join(map(texts_of, value)) if isinstance(value, list) else str(value)


@pytest.mark.parametrize("entry", CORPUS["secrets"], ids=lambda entry: entry["id"])
def test_a_secret_is_taken_out_and_its_surroundings_stay(entry: dict[str, Any]) -> None:
    clean = redact(entry["value"])
    shown = texts_of([clean.value, list(clean.paths)])
    assert [secret for secret in entry["secrets"] if secret in shown] == []
    assert [word for word in entry["keeps"] if word not in shown] == []
    assert clean.paths
    assert redact(clean.value).value == clean.value


@pytest.mark.parametrize("entry", CORPUS["secrets"], ids=lambda entry: entry["id"])
def test_people_do_not_see_it_either(entry: dict[str, Any]) -> None:
    shown = texts_of(redact_arguments({"given": entry["value"]}))
    assert [secret for secret in entry["secrets"] if secret in shown] == []


@pytest.mark.parametrize("entry", CORPUS["harmless"], ids=lambda entry: entry["id"])
def test_what_holds_no_secret_stays_as_it_is(entry: dict[str, Any]) -> None:
    clean = redact(entry["value"])
    assert (clean.value, clean.paths) == (entry["value"], ())


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_hostile_text_is_read_in_time(piece: str) -> None:
    started = time.process_time()
    redact_text(piece * (24_576 // len(piece)))
    assert time.process_time() - started < 1.0
