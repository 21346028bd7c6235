"""What executor tests need: a registry, actions tokenized for it, orders, and the rows that let a claim pass."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg

from infra.postgres.roles import ROLES, apply_roles, role_url
from remit.bundle import BundleContent, ToolEntry
from remit.canonical import canonical, digest
from remit.evaluation import CompiledAction, CompiledBundle
from remit.events import ActionRef, Principal, ToolIdentity
from remit.fold import ActionState
from remit.ids import action_id, human_subject, jti
from services.executor.claims import ClaimStore
from services.executor.decide import Order
from tests.support import factories as f
from tests.support.postgres import fresh_database

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

LOCAL = ["127.0.0.1"]
ECHO: dict[str, Any] = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "amount": {"type": "number"}, "id": {"type": "string"}},
    "additionalProperties": False,
}


def action_entry(**more: Any) -> dict[str, Any]:
    """Return one action entry as the registry file spells it."""
    return {
        "description": "Repeats what it is told.",
        "arguments": ECHO,
        "risk": "T2",
        "effect": "write",
        "reversibility": "irreversible",
        "idempotency": "none",
        "timeout_s": 1.0,
    } | more


def tool_entry(actions: dict[str, dict[str, Any]] | None = None, **more: Any) -> ToolEntry:
    """Return a tool; without more, the one that does nothing."""
    fields: dict[str, Any] = {
        "tool": "echo",
        "resource": "https://remit.example/tools/echo",
        "connector": "noop",
        "environment": "test",
        "owner": "team",
        "actions": actions or {"say": action_entry()},
    }
    return ToolEntry.model_validate(fields | more)


def bundle_of(*tools: ToolEntry) -> CompiledBundle:
    """Compile a registry."""
    content = BundleContent(tools={tool.tool: tool for tool in tools}, agents={}, policies={})
    return CompiledBundle.compile(content, version=1)


def action_of(tool: ToolEntry, name: str = "say") -> CompiledAction:
    """Return one compiled action."""
    found = bundle_of(tool).action(tool.tool, name)
    assert found is not None
    return found


def order_of(tool: ToolEntry | None = None, name: str = "say", key: str = "k", **more: Any) -> Order:
    """Return an order for a call, valid for a minute."""
    arguments: dict[str, Any] = more.pop("arguments", {"text": "hello"})
    identity = action_id("default", "bookkeeper", key)
    return replace(
        Order(
            action_id=identity,
            remit_id=f.REMIT.remit_id,
            grant_no=1,
            attempt=1,
            jti=jti(identity, 1),
            action=action_of(tool or tool_entry(), name),
            arguments=arguments,
            args_digest=digest(arguments),
            human=f"{f.EMMA.iss}|{f.EMMA.sub}",
            subject=human_subject(f.EMMA.iss, f.EMMA.sub),
            agent=f.AGENT.id,
            client_id=f.AGENT.client_id,
            block_class=f"echo.{name}|",
            expires_at=datetime.now(UTC) + timedelta(seconds=60),
        ),
        **more,
    )


def common_of(action: CompiledAction, arguments: dict[str, Any], identity: str) -> dict[str, Any]:
    """Return what every event of an action says."""
    kind = action.tool.connector
    tool = ToolIdentity(
        kind=kind, resource=action.tool.resource, name=action.tool.tool, schema_digest=action.schema_digest
    )
    return {
        "txn": identity,
        "remit_id": f.REMIT.remit_id,
        "principal": Principal(human=f.EMMA, agent=f.AGENT, tool=tool),
        "action": ActionRef(
            name=action.id,
            args_digest=digest(arguments),
            environment="test",
            risk=action.entry.risk,
            effect=action.entry.effect,
        ),
    }


def approved_state(action: CompiledAction, arguments: dict[str, Any], key: str, /, **approved: Any) -> ActionState:
    """Return a signed action that was proposed, evaluated and approved just now."""
    identity = action_id("default", "bookkeeper", key)
    common, now = common_of(action, arguments, identity), datetime.now(UTC)
    proposal = f.PROPOSAL | {
        "tool": action.tool.tool, "action": action.name, "arguments": arguments, "idempotency_key": key
    }  # fmt: skip
    events = {
        "proposed": f.PROPOSED.model_copy(
            update=common | {"proposal": canonical(proposal).decode(), "idempotency_key": key}
        ),
        "evaluated": f.EVALUATED.model_copy(update=common | {"grant_no": approved.pop("grant_no", 1)}),
        "approval_requested": f.REQUESTED.model_copy(update=common),
        "approved": f.APPROVED.model_copy(
            update=common | {"approved_at": now, "approved_until": now + timedelta(minutes=5)} | approved
        ),
    }
    state = ActionState(action_id=identity)
    for name, data in events.items():
        state = f.grow(state, f"action.{name}", data, subject=identity, time=now)
    return state


def tokenized_state(
    action: CompiledAction, /, *, key: str = "k", arguments: dict[str, Any] | None = None, **tokenized: Any
) -> ActionState:
    """Return the same with a token, whose sealed form is a placeholder unless given."""
    sent = {"text": "hello"} if arguments is None else arguments
    identity, now = action_id("default", "bookkeeper", key), datetime.now(UTC)
    state = approved_state(action, sent, key, **tokenized.pop("approved", {}))
    fields = common_of(action, sent, identity) | {
        "jti": jti(identity, 1), "exp": int(now.timestamp()) + 60, "scopes_granted": [action.id]
    }  # fmt: skip
    return f.grow(
        state, "action.tokenized", f.TOKENIZED.model_copy(update=fields | tokenized), subject=identity, time=now
    )


PASSWORDS = dict.fromkeys(ROLES, "secret-of-a-test")


@asynccontextmanager
async def pool_of(url: str, role: str, *, size: int = 20) -> AsyncGenerator[asyncpg.Pool[asyncpg.Record]]:
    """Log in to a database as one of its roles, which `apply_roles(url, PASSWORDS)` made."""
    login = role_url(url, role, PASSWORDS[role])
    async with asyncpg.create_pool(login, min_size=1, max_size=size) as pool:
        yield pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """A database in which claims of the example remit pass: the owner's connections, and the executor's store as the executor."""

    url: str
    pool: asyncpg.Pool[asyncpg.Record]
    store: ClaimStore


@asynccontextmanager
async def claimable(server_url: str) -> AsyncGenerator[Claims]:
    """Make such a database, with every role's login."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(fresh_database(server_url))
        await apply_roles(url, PASSWORDS)
        pool = await stack.enter_async_context(asyncpg.create_pool(url, min_size=1, max_size=8))
        await admit_claims(pool)
        store = ClaimStore(replica="executor-1", evidence_max_age_s=60.0)
        store.attach(await stack.enter_async_context(pool_of(url, "remit_executor")))
        yield Claims(url=url, pool=pool, store=store)


async def admit_claims(pool: asyncpg.Pool[asyncpg.Record], *tools: str, max_calls: int = 1000) -> None:
    """Make every row that lets claims of the example remit pass: heartbeat, stop rows, remit, budgets."""
    await pool.execute(
        "INSERT INTO control.heartbeat (service, at, position) VALUES ('audit', clock_timestamp() + interval '1 day', 1)"
    )
    stops = [
        ("human", f"{f.EMMA.iss}|{f.EMMA.sub}"),
        ("agent", f.AGENT.id),
        ("remit", f.REMIT.remit_id),
        *(("tool", tool) for tool in (tools or ("echo.say",))),
    ]
    await pool.executemany("INSERT INTO control.stop (kind, target) VALUES ($1, $2)", stops)
    now = datetime.now(UTC)
    await pool.execute(
        "INSERT INTO control.remit (remit_id, human_iss, human_sub, agent_id, digest, granted_seq, not_before,"
        " expires_at, max_calls, document) VALUES ($1, $2, $3, $4, $5, 1, $6, $7, $8, '{}')",
        f.REMIT.remit_id,
        f.EMMA.iss,
        f.EMMA.sub,
        f.AGENT.id,
        f.DIGEST,
        now - timedelta(hours=1),
        now + timedelta(hours=1),
        max_calls,
    )
    await pool.executemany(
        "INSERT INTO control.budget (remit_id, grant_no, max_calls) VALUES ($1, $2, $3)",
        [(f.REMIT.remit_id, 0, max_calls), (f.REMIT.remit_id, 1, max_calls)],
    )
