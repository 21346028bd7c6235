"""Removes secrets from a tool's result and says where: what a tool leaks must not travel past the executor.

Three rules, each sufficient: the registry's JSON pointers, names of members that hold credentials, and values that look like one.
Pure; the paths it returns never quote a removed value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

MARK = "[redacted]"
"""Stands where something was, so that list positions and required members keep their place."""
ANY = "*"
"""A pointer token that passes every member or element; an extension of RFC 6901 for lists of records."""

_SECRET_WORDS = frozenset(
    {
        "authorization",
        "bearer",
        "cookie",
        "cookies",
        "credential",
        "credentials",
        "cvc",
        "cvv",
        "jwt",
        "otp",
        "passcode",
        "passphrase",
        "passwd",
        "password",
        "passwords",
        "pin",
        "pwd",
        "secret",
        "secrets",
        "token",
        "tokens",
    }
)
"""A member is secret when its name ends in one of these words."""
_SECRET_PAIRS = frozenset(
    {
        ("access", "key"),
        ("account", "key"),
        ("api", "key"),
        ("encryption", "key"),
        ("master", "key"),
        ("private", "key"),
        ("secret", "key"),
        ("signing", "key"),
        ("session", "id"),
        ("security", "code"),
    }
)
_SECRET_JOINED = frozenset({"apikey", "accesskey", "privatekey", "secretkey", "sessionid", "accesstoken", "authtoken"})
"""The same without a separator to split at."""
_CURSORS = frozenset({"continuation", "cursor", "next", "page", "previous", "sync"})
"""A token after one of these words turns pages; agents need it, and it opens nothing."""
_COUNTED = frozenset({"token", "tokens", "secrets", "credentials", "cookies", "passwords"})
"""A number under one of these names is a count."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SECRET_VALUE = re.compile(
    r"eyJ[A-Za-z0-9_-]{10,}(?:\.[A-Za-z0-9_-]*){0,4}"  # JSON Web Token or Encryption: base64url of `{"`
    r"|(?i:\b(?:bearer|basic|dpop)\s+[a-z0-9._~+/-]{16,}=*)"  # RFC 9110 section 11.4 credentials
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"  # RFC 7468
    r"|\bAKIA[0-9A-Z]{16}\b|\bgh[opsu]_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|\bS[UAONCX][A-Z2-7]{56}\b",  # NATS nkey seed
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Redacted:
    """A value without secrets, and the JSON pointers of what is gone."""

    value: JsonValue
    paths: tuple[str, ...] = ()


@dataclass(slots=True)
class _Walk:
    pointers: tuple[tuple[str, ...], ...]
    paths: list[str] = field(default_factory=list[str])

    def visit(self, value: JsonValue, path: tuple[str, ...], active: tuple[tuple[str, ...], ...]) -> JsonValue:
        if () in active:
            return self.drop(path)
        if isinstance(value, dict):
            return self.record(value, path, active)
        if isinstance(value, list):
            return [
                self.visit(item, (*path, str(index)), _advance(active, str(index))) for index, item in enumerate(value)
            ]
        return self.text(value, path) if isinstance(value, str) else value

    def record(
        self, value: dict[str, JsonValue], path: tuple[str, ...], active: tuple[tuple[str, ...], ...]
    ) -> dict[str, JsonValue]:
        found: dict[str, JsonValue] = {}
        for name, member in value.items():
            # A name can be a secret of its own, as in {"<token>": "expires tomorrow"}; its path must not repeat it.
            shown = _SECRET_VALUE.sub(MARK, name)
            below = (*path, shown)
            if shown != name:
                self.paths.append(pointer(below))
            if is_secret_member(name, member):
                found[shown] = self.drop(below)
            else:
                found[shown] = self.visit(member, below, _advance(active, name))
        return found

    def text(self, value: str, path: tuple[str, ...]) -> str:
        clean = _SECRET_VALUE.sub(MARK, value)
        if clean != value:
            self.paths.append(pointer(path))
        return clean

    def drop(self, path: tuple[str, ...]) -> str:
        self.paths.append(pointer(path))
        return MARK


def redact(value: JsonValue, pointers: Sequence[str] = ()) -> Redacted:
    """Return the value without what the registry's pointers, the member names or the values themselves give away."""
    walk = _Walk(tuple(parse_pointer(each) for each in pointers))
    clean = walk.visit(value, (), walk.pointers)
    return Redacted(clean, tuple(dict.fromkeys(walk.paths)))


def is_secret_member(name: str, value: JsonValue) -> bool:
    """Return whether a member holds a credential by its name; flags, nulls and counts hold none."""
    if value is None or isinstance(value, bool) or value == "":
        return False
    words = [word.lower() for word in _WORD.findall(name)]
    if not words:
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last in _SECRET_WORDS:
        counted = last in _COUNTED and isinstance(value, int | float)
        return not counted and before not in _CURSORS
    return (before, last) in _SECRET_PAIRS or last in _SECRET_JOINED


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
