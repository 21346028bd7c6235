"""The fence, operated as its model names the operations: through the stores of executor and approval, as their own logins."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from remit.clock import now
from remit.errors import TransientError
from remit.reasons import Outcome, Reason
from services.approval.database import Database
from services.approval.stop_store import StopStore
from services.approval.store import ActionStore, Block
from services.executor.claims import ClaimStore
from services.executor.decide import claim_id, continued
from services.executor.row_model import CONTINUED, FIRST, Operation, Row
from services.executor.rows import Refusal
from services.executor.rows import Row as StoredRow
from tests.support import execution as x
from tests.support import factories as f

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import asyncpg

    from remit.events import Executed
    from services.executor.decide import Order

NEVER_FRESH_S = -172_800.0
"""Evidence must be from the day after tomorrow, which no heartbeat of a test is."""
PATIENT = x.tool_entry({"say": x.action_entry(timeout_s=300.0)})
LATER_S = 600.0
"""No deadline passes by itself while a test runs."""
PAST = """
UPDATE control.execution SET deadline = clock_timestamp() - interval '1 second'
WHERE action_id = $1 AND state = 'in_flight'
"""
READ = """
SELECT state, claim_id, coalesce(state = 'in_flight' AND deadline < clock_timestamp(), false) AS is_over
FROM control.execution WHERE action_id = $1
"""
COPY_REMIT = """
INSERT INTO control.remit (remit_id, human_iss, human_sub, agent_id, digest, granted_seq, not_before, expires_at, max_calls,
                           document)
SELECT $1, human_iss, human_sub, $2, digest, granted_seq, not_before, expires_at, max_calls, document
FROM control.remit WHERE remit_id = $3
"""


@dataclass(frozen=True, slots=True)
class Fence:
    """Stores over one database; `stale` is an executor that finds no fresh evidence."""

    pool: asyncpg.Pool[asyncpg.Record]
    store: ClaimStore
    stale: ClaimStore
    actions: ActionStore
    switches: StopStore

    async def admit(self, remit_id: str) -> None:
        """Make the rows of one more remit, whose agent bears its name."""
        agent = agent_of(remit_id)
        rows = [("remit", remit_id), ("agent", agent)]
        await self.pool.executemany("INSERT INTO control.stop (kind, target) VALUES ($1, $2)", rows)
        await self.pool.execute(COPY_REMIT, remit_id, agent, f.REMIT.remit_id)
        await self.pool.executemany(
            "INSERT INTO control.budget (remit_id, grant_no, max_calls) VALUES ($1, $2, 1000000)",
            [(remit_id, 0), (remit_id, 1)],
        )

    async def halt(self, remit_id: str, reason: str) -> None:
        """Make the fence refuse this remit's claims for a reason, by approval's own stores."""
        if reason == Reason.BLOCKED:
            block = Block(
                remit_id=remit_id, session="s", block_class="echo.say|", reason="no", by=f.DANA, seconds=3600.0
            )
            await self.actions.block(block)
        elif reason:
            stop = ("remit", remit_id) if reason == Reason.REMIT_REVOKED else ("agent", agent_of(remit_id))
            assert await self.switches.engage(stop, reason="drill", by=f.DANA)

    async def lift(self, remit_id: str) -> None:
        """Lift the stop of a remit."""
        assert await self.switches.lift(("remit", remit_id), reason="drill", by=f.DANA) == "lifted"


def agent_of(remit_id: str) -> str:
    """Return the agent that a further remit is for."""
    return f"spiffe://acme.example/agent/{remit_id}"


def order_under(remit_id: str, key: str) -> Order:
    """Return an order of one of these remits; neither its token nor its deadline ends while a test runs."""
    lasting = {"agent": agent_of(remit_id), "expires_at": now() + timedelta(hours=1)}
    return replace(x.order_of(PATIENT, key=key), remit_id=remit_id, **lasting)


@dataclass(frozen=True, slots=True)
class Operated:
    """One action's row, operated."""

    fence: Fence
    order: Order

    @property
    def claims(self) -> dict[int, str]:
        """The claim ids that the model numbers."""
        first = claim_id(self.order.action_id, self.order.attempt)
        return {FIRST: first, CONTINUED: continued(first)}

    async def row(self) -> Row:
        """Return the row as the model sees it."""
        found = await self.fence.pool.fetchrow(READ, self.order.action_id)
        if found is None:
            return Row()
        holders = {None: 0} | {name: number for number, name in self.claims.items()}
        return Row(found["state"], holders[found["claim_id"]], found["is_over"])

    async def perform(self, operation: Operation, *, is_stale: bool = False) -> str:
        """Perform an operation of the model and return the answer in its words."""
        store = self.fence.stale if is_stale else self.fence.store
        order, claim = self.order, self.claims[operation.claim]
        match operation.name:
            case "claim":
                return await store.claim(order, claim)
            case "refuse":
                refusal = Refusal(
                    action_id=order.action_id, remit_id=order.remit_id, attempt=1, claim_id=claim, reason="x"
                )
                return "taken" if await store.refuse(refusal) else "exists"
            case "may_send":
                return "yes" if await store.may_send(order, claim) else "no"
            case "take_over":
                return await self._take_over(store, claim)
            case "conclude":
                return await self._conclude(store, operation, claim)
            case "lease":
                leased = await store.lease_interrupted(10_000)
                return "leased" if order.action_id in {row.action_id for row in leased} else "nothing"
            case _:
                return await self._outside(operation)

    async def _take_over(self, store: ClaimStore, claim: str) -> str:
        row = StoredRow(
            action_id=self.order.action_id, claim_id=claim, attempt=1, args_digest=None, state="in_flight", reason=None,
            draft=None,
        )  # fmt: skip
        try:
            taken = await store.take_over(row, claim_id=continued(claim), deadline_s=LATER_S)
        except TransientError:
            return "evidence_stale"
        return "taken" if taken else "ended"

    async def _conclude(self, store: ClaimStore, operation: Operation, claim: str) -> str:
        queued = await store.conclude(
            action_id=self.order.action_id, claim_id=claim, data=self._executed(operation, claim)
        )
        if queued is None:
            return "not held"
        return "resolved" if queued.discriminator.endswith(":resolved") else "stored"

    async def _outside(self, operation: Operation) -> str:
        """Perform what is not the executor's: a revocation, a person's finding, the passing of time."""
        order = self.order
        match operation.name:
            case "forestall":
                revoked = f.REVOKED.model_copy(update={"txn": order.action_id, "remit_id": order.remit_id})
                return "taken" if (await self.fence.actions.forestall(revoked, "1")).queued else "too_late"
            case "resolve":
                data = self._executed(operation, self.claims[FIRST])
                found = await self.fence.actions.resolve(order.action_id, data, "1:resolved")
                return "stored" if found else "not unknown"
            case "expire":
                await self.fence.pool.execute(PAST, order.action_id)
                return "passed"
            case name:
                raise AssertionError(name)

    def _executed(self, operation: Operation, claim: str) -> Executed:
        update: dict[str, Any] = {
            "txn": self.order.action_id, "remit_id": self.order.remit_id, "claim_id": claim,
            "outcome": Outcome(operation.outcome),
        }  # fmt: skip
        return f.EXECUTED.model_copy(update=update)


@asynccontextmanager
async def fenced(server_url: str) -> AsyncGenerator[Fence]:
    """Make a database and its stores."""
    async with AsyncExitStack() as stack:
        on = await stack.enter_async_context(x.claimable(server_url))
        stale = ClaimStore(replica="executor-stale", evidence_max_age_s=NEVER_FRESH_S)
        stale.attach(await stack.enter_async_context(x.pool_of(on.url, "remit_executor", size=4)))
        approval = Database()
        approval.attach(await stack.enter_async_context(x.pool_of(on.url, "remit_approval", size=8)))
        yield Fence(on.pool, on.store, stale, ActionStore(approval), StopStore(approval))
