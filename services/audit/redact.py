"""Takes secrets out of arguments before the display copy exists: what the registry marks, and what looks like a credential.

The signed bytes stay whole in the ledger; only what people are shown passes through here. Source: design, dashboard section 2.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pydantic import JsonValue

_SECRET_NAME = re.compile(
    r"(?:^|[_\-. ])(?:authorization|bearer|cookie|credentials?|cvc|cvv|jwt|otp|pass(?:code|phrase|wd|word)s?|pin|pwd"
    r"|secrets?|tokens?|(?:access|account|api|encryption|master|private|secret|signing)[_\-. ]?key|session[_\-. ]?id)$"
)
"""Matched against a member's name in lower case, camel case taken apart."""
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SECRET_VALUE = re.compile(
    r"eyJ[A-Za-z0-9_-]{10,}(?:\.[A-Za-z0-9_-]*){0,4}"  # JSON Web Token: base64url of `{"`
    r"|(?i:\b(?:bearer|basic|dpop)\s+[a-z0-9._~+/-]{16,}=*)"  # RFC 9110 section 11.4 credentials
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"  # RFC 7468
    r"|\bAKIA[0-9A-Z]{16}\b|\bgh[opsu]_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|\bS[UAONCX][A-Z2-7]{56}\b",  # NATS nkey seed
    re.DOTALL,
)


def redact_arguments(
    arguments: Mapping[str, JsonValue], sensitive: Collection[str] | None = ()
) -> dict[str, JsonValue]:
    """Return the arguments as people may see them; `sensitive` are the top-level names marked x-remit-sensitive.

    None hides every value: nobody could say which of them are.
    """
    marked = arguments.keys() if sensitive is None else sensitive
    return {_text(name): hidden(value) if name in marked else _member(name, value) for name, value in arguments.items()}


def redact_text(value: str | None) -> str | None:
    """Return free text without anything that looks like a credential."""
    return None if value is None else _text(value)


def hidden(value: JsonValue) -> str:
    """Return what stands in place of a secret; its length helps to tell an empty one from a long one."""
    return f"redacted ({len(value)} chars)" if isinstance(value, str) else "redacted"


def _member(name: str, value: JsonValue) -> JsonValue:
    secret = isinstance(value, str | list | dict) and _SECRET_NAME.search(_CAMEL.sub("_", name).lower())
    return hidden(value) if secret else _value(value)


def _value(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {_text(name): _member(name, member) for name, member in value.items()}
    if isinstance(value, list):
        return [_value(item) for item in value]
    return _text(value) if isinstance(value, str) else value


def _text(value: str) -> str:
    return _SECRET_VALUE.sub(lambda found: hidden(found.group()), value)
