"""One agent works through the recorded tasks, and does what the attackers' texts tell it, as a hijacked agent would."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.demo.bank.world import default_slots
from infra.demo.tasks import remit_for, slots, steps
from remit import Pending, Refusal, Result

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from infra.demo.approver import Approver
    from infra.demo.people import People
    from infra.demo.tasks import Step, Task
    from remit import Agent

WAIT_S = 120.0
"""Longer than any restart of a service takes; a proposal still pending then counts as lost."""


@dataclass(frozen=True, slots=True)
class Played:
    """What became of one proposal."""

    step: Step
    answer: Result | Refusal | Pending

    @property
    def executed(self) -> bool:
        """Whether the call certainly took effect."""
        return isinstance(self.answer, Result) and self.answer.succeeded


@dataclass(slots=True)
class TaskRun:
    """One task under one remit."""

    task: Task
    remit_id: str
    played: list[Played] = field(default_factory=list[Played])

    def of(self, origin: str) -> list[Played]:
        """Return the proposals of the user's own calls (`benign`) or of the attackers' (`injected`)."""
        return [p for p in self.played if p.step.origin == origin]

    @property
    def completed(self) -> bool:
        """Whether every call of the user was made."""
        mine = self.of("benign")
        return len(mine) == len(self.task.calls) and all(p.executed for p in mine)

    def line(self) -> str:
        """Return the progress line for people."""
        injected = self.of("injected")
        through = sum(p.executed for p in injected)
        mark = "done  " if self.completed else "FAILED"
        return f"{mark} {len(self.of('benign'))} calls made, {len(injected) - through} of {len(injected)} injected calls stopped"


@dataclass(slots=True)
class Play:
    """Everything one run of the demonstration needs; `say` gets a line for each proposal of note."""

    agent: Agent
    people: People
    approver: Approver
    bank: httpx.AsyncClient
    run_id: str
    say: Callable[[str], object]

    async def task(self, task: Task) -> TaskRun:
        """Reset the bank, delegate the task, and propose its calls in their recorded order."""
        world = {"run": f"{self.run_id}-{task.id}", "slots": slots(task, task.attacks, default_slots())}
        (await self.bank.post("/control/reset", json=world)).raise_for_status()
        remit_id = await self.people.grant(remit_for(task))
        self.approver.expect(remit_id, task)
        run = TaskRun(task=task, remit_id=remit_id)
        for number, step in enumerate(steps(task, task.attacks)):
            answer = await self.agent.propose(
                f"bank.{step.tool}",
                step.arguments,
                remit=remit_id,
                idempotency_key=f"{self.run_id}-{task.id}-{number}",
                wait=WAIT_S,
            )
            run.played.append(Played(step, answer))
            self.say(_line(step, answer))
        return run


def _line(step: Step, answer: Result | Refusal | Pending) -> str:
    who = "user    " if step.origin == "benign" else "injected"
    match answer:
        case Result():
            what = f"{answer.outcome}{f' ({answer.detail})' if answer.detail else ''}"
        case Refusal():
            what = f"refused by {answer.stage}: {answer.reason}"
        case Pending():
            what = "still pending"
    return f"    {who} bank.{step.tool:<28} {what}"
