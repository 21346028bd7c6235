"""The keys of an OpenID provider, each pinned to its one algorithm before any token is looked at.

A key that is weak, meant for something else, or of an unsupported kind is left out: a token naming it fails.
Source: design, standards section 2.5 rule 4; RFC 7517.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import jwt

from remit.jwks import PRIVATE_MEMBERS

MIN_RSA_BYTES = 256
"""2048 bits (RFC 7518 section 3.3)."""
MAX_KEYS = 32
"""A key set larger than this is refused work, not believed in part."""


@dataclass(frozen=True, slots=True)
class PinnedKey:
    """One public signing key and the only algorithm it may be used with."""

    kid: str | None
    algorithm: Literal["RS256", "ES256"]
    jwk: jwt.PyJWK


def keys_of(document: dict[str, Any]) -> tuple[PinnedKey, ...]:
    """Return the usable signing keys of a JWK set; none of a set that is too large or publishes a private key."""
    entries = document.get("keys")
    rows = [entry for entry in cast("list[object]", entries) if _is_object(entry)] if isinstance(entries, list) else []
    keys = cast("list[dict[str, Any]]", rows)
    if len(keys) > MAX_KEYS or not all(PRIVATE_MEMBERS.isdisjoint(key) for key in keys):
        return ()
    found = [_pin(key) for key in keys]
    return tuple(key for key in found if key is not None)


def _is_object(entry: object) -> bool:
    return isinstance(entry, dict)


def _pin(entry: dict[str, Any]) -> PinnedKey | None:
    algorithm = _algorithm(entry)
    if algorithm is None or not _may_verify(entry):
        return None
    public = {name: entry[name] for name in ("kty", "crv", "n", "e", "x", "y") if name in entry}
    try:
        jwk = jwt.PyJWK(public, algorithm=algorithm)
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if algorithm == "RS256" and _modulus_bytes(jwk) < MIN_RSA_BYTES:
        return None
    kid = entry.get("kid")
    return PinnedKey(kid if isinstance(kid, str) else None, algorithm, jwk)


def _algorithm(entry: dict[str, Any]) -> Literal["RS256", "ES256"] | None:
    """Return the algorithm the key's type implies, unless the key says otherwise."""
    algorithm: Literal["RS256", "ES256"]
    if entry.get("kty") == "RSA":
        algorithm = "RS256"
    elif entry.get("kty") == "EC" and entry.get("crv") == "P-256":
        algorithm = "ES256"
    else:
        return None
    return algorithm if entry.get("alg", algorithm) == algorithm else None


def _may_verify(entry: dict[str, Any]) -> bool:
    operations = entry.get("key_ops", ["verify"])
    return entry.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations


def _modulus_bytes(jwk: jwt.PyJWK) -> int:
    return int(jwk.key.key_size) // 8
