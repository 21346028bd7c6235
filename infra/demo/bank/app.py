"""The bank on the wire: MCP over streamable HTTP for the executor, and a control door for whoever runs the tasks.

Built on the SDK's low-level `Server`, because the tools must be published with exactly the recorded schemas; `MCPServer` would
derive its own from signatures, coerce arguments and drop unknown ones.
"""

from __future__ import annotations

import argparse
import hmac
import signal
import socket
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import mcp_types as types
import uvicorn
from mcp.server.lowlevel.server import Server
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.demo.bank.effects import EffectLog
from infra.demo.bank.operations import output_schema
from infra.demo.bank.settings import BankSettings
from infra.demo.bank.teller import Teller
from infra.demo.bank.world import UnknownSlotError, WorldConfig
from infra.demo.tasks import Suite, load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mcp.server.context import ServerRequestContext
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

IDEMPOTENCY_META = "io.remit/idempotency-key"
"""Key of the request's `_meta` that carries the idempotency key; the HTTP header serves callers without MCP metadata."""
IDEMPOTENCY_HEADER = "Idempotency-Key"


class BearerGuard:
    """Let a request pass only with the bearer secret of its path; a path without a secret is closed, `/healthz` is open."""

    def __init__(self, app: ASGIApp, *, secrets: Mapping[str, str]) -> None:
        """Take the secret of each first path segment."""
        self._app = app
        self._secrets = dict(secrets)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 unless the caller may pass."""
        if scope["type"] == "http" and not self._admits(scope):
            refusal = JSONResponse({"error": "unauthorized"}, 401, {"WWW-Authenticate": 'Bearer realm="bank"'})
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        path: str = scope["path"]
        if path == "/healthz":
            return True
        secret = self._secrets.get(path.split("/")[1] if path.startswith("/") else "")
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        return (
            secret is not None
            and scheme.lower() == "bearer"
            and hmac.compare_digest(given.strip().encode(), secret.encode())
        )


def _tools(suite: Suite) -> list[types.Tool]:
    return [
        types.Tool(
            name=tool.name,
            description=tool.description,
            input_schema=tool.arguments,
            output_schema=output_schema(tool.name),
            annotations=types.ToolAnnotations(read_only_hint=tool.effect == "read", open_world_hint=False),
        )
        for tool in suite.tools
    ]


def mcp_server(teller: Teller, suite: Suite) -> Server[dict[str, object]]:
    """Return the MCP server that offers the recorded tools and hands their calls to the teller."""
    listing = types.ListToolsResult(tools=_tools(suite))

    async def list_tools(
        _context: ServerRequestContext[dict[str, object]], _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return listing

    async def call_tool(
        context: ServerRequestContext[dict[str, object]], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        reply = await teller.serve(params.name, params.arguments or {}, _idempotency_key(context))
        return types.CallToolResult(
            content=[types.TextContent(text=reply.text)],
            structured_content=reply.structured,
            is_error=reply.is_error,
        )

    return Server("bank", version="1", on_list_tools=list_tools, on_call_tool=call_tool)


def _idempotency_key(context: ServerRequestContext[dict[str, object]]) -> str | None:
    meta: Mapping[str, object] = dict(context.meta or {})
    request: Request | None = context.request
    key = meta.get(IDEMPOTENCY_META) or (request.headers.get(IDEMPOTENCY_HEADER) if request else None)
    return str(key) if key else None


def control_routes(teller: Teller, log: EffectLog) -> list[Route]:
    """Return the routes that start a run and read the log, and the health check."""

    async def reset(request: Request) -> Response:
        try:
            config = WorldConfig.model_validate_json(await request.body())
            return JSONResponse({"world": await teller.reset(config), "run": config.run})
        except (ValidationError, UnknownSlotError) as error:
            detail = (
                str(error) if isinstance(error, UnknownSlotError) else "expected {run?: string, slots?: {name: text}}"
            )
            return JSONResponse({"error": "invalid", "detail": detail}, 400)

    async def effects(_request: Request) -> Response:
        return Response(log.read(), media_type="application/jsonl")

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return [
        Route("/control/reset", reset, methods=["POST"]),
        Route("/control/effects", effects, methods=["GET"]),
        Route("/healthz", healthz, methods=["GET"]),
    ]


def build(settings: BankSettings, log: EffectLog, host: str) -> Starlette:
    """Return the whole application."""
    teller = Teller(log)
    app = mcp_server(teller, load()).streamable_http_app(
        json_response=True, stateless_http=True, host=host, custom_starlette_routes=control_routes(teller, log)
    )
    secrets = {"mcp": settings.token.get_secret_value(), "control": settings.control_token.get_secret_value()}
    app.user_middleware.append(Middleware(BearerGuard, secrets=secrets))
    return app


def main() -> None:
    """Serve until SIGTERM or SIGINT; the first line on standard output is the address."""
    parser = argparse.ArgumentParser(prog="python -m infra.demo.bank", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    options = parser.parse_args()
    settings = BankSettings()  # pyright: ignore[reportCallIssue]  (the environment fills the fields)
    # uvicorn raises the signal again after its graceful stop; without a handler of ours the exit code would be -15.
    signal.signal(signal.SIGTERM, lambda *_: None)
    with closing(EffectLog(settings.effects)) as log, socket.create_server((options.host, options.port)) as listener:
        app = build(settings, log, options.host)
        sys.stdout.write(f"http://{options.host}:{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])
