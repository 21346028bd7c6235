"""What policy does with a proposed action: read bundle and remit, evaluate, say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.errors import PermanentError
from remit.evaluation import Facts, denied, disowned, evaluate, read_proposal
from remit.events import ActionEvaluated, ActionProposed
from remit.ids import ACTION_ID
from remit.runtime.ledger import Draft, Ledger, Superseded
from services.policy.bundle import Stale
from services.policy.decide import STALE, UNPROCESSABLE, Judged, evaluated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from remit.evaluation import CompiledBundle
    from remit.fold import ActionState, RemitState
    from remit.runtime.delivery import Inbound


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyHandlers:
    """Everything the handlers need from outside, built once in app.py."""

    clock: Callable[[], datetime]
    tenant: str
    bundle: Callable[[], CompiledBundle | Stale]
    read_remit: Callable[[str], Awaitable[RemitState]]
    ledger: Ledger

    async def on_action_proposed(self, state: ActionState) -> Draft | None:
        """Evaluate one proposed action on the bundle and the remit of this moment."""
        if not isinstance(state.last, ActionProposed):
            return None
        proposed = state.last.data
        proposal = read_proposal(proposed)
        bundle = self.bundle()
        if isinstance(bundle, Stale):
            stale = Judged(bundle.digest, bundle.version, self.clock())
            return Draft(event=ActionEvaluated, data=evaluated(proposed, STALE, stale))
        remit = await self.read_remit(proposed.remit_id)
        now = self.clock()
        facts = Facts(
            proposal=proposal,
            agent=bundle.agent(proposed.principal.agent.name),
            remit=remit,
            now=now,
            pinned=proposed.principal.tool.schema_digest,
        )
        doubt = disowned(proposed, proposal, bundle, tenant=self.tenant)
        evaluation = evaluate(bundle, facts) if doubt is None else denied(doubt, remit)
        data = evaluated(proposed, evaluation, Judged(bundle.digest, bundle.version, now, remit))
        return Draft(event=ActionEvaluated, data=data)

    def unprocessable(self, state: ActionState) -> Draft | None:
        """End an action that could not be evaluated however often it was delivered."""
        if not isinstance(state.last, ActionProposed):
            return None
        proposed = state.last.data
        # Version 0 is no bundle's: nothing judged this action but its own failure.
        judged = Judged(proposed.bundle_digest, 0, self.clock())
        return Draft(event=ActionEvaluated, data=evaluated(proposed, UNPROCESSABLE, judged))

    async def on_redrive(self, inbound: Inbound) -> None:
        """Look again at an action that stands still; harmless when forged, because its own events decide."""
        action_id = inbound.body.decode("ascii", "replace")
        if not ACTION_ID.fullmatch(action_id):
            return
        state = await self.ledger.read(action_id)
        try:
            draft = await self.on_action_proposed(state)
            if draft is not None:
                await self.ledger.append(state, draft)
        except PermanentError:
            return  # Its own delivery ends it and keeps the evidence.
        except Superseded:
            return  # Somebody evaluated meanwhile, which is all a redrive is for.
