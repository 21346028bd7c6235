"""Provenance of targets: is a destination named by the human, or did the agent pick it up somewhere?

A sink value is named when the covering grant spells it out, or when the human typed it in the task as a whole token. A format
(`^[A-Z]{2}[0-9]{20}$`, `^https://`) narrows and is enforced, but names nobody: an attacker's account has the format too.
Source: design, section 4 (Provenance of targets).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from remit.canonical import canonical

if TYPE_CHECKING:
    from collections.abc import Mapping

_BEFORE = frozenset("\"'`([{<«,;\u201c\u2018")
"""What may stand right before a typed value; anything else, such as a dot or a hyphen, makes it part of another token."""
_AFTER = frozenset("\"'`)]}>»,;\u201d\u2019")
_SENTENCE_END = frozenset(".!?:")
"""Ends a token only when white space, a closing mark or the end of the text follows."""
_LITERAL = re.compile(r"\^(?:[^\\.^$*+?()\[\]{}|]|\\[^A-Za-z0-9\s])+\$")
"""An anchored pattern of plain and escaped characters only: it matches one text, as `const` does."""


@dataclass(frozen=True, slots=True)
class Naming:
    """How a schema spells out one argument: any value (const, enum), text only (literal pattern), and list elements likewise."""

    value: bool = False
    text: bool = False
    element_value: bool = False
    element_text: bool = False

    def either(self, other: Naming) -> Naming:
        """Return what two schemas that both hold pin together."""
        return Naming(
            self.value or other.value,
            self.text or other.text,
            self.element_value or other.element_value,
            self.element_text or other.element_text,
        )

    def both(self, other: Naming) -> Naming:
        """Return what two alternative schemas pin whichever holds; const or enum pins text as well."""
        return Naming(
            self.value and other.value,
            (self.text or self.value) and (other.text or other.value),
            self.element_value and other.element_value,
            (self.element_text or self.element_value) and (other.element_text or other.element_value),
        )


NOTHING = Naming()


def namings(schema: Mapping[str, Any] | None) -> dict[str, Naming]:
    """Return how an arguments schema spells out each argument; `allOf` adds up, other combinators spell out nothing here."""
    found: dict[str, Naming] = {}
    if not isinstance(schema, dict):
        return found
    properties = _mapping(schema.get("properties"))
    for name, part in properties.items():
        found[name] = naming(part)
    for branch in _sequence(schema.get("allOf")):
        for name, pinned in namings(_mapping(branch)).items():
            found[name] = found.get(name, NOTHING).either(pinned)
    return found


def naming(schema: object) -> Naming:
    """Return how the schema of one argument spells out its value; alternatives do only when each of them does."""
    part = _mapping(schema)
    value = "const" in part or bool(_sequence(part.get("enum")))
    # `items` speaks of the elements after `prefixItems` only, so beside it the first elements would pass unnamed.
    items = naming(part["items"]) if "items" in part and "prefixItems" not in part else NOTHING
    result = Naming(value, _is_literal(part.get("pattern")), items.value, items.text)
    for branch in _sequence(part.get("allOf")):
        result = result.either(naming(branch))
    for combinator in ("anyOf", "oneOf"):
        branches = [naming(branch) for branch in _sequence(part.get(combinator))]
        if branches:
            shared = branches[0]
            for branch in branches[1:]:
                shared = shared.both(branch)
            result = result.either(shared)
    return result


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _sequence(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _is_literal(pattern: object) -> bool:
    return isinstance(pattern, str) and _LITERAL.fullmatch(pattern) is not None


def is_named(value: object, pinned: Naming, task: str) -> bool:
    """Return whether a sink value is the human's; lists go element by element, an absent value names nobody."""
    if value is None or pinned.value:
        return True
    if isinstance(value, list):
        each = Naming(pinned.element_value, pinned.element_text)
        return all(is_named(element, each, task) for element in cast("list[object]", value))
    if isinstance(value, str):
        return pinned.text or is_whole_token(value, task)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return is_whole_token(canonical(value).decode(), task)
    return False


def is_whole_token(value: str, text: str) -> bool:
    """Return whether `text` holds `value` exactly and standing alone.

    `example.com` is not alone in `https://example.com.evil.test` nor in `a@example.com`; it is in `(see example.com).`
    """
    if not value.strip():
        return False
    start = text.find(value)
    while start >= 0:
        end = start + len(value)
        if _opens(text, start) and _closes(text, end):
            return True
        start = text.find(value, start + 1)
    return False


def _opens(text: str, start: int) -> bool:
    return start == 0 or text[start - 1].isspace() or text[start - 1] in _BEFORE


def _closes(text: str, end: int) -> bool:
    if end == len(text) or text[end].isspace() or text[end] in _AFTER:
        return True
    rest = text[end + 1 : end + 2]
    return text[end] in _SENTENCE_END and (not rest or rest.isspace() or rest in _AFTER)
