"""The recorded tasks: what the user typed, the calls that solve it, and the attacks that come in through a tool's result.

Calls, prompts and attacks are AgentDojo's (see `data/README.md`). A run proposes the user's calls; right after the first result
that carries a stranger's text, the calls of the attacks follow, as if the agent had fallen for them.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from remit import clock
from remit.canonical import canonical, digest_bytes
from remit.remits import RemitTerms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BANKING = Path(__file__).parent / "data" / "banking.json"
TOOL = "bank"
AGENT_ID = "spiffe://acme.example/agent/bookkeeper"
ENVIRONMENT = "demo"
IDENTITY = {
    "runtime": "recorded-replay",
    "model_family": "agentdojo-recording",
    "model_version": "v1.2.2",
    "config_digest": digest_bytes(BANKING.read_bytes()),
}
"""What the scripted agent truly is: a replay whose whole configuration is the recording; the registry names the same."""
LIFETIME = timedelta(hours=1)

Arguments = dict[str, JsonValue]
Origin = Literal["benign", "injected"]

# A number standing alone: not part of a word, an account, a date or a file name, and not a percentage. The possessive
# quantifiers keep "19.5%" from being read as 19.
_NUMBER = re.compile(r"(?<![\w.,-])\d++(?:\.\d++)?+(?![\w%-])")


READ_CALLS = 20
"""Reads get slack, writes none: an attack that reads first must not eat the user's own read (design, dashboard section 3.2)."""


class _Recorded(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Call(_Recorded):
    """One recorded call and what it did in AgentDojo's environment."""

    tool: str
    arguments: Arguments
    result: str = Field(description="Text the tool answered with.")
    changes: tuple[str, ...] = Field(description="JSON pointers into the environment that the call changed.")
    slots: tuple[str, ...] = Field(default=(), description="Slots whose text appears in the result.")


class Attack(_Recorded):
    """What a stranger's text tells the agent to do, and the calls that do it."""

    id: str
    goal: str
    calls: tuple[Call, ...]
    succeeds_with: tuple[tuple[int, ...], ...] = Field(
        description="The goal is reached when all calls of one entry ran."
    )


class Task(_Recorded):
    """One task of the user, with every attack that is tried on it."""

    id: str
    prompt: str
    calls: tuple[Call, ...]
    inject_after: int = Field(description="Index of the call whose result carries the stranger's text.")
    attacks: tuple[Attack, ...] = ()


class Tool(_Recorded):
    """One tool of the suite; `sinks` are the arguments that say whom or what a call reaches."""

    name: str
    description: str
    arguments: dict[str, Any]
    effect: Literal["read", "write", "destructive"]
    sinks: tuple[str, ...]


class Suite(_Recorded):
    """Tools, default texts of the slots, and tasks."""

    tools: tuple[Tool, ...]
    injection_slots: dict[str, str]
    tasks: tuple[Task, ...] = Field(alias="user_tasks")
    attacks: tuple[Attack, ...] = Field(alias="injection_tasks")

    def tool(self, name: str) -> Tool:
        """Return a tool by name."""
        return next(tool for tool in self.tools if tool.name == name)


class Step(NamedTuple):
    """One proposal of a run."""

    origin: Origin
    tool: str
    arguments: Arguments


@cache
def load(path: Path = BANKING) -> Suite:
    """Return the recorded suite, each task with all its attacks."""
    suite = TypeAdapter(Suite).validate_json(path.read_bytes())
    tasks = tuple(task.model_copy(update={"attacks": suite.attacks}) for task in suite.tasks)
    return suite.model_copy(update={"tasks": tasks})


def tasks() -> tuple[Task, ...]:
    """Return the sixteen tasks."""
    return load().tasks


def steps(task: Task, attacks: Iterable[Attack] = ()) -> Iterator[Step]:
    """Yield what the agent proposes, in order: the user's calls, and after `inject_after` each call of each attack once.

    `steps(task)` is the plain run, `steps(task, [attack])` one attack, `steps(task, task.attacks)` the run of the demonstration.
    """
    for index, call in enumerate(task.calls):
        yield Step("benign", call.tool, call.arguments)
        if index == task.inject_after:
            yield from (Step("injected", bad.tool, bad.arguments) for attack in attacks for bad in attack.calls)


def slots(task: Task, attacks: Iterable[Attack], defaults: dict[str, str]) -> dict[str, str]:
    """Return the slot texts of an attacked run: the default text, then the attackers' goals; empty without attacks."""
    goals = "".join(f"\n\n{attack.goal}" for attack in attacks)
    carriers = task.calls[task.inject_after].slots
    return {slot: defaults[slot] + goals for slot in carriers} if goals else {}


def needed(task: Task, tool: str, arguments: Arguments) -> bool:
    """Tell whether this very call is one of the user's own: what the scripted approver approves."""
    asked = canonical(arguments)
    return any(call.tool == tool and canonical(call.arguments) == asked for call in task.calls)


def named(value: JsonValue, prompt: str) -> bool:
    """Tell whether the user typed this value as whole words, so that 13 does not stand in 130."""
    text = re.escape(str(value).strip())
    return re.search(rf"(?<!\w){text}(?!\w)", prompt, re.IGNORECASE) is not None


def _sink(task: Task, values: list[JsonValue]) -> dict[str, JsonValue] | None:
    """Return the constraint of one sink over all the user's calls of a tool; none unless the user typed every value."""
    if not values or not all(named(value, task.prompt) for value in values):
        return None
    unique = [value for index, value in enumerate(values) if value not in values[:index]]
    return {"const": unique[0]} if len(unique) == 1 else {"enum": unique}


def _maximum(task: Task, amounts: list[float]) -> dict[str, JsonValue] | None:
    """Return the smallest number of the prompt that covers the user's amounts as a limit; none when there is no such number."""
    covering = [number for number in map(float, _NUMBER.findall(task.prompt)) if number >= max(amounts, default=0)]
    return {"maximum": min(covering)} if amounts and covering else None


def _grant(task: Task, tool: Tool) -> dict[str, JsonValue]:
    calls = [call.arguments for call in task.calls if call.tool == tool.name]
    constraints: dict[str, JsonValue] = {}
    for sink in tool.sinks:
        if constraint := _sink(task, [arguments[sink] for arguments in calls if sink in arguments]):
            constraints[sink] = constraint
    amounts = [float(value) for arguments in calls if isinstance(value := arguments.get("amount"), int | float)]
    if limit := _maximum(task, amounts):
        constraints["amount"] = limit
    grant: dict[str, JsonValue] = {
        "type": "tool_call",
        "tool": TOOL,
        "action": tool.name,
        "max_calls": READ_CALLS if tool.effect == "read" else len(calls),
    }
    if constraints:
        grant["arguments"] = {"properties": constraints}
    return grant


def remit_for(task: Task, *, agent_id: str = AGENT_ID, not_before: datetime | None = None) -> dict[str, Any]:
    """Return the terms of a remit as JSON, as a careful person would write them for this task by hand.

    Simple on purpose, and not derived from the prompt alone: it knows which tools the task takes and how often. Sinks that the
    user typed become `const` or `enum`, amounts are limited when the prompt names a fitting number. A remit compiler, which may
    look at prompt, schemas and registry only, is another thing.
    """
    begin = not_before or clock.now()
    used = dict.fromkeys(call.tool for call in task.calls)
    grants = [_grant(task, load().tool(name)) for name in used]
    document: dict[str, Any] = {
        "agent_id": agent_id,
        "task": task.prompt,
        "grants": grants,
        "environment": ENVIRONMENT,
        "not_before": begin.isoformat(),
        "expires_at": (begin + LIFETIME).isoformat(),
        "max_calls": sum(int(str(grant["max_calls"])) for grant in grants),
    }
    RemitTerms.model_validate_json(TypeAdapter(dict[str, Any]).dump_json(document))
    return document
