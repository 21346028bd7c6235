"""Takes credentials out of JSON values and free text, and says where: what a tool or an agent leaks must not travel on.

Four rules, each sufficient: JSON pointers of the registry, names of members, assignments in text (`password: x`, also inside JSON
that hides in a string), and values that look like a credential. Pure; paths never quote a removed value. A secret that has no
name and no shape cannot be found: the registry's pointers are for those.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remit.redaction_names import is_secret_member, is_secret_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import JsonValue

MARK = "[redacted]"
"""Stands where something was, so that list positions and required members keep their place."""
ANY = "*"
"""A pointer token that passes every member or element; an extension of RFC 6901 for lists of records."""
MAX_DEPTH = 48
"""Deeper values are dropped unread: the walk recurses, and JSON may hide inside strings of JSON."""
_LABELS = frozenset({"name", "key", "header", "field", "param", "parameter", "variable"})
_CONTENTS = frozenset({"value", "values", "val", "content"})
"""`{"name": "Authorization", "value": "..."}`: the one member names what the other holds."""

_SECRET_VALUE = re.compile(
    r"eyJ[A-Za-z0-9_-]{10,}(?:\.[A-Za-z0-9_-]*){0,4}"  # JSON Web Token or Encryption: base64url of `{"`
    r"|(?i:\b(?:bearer|basic|dpop)\s+[a-z0-9._~+/-]{16,}=*)"  # RFC 9110 section 11.4 credentials
    r"|-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|\Z)"  # RFC 7468
    r"|\bS[UAONCX][A-Z2-7]{56}\b"  # NATS nkey seed
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[0-9A-Za-z_-]{30,}|\bya29\.[0-9A-Za-z_.-]{10,}"  # clouds
    r"|\bgh[opsur]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}|\bglpat-[A-Za-z0-9_.-]{10,}"  # forges
    r"|\b(?:sk|rk)[-_][A-Za-z0-9_-]{20,}|\bwhsec_[A-Za-z0-9+/=]{16,}"  # payment, models
    r"|\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bxapp-[A-Za-z0-9-]{10,}|\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"
    r"|\bnpm_[A-Za-z0-9]{30,}|\bpypi-[A-Za-z0-9_-]{30,}|\bhf_[A-Za-z0-9]{20,}|\bhv[sb]\.[A-Za-z0-9_-]{20,}",
    re.DOTALL,
)
_USERINFO = re.compile(
    r"(?P<head>(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s/?#:@\"'<>]{0,256}:)(?P<secret>[^\s/?#\"'<>]{1,512})(?=@)"
)
"""The password of RFC 3986 section 3.2.1; the user's name stays."""
_NAME = re.compile(
    r"(?<![\w.-])(?P<name>[A-Za-z]{2,16}[ ](?i:keys?|ids?|codes?|string)|[A-Za-z_-][\w.-]{0,63})"
    r"(?:\\?[\"'`*]){0,3}[ \t]{0,8}(?:=>|:=|[:=>])[*`]{0,2}[ \t]{0,8}"
)
"""`name:`, `"name":`, `name=`, `**Name:**`, `<name>`: whatever gives the text after it a name."""
_VALUE = re.compile(
    r"\\?\"(?:[^\"\\]|\\.)*\"?|'(?:[^'\\]|\\.)*'?"
    r"|(?i:(?:basic|bearer|digest|dpop|negotiate|token)[ ]+)?[^\s,;&<>\"'`)}\]]+\]?"
)
_REST = re.compile(r"[^\r\n]+")
_BESIDE = re.compile(
    r"(?i)(?P<head>(?<![\w.-])-{0,2}(?P<name>[a-z][\w-]{2,40})[ \t\"'`:=]{1,4}(?:is[ \t\"'`:]{1,3})?)"
    r"(?P<secret>(?=[^\s]{0,512}[0-9+/=])[a-z0-9+/_-]{20,}={0,2})"
)
"""A secret's name, then a long run of base64 or hexadecimal digits."""
_NOTHING = frozenset({"", "null", "none", "nil", "true", "false", "undefined", '""', "''"})
_OPENS = re.compile(r"[\[{(]\s*(?:[\"'\[{(\]})]|$)", re.MULTILINE)
"""A structure begins, whose own members are looked at."""


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

    def visit(self, value: JsonValue, path: tuple[str, ...], active: tuple[tuple[str, ...], ...]) -> JsonValue:
        if () in active or len(path) > MAX_DEPTH:
            return self.drop(value, path)
        if isinstance(value, dict):
            return self.record(value, path, active)
        if isinstance(value, list):
            return [self.visit(each, (*path, str(no)), _advance(active, str(no))) for no, each in enumerate(value)]
        return self.text(value, path) if isinstance(value, str) else value

    def record(
        self, value: dict[str, JsonValue], path: tuple[str, ...], active: tuple[tuple[str, ...], ...]
    ) -> dict[str, JsonValue]:
        labelled = _labelled(value)
        found: dict[str, JsonValue] = {}
        for name, member in value.items():
            # A name can be a secret of its own, as in {"<token>": "expires tomorrow"}; its path must not repeat it.
            shown = self.assignments(name)
            below = (*path, shown)
            if shown != name:
                self.paths.append(pointer(below))
            if is_secret_member(name, member) or (labelled and name.lower() in _CONTENTS and member not in (None, "")):
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
        walk = _Walk(self.mark)
        clean = walk.visit(inside, (*path, "json"), ())
        return json.dumps(clean, ensure_ascii=False, separators=(",", ":")) if walk.paths else value

    def assignments(self, text: str) -> str:
        parts, at = list[str](), 0
        for found in _NAME.finditer(text):
            span = None if found.start() < at else _assigned(text, found)
            if span is not None:
                parts += (text[at : span[0]], self.mark(text[span[0] : span[1]]))
                at = span[1]
        text = "".join(parts) + text[at:]
        text = _USERINFO.sub(lambda found: found["head"] + self.mark(found["secret"]), text)
        text = _SECRET_VALUE.sub(lambda found: self.mark(found.group()), text)
        return _BESIDE.sub(self.beside, text)

    def beside(self, found: re.Match[str]) -> str:
        return found["head"] + self.mark(found["secret"]) if is_secret_name(found["name"]) else found.group()

    def drop(self, value: JsonValue, path: tuple[str, ...]) -> str:
        self.paths.append(pointer(path))
        return self.mark(value)


def _assigned(text: str, found: re.Match[str]) -> tuple[int, int] | None:
    """Return where the value stands that a name in text is given, or None when the name is no secret's or there is none."""
    if not is_secret_name(found["name"]):
        return None
    value = _VALUE.match(text, found.end())
    if value is None or _OPENS.match(text, found.end()):
        return None
    if value.group().startswith(MARK):
        return found.end(), found.end() + len(MARK)
    line = text[text.rfind("\n", 0, found.start()) + 1 : found.start()]
    if not line.strip(" \t-*#>\"'") and '"' not in found.group() and value.group()[0] not in "\"'":
        value = _REST.match(text, found.end()) or value  # a line of its own: phrases have spaces
    return None if value.group().strip(" \t,;").lower() in _NOTHING else value.span()


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
