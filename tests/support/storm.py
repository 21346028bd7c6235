"""An agent that never stops proposing while services die: every proposal, what became of it, and how to read the evidence."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.demo.approver import Approver
from infra.demo.tasks import Call, Task
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine

    from remit import Pending, Refusal, Result
    from tests.support.live_stage import Live

NAMED = "GB29NWBK60161331926819"
"""A recipient the human typed: small payments to it need nobody."""
PACE_S = 0.04
"""Between two proposals; they are sent whatever became of the ones before."""
PATIENCE_S = 120.0
"""Longer than any redelivery or restart takes: a proposal still pending then is lost."""
EVENTS = """
    select action_id, type, count(*) n from audit.audit_event
    where stream = 'ACTIONS' and verify_status = 'valid' and remit_id = $1 group by action_id, type
"""
CLAIMS = """
    select count(*) claims, count(distinct jti) tokens from control.execution where state <> 'refused' and remit_id = $1
"""
ONCE = ("proposed", "evaluated", "approved", "tokenized", "started", "executed", "audited")
"""What a call that went well leaves behind, once each."""


@dataclass(slots=True)
class Storm:
    """Proposals in flight and their answers, by idempotency key."""

    live: Live
    remit: str
    answers: dict[str, Result | Refusal | Pending] = field(default_factory=dict[str, Any])
    sent: int = 0
    _waiting: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    async def blow(self) -> None:
        """Propose for ever: a read, a small payment by rule, and one that people are asked about."""
        while True:
            kind = ("read", "rule", "asked")[self.sent % 3]
            self._propose(f"{kind}-{self.sent}", *call_of(kind, self.sent))
            self.sent += 1
            await asyncio.sleep(PACE_S)

    def _propose(self, key: str, call: str, arguments: dict[str, Any]) -> None:
        async def propose() -> None:
            options = {"remit": self.remit, "idempotency_key": key}
            self.answers[key] = await self.live.agent.propose(call, arguments, wait=PATIENCE_S, **options)

        task = asyncio.create_task(propose())
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def settle(self) -> None:
        """Wait for every answer, then until the evidence of each is complete."""
        await asyncio.gather(*self._waiting)
        unfinished = "select count(*) from audit.actions_all where remit_id = $1 and receipt_seq is null"
        await eventually(lambda: self.live.admin.fetchval(unfinished, self.remit), 0, within_s=60)

    async def events(self) -> dict[str, Counter[str]]:
        """Return how many events of each type every action has."""
        found: dict[str, Counter[str]] = {}
        for row in await self.live.admin.fetch(EVENTS, self.remit):
            found.setdefault(row["action_id"], Counter())[row["type"]] = row["n"]
        return found

    async def claims(self) -> tuple[int, int]:
        """Return how many calls were claimed, and with how many different tokens."""
        row = await self.live.admin.fetchrow(CLAIMS, self.remit)
        assert row is not None
        return row["claims"], row["tokens"]

    async def effects(self) -> Counter[str]:
        """Return how often the bank really did something, by idempotency key."""
        log = await self.live.effects()
        return Counter(str(line["idempotency_key"]) for line in log if line["kind"] == "effect")


def call_of(kind: str, number: int) -> tuple[str, dict[str, Any]]:
    """Return the call of a kind; the number makes it a call of its own."""
    if kind == "read":
        return "bank.get_balance", {}
    payment = {"amount": 5, "subject": f"part {number}", "date": "2022-01-01"}
    if kind == "rule":
        return "bank.send_money", {**payment, "recipient": NAMED}
    return "bank.schedule_transaction", {**payment, "recipient": f"DE{number:020}", "recurring": False}


async def storm_over(live: Live, *calls: str) -> Storm:
    """Grant what the storm proposes, and `calls` besides."""
    named = {"properties": {"recipient": {"const": NAMED}}}
    grants: list[dict[str, Any]] = [
        {"type": "tool_call", "tool": "bank", "action": "get_balance"},
        {"type": "tool_call", "tool": "bank", "action": "send_money", "arguments": named},
        {"type": "tool_call", "tool": "bank", "action": "schedule_transaction"},
        *live.terms(*calls)["grants"],
    ]
    return Storm(live, await live.grant(grants=grants, max_calls=10_000))


@contextlib.asynccontextmanager
async def at_work(*loops: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    """Run endless loops beside the block; one that fails fails the block."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [end for end in ended if not isinstance(end, asyncio.CancelledError)] == []


async def approver_of(storm: Storm) -> Approver:
    """Return Dana, who says yes to everything the storm asks."""
    approver = Approver(storm.live.people, await storm.live.stage.database(storm.live.stage.environment.admin_url))
    calls = (
        Call(tool=name.removeprefix("bank."), arguments=arguments, result="", changes=())
        for name, arguments in (call_of("asked", number) for number in range(2, 30_000, 3))
    )
    approver.expect(storm.remit, Task(id="storm", prompt="", calls=tuple(calls), inject_after=0))
    return approver


async def kill(live: Live, service: str) -> None:
    """Kill every process of a service as a power failure would, and wait until all services are ready again."""
    supervisor = live.stage.supervisor
    before, pids = supervisor.restarts(service), supervisor.pids(service)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    await eventually(lambda: supervisor.restarts(service) - before, len(pids))
    await supervisor.ready(60)
