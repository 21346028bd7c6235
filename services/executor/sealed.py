"""Opens the box that only this executor can open, and believes what is inside only after `remit.verify` does.

A sealed box names no sender: the event's signature, the token's own signature and the claims must all agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, SealedBox

from remit.canonical import b64url_decode, digest_bytes, strict_loads
from remit.errors import CanonicalError, RemitError, TransientError
from remit.reasons import Reason
from remit.verify import Expected, RemoteKeys, TokenError, TokenFault, VerifiedToken, kid_of, verify_action_token
from services.executor.decide import Refuse

if TYPE_CHECKING:
    from datetime import datetime

    from remit.events import Tokenized
    from remit.runtime.keys import ExecutorKeys

MAX_JWKS_BYTES = 65_536


class ExpiredTokenError(RemitError):
    """Everything about the token is right but its time; another one may be minted while nothing has started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedTokens:
    """Holds the decryption key and the issuer's public keys."""

    key: PrivateKey
    thumbprint: str
    """RFC 7638 thumbprint that `cnf.jkt` of every action token must have."""
    issuer: str
    keys: RemoteKeys

    @classmethod
    def of(cls, keys: ExecutorKeys, *, issuer: str, published: RemoteKeys) -> SealedTokens:
        """Build from the executor's key directory."""
        return cls(key=keys.x25519, thumbprint=keys.jkt, issuer=issuer, keys=published)

    async def open(self, event: Tokenized, audience: str, *, now: datetime) -> VerifiedToken | Refuse:
        """Return the verified token of an event.

        Raises:
            ExpiredTokenError: valid but for its time.
            TransientError: the issuer's keys were never fetched and cannot be fetched now.

        """
        try:
            raw = SealedBox(self.key).decrypt(b64url_decode(event.sealed_token))
            token = raw.decode("ascii")
        except (CryptoError, CanonicalError, UnicodeDecodeError, ValueError):
            return Refuse(Reason.TOKEN_INVALID, "the sealed token cannot be opened with this executor's key")
        if digest_bytes(raw) != event.token_digest:
            return Refuse(Reason.TOKEN_INVALID, "the sealed token is not the one the event speaks of")
        expected = Expected(issuer=self.issuer, audience=audience, key_thumbprint=self.thumbprint)
        try:
            verified = verify_action_token(token, await self.keys.keys_for(kid_of(token)), expected, now=now)
        except TokenError as error:
            if error.code is TokenFault.EXPIRED:
                raise ExpiredTokenError(str(error)) from None
            return Refuse(Reason.TOKEN_INVALID, f"{error.code}: {error}")
        if now.timestamp() >= verified.expires_at:
            raise ExpiredTokenError("expired")  # the verifier's leeway is for clocks of others, not for an effect
        return verified


def published_keys(client: httpx.AsyncClient, url: str, *, refetch_s: float) -> RemoteKeys:
    """Return the issuer's keys behind a URL, fetched on demand."""

    async def fetch() -> object:
        try:
            response = await client.get(url)
            response.raise_for_status()
            if len(response.content) > MAX_JWKS_BYTES:
                raise TransientError(f"the JWKS at {url} is larger than {MAX_JWKS_BYTES} bytes")
            return strict_loads(response.content)
        except (httpx.HTTPError, CanonicalError) as error:
            raise TransientError(
                f"no JWKS from {url} ({type(error).__name__}); is the tokens service running?"
            ) from None

    return RemoteKeys(fetch, refetch_interval_s=refetch_s)
