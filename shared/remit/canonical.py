"""Canonical bytes and digest of JSON values: what was approved is what runs.

One strict I-JSON loader for intake, tokens and executor; digests are `sha-256:` + unpadded base64url of SHA-256 over RFC 8785.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from typing import Any, Never

import rfc8785

from remit.errors import CanonicalError

MAX_INTEGER = 2**53 - 1
"""Largest integer every JSON implementation keeps exactly (RFC 7493 section 2.2, RFC 8785 appendix D)."""
MAX_DEPTH = 32
"""Nesting beyond this is refused: no registered tool needs it, and parsers recurse (design, standards section 2.2)."""


_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""An escape of U+0000: an odd run of backslashes, because an even one spells backslashes."""


class _RefusedError(ValueError):
    """Raised inside the json hooks and turned into CanonicalError at the boundary."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _RefusedError("a key appears twice")
    return result


def _constant(token: str) -> Never:
    raise _RefusedError(f"{token} is not JSON")


def _integer(token: str) -> int:
    # The length test comes first: int() of a million digits is a denial of service of its own.
    if len(token) > 17 or abs(value := int(token)) > MAX_INTEGER:
        raise _RefusedError("an integer lies beyond 2^53-1; send it as a string")
    return value


def _float(token: str) -> float:
    value = float(token)
    # A float of that size is an integer in disguise: its canonical form could not be read back.
    if not abs(value) <= MAX_INTEGER:
        raise _RefusedError("a number lies beyond 2^53-1; send it as a string")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_constant=_constant, parse_int=_integer, parse_float=_float, strict=True
)


def _depth_exceeded(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        following: list[object] = []
        for item in level:
            if isinstance(item, dict):
                following.extend(item.values())
            elif isinstance(item, list):
                following.extend(item)
        if not following:
            return False
        level = following
    return True


def strict_loads(raw: bytes) -> Any:  # noqa: ANN401  (any JSON value)
    """Parse I-JSON; refuse duplicate keys, NaN, infinities, huge integers, lone surrogates, U+0000 and deep nesting.

    Raises:
        CanonicalError: the text is not unambiguous I-JSON. The message never quotes the text.

    Source: RFC 7493; design, standards section 2.3 (what `json` and `orjson` let through).

    """
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
        if b"\\u" in raw:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # a lone surrogate has no UTF-8 form
    except _RefusedError as refusal:
        raise CanonicalError(str(refusal)) from None
    except (ValueError, RecursionError) as error:
        raise CanonicalError(f"not valid JSON ({type(error).__name__})") from None
    if b"\\u0000" in raw and _NUL.search(raw):
        raise CanonicalError("a string holds U+0000, which Postgres cannot store")
    if _depth_exceeded(value):
        raise CanonicalError(f"nesting is deeper than {MAX_DEPTH} levels")
    return value


def canonical(value: object) -> bytes:
    """Return the RFC 8785 bytes of a JSON value.

    Raises:
        CanonicalError: the value has no canonical form (NaN, infinity, integer beyond 2^53-1, foreign type).

    """
    try:
        return rfc8785.dumps(value)  # type: ignore[arg-type]  # its type is a recursive JSON alias; it checks at run time
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise CanonicalError(f"no canonical form: {type(error).__name__}") from None


def digest(value: object) -> str:
    """Return `sha-256:` + base64url(SHA-256(canonical bytes)) of a JSON value (design, standards rule 6)."""
    return digest_bytes(canonical(value))


def digest_bytes(raw: bytes) -> str:
    """Return the same spelling of digest over bytes that are already fixed, such as a signed event body."""
    return "sha-256:" + b64url(hashlib.sha256(raw).digest())


def b64url(raw: bytes) -> str:
    """Return base64url without padding (RFC 4648 section 5, RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def b64url_decode(text: str) -> bytes:
    """Decode unpadded base64url and insist on its one canonical spelling.

    Raises:
        CanonicalError: padding, foreign characters or stray bits; Python's decoder would let them pass.

    """
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise CanonicalError("not base64url") from None
    if b64url(raw) != text:
        raise CanonicalError("base64url is not in its canonical spelling")
    return raw
