"""The demonstration's stage with more on it: all six services as processes, the bank and a lab of bad tools, two agents.

The servers are always the stage's own, whatever `NATS_URL` and `DATABASE_URL` say: these tests kill, delay and fill them.
"""

from __future__ import annotations

import os
import signal
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import orjson

from infra.demo.stage import AGENT, REGISTRY, Stage
from infra.demo.tasks import AGENT_ID, IDENTITY
from infra.local import key_ring
from infra.local.environment import Environment
from remit import Agent, Identity, Pending, Refusal, Result
from remit.clock import now
from remit.commands import ApplyCommand, ApproveCommand, Command, Reply, RevokeCommand
from remit.registry_files import load_registry
from tests.support.lab import ENVIRONMENT, POLICIES, Lab, running_lab
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
    from pathlib import Path

    import asyncpg
    import httpx

    from infra.demo.people import People
    from remit.bundle import BundleContent

CLERK = "clerk"
CLERK_ID = "spiffe://acme.example/agent/clerk"
PROPOSALS_PER_MINUTE = 60_000
"""These tests propose faster than any agent should."""
QUICK = {"executor": {"REMIT_SWEEP_S": "0.3", "REMIT_OUTBOX_AFTER_S": "0.5"}}
"""What the clock does comes soon."""
CALLED = "select count(*) from control.execution where action_id = $1 and state <> 'refused'"
ROW = "select * from audit.actions_all where action_id = $1 and receipt_seq is not null"
ASKED = "select * from audit.actions_all where action_id = $1 and approval_status = 'requested' and outcome is null"


class LiveStage(Stage):
    """The stage; `settings` are further environment variables by service."""

    def __init__(
        self,
        directory: Path,
        *,
        scale: Mapping[str, int] | None = None,
        settings: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """Remember what to start."""
        super().__init__(directory, scale=scale or {}, dashboard=False, say=lambda _: None)
        self.environment = Environment(directory, agents=(AGENT, CLERK))
        given = settings or {}
        self._more = {name: {**QUICK.get(name, {}), **given.get(name, {})} for name in {*QUICK, *given}}

    def _service_settings(self, credentials: Path) -> dict[str, dict[str, str]]:
        found = super()._service_settings(credentials)
        return {name: {**own, **self._more.get(name, {})} for name, own in found.items()}

    def registry(self, lab: Lab) -> BundleContent:
        """Return the demonstration's registry with the lab, its rules, and a second agent."""
        keys = self.environment.keys_dir
        variables = {
            "BANK_URL": self.bank_url,
            "BANK_HOST": self.bank_url.removeprefix("http://"),
            "BOOKKEEPER_PUBLIC_KEY": key_ring.load_agent_public_key(keys, AGENT),
        }
        demo = load_registry(REGISTRY, variables)
        mine = demo.agents[AGENT].model_copy(update={"proposals_per_minute": PROPOSALS_PER_MINUTE})
        theirs = {"name": CLERK, "id": CLERK_ID, "client_id": CLERK}
        clerk = mine.model_copy(update={**theirs, "public_key": key_ring.load_agent_public_key(keys, CLERK)})
        return demo.model_copy(
            update={
                "tools": {**demo.tools, **lab.tools()},
                "agents": {AGENT: mine, CLERK: clerk},
                "policies": {**demo.policies, "lab.cedar": POLICIES},
            }
        )

    async def connect(self, name: str = AGENT, **identity: str) -> Agent:
        """Connect an agent; `identity` replaces what it says about itself."""
        agent = Agent(
            name=name,
            nkey_seed=key_ring.load_agent_seed(self.environment.keys_dir, name),
            servers=self.environment.nats_url,
            identity=Identity(**{**IDENTITY, **identity}),
        )
        return await self._stack.enter_async_context(agent)


@dataclass(slots=True)
class Live:
    """What tests act with: agents that propose, people who command, eyes on Postgres, the bank's log and the lab."""

    stage: LiveStage
    lab: Lab
    people: People
    agent: Agent
    clerk: Agent
    admin: asyncpg.Pool[asyncpg.Record]
    bank: httpx.AsyncClient
    bundle_version: int = 0

    async def grant(self, *calls: str, **more: Any) -> str:
        """Let Emma delegate calls by name (`lab.ok`); `more` are terms other than the usual ones."""
        return await self.people.grant({**self.terms(*calls), **more})

    @staticmethod
    def terms(*calls: str) -> dict[str, Any]:
        """Return the usual terms: an hour, a hundred calls."""
        begin = now()
        grants = [
            {"type": "tool_call", **dict(zip(("tool", "action"), call.split("."), strict=True))} for call in calls
        ]
        return {
            "agent_id": AGENT_ID,
            "task": "Find out how the lab answers",
            "grants": grants,
            "environment": ENVIRONMENT,
            "not_before": (begin - timedelta(minutes=1)).isoformat(),
            "expires_at": (begin + timedelta(hours=1)).isoformat(),
            "max_calls": 100,
        }

    async def command(self, person: str, kind: type[Command], /, **fields: Any) -> Reply:
        """Send one command as a person."""
        return await self.people.command(person, kind, **fields)

    async def approve(self, person: str, action_id: str, **more: Any) -> Reply:
        """Let a person say yes to what the read model shows."""
        row = await self.asked(action_id)
        shown = {"args_digest": row["args_digest"], "shown_digest": row["shown_digest"], "version": row["round"]}
        return await self.command(person, ApproveCommand, action_id=action_id, **{**shown, **more})

    async def revoke(self, person: str, kind: str, target: str, *, lift: bool = False) -> Reply:
        """Take back, or release a switch."""
        return await self.command(person, RevokeCommand, kind=kind, target=target, reason="test", lift=lift)

    async def apply(self, content: BundleContent) -> Reply:
        """Let Otto publish a registry; remember the version when it was taken."""
        reply = await self.command("otto", ApplyCommand, content=content, base_version=self.bundle_version)
        self.bundle_version = reply.bundle_version or self.bundle_version
        return reply

    async def asked(self, action_id: str) -> asyncpg.Record:
        """Wait until people can see an action, and return its row."""
        return await self._row(ASKED, action_id)

    async def receipt(self, action_id: str | None) -> asyncpg.Record:
        """Wait until an action has its receipt, and return its row of the read model."""
        assert action_id is not None
        return await self._row(ROW, action_id)

    async def _row(self, query: str, action_id: str) -> asyncpg.Record:
        async def is_there() -> bool:
            return await self.admin.fetchrow(query, action_id) is not None

        await eventually(is_there)
        return cast("asyncpg.Record", await self.admin.fetchrow(query, action_id))

    async def calls(self, action_id: str | None) -> int:
        """Return how often an action was claimed for a call."""
        return await self.admin.fetchval(CALLED, action_id)

    async def effects(self) -> list[dict[str, Any]]:
        """Return the bank's own log."""
        lines = (await self.bank.get("/control/effects")).raise_for_status().text.splitlines()
        return [orjson.loads(line) for line in lines]

    @asynccontextmanager
    async def nothing_called(self) -> AsyncGenerator[None]:
        """Fail when the bank or the lab hears of anything inside the block."""
        before = len(await self.effects()), dict(self.lab.arrivals)
        yield
        assert (len(await self.effects()), dict(self.lab.arrivals)) == before


@asynccontextmanager
async def live_stage(directory: Path, **options: Any) -> AsyncGenerator[Live]:
    """Start everything, publish the registry, connect both agents."""
    async with AsyncExitStack() as stack:
        lab = await stack.enter_async_context(running_lab())
        stage = await stack.enter_async_context(LiveStage(directory, **options))
        live = Live(
            stage=stage,
            lab=lab,
            people=await stage.people(),
            agent=await stage.connect(),
            clerk=await stage.connect(CLERK),
            admin=await stage.database(stage.environment.admin_url),
            bank=await stage.bank_control(),
        )
        reply = await live.apply(stage.registry(lab))
        assert reply.status == "ok", reply
        yield live


@contextmanager
def paused(pids: Iterable[int]) -> Generator[None]:
    """Stop processes in their tracks, as an overloaded machine would, and let them go on afterwards."""
    held = list(pids)
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in held:
            os.kill(pid, signal.SIGCONT)


def refused(answer: Result | Refusal | Pending) -> Refusal:
    """Return an answer that must be a refusal."""
    assert isinstance(answer, Refusal), answer
    return answer


def concluded(answer: Result | Refusal | Pending) -> Result:
    """Return an answer that must be a result."""
    assert isinstance(answer, Result), answer
    return answer


def waiting(answer: Result | Refusal | Pending) -> Pending:
    """Return an answer that must still be pending."""
    assert isinstance(answer, Pending), answer
    return answer
