"""Public keys of the token issuer, and the closed list of reasons to refuse a token.

A key belongs to one issuer and one algorithm. Source: RFC 7517; design, standards section 2.5 rules 4 to 6.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NewType, cast

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from remit.clock import monotonic
from remit.errors import RemitError, TransientError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

Kid = NewType("Kid", str)
"""A key id as a token names it: never the token itself, which no key set knows, so that each one would cost a fetch."""
KID = re.compile(r"[A-Za-z0-9._-]{1,64}")
STALE_AGES = 4
"""Ages of the cache after which keys that could not be refreshed are not believed any more."""
PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
"""JWK members that no key set may publish (RFC 7518 sections 6.2.2, 6.3.2 and 6.4)."""
ALGORITHMS = ("ES256", "RS256")
"""A tuple, because it is asked about values that may not be hashable."""


class TokenFault(StrEnum):
    """Why a token is refused; a closed list."""

    FORM = "form"
    HEADER = "header"
    TYPE = "type"
    ALGORITHM = "algorithm"
    KEY = "key"
    SIGNATURE = "signature"
    CLAIMS = "claims"
    ISSUER = "issuer"
    AUDIENCE = "audience"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    LIFETIME = "lifetime"
    CONFIRMATION = "confirmation"
    DETAILS = "details"


class TokenError(RemitError):
    """The token may not be believed; answer 401 `invalid_token` (RFC 9068 section 4). The message never quotes it."""

    def __init__(self, code: TokenFault, message: str) -> None:
        """Keep the closed code."""
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A public key with its one algorithm."""

    kid: str
    algorithm: str
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey


def parse_jwks(document: object) -> dict[str, TokenKey]:
    """Return the usable signature keys of a JWKS by kid; keys for other uses or algorithms are passed over.

    Raises:
        TokenError: `key` when it is no JWKS, names a kid twice, or publishes a private member.

    """
    rows = cast("dict[str, Any]", document).get("keys") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise TokenError(TokenFault.KEY, "not a JWKS: expected an object with the member keys")
    found: dict[str, TokenKey] = {}
    for row in cast("list[object]", rows):
        key = _parse_key(cast("dict[str, Any]", row)) if isinstance(row, dict) else None
        if key is None:
            continue
        if key.kid in found:
            raise TokenError(TokenFault.KEY, "the JWKS names a kid twice")
        found[key.kid] = key
    return found


def _parse_key(row: dict[str, Any]) -> TokenKey | None:
    if not PRIVATE_MEMBERS.isdisjoint(row):
        raise TokenError(TokenFault.KEY, "the JWKS publishes a private key; refuse its issuer and have it rotated")
    kid, algorithm, operations = row.get("kid"), row.get("alg"), row.get("key_ops", ["verify"])
    if not isinstance(kid, str) or not KID.fullmatch(kid) or row.get("use") != "sig":
        return None
    if not isinstance(operations, list) or "verify" not in operations or algorithm not in ALGORITHMS:
        return None
    try:
        key = jwt.PyJWK(row, algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if algorithm == "ES256" and isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return TokenKey(kid, algorithm, key)
    if algorithm == "RS256" and isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
        return TokenKey(kid, algorithm, key)
    return None


class RemoteKeys:
    """The issuer's keys, fetched by the caller's function and kept; an unknown kid costs one fetch per interval."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[object]],
        *,
        max_age_s: float = 300.0,
        refetch_interval_s: float = 10.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Remember how to fetch the JWKS document; `fetch` raises TransientError when it cannot."""
        self._fetch, self._clock = fetch, clock
        self._max_age_s, self._interval_s = max_age_s, refetch_interval_s
        self._keys: dict[str, TokenKey] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._lock = asyncio.Lock()

    async def keys_for(self, kid: Kid | None) -> Mapping[str, TokenKey]:
        """Return the keys to verify a token with, fresh when they are old or do not know its `verify.kid_of`.

        Raises:
            TransientError: none could be fetched for too long, or what was fetched may not be believed.

        """
        async with self._lock:
            at = self._clock()
            wanted = kid not in self._keys or at - self._fetched_at > self._max_age_s
            if wanted and at - self._tried_at >= self._interval_s:
                self._tried_at = at
                await self._refresh(at)
        if self._clock() - self._fetched_at > self._max_age_s * STALE_AGES:
            raise TransientError("the token issuer's keys could not be fetched for too long")
        return self._keys

    async def _refresh(self, at: float) -> None:
        try:
            self._keys = parse_jwks(await self._fetch())
            self._fetched_at = at
        except TransientError:
            return  # Keys that are held still verify what they signed, for a while; an unknown kid stays refused.
        except TokenError as error:
            # An issuer that publishes a private key, or a kid twice, is believed again when it publishes a good set.
            self._keys, self._fetched_at = {}, float("-inf")
            raise TransientError(f"the issuer's keys are not believed: {error}") from None
