"""The token signing keys: the only module that touches a private key of tokens.

All keys of the file are published; one signs. A new key is published for an overlap before it signs, and stays for an overlap
after another took over, so that no verifier meets a token whose key it cannot know. Source: design, standards section 2.5 rule 6.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from remit.canonical import b64url
from remit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

ALGORITHM = "ES256"
COORDINATE_BYTES = 32
"""Length of a coordinate on P-256 (RFC 7518 section 6.2.1.2)."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key and the second (NumericDate) from which on it signs; None means published only."""

    kid: str
    signs_from: int | None
    private: ec.EllipticCurvePrivateKey = field(repr=False)

    def jwk(self) -> dict[str, str]:
        """Return the public half as it is published."""
        numbers = self.private.public_key().public_numbers()
        x, y = (b64url(each.to_bytes(COORDINATE_BYTES, "big")) for each in (numbers.x, numbers.y))
        return {"kty": "EC", "crv": "P-256", "use": "sig", "alg": ALGORITHM, "kid": self.kid, "x": x, "y": y}


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Every key of the key file."""

    keys: tuple[SigningKey, ...]

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> KeyRing:
        """Read `{"active", "keys": [{"kid", "pem", "signs_from"?}]}`; the active key signs until a later one begins.

        Raises:
            ConfigurationError: not such a file, no active key, or a key that is not on P-256.

        """
        try:
            active = cast("str", document["active"])
            rows = cast("list[dict[str, Any]]", document["keys"])
            keys = tuple(
                SigningKey(r["kid"], r.get("signs_from", 0 if r["kid"] == active else None), _p256(r)) for r in rows
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigurationError(f"token_keys.json is not a token key file ({type(error).__name__})") from None
        if not any(key.kid == active and key.signs_from is not None for key in keys):
            raise ConfigurationError(f"token_keys.json: the active key {active!r} is not among its keys")
        return cls(keys)

    def signing_key(self, now: int) -> SigningKey:
        """Return the key that signs at `now` (NumericDate): the one that began last."""
        begun = [key for key in self.keys if key.signs_from is not None and key.signs_from <= now]
        if not begun:
            raise ConfigurationError("token_keys.json: no key may sign yet; compare signs_from with the clock")
        return max(begun, key=lambda key: key.signs_from or 0)

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """Return the JSON Web Key Set of every key, public halves only (RFC 7517)."""
        return {"keys": [key.jwk() for key in self.keys]}

    def sign(self, claims: Mapping[str, Any], *, now: int) -> str:
        """Return the compact JWS of the claims (RFC 9068 section 2.1)."""
        key = self.signing_key(now)
        return jwt.encode(dict(claims), key.private, algorithm=ALGORITHM, headers={"typ": "at+jwt", "kid": key.kid})


def _p256(row: Mapping[str, Any]) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(row["pem"].encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigurationError(f"token_keys.json: key {row['kid']!r} is not a P-256 key")
    return key


def rotated(document: Mapping[str, Any], *, now: int, overlap_s: int) -> dict[str, Any]:
    """Return the key file with a new key that signs after an overlap, without keys whose time is long over.

    Raises:
        ConfigurationError: the file is none, or an earlier rotation has not come into force yet.

    """
    ring = KeyRing.parse(document)
    current = ring.signing_key(now)
    if any(key.signs_from is not None and key.signs_from > now for key in ring.keys):
        raise ConfigurationError("a key that was added earlier does not sign yet; rotate again when it does")
    # Once the current key has signed for an overlap, no token of an older one can still be alive.
    settled = (current.signs_from or 0) + overlap_s <= now
    rows = [row for row in document["keys"] if row["kid"] == current.kid or not settled]
    fresh = {"kid": _fresh_kid(ring, now), "pem": _new_pem(), "signs_from": now + overlap_s}
    kept = [{**row, "signs_from": current.signs_from or 0} if row["kid"] == current.kid else row for row in rows]
    return {"active": current.kid, "keys": [*kept, fresh]}


def _fresh_kid(ring: KeyRing, now: int) -> str:
    taken = {key.kid for key in ring.keys}
    return next(kid for n in range(len(taken) + 1) if (kid := f"token-{now + n}") not in taken)


def _new_pem() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return encoded.decode()
