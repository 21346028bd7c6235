"""A tool that misbehaves on request: an HTTP API in the test's own process, and the registry entries that describe it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from remit.bundle import ToolEntry
from tests.support.http_server import serving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request

ENVIRONMENT = "demo"
QUICK_TIMEOUT_S = 0.5
"""Time limit of `slow`, which never answers by itself."""
HOLD_TIMEOUT_S = 1.0
"""Time limit of `hold`; with its two repetitions an interrupted claim is taken up again after 13 s."""
POLICIES = """
@id("lab.reads")
permit (principal, action in Action::"effect:read", resource in Tool::"lab");
@id("gone.reads")
permit (principal, action in Action::"effect:read", resource in Tool::"gone");
@id("lab.hold")
permit (principal, action == Action::"lab.hold", resource);
@id("lab.joint")
@approvers("payments,operator")
@quorum("2")
permit (principal, action == Action::"lab.joint", resource) when { context has approval };
@id("lab.own")
@approvers("delegator")
permit (principal, action == Action::"lab.own", resource) when { context has approval };
"""
READ = {"effect": "read", "risk": "T1", "idempotency": "none", "reversibility": "reversible"}
WRITE = {"effect": "write", "risk": "T3", "idempotency": "key", "reversibility": "irreversible"}
ACTIONS: dict[str, dict[str, Any]] = {
    "ok": READ,
    "slow": {**READ, "timeout_s": QUICK_TIMEOUT_S},
    "failing": READ,
    "broken": READ,
    "oversize": READ,
    "off_schema": READ,
    "hold": {**WRITE, "timeout_s": HOLD_TIMEOUT_S},
    "joint": WRITE,
    "own": WRITE,
}


@dataclass
class Lab:
    """What arrived, by action; effects by idempotency key, each done once, as a careful tool does."""

    arrivals: Counter[str] = field(default_factory=Counter[str])
    effects: Counter[str] = field(default_factory=Counter[str])
    released: asyncio.Event = field(default_factory=asyncio.Event)
    says: str = ""
    """What `ok` answers instead of its own name."""
    url: str = ""
    gone_url: str = ""

    async def answer(self, request: Request) -> Response:
        """Do what the path says."""
        action = str(request.path_params["action"])
        self.arrivals[action] += 1
        key = request.headers["idempotency-key"]
        if not self.effects[key]:
            self.effects[key] += 1
        if action in {"slow", "hold"}:
            await self.released.wait()
        match action:
            case "failing":
                return JSONResponse({"error": "no such sample"}, 422)
            case "broken":
                return JSONResponse({"error": "on fire"}, 500)
            case "oversize":
                return JSONResponse({"said": "x" * 20_000})
            case "off_schema":
                return JSONResponse({"said": 7})
            case _:
                return JSONResponse({"said": self.says or action})

    def tools(self) -> dict[str, ToolEntry]:
        """Return the entries of `lab`, which answers, and `gone`, where nobody listens."""
        return {"lab": _entry("lab", self.url, ACTIONS), "gone": _entry("gone", self.gone_url, {"ok": READ})}


def _entry(tool: str, url: str, actions: dict[str, dict[str, Any]]) -> ToolEntry:
    document = {
        "tool": tool,
        "resource": f"https://{tool}.acme.example/api",
        "connector": "http",
        "endpoint": url,
        "environment": ENVIRONMENT,
        "owner": "lab@acme.example",
        "egress": [url.removeprefix("http://")],
        "actions": {name: _action(name, own) for name, own in actions.items()},
    }
    return ToolEntry.model_validate_json(json.dumps(document))


def _action(name: str, own: dict[str, Any]) -> dict[str, Any]:
    text = {"type": "string", "maxLength": 30_000}
    return {
        "description": f"Does what is called {name}.",
        "arguments": {"type": "object", "additionalProperties": False, "properties": {"text": text}},
        "result": {"type": "object", "required": ["said"], "properties": {"said": text}},
        "http": {"method": "POST", "path": f"/{name}"},
        **own,
    }


@asynccontextmanager
async def running_lab() -> AsyncGenerator[Lab]:
    """Serve the lab, and keep a port where nobody answers."""
    lab = Lab()
    app = Starlette(routes=[Route("/{action}", lab.answer, methods=["POST"])])
    async with serving(app) as port:
        with socket.socket() as gone:
            gone.bind(
                ("127.0.0.1", 0)
            )  # bound but not listening: connections are refused, and nobody else gets the port
            lab.url = f"http://127.0.0.1:{port}"
            lab.gone_url = f"http://127.0.0.1:{gone.getsockname()[1]}"
            yield lab
        lab.released.set()
