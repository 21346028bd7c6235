"""An executor between real servers: broker, Postgres and tool; the earlier services' events are written with their own keys."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from infra.postgres.roles import apply_roles, role_url
from remit.bundle import BundleContent
from remit.bundle_store import BUNDLE_KEY, encode_bundle
from remit.canonical import canonical, digest_bytes
from remit.events import ActionApproved, ActionEvaluated, ActionProposed, ActionStarted, ActionTokenized
from remit.ids import action_id, human_subject, jti
from remit.reasons import Verdict
from remit.runtime.bus import Bus
from remit.runtime.keys import load_service_keys
from remit.runtime.ledger import Draft, Ledger
from remit.runtime.runner import Runner
from remit.runtime.telemetry import Telemetry
from remit.verify import SCOPE
from services.tokens.minting import Executor
from services.tokens.signing import KeyRing
from tests.support import execution as x
from tests.support import factories as f
from tests.support.http_server import serving
from tests.support.servers import connected
from tests.support.services import build_service
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from nats.aio.client import Client
    from starlette.requests import Request

    from remit.bundle import ToolEntry
    from remit.events import ActionEvent
    from remit.fold import ActionState
    from remit.runtime.service import Service

ISSUER = "https://remit.example"


@dataclass
class Tool:
    """An HTTP tool that counts its effects by idempotency key; `delay_s` makes it slow, `status` what it says."""

    effects: list[str] = field(default_factory=list[str])
    delay_s: float = 0.0
    status: int = 200

    async def answer(self, request: Request) -> JSONResponse:
        self.effects.append(request.headers["idempotency-key"])
        await asyncio.sleep(self.delay_s)
        return JSONResponse({"ok": True, "apiKey": "leaked"}, self.status)


@dataclass
class Stage:
    """Everything around the executor, which logs in as its own role; `database_url` is the owner's."""

    nats_url: str
    database_url: str
    keys: Path
    tool: Tool
    tool_port: int
    jwks_url: str
    ring: KeyRing
    ledgers: dict[str, Ledger]
    audit: Client

    def settings(self, **more: Any) -> dict[str, Any]:
        return {
            "nats_url": self.nats_url,
            "database_url": role_url(self.database_url, "remit_executor", x.PASSWORDS["remit_executor"]),
            "jwks_url": self.jwks_url,
            "sweep_s": 0.2,
            "outbox_after_s": 0.3,
        } | more

    @asynccontextmanager
    async def running(self, **more: Any) -> AsyncGenerator[Service]:
        """Run an executor in this process."""
        service = build_service("executor", self.keys, **self.settings(**more))
        running = asyncio.create_task(Runner(service)._main())
        await eventually(lambda: service.probes.started)
        try:
            yield service
        finally:
            service.stopping.set()
            await running
            # The watchdog thread outlives the service; it must not end the process of the tests for it.
            service.vitals.stopping_since = float("inf")

    def tool_entry(self, **more: Any) -> ToolEntry:
        """Return the registry entry of the counting tool."""
        entry = x.action_entry(http={"method": "POST", "path": "/say"}, **more)
        endpoint = f"http://127.0.0.1:{self.tool_port}"
        return x.tool_entry({"say": entry}, connector="http", endpoint=endpoint, egress=x.LOCAL)

    async def apply(self, *tools: ToolEntry) -> None:
        """Put a registry in force, as approval does."""
        async with connected(self.nats_url, self.keys, "approval") as client:
            signer = load_service_keys(self.keys, "approval").signer
            content = BundleContent(tools={tool.tool: tool for tool in tools}, agents={}, policies={})
            encoded = encode_bundle(content, version=1, issued_at=datetime.now(UTC), applied_by="test", signer=signer)
            for key, part in (*encoded.parts.items(), (BUNDLE_KEY, encoded.value)):
                await Bus(client).append(f"$KV.REGISTRY.{key}", part, {})  # type: ignore[arg-type]

    async def tokenize(
        self, tool: ToolEntry, key: str, *, attempt: int = 1, lifetime_s: int = 60, **claims: Any
    ) -> ActionState:
        """Write an action up to its sealed token, each event under its own service's key."""
        action, arguments = x.action_of(tool), {"text": "hello"}
        identity, now = action_id("default", "bookkeeper", key), datetime.now(UTC)
        common = x.common_of(action, arguments, identity)
        state = await self.ledgers["executor"].read(identity)
        if not state.chain:
            proposal = f.PROPOSAL | {
                "tool": tool.tool,
                "action": action.name,
                "arguments": arguments,
                "idempotency_key": key,
            }
            texts = {"proposal": canonical(proposal).decode(), "idempotency_key": key}
            decision = f.EVALUATED.decision.model_copy(update={"verdict": Verdict.ALLOW})
            until = {"approved_at": now, "approved_until": now + timedelta(minutes=5), "by": "policy", "votes": []}
            steps = (
                ("intake", Draft(event=ActionProposed, data=f.PROPOSED.model_copy(update=common | texts))),
                (
                    "policy",
                    Draft(event=ActionEvaluated, data=f.EVALUATED.model_copy(update=common | {"decision": decision})),
                ),
                ("approval", Draft(event=ActionApproved, data=f.APPROVED.model_copy(update=common | until))),
            )
            for service, draft in steps:
                state = await self.ledgers[service].append(state, draft)
        data = self._tokenized(action, identity, common, attempt=attempt, lifetime_s=lifetime_s, claims=claims)
        return await self.ledgers["tokens"].append(
            state, Draft(event=ActionTokenized, data=data, discriminator=str(attempt))
        )

    def _tokenized(
        self,
        action: Any,
        identity: str,
        common: dict[str, Any],
        *,
        attempt: int,
        lifetime_s: int,
        claims: dict[str, Any],
    ) -> Any:
        trust = load_service_keys(self.keys, "tokens").environment
        executor = Executor(trust.executor_x25519, trust.executor_jkt)
        now = int(datetime.now(UTC).timestamp())
        detail = {
            "type": "tool_call", "tool": action.tool.tool, "action": action.name, "locations": [action.location],
            "args_digest": common["action"].args_digest, "tool_schema_digest": action.schema_digest,
        }  # fmt: skip
        body = {
            "iss": ISSUER, "sub": human_subject(f.EMMA.iss, f.EMMA.sub), "client_id": f.AGENT.client_id,
            "aud": action.tool.resource,
            "act": {"iss": ISSUER, "sub": f.AGENT.id, "sub_profile": "ai_agent"}, "scope": SCOPE,
            "iat": now, "nbf": now, "exp": now + lifetime_s, "jti": jti(identity, attempt), "txn": identity,
            "authorization_details": [detail], "cnf": {"jkt": executor.thumbprint},
        } | claims  # fmt: skip
        token = self.ring.sign(body, now=now)
        return f.TOKENIZED.model_copy(
            update=common
            | {
                "jti": jti(identity, attempt), "attempt": attempt, "exp": now + lifetime_s,
                "token_digest": digest_bytes(token.encode()), "sealed_token": executor.seal(token),
                "sealed_to": executor.sealed_to, "scopes_granted": [action.id],
            }
        )  # fmt: skip

    async def announce(self, state: ActionState) -> ActionState:
        """Write `started` as a replica that died right afterwards."""
        token = state.must(ActionTokenized).data
        data = f.STARTED.model_copy(
            update={"txn": token.txn, "principal": token.principal, "action": token.action, "jti": token.jti}
        )
        return await self.ledgers["executor"].append(state, Draft(event=ActionStarted, data=data))

    async def redrive(self, key: str) -> None:
        """Ask the executor to look at an action again, as the reconciler does."""
        await self.audit.publish("redrive.executor", action_id("default", "bookkeeper", key).encode())

    @asynccontextmanager
    async def listening(self, subject: str, callback: Any) -> AsyncGenerator[None]:
        """Hear a core subject as the tokens service does."""
        async with connected(self.nats_url, self.keys, "tokens", inbox="tokens.listener") as client:
            await client.subscribe(subject, cb=callback)
            await client.flush()
            yield

    async def last(self, key: str) -> ActionEvent | None:
        """Return the newest valid event of an action."""
        return (await self.ledgers["executor"].read(action_id("default", "bookkeeper", key))).last

    async def until(self, key: str, kind: str, *, within_s: float = 15.0) -> Any:
        """Wait until an action's newest event is of a kind, and return its data."""

        async def short() -> str | None:
            event = await self.last(key)
            return event.short if event else None

        await eventually(short, kind, within_s=within_s)
        event = await self.last(key)
        assert event is not None
        return event.data


def alarms(service: Service, kind: str) -> float:
    """Return how often a service raised an alarm of a kind."""
    return service.telemetry.alarms.labels(kind=kind)._value.get()


@asynccontextmanager
async def staged(nats_url: str, database_url: str, keys: Path) -> AsyncGenerator[Stage]:
    """Build the surroundings."""
    await apply_roles(database_url, x.PASSWORDS)
    ring = KeyRing.parse(json.loads((keys / "tokens" / "token_keys.json").read_text()))
    tool = Tool()

    async def jwks(_: Request) -> JSONResponse:
        return JSONResponse(ring.jwks())

    app = Starlette(routes=[Route("/say", tool.answer, methods=["POST"]), Route("/jwks", jwks)])
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(app))
        ledgers: dict[str, Ledger] = {}
        for name in ("intake", "policy", "approval", "tokens", "executor"):
            inbox = f"{name}.test" if name == "executor" else name
            client = await stack.enter_async_context(connected(nats_url, keys, name, inbox=inbox))
            mine = load_service_keys(keys, name)
            ledgers[name] = Ledger(
                bus=Bus(client),  # type: ignore[arg-type]  # a nats-py client, whose own annotations are wider
                signer=mine.signer,
                trust=mine.trust,
                tenant="default",
                telemetry=Telemetry("test"),
            )
        audit = await stack.enter_async_context(connected(nats_url, keys, "audit"))
        yield Stage(nats_url, database_url, keys, tool, port, f"http://127.0.0.1:{port}/jwks", ring, ledgers, audit)
