"""Claims that never stop, beside people who take back: what races need around a running stage."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import asyncpg

from infra.demo.tasks import AGENT_ID
from remit import Pending, Refusal
from remit.ids import fresh_key
from remit.reasons import Reason
from services.executor.claims import CLAIMED, ClaimStore
from tests.support import execution as x
from tests.support.live_stage import ASKED
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from services.executor.decide import Order
    from tests.support.live_stage import Live

CALL = "bank.schedule_transaction"
BANK = x.tool_entry({"schedule_transaction": x.action_entry(timeout_s=300.0)}, tool="bank")
WORKERS = 6
MANY = "UPDATE control.budget SET max_calls = 1000000 WHERE remit_id = $1"
HELD = "SELECT count(*) FROM control.execution WHERE remit_id = $1 AND state = 'in_flight'"
AFTER = f"{HELD} AND claimed_at > $2"
BEATS = "SELECT count(*) FROM control.heartbeat WHERE service = 'audit'"
FORGET = "DELETE FROM control.execution WHERE remit_id = $1"


def tell(name: str, figures: object) -> None:
    """Print one line of figures for who runs the long form (`pytest -s`)."""
    sys.stdout.write(f"\nRESULT {name} {figures}\n")


def payment(recipient: str) -> dict[str, Any]:
    """Return the arguments of a payment that people are asked about; the recipient is the resource that a denial names."""
    return {"recipient": recipient, "amount": 5, "subject": "race", "date": "2022-01-01", "recurring": False}


@dataclass(slots=True)
class Storm:
    """What the claims of one run were answered, apart by whether they began after the revocation had returned."""

    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    before: Counter[str] = field(default_factory=Counter[str])
    after: Counter[str] = field(default_factory=Counter[str])


@dataclass(slots=True)
class Arena:
    """A stage, and executors of our own that claim in its database as its executors do: one connection each."""

    live: Live
    stores: list[ClaimStore]
    human: str
    _numbers: int = 0
    _work: asyncio.Future[Any] | None = None

    def order(self, remit_id: str, recipient: str, **more: Any) -> Order:
        """Return an order that the fence lets pass, under a stored remit."""
        self._numbers += 1
        order = x.order_of(BANK, "schedule_transaction", key=f"{remit_id}-{self._numbers}")
        mine = {"remit_id": remit_id, "human": self.human, "agent": AGENT_ID, "block_class": f"{CALL}|{recipient}"}
        return replace(order, **{**mine, **more})

    async def remit(self) -> str:
        """Let Emma delegate more payments than any race makes."""
        remit_id = await self.live.grant(CALL)
        await self.live.admin.execute(MANY, remit_id)
        return remit_id

    async def ask(self, remit_id: str, recipient: str) -> asyncpg.Record:
        """Let the agent propose what people are asked about, and return what they see of it.

        It is proposed again where a replica of approval believes for a moment that a lifted switch is engaged, or where a busy
        machine shows it too late.
        """
        while True:
            found: Any = await self.live.agent.propose(CALL, payment(recipient), remit=remit_id, wait=0.0)
            while isinstance(found, Pending):
                row = await self.live.admin.fetchrow(ASKED, found.action_id)
                if row is not None:
                    return row
                found = await found.wait(0.05)
            assert isinstance(found, Refusal), found
            assert found.reason in {Reason.STOPPED, Reason.EXPIRED}, found

    async def storm(self, remit_id: str, recipient: str) -> Storm:
        """Claim without a pause until told that a revocation has returned, and some more."""
        storm = Storm()

        async def work(store: ClaimStore) -> None:
            left = 3
            while left:
                counted = storm.after if storm.stopped.is_set() else storm.before
                left -= storm.stopped.is_set()
                counted[await store.claim(self.order(remit_id, recipient), fresh_key())] += 1

        self._work = asyncio.gather(*(work(store) for store in self.stores[:WORKERS]))
        async with asyncio.timeout(10.0):
            while not storm.before[CLAIMED]:
                await asyncio.sleep(0.001)
        return storm

    async def calm(self, storm: Storm, remit_id: str) -> int:
        """Tell the storm that the revocation has returned; return how many claims committed all the same."""
        storm.stopped.set()
        held = await self.live.admin.fetchval(HELD, remit_id)
        assert self._work is not None
        await self._work
        return await self.live.admin.fetchval(HELD, remit_id) - held

    async def begun_after(self, remit_id: str, engaged: str, *arguments: str) -> int:
        """Return how many claims are held that began after a switch (or block) of that query took its lock."""
        at = await self.live.admin.fetchval(engaged, *arguments)
        assert at is not None
        return await self.live.admin.fetchval(AFTER, remit_id, at)


@asynccontextmanager
async def arena(live: Live, *, size: int = 50) -> AsyncGenerator[Arena]:
    """Connect the executors."""
    stores: list[ClaimStore] = []
    url = live.stage.environment.database_url("executor")
    try:
        for number in range(size):
            store = ClaimStore(replica=f"racer-{number}", evidence_max_age_s=60.0)
            store.attach(await asyncpg.create_pool(url, min_size=1, max_size=1))
            stores.append(store)
        await eventually(lambda: live.admin.fetchval(BEATS), 1)
        yield Arena(live, stores, f"{live.people.issuer}|emma")
    finally:
        for store in stores:
            await store.close()
