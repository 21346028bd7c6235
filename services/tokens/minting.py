"""From permitted claims to the event: sign, seal to the executor, and say so."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nacl.public import PublicKey, SealedBox

from remit.canonical import b64url, canonical, digest_bytes
from remit.events import ActionApproved, Refused, Tokenized
from remit.reasons import Stage
from services.tokens.decide import Mint, Refuse, claims_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from remit.fold import ActionState
    from services.tokens.signing import KeyRing


@dataclass(frozen=True, slots=True)
class Executor:
    """The one who may open tokens and must prove its key: raw X25519 public key, RFC 7638 thumbprint of its DPoP key."""

    x25519: bytes
    thumbprint: str

    def seal(self, token: str) -> str:
        """Return the token in a sealed box, as base64url: readable to the executor, to nobody on the bus."""
        return b64url(SealedBox(PublicKey(self.x25519)).encrypt(token.encode()))

    @property
    def sealed_to(self) -> str:
        """Thumbprint of the X25519 key (RFC 7638 section 3.2 with the OKP members of RFC 8037)."""
        jwk = {"crv": "X25519", "kty": "OKP", "x": b64url(self.x25519)}
        return b64url(hashlib.sha256(canonical(jwk)).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Minter:
    """Signs and seals; `keys` is called for each token, so that a rotated key file takes effect."""

    issuer: str
    executor: Executor
    keys: Callable[[], KeyRing]

    def mint(self, state: ActionState, mint: Mint) -> Tokenized:
        """Return the event data of a new token; the token itself leaves only sealed."""
        claims = claims_for(state, mint, issuer=self.issuer, executor_thumbprint=self.executor.thumbprint)
        token = self.keys().sign(claims, now=claims["iat"])
        approved = state.must(ActionApproved).data
        return Tokenized(
            txn=approved.txn,
            remit_id=approved.remit_id,
            principal=approved.principal.model_copy(update={"human": mint.document.human}),
            action=approved.action,
            reevaluation=mint.reevaluation,
            scopes_granted=[mint.action.id],
            jti=claims["jti"],
            attempt=mint.attempt,
            exp=mint.expires_at,
            token_digest=digest_bytes(token.encode()),
            sealed_token=self.executor.seal(token),
            sealed_to=self.executor.sealed_to,
        )


def refused(state: ActionState, refusal: Refuse) -> Refused:
    """Return the event data of a refusal."""
    approved = state.must(ActionApproved).data
    return Refused(
        txn=approved.txn,
        remit_id=approved.remit_id,
        principal=approved.principal,
        action=approved.action,
        stage=Stage.TOKENS,
        reason=refusal.reason,
        detail=refusal.detail,
    )
