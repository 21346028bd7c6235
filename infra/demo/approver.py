"""The scripted approvers: Dana looks at the live queue and approves exactly the calls that the human's task needs.

Where two people must agree, Sam looks after her. They see what the dashboard shows, the read model, and send what its buttons
send, commands to approval.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remit.canonical import digest
from remit.commands import ApproveCommand, DenyCommand

if TYPE_CHECKING:
    import asyncpg

    from infra.demo.people import People
    from infra.demo.tasks import Task

POLL_S = 0.1
QUEUE = """
    select action_id, remit_id, tool, action, args_digest, shown_digest, round from audit.actions_all
    where approval_status = 'requested' and outcome is null order by proposed_at limit 50
"""
DENIAL = "not part of the task"
APPROVERS = ("dana", "sam")
"""Who looks in which round; a round begins when the votes so far are not enough."""


@dataclass(slots=True)
class Approver:
    """Approves the user's own calls, denies the rest; what was answered once is not asked again."""

    people: People
    database: asyncpg.Pool[asyncpg.Record]
    decisions: Counter[str] = field(default_factory=Counter[str])
    _needed: dict[str, set[tuple[str, str]]] = field(default_factory=dict[str, set[tuple[str, str]]])
    _answered: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])

    def expect(self, remit_id: str, task: Task) -> None:
        """Remember which exact calls a remit's task needs, by action and digest of the arguments."""
        self._needed[remit_id] = {(call.tool, digest(call.arguments)) for call in task.calls}

    async def run(self) -> None:
        """Work the queue until cancelled."""
        while True:
            for row in await self.database.fetch(QUEUE):
                if (row["action_id"], row["round"]) not in self._answered:
                    await self._decide(row)
            await asyncio.sleep(POLL_S)

    async def _decide(self, row: asyncpg.Record) -> None:
        call = (row["action"].rpartition(".")[2], row["args_digest"])
        person = APPROVERS[min(row["round"], len(APPROVERS)) - 1]
        if call in self._needed.get(row["remit_id"], set()):
            reply = await self.people.command(
                person,
                ApproveCommand,
                action_id=row["action_id"],
                args_digest=row["args_digest"],
                shown_digest=row["shown_digest"],
                version=row["round"],
            )
        else:
            reply = await self.people.command(person, DenyCommand, action_id=row["action_id"], reason=DENIAL)
        if reply.status in {"ok", "decided", "stale", "forbidden"}:
            self._answered.add((row["action_id"], row["round"]))
        self.decisions[reply.status] += 1
