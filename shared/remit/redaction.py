"""Takes credentials out of JSON values and free text, and says where: what a tool or an agent leaks must not travel on.

Each rule is sufficient: JSON pointers of the registry, names of members and of pairs, assignments and YAML in text, sentences
about secrets, and values that look like a credential; also in JSON or base64 that hides in a string. Pure; paths never quote a
removed value. A secret that has no name and no shape cannot be found: the registry's pointers are for those.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remit.redaction_names import is_secret_member, is_secret_name
from remit.redaction_prose import said_secrets
from remit.redaction_shapes import BASE64, HINTS, NAMED, SCHEMES, SECRET_VALUE, STARTS, TOLD, URL_SECRETS
from remit.redaction_text import MARK, NAME, assigned, table_cells

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Iterable, Sequence

    from pydantic import JsonValue

ANY = "*"
"""A pointer token that passes every member or element; an extension of RFC 6901 for lists of records."""
MAX_DEPTH = 48
"""Deeper values are dropped unread: the walk recurses, and JSON may hide inside strings of JSON."""
MAX_HIDDEN = 3
"""How often text is looked for inside base64 inside base64."""
_LABELS = frozenset({"name", "key", "header", "field", "param", "parameter", "variable", "id", "label"})
_CONTENTS = frozenset({"value", "values", "val", "content", "text"})
"""`{"name": "Authorization", "value": "..."}`: the one member names what the other holds."""

_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "k"})
"""Private members of a JSON Web Key (RFC 7518 section 6)."""


@dataclass(frozen=True, slots=True)
class Redacted:
    """A value without secrets, and the JSON pointers of what is gone; a pointer ends at the string that was changed."""

    value: JsonValue
    paths: tuple[str, ...] = ()


def redact(
    value: JsonValue, pointers: Sequence[str] = (), *, mark: Callable[[JsonValue], str] = lambda _: MARK
) -> Redacted:
    """Return the value without what pointers, names, assignments or values themselves give away; `mark` names what is gone."""
    walk = _Walk(mark)
    active = tuple(parse_pointer(each) for each in pointers)
    clean = walk.visit(value, (), active)
    return Redacted(clean, tuple(dict.fromkeys(walk.paths)))


def redact_text(text: str, *, mark: Callable[[JsonValue], str] = lambda _: MARK) -> str:
    """Return free text without credentials; text that is a JSON object or list is judged as JSON, then spelled compactly."""
    return _Walk(mark).text(text, ())


@dataclass(slots=True)
class _Walk:
    mark: Callable[[JsonValue], str]
    paths: list[str] = field(default_factory=list[str])
    hidden: int = 0
    """How many layers of base64 were taken off."""

    def visit(self, value: JsonValue, path: tuple[str, ...], active: tuple[tuple[str, ...], ...]) -> JsonValue:
        if () in active or len(path) > MAX_DEPTH:
            return self.drop(value, path)
        if isinstance(value, dict):
            return self.record(value, path, active)
        if isinstance(value, list):
            item = self.pair if value and all(map(_is_pair, value)) else self.visit
            return [item(each, (*path, str(no)), _advance(active, str(no))) for no, each in enumerate(value)]
        return self.text(value, path) if isinstance(value, str) else value

    def pair(self, value: Any, path: tuple[str, ...], active: tuple[tuple[str, ...], ...]) -> JsonValue:  # noqa: ANN401  (a list of two)
        """Judge one `[name, value]` of a list of such."""
        if () not in active and is_secret_member(value[0], value[1]):
            return [value[0], self.drop(value[1], (*path, "1"))]
        return self.visit(value, path, active)

    def record(
        self, value: dict[str, JsonValue], path: tuple[str, ...], active: tuple[tuple[str, ...], ...]
    ) -> dict[str, JsonValue]:
        labelled, is_key = _labelled(value), isinstance(value.get("kty"), str)
        found: dict[str, JsonValue] = {}
        for name, member in value.items():
            # A name can be a secret of its own, as in {"<token>": "expires tomorrow"}; its path must not repeat it.
            shown = self.assignments(name)
            below = (*path, shown)
            if shown != name:
                self.paths.append(pointer(below))
            is_content = labelled and name.lower() in _CONTENTS and member not in (None, "")
            if (
                is_content
                or is_secret_member(name, member)
                or (is_key and name in _PRIVATE and isinstance(member, str))
            ):
                found[shown] = self.drop(member, below)
            else:
                found[shown] = self.visit(member, below, _advance(active, name))
        return found

    def text(self, value: str, path: tuple[str, ...]) -> str:
        inside = _json_in(value)
        clean = self.assignments(value) if inside is None else self.nested(value, inside, path)
        if clean != value:
            self.paths.append(pointer(path))
        return clean

    def nested(self, value: str, inside: JsonValue, path: tuple[str, ...]) -> str:
        walk = _Walk(self.mark, hidden=self.hidden)
        clean = walk.visit(inside, (*path, "json"), ())
        return json.dumps(clean, ensure_ascii=False, separators=(",", ":")) if walk.paths else value

    def assignments(self, text: str) -> str:
        lowered = text.lower()
        has_names = any(hint in lowered for hint in HINTS)
        if has_names:
            text = self.cut(text, table_cells(text))
            for pattern in TOLD:
                text = pattern.sub(self.told, text)
            text = self.cut(text, _assignments(text))
        if "://" in text:
            for pattern in URL_SECRETS:
                text = pattern.sub(self.told, text)
        if any(start in text for start in STARTS) or any(scheme in lowered for scheme in SCHEMES):
            text = SECRET_VALUE.sub(lambda found: self.mark(found.group()), text)
        if has_names:
            for pattern in NAMED:
                text = pattern.sub(self.beside, text)
            text = self.cut(text, sorted(said_secrets(text)))
        return BASE64.sub(self.encoded, text) if self.hidden < MAX_HIDDEN else text

    def cut(self, text: str, spans: Iterable[tuple[int, int]]) -> str:
        """Mark spans that are in order; what overlaps the one before stays."""
        parts, at = list[str](), 0
        for start, end in spans:
            if start >= at:
                parts += (text[at:start], MARK if text[start:end] == MARK else self.mark(text[start:end]))
                at = end
        return "".join(parts) + text[at:]

    def told(self, found: re.Match[str]) -> str:
        return found["head"] + self.mark(found["secret"])

    def beside(self, found: re.Match[str]) -> str:
        return self.told(found) if is_secret_name(found["name"]) else found.group()

    def encoded(self, found: re.Match[str]) -> str:
        """Mark a run of base64 digits whose text holds a secret; the run is not written anew."""
        inside = _decoded(found.group())
        if inside is None or _Walk(self.mark, hidden=self.hidden + 1).text(inside, ()) == inside:
            return found.group()
        return self.mark(found.group())

    def drop(self, value: JsonValue, path: tuple[str, ...]) -> str:
        self.paths.append(pointer(path))
        return self.mark(value)


def _assignments(text: str) -> Iterable[tuple[int, int]]:
    at = 0
    for found in NAME.finditer(text):
        span = None if found.start() < at else assigned(text, found)
        if span is not None:
            at = span[1]
            yield span


def _decoded(run: str) -> str | None:
    """Return the text that base64 digits spell, or None when they spell none."""
    digits = run.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        text = base64.b64decode(digits + "=" * (-len(digits) % 4)).decode()
    except ValueError:
        return None
    return text if text.replace("\n", " ").replace("\r", " ").replace("\t", " ").isprintable() else None


def _is_pair(value: JsonValue) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _labelled(value: dict[str, JsonValue]) -> bool:
    """Return whether a record names a secret in one member and holds it in another."""
    return any(
        name.lower() in _LABELS and isinstance(member, str) and is_secret_name(member) for name, member in value.items()
    )


def _json_in(text: str) -> JsonValue:
    """Return the object or list that a string spells, or None; members named twice are left to the rules for text."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        return None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is named twice")
    return found


def parse_pointer(text: str) -> tuple[str, ...]:
    """Return the tokens of a JSON pointer (RFC 6901 section 4); the empty pointer is the whole value."""
    if not text:
        return ()
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in text.removeprefix("/").split("/"))


def pointer(tokens: Sequence[str]) -> str:
    """Return the JSON pointer of some tokens (RFC 6901 section 3)."""
    return "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in tokens)


def _advance(active: tuple[tuple[str, ...], ...], token: str) -> tuple[tuple[str, ...], ...]:
    return tuple(rest[1:] for rest in active if rest and rest[0] in {token, ANY})
