"""What happens to a tokenized action: verify, announce, claim, call, record. Each step is a few lines here and a rule elsewhere.

Refusals and outcomes are appended here, not handed to the engine: after `started` they follow another event than the one that was
consumed, and each is fenced by the action's row in Postgres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.errors import TransientError
from remit.events import ActionApproved, ActionRefused, ActionStarted, ActionTokenized
from remit.ids import ACTION_ID
from remit.runtime.crash import crash_point
from remit.runtime.ledger import Draft, Ledger, Superseded
from remit.runtime.work import MAX_REDECISIONS
from services.executor import claims, decide, results
from services.executor.calls import Held
from services.executor.decide import Next, Order, Refuse
from services.executor.rows import Refusal
from services.executor.sealed import ExpiredTokenError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from remit.evaluation import CompiledBundle
    from remit.fold import ActionState
    from remit.runtime.delivery import Inbound
    from services.executor.calls import Caller
    from services.executor.claims import ClaimStore
    from services.executor.connectors.protocol import Ready
    from services.executor.evidence import Evidence
    from services.executor.outbox import Outbox
    from services.executor.rows import Row
    from services.executor.sealed import SealedTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorHandlers:
    """Everything the executor needs from outside, built once in app.py."""

    clock: Callable[[], datetime]
    bundle: Callable[[], CompiledBundle]
    ledger: Ledger
    tokens: SealedTokens
    claims: ClaimStore
    caller: Caller
    outbox: Outbox
    evidence: Evidence
    reissue: Callable[[str], Awaitable[None]]
    """Asks the tokens service for another token of an action."""
    replica: str

    async def on_action_tokenized(self, state: ActionState) -> None:
        """Execute one action, or say why not."""
        order = decide.read_order(state, self.bundle())
        if isinstance(order, Refuse):
            return await self._refuse(state, order)
        try:
            refusal = await self._verify(state, order)
        except ExpiredTokenError:
            return await self._expired(state, order)
        if refusal is not None:
            return await self._refuse(state, refusal)
        async with self.caller.place(order):
            return await self._prepare(state, order)

    async def on_redrive(self, inbound: Inbound) -> None:
        """Do again what a delivery would do; idempotent, so a forged request is harmless."""
        action_id = inbound.body.decode("ascii", "replace")
        if not ACTION_ID.match(action_id):
            return
        state = await self.ledger.read(action_id)
        if isinstance(state.last, ActionTokenized | ActionStarted):
            await self.on_action_tokenized(state)

    async def _verify(self, state: ActionState, order: Order) -> Refuse | None:
        token = await self.tokens.open(state.must(ActionTokenized).data, order.action.tool.resource, now=self.clock())
        if isinstance(token, Refuse):
            return token
        unfit = decide.check_token(order, token)
        return unfit or decide.check_approval(order, state.must(ActionApproved), now=self.clock())

    async def _expired(self, state: ActionState, order: Order) -> None:
        truth = await self.ledger.read(state.action_id)
        then = decide.when_expired(order, is_started=isinstance(truth.last, ActionStarted))
        if then is Next.REISSUE:
            await self.reissue(state.action_id)
        else:
            await self._refuse(truth, then)

    async def _prepare(self, state: ActionState, order: Order) -> None:
        self.evidence.require()
        ready = await self.caller.prepare(order)
        if isinstance(ready, Refuse):
            return await self._refuse(state, ready)
        if self.clock() >= order.expires_at:
            return await self._expired(state, order)
        crash_point("executor", "X0")
        return await self._start(state, order, ready)

    async def _start(self, state: ActionState, order: Order, ready: Ready) -> None:
        if not isinstance(state.last, ActionStarted):
            claim_id = decide.claim_id(order.action_id, order.attempt)
            data = decide.started(state, order, claim_id=claim_id, replica=self.replica)
            draft = Draft(event=ActionStarted, data=data, discriminator=str(order.attempt))
            state = await self._append(state, draft)
        crash_point("executor", "X1")
        if isinstance(state.last, ActionStarted) and state.last.data.jti == order.jti:
            await self._claim(state, order, ready, state.last.data.claim_id)
        # Anything else: it ended, or another token overtook this one and has a delivery of its own.

    async def _append(self, state: ActionState, draft: Draft) -> ActionState:
        """Append, and return the state that contains the event, or the one where another event came first.

        Junk moves the sequence and nothing else, so the append is tried again beyond it. A leader that was deposed in a
        partition refuses appends and answers reads from the past for some seconds; that must not look like the end of this step.

        Raises:
            TransientError: no event came first, as far as can be read now.

        """
        for _ in range(MAX_REDECISIONS):
            try:
                return await self.ledger.append(state, draft)
            except Superseded as lost:
                if lost.state.is_terminal or len(lost.state.chain) > len(state.chain):
                    return lost.state
                if lost.state.last_seq == state.last_seq:
                    break
                state = lost.state
        raise TransientError(f"action {state.action_id}: an append lost to nothing that can be read yet")

    async def _claim(self, state: ActionState, order: Order, ready: Ready, claim_id: str) -> None:
        held = Held.now(order, claim_id)
        answer = await self.claims.claim(order, claim_id)
        if answer == claims.EVIDENCE_STALE:
            raise TransientError(f"action {order.action_id} waits for the projector; evidence gates effect")
        if answer == claims.EXISTS:
            return await self._settle(state, await self.claims.row(order.action_id))
        if answer != claims.CLAIMED:
            return await self._append_refusal(state, decide.refusal_of(answer))
        outcome, call = await self.caller.perform(order, ready, held)
        return await self.outbox.record(state, results.executed(state, outcome, call, order.action, now=self.clock()))

    async def _settle(self, state: ActionState, row: Row | None) -> None:
        """Finish what an earlier delivery began: a claim in flight is the sweeper's, an outcome goes to the outbox again.

        The event of an outcome is known by its id, so queueing it twice appends it once. A refused row without a claim id is
        approval's revocation, which appends its own event.
        """
        if row is not None and row.claim_id is not None and row.draft is not None:
            await self.claims.queue_again(row.action_id, row.claim_id)
        if row is not None and row.state == "refused" and row.claim_id is not None:
            await self._append_refusal(state, decide.refusal_of(row.reason or ""))

    async def _refuse(self, state: ActionState, refusal: Refuse) -> None:
        """End the action; once it was announced, only after nobody can claim it any more."""
        if not isinstance(state.last, ActionStarted):
            state = await self._append(state, _refused(state, refusal))
        if isinstance(state.last, ActionStarted):
            said = state.last.data
            occupied = Refusal(
                action_id=state.action_id, remit_id=said.remit_id, attempt=said.attempt, claim_id=said.claim_id,
                reason=str(refusal.reason),
            )  # fmt: skip
            if await self.claims.refuse(occupied):
                await self._append_refusal(state, refusal)
            else:
                await self._settle(state, await self.claims.row(state.action_id))

    async def _append_refusal(self, state: ActionState, refusal: Refuse) -> None:
        try:
            await self.ledger.append(state, _refused(state, refusal))
        except Superseded as lost:
            if not lost.state.is_terminal:
                raise TransientError(f"action {state.action_id} moved while it was refused") from None


def _refused(state: ActionState, refusal: Refuse) -> Draft:
    return Draft(event=ActionRefused, data=decide.refused(state, refusal))
