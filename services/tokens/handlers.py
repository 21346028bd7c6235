"""What tokens does with an approved action: look at the world again, and mint or refuse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.errors import PermanentError
from remit.evaluation import read_proposal
from remit.events import ActionProposed, ActionRefused, ActionTokenized
from remit.ids import ACTION_ID
from remit.runtime.ledger import Draft, Ledger, Superseded
from services.tokens.decide import Mint, Nothing, Refuse, World, decide, next_attempt
from services.tokens.minting import Minter, refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from remit.evaluation import CompiledBundle
    from remit.fold import ActionState, RemitState
    from remit.runtime.delivery import Inbound


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensHandlers:
    """Everything the handlers need from outside, built once in app.py."""

    clock: Callable[[], datetime]
    tenant: str
    bundle: Callable[[], CompiledBundle]
    read_remit: Callable[[str], Awaitable[RemitState]]
    minter: Minter
    ledger: Ledger
    lifetime_s: int

    async def on_action_approved(self, state: ActionState) -> Draft | None:
        """Mint a token for an approved action, or refuse it; also the next one when a token expired unused."""
        match await self._decide(state):
            case Nothing():
                return None
            case Refuse() as refusal:
                return Draft(event=ActionRefused, data=refused(state, refusal))
            case Mint() as mint:
                data = self.minter.mint(state, mint)
                return Draft(event=ActionTokenized, data=data, discriminator=str(mint.attempt))

    async def _decide(self, state: ActionState) -> Nothing | Refuse | Mint:
        attempt = next_attempt(state, self.clock())
        if not isinstance(attempt, int):
            return attempt
        proposed = state.must(ActionProposed).data
        proposal = read_proposal(proposed)
        # Read last: what is minted must rest on the newest remit this service could see.
        remit = await self.read_remit(proposed.remit_id)
        world = World(
            bundle=self.bundle(), remit=remit, now=self.clock(), tenant=self.tenant, lifetime_s=self.lifetime_s
        )
        return decide(state, proposal, world)

    async def on_redrive(self, inbound: Inbound) -> None:
        """Look again at an action whose token expired or that stands still; harmless when forged."""
        action_id = inbound.body.decode("ascii", "replace")
        if not ACTION_ID.fullmatch(action_id):
            return
        state = await self.ledger.read(action_id)
        try:
            draft = await self.on_action_approved(state)
            if draft is not None:
                await self.ledger.append(state, draft)
        except PermanentError:
            return  # Its own delivery ends it and keeps the evidence.
        except Superseded:
            return  # The action moved meanwhile, which is all a redrive is for.
