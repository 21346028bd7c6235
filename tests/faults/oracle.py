"""The oracle: a real tool server whose log of effects is on disk before it answers. What it says happened, happened.

`python -m tests.faults.oracle --port N --log FILE`. It knows nothing of Remit: an action is a path, a repeated idempotency key is
a replay where the action honours keys, and every other call is an effect.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from remit.bundle import ToolEntry
from remit.canonical import digest, strict_loads

if TYPE_CHECKING:
    from starlette.requests import Request

TOOL = "oracle"
ENVIRONMENT = "demo"
TIMEOUT_S = 1.0
"""Time limit of every action; the oracle itself answers within milliseconds unless `delay_ms` says otherwise."""
IDEMPOTENCY = {"pay": "key", "ask": "key", "set": "natural", "send": "none", "wire": "none"}
"""The actions. `pay` and `ask` honour a key, `set` repeats harmlessly; `send` and `wire` are what must never be repeated.
People are asked about `ask` and `wire`."""
POLICIES = """
@id("oracle.free")
permit (principal, action in [Action::"oracle.pay", Action::"oracle.set", Action::"oracle.send"], resource);
@id("oracle.ask")
@approvers("payments")
@quorum("1")
permit (principal, action in [Action::"oracle.ask", Action::"oracle.wire"], resource) when { context has approval };
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One call that reached the oracle; `kind` is `effect`, or `replay` of one that happened before."""

    time: float
    action: str
    key: str
    arguments_digest: str
    kind: str


def entry(url: str) -> ToolEntry:
    """Return the registry entry."""
    document = {
        "tool": TOOL,
        "resource": "https://oracle.acme.example/api",
        "connector": "http",
        "endpoint": url,
        "environment": ENVIRONMENT,
        "owner": "faults@acme.example",
        "egress": [url.removeprefix("http://")],
        "actions": {name: _action(name) for name in IDEMPOTENCY},
    }
    return ToolEntry.model_validate_json(json.dumps(document))


def _action(name: str) -> dict[str, Any]:
    arguments = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"n": {"type": "integer"}, "note": {"type": "string"}, "delay_ms": {"type": "integer"}},
    }
    return {
        "description": f"Does {name}.",
        "arguments": arguments,
        "result": {"type": "object", "properties": {"done": {"type": "string"}}},
        "http": {"method": "POST", "path": f"/{name}"},
        "effect": "write",
        "risk": "T2",
        "idempotency": IDEMPOTENCY[name],
        "reversibility": "irreversible",
        "timeout_s": TIMEOUT_S,
    }


@dataclass(slots=True)
class EffectLog:
    """Append-only JSON lines, on disk before anybody hears of them."""

    path: Path
    keys: set[str] = field(default_factory=set[str])
    descriptor: int = -1

    def open(self) -> None:
        """Open, and remember the keys of an earlier life."""
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self.keys = {
            effect.key for effect in read_effects(self.path.read_bytes()) if IDEMPOTENCY[effect.action] != "none"
        }

    def perform(self, action: str, key: str, arguments: dict[str, Any]) -> str:
        """Do it once per key where keys are honoured, else every time; return what was done."""
        honours = IDEMPOTENCY[action] != "none"
        kind = "replay" if honours and key in self.keys else "effect"
        line = {
            "time": time.time(),
            "action": action,
            "key": key,
            "arguments_digest": digest(arguments),
            "kind": kind,
        }
        os.write(self.descriptor, orjson.dumps(line) + b"\n")
        os.fsync(self.descriptor)
        if honours:
            self.keys.add(key)
        return kind


def read_effects(text: bytes) -> list[Effect]:
    """Parse a log."""
    return [Effect(**orjson.loads(line)) for line in text.splitlines()]


def build(log: EffectLog) -> Starlette:
    """Return the application."""

    async def act(request: Request) -> Response:
        action = str(request.path_params["action"])
        if action not in IDEMPOTENCY:
            return JSONResponse({"error": "no such action"}, 404)
        arguments = strict_loads(await request.body())
        assert isinstance(arguments, dict)
        before = int(str(arguments.get("delay_ms", 0))) / 1000
        key = request.headers["idempotency-key"]
        chance = random.Random(key)  # noqa: S311  (the same latency in a run that is repeated)
        await asyncio.sleep(before * chance.random())
        kind = log.perform(action, key, arguments)
        await asyncio.sleep(before * chance.random())
        return JSONResponse({"done": kind})

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok")

    routes = [Route("/healthz", healthz), Route("/{action}", act, methods=["POST"])]
    return Starlette(routes=routes)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    options = parser.parse_args()
    log = EffectLog(options.log)
    log.open()
    uvicorn.run(build(log), host=options.host, port=options.port, log_level="error", ws="none")


if __name__ == "__main__":
    main()
