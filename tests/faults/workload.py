"""What the agent asks for while things break: a seeded mix of calls, each sent until the broker has it, some of them twice."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import asyncpg

from infra.demo.people import CommandRefusedError
from remit import AgentKeyError, Pending, Refusal, Result, UndeliveredError
from remit.canonical import digest
from remit.commands import ApproveCommand
from remit.ids import action_id
from remit.runtime.postgres import UNWILLING

if TYPE_CHECKING:
    import random
    from collections.abc import Coroutine, Mapping
    from types import TracebackType

    from tests.faults.world import World

MIX = ("pay", "send", "send", "set", "ask", "wire")
"""How often each action comes: half of them must never be repeated, a third waits for a person."""
TWICE = 0.125
"""Share of proposals that the agent sends twice at once, as one does that lost the first answer."""
SPREAD_S = 0.01
PATIENCE_S = 180.0
"""How long an agent keeps sending a proposal that nobody acknowledges."""
POLL_S = 0.1
KEY_PAUSE_S = 0.5
"""Before an agent tries a key again that the broker did not know; the SDK says that at once."""
TENANT = "default"
QUEUE = """
    select action_id, args_digest, shown_digest, round from audit.actions_all
    where approval_status = 'requested' and outcome is null and remit_id = any($1) order by proposed_at limit 50
"""
CONCLUDED = """
    select action_id from audit.actions_all where action_id = any($1) and (receipt_seq is not null or outcome = 'unknown')
"""


class Stuck(AssertionError):  # noqa: N818  (what it is, not that it is an error)
    """Something did not come to its end after everything was whole again; the message names it."""


@dataclass(slots=True)
class Sent:
    """One proposal; `stored` once the broker acknowledged it."""

    key: str
    action_id: str
    action: str
    args_digest: str
    stored: bool = False
    answer: Result | Refusal | Pending | None = None


@dataclass(slots=True)
class Workload:
    """Proposals in flight, and a person who approves what is asked."""

    world: World
    sent: dict[str, Sent] = field(default_factory=dict[str, Sent])
    judged: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])
    _approver: asyncio.Task[None] | None = None
    remits: list[str] = field(default_factory=list[str])

    async def __aenter__(self) -> Self:
        """Let Dana begin to approve."""
        self.remits.append(self.world.remit_id)
        self._approver = asyncio.create_task(self._approve())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop proposing and approving."""
        tasks = [*self._tasks, *([self._approver] if self._approver else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def propose(
        self, number: int, *, mix: tuple[str, ...] = MIX, delay_ms: int = 20, spread_s: float = SPREAD_S
    ) -> list[Sent]:
        """Begin `number` proposals, `spread_s` apart on average; they are sent until stored, whatever is broken."""
        chance = self.world.chance
        begun: list[Sent] = []
        for _ in range(number):
            arguments = {
                "n": len(self.sent),
                "note": f"call {len(self.sent)}",
                "delay_ms": chance.randrange(delay_ms + 1),
            }
            begun.append(self.begin(chance.choice(mix), arguments))
            await asyncio.sleep(chance.random() * 2 * spread_s)
        return begun

    def begin(
        self,
        action: str,
        arguments: Mapping[str, Any],
        *,
        remit: str | None = None,
        chance: random.Random | None = None,
    ) -> Sent:
        """Begin one proposal; `chance`, by default the world's, decides whether the agent sends it twice."""
        key = f"call-{len(self.sent)}"
        sent = Sent(key, action_id(TENANT, self.world.agent.name, key), action, digest(arguments))
        self.sent[sent.action_id] = sent
        copies = 2 if (chance or self.world.chance).random() < TWICE else 1
        for _ in range(copies):
            self._start(self._send(sent, dict(arguments), remit or self.world.remit_id))
        return sent

    async def run(self, every_s: float) -> None:
        """Propose for ever, one call each `every_s` seconds on average."""
        while True:
            await self.propose(1, spread_s=every_s)

    async def settle(self, within_s: float = 60.0) -> None:
        """Wait until every proposal is stored and concluded with its receipt, and every durable is empty.

        Raises:
            Stuck: something is not, in time.

        """
        try:
            async with asyncio.timeout(within_s):
                await asyncio.gather(*self._tasks)
                await self._concluded()
                await self._drained()
        except TimeoutError:
            raise Stuck(await self._stuck(within_s)) from None

    async def _concluded(self) -> None:
        while await self.unfinished():
            await asyncio.sleep(POLL_S)

    async def unfinished(self, sent: list[Sent] | None = None) -> set[str]:
        """Return proposals, by default those not judged yet, that have no conclusion in the read model."""
        mine = [s.action_id for s in (list(self.sent.values())[self.judged :] if sent is None else sent)]
        rows = await self.world.admin.fetch(CONCLUDED, mine)
        return set(mine) - {row["action_id"] for row in rows}

    async def _drained(self) -> None:
        while any(any(count) for count in (await self.world.consumers()).values()):
            await asyncio.sleep(POLL_S)

    async def _stuck(self, within_s: float) -> str:
        unsent = [s.key for s in self.sent.values() if not s.stored]
        hanging = await self.unfinished()
        last = await self.world.admin.fetch(
            "select action_id, last_type, approval_status, outcome from audit.actions_all where action_id = any($1)",
            list(hanging),
        )
        held = {name: count for name, count in (await self.world.consumers()).items() if any(count)}
        return (
            f"not settled {within_s:g} s after the heal: not stored {unsent[:5]} ({len(unsent)}), "
            f"unfinished {[tuple(row) for row in last][:5]} of {len(hanging)} {sorted(hanging)[:3]}, consumers {held}, "
            f"services {self.world.describe()}"
        )

    def take(self) -> list[Sent]:
        """Return the proposals that were not judged yet; from now on they count as judged."""
        fresh = list(self.sent.values())[self.judged :]
        self.judged += len(fresh)
        return fresh

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, sent: Sent, arguments: dict[str, Any], remit: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not sent.stored:
                try:
                    call = f"oracle.{sent.action}"
                    sent.answer = await self.world.agent.propose(
                        call, arguments, remit=remit, idempotency_key=sent.key, wait=0
                    )
                    sent.stored = not _is_full(sent.answer)
                except UndeliveredError:
                    pass  # It repeats what it could for ten seconds before it says so.
                except AgentKeyError:
                    await asyncio.sleep(KEY_PAUSE_S)

    async def _approve(self) -> None:
        answered: set[tuple[str, int]] = set()
        while True:
            try:
                for row in await self.world.admin.fetch(QUEUE, self.remits):
                    if (row["action_id"], row["round"]) in answered:
                        continue
                    shown = {
                        "args_digest": row["args_digest"],
                        "shown_digest": row["shown_digest"],
                        "version": row["round"],
                    }
                    reply = await self.world.people.command("dana", ApproveCommand, action_id=row["action_id"], **shown)
                    if reply.status in {"ok", "decided"}:
                        answered.add((row["action_id"], row["round"]))
            except (CommandRefusedError, asyncpg.PostgresError, *UNWILLING):
                pass  # Whatever is broken now, the queue is still there afterwards.
            await asyncio.sleep(POLL_S)


def _is_full(answer: Result | Refusal | Pending) -> bool:
    return isinstance(answer, Refusal) and str(answer.reason) == "quota_exceeded"
