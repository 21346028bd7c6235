"""What approval does with evaluated actions: load facts, decide, note what is open before asking for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.events import ActionEvaluated, ApprovalRequested
from remit.ids import ACTION_ID
from remit.reasons import Verdict
from remit.runtime.ledger import Draft, Ledger, Superseded
from services.approval.decide import Facts, Limits, decide_evaluated

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from remit.events import Evaluated
    from remit.fold import ActionState
    from remit.runtime.delivery import Inbound
    from services.approval.stops import StopSnapshot
    from services.approval.store import ActionStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionHandlers:
    """Everything the handlers need from outside, built once in app.py."""

    clock: Callable[[], datetime]
    ledger: Ledger
    store: ActionStore
    stops: StopSnapshot
    limits: Limits

    async def on_action_evaluated(self, state: ActionState) -> Draft | None:
        """Approve by policy, ask people, or refuse."""
        last = state.last
        if not isinstance(last, ActionEvaluated) or last.data.decision.verdict is Verdict.DENY:
            return None
        draft = decide_evaluated(state, await self._facts(last.data), self.limits, self.clock())
        if draft is not None and isinstance(draft.data, ApprovalRequested) and draft.expirytime is not None:
            # Before the append: an approval that people can see but no sweeper knows would never expire.
            await self.store.open(draft.data, draft.expirytime, state.last_seq)
        return draft

    async def _facts(self, said: Evaluated) -> Facts:
        stopped_by = self.stops.engaged_for(said)
        if stopped_by is not None:
            return Facts(stopped_by=stopped_by)
        denied = await self.store.blocked(said.remit_id, said.action.block_class)
        asks = said.decision.verdict is Verdict.ASK
        return Facts(
            exhausted=asks and await self.store.is_exhausted(said.remit_id, said.grant_no),
            blocked=denied.reason if denied else None,
        )

    async def on_redrive(self, inbound: Inbound) -> None:
        """Look again at an action that stands still; harmless when forged, because its own events decide."""
        action_id = inbound.body.decode("ascii", "replace")
        if not ACTION_ID.match(action_id):
            return
        state = await self.ledger.read(action_id)
        draft = await self.on_action_evaluated(state)
        if draft is None:
            return
        try:
            await self.ledger.append(state, draft)
        except Superseded:
            return  # Somebody decided meanwhile, which is all a redrive is for.
