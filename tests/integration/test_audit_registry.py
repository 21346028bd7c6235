"""The registry becomes tables for people, and the width of grants is measured; both through the role of audit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from infra.postgres.roles import ROLES, apply_roles, role_url
from remit.bundle import AgentEntry, BundleContent, ToolEntry
from remit.errors import StaleBundleError
from remit.evaluation import CompiledBundle
from services.audit.registry import Registry
from tests.support import factories as f
from tests.support.ledger_stream import StreamWriter
from tests.support.postgres import fresh_database, postgres
from tests.support.projection import projection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(60)

ARGUMENTS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "recipient": {"type": "string", "x-remit-sink": True, "x-remit-resource": True},
        "amount": {"type": "number"},
        "memo": {"type": "string", "x-remit-sensitive": True},
    },
    "additionalProperties": False,
}


def tool(**more: Any) -> ToolEntry:
    action = {
        "description": "Sends money.",
        "arguments": ARGUMENTS,
        "risk": "T3",
        "effect": "write",
        "reversibility": "irreversible",
        "idempotency": "none",
    } | more
    return ToolEntry.model_validate(
        {
            "tool": "bank",
            "resource": "https://remit.example/tools/bank",
            "connector": "noop",
            "environment": "demo",
            "owner": "payments",
            "actions": {"send_money": action},
        }
    )


def agent(name: str) -> AgentEntry:
    return AgentEntry(
        name=name,
        id=f"spiffe://acme.example/agent/{name}",
        client_id=f"https://agents.example/{name}",
        public_key="U" + name[0].upper() * 55,
        owner="fin",
        runtime="python-3.11",
        model_family="claude",
        model_version="5",
        config_digest="sha-256:config",
    )


def bundle(version: int, *agents: str, **action: Any) -> CompiledBundle:
    content = BundleContent(tools={"bank": tool(**action)}, agents={a: agent(a) for a in agents}, policies={})
    return CompiledBundle.compile(content, version=version)


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with postgres(tmp_path_factory.mktemp("pg")) as url:
        yield url


@pytest.fixture
async def pool(server: str) -> AsyncIterator[asyncpg.Pool[asyncpg.Record]]:
    async with fresh_database(server) as url:
        await apply_roles(url, dict.fromkeys(ROLES, "x"))
        as_audit = role_url(url, "remit_audit", "x")
        actions, remits = StreamWriter(), StreamWriter("REMITS")
        remits.remit("granted")
        actions.action("paid", *f.EXECUTED_PATH)
        async with projection(as_audit) as projector:
            await projector.project(actions)
            await projector.project(remits)
        async with asyncpg.create_pool(as_audit, min_size=1, max_size=2) as pool:
            yield pool


def registry(pool: asyncpg.Pool[asyncpg.Record], found: CompiledBundle | None) -> Registry:
    def current() -> CompiledBundle:
        if found is None:
            raise StaleBundleError("none")
        return found

    return Registry(pool, current=current, clock=lambda: f.NOW)


async def test_a_bundle_replaces_the_one_before(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    await registry(pool, None).show(bundle(1, "bookkeeper", "archivist"))
    await registry(pool, None).show(bundle(2, "bookkeeper", risk="T4"))
    rows = await pool.fetch(
        "SELECT tool, action, tier, sinks, sensitive, resource_argument, live_digest FROM audit.tools"
    )
    assert [tuple(row) for row in rows] == [("bank", "send_money", 4, ["recipient"], ["memo"], "recipient", None)]
    agents = await pool.fetch(
        "SELECT name, state, model, last_seen IS NOT NULL AS seen FROM audit.agents ORDER BY name"
    )
    assert [tuple(row) for row in agents] == [
        ("archivist", "removed", "claude 5", False),
        ("bookkeeper", "active", "claude 5", True),
    ]


async def test_what_is_hidden_is_what_the_registry_marks(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    known = registry(pool, bundle(1))
    assert known.sensitive("bank.send_money") == {"memo"}
    assert known.sensitive("bank.gone") is None, "who cannot say what is sensitive shows nothing"
    assert registry(pool, None).sensitive("bank.send_money") is None


async def test_width_is_measured_and_a_constrained_grant_stays_unchecked(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    await registry(pool, None).measure_width()
    rows = await pool.fetch("SELECT agent_id, tool, action, res_used, res_matched FROM audit.grant_width")
    assert [tuple(row) for row in rows] == [(f.AGENT.id, "bank", "send_money", 1, 1)]
