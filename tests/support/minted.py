"""One tokenized action of a test environment's real keys, and the executor's own eyes on whatever token is put in its place."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from remit.canonical import digest, digest_bytes
from remit.events import ActionApproved, ActionTokenized
from remit.ids import action_id, jti
from remit.jwks import RemoteKeys
from remit.reasons import Reason, Verdict
from remit.remits import RemitDocument
from remit.runtime.keys import load_executor
from services.executor import decide
from services.executor.decide import Order, Refuse
from services.executor.sealed import ExpiredTokenError, SealedTokens
from services.tokens.decide import Mint, claims_for
from services.tokens.minting import Executor
from services.tokens.signing import ALGORITHM, KeyRing
from tests.support import execution as x
from tests.support import factories as f
from tests.support.forging import Key, changed

if TYPE_CHECKING:
    from pathlib import Path

    from remit.fold import ActionState

ISSUER = "https://remit.example"
ARGUMENTS: dict[str, Any] = {"text": "hello"}
KEY = "k"
LIFETIME_S = 60


@dataclass(frozen=True, slots=True)
class Bench:
    """The tokens service's real signing key on one side, the executor's real keys on the other."""

    ring: KeyRing = field(repr=False)
    sealed: SealedTokens = field(repr=False)
    executor: Executor
    now: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    action: Any = field(default_factory=lambda: x.action_of(TOOL))

    @classmethod
    def of(cls, keys: Path) -> Bench:
        """Build from a key directory."""
        ring = KeyRing.parse(json.loads((keys / "tokens" / "token_keys.json").read_text()))
        mine = load_executor(keys)

        async def published() -> object:
            return ring.jwks()

        sealed = SealedTokens.of(mine, issuer=ISSUER, published=RemoteKeys(published, refetch_interval_s=0.0))
        return cls(ring, sealed, Executor(bytes(mine.x25519.public_key), mine.jkt))

    @property
    def kid(self) -> str:
        """The key that signs now."""
        return self.ring.signing_key(int(self.now.timestamp())).kid

    def claims(self, *, key: str = KEY, attempt: int = 1, executor: str | None = None) -> dict[str, Any]:
        """Return what the tokens service says of this action, by its own code."""
        decision = f.decision(Verdict.ALLOW, Reason.POLICY_PERMITS).model_copy(update={"evaluated_at": self.now})
        mint = Mint(
            attempt=attempt,
            expires_at=int(self.now.timestamp()) + LIFETIME_S,
            reevaluation=decision,
            document=RemitDocument.model_validate(f.REMIT.model_dump()),
            action=self.action,
            args_digest=digest(ARGUMENTS),
        )
        state = x.approved_state(self.action, ARGUMENTS, key)
        return claims_for(state, mint, issuer=ISSUER, executor_thumbprint=executor or self.executor.thumbprint)

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        """Sign any claims with the real key; header members can be changed, None removes one."""
        key = self.ring.signing_key(int(self.now.timestamp()))
        members = changed({"alg": ALGORITHM, "typ": "at+jwt", "kid": key.kid}, **header)
        return Key(key.kid, ALGORITHM, key.private).sign(members, claims)

    def event(self, token: str, **said: Any) -> ActionState:
        """Return the action with `tokenized` around this token, all signed as it should be; `said` changes the event."""
        identity = action_id("default", "bookkeeper", KEY)
        fields: dict[str, Any] = {
            "jti": jti(identity, 1),
            "exp": int(self.now.timestamp()) + LIFETIME_S,
            "token_digest": digest_bytes(token.encode("utf-8", "surrogatepass")),
            "sealed_token": self.executor.seal(token) if token.isascii() else "AAAA",
            "sealed_to": self.executor.sealed_to,
        }
        return x.tokenized_state(self.action, arguments=ARGUMENTS, key=KEY, **fields | said)

    async def judge(self, state: ActionState, *, now: datetime | None = None) -> str | None:
        """Do what the executor does before it announces a call; return the reason against it, or None."""
        order = decide.read_order(state, x.bundle_of(TOOL))
        if not isinstance(order, Order):
            return str(order.reason)
        at = now or self.now
        try:
            token = await self.sealed.open(state.must(ActionTokenized).data, order.action.tool.resource, now=at)
        except ExpiredTokenError:
            return "expired"
        if isinstance(token, Refuse):
            return f"{token.reason}: {token.detail}"
        unfit = decide.check_token(order, token) or decide.check_approval(order, state.must(ActionApproved), now=at)
        return None if unfit is None else str(unfit.reason)

    async def refusal(self, token: str) -> str | None:
        """Judge a token in the place of this action's own; its text stands in no answer."""
        found = await self.judge(self.event(token))
        assert found is None or (found and "eyJ" not in found)
        return found


TOOL = x.tool_entry()
