"""MCP tools on loopback: one exchange a call, and what each kind of answer, or its absence, comes to mean."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ImageContent, TextContent
from starlette.responses import JSONResponse, Response

from remit.reasons import Outcome, Reason
from services.executor.connectors.mcp import McpConnector, definition_digest
from services.executor.connectors.protocol import Ready
from services.executor.decide import Refuse
from services.executor.results import Answer, present
from tests.support import execution as x
from tests.support.calling import SECRET, caller_in, run
from tests.support.http_server import raw_server, serving
from tests.support.tls import certificate_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from starlette.types import ASGIApp

    from services.executor.calls import Caller
    from services.executor.decide import Order

JWT = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJ4In0.c2ln"


@pytest.fixture
async def caller(tmp_path: Path) -> AsyncIterator[Caller]:
    found = caller_in(tmp_path)
    yield found
    await found.close()


def mcp_order(port: int, name: str = "say", *, arguments: dict[str, Any] | None = None, **more: Any) -> Order:
    tool = {"egress": x.LOCAL, "connector": "mcp", "endpoint": f"http://127.0.0.1:{port}/mcp"} | more.pop("tool", {})
    entry = x.action_entry(**more)
    return x.order_of(
        x.tool_entry({name: entry}, **tool), name, arguments={"text": "hello"} if arguments is None else arguments
    )


class Bank:
    """An MCP server with one tool for each way to answer."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.server = MCPServer("bank")
        for tool in (self.say, self.fail, self.slow, self.leak, self.picture):
            self.server.tool()(tool)

    def app(self) -> ASGIApp:
        inner = self.server.streamable_http_app()

        async def recording(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                self.headers.append({k.decode(): v.decode() for k, v in scope["headers"]})
            await inner(scope, receive, send)

        return recording

    async def say(self, text: str) -> dict[str, str]:
        """Say it."""
        self.calls.append(text)
        return {"said": text}

    async def fail(self, text: str) -> str:
        """Fail."""
        raise ToolError(f"cannot say {text}")

    async def slow(self, text: str) -> str:
        """Take long."""
        self.calls.append(text)
        await asyncio.sleep(3.0)
        return text

    async def leak(self, text: str) -> dict[str, Any]:
        """Give secrets away."""
        return {"text": f"token is {JWT}", "login": {"password": text}}

    async def picture(self, text: str) -> list[TextContent | ImageContent]:
        """Show something."""
        return [
            TextContent(type="text", text=text),
            ImageContent(type="image", data="AAAA", mime_type="image/png"),
        ]


@pytest.fixture
async def bank() -> AsyncIterator[tuple[Bank, int]]:
    found = Bank()
    async with serving(found.app()) as port:
        yield found, port


async def test_an_mcp_call_returns_structured_content_and_carries_key_and_credential(
    caller: Caller, bank: tuple[Bank, int]
) -> None:
    server, port = bank
    order = mcp_order(port, tool={"credential": "from-env"})
    assert await run(caller, order) == Answer(outcome=Outcome.SUCCEEDED, value={"said": "hello"})
    assert server.calls == ["hello"]
    assert server.headers[-1]["authorization"] == f"Bearer {SECRET}"
    assert server.headers[-1]["idempotency-key"] == order.action_id


async def test_many_mcp_calls_run_at_once(caller: Caller, bank: tuple[Bank, int]) -> None:
    server, port = bank
    orders = [mcp_order(port, arguments={"text": str(n)}) for n in range(20)]
    answers = await asyncio.gather(*(run(caller, order) for order in orders))
    assert [a.value for a in answers if isinstance(a, Answer)] == [{"said": str(n)} for n in range(20)]
    assert sorted(server.calls, key=int) == [str(n) for n in range(20)]


async def test_a_tool_error_leaves_doubt_about_a_write(caller: Caller, bank: tuple[Bank, int]) -> None:
    for effect in ("write", "destructive"):
        assert await run(caller, mcp_order(bank[1], "fail", effect=effect)) == Answer(
            outcome=Outcome.UNKNOWN, error="tool_error"
        )


@pytest.mark.parametrize("declared", [{"errors_are_final": True}, {"effect": "read"}])
async def test_a_tool_error_is_a_failure_with_its_text_where_nothing_can_have_happened(
    caller: Caller, bank: tuple[Bank, int], declared: dict[str, Any]
) -> None:
    answer = await run(caller, mcp_order(bank[1], "fail", **declared))
    assert isinstance(answer, Answer)
    assert (answer.outcome, answer.error) == (Outcome.FAILED, "tool_error")
    assert "cannot say hello" in str(answer.value)


async def test_a_slow_mcp_tool_leaves_doubt_and_others_are_not_touched(caller: Caller, bank: tuple[Bank, int]) -> None:
    slow = mcp_order(bank[1], "slow", timeout_s=0.3)
    first, second = await asyncio.gather(run(caller, slow), run(caller, mcp_order(bank[1])))
    assert first == Answer(outcome=Outcome.UNKNOWN, error="timeout")
    assert second == Answer(outcome=Outcome.SUCCEEDED, value={"said": "hello"})


async def test_an_unknown_mcp_tool_was_not_executed_if_errors_prove_that(
    caller: Caller, bank: tuple[Bank, int]
) -> None:
    # This SDK answers a tool error, other servers answer invalid params; a running tool can answer either.
    for is_final, expected in ((True, Outcome.FAILED), (False, Outcome.UNKNOWN)):
        answer = await run(caller, mcp_order(bank[1], "nothing", errors_are_final=is_final))
        assert isinstance(answer, Answer)
        assert answer.outcome is expected


@pytest.mark.parametrize(
    ("code", "declared", "expected"),
    [
        (-32601, {}, Outcome.FAILED),
        (-32602, {}, Outcome.UNKNOWN),
        (-32602, {"errors_are_final": True}, Outcome.FAILED),
        (-32603, {"errors_are_final": True}, Outcome.UNKNOWN),
    ],
)
async def test_a_protocol_error_is_definite_only_when_no_tool_can_have_said_it(
    caller: Caller, code: int, declared: dict[str, Any], expected: Outcome
) -> None:
    inner = Bank().app()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if dict(scope.get("headers", [])).get(b"mcp-method") == b"tools/call":
            message = await receive()
            request = json.loads(message["body"])
            body = {"jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": "no"}}
            await JSONResponse(body)(scope, receive, send)
        else:
            await inner(scope, receive, send)

    async with serving(app) as port:
        answer = await run(caller, mcp_order(port, **declared))
    assert isinstance(answer, Answer)
    assert answer.outcome is expected


async def test_what_an_mcp_tool_leaks_stays_in_the_executor(caller: Caller, bank: tuple[Bank, int]) -> None:
    order = mcp_order(bank[1], "leak")
    answer = await run(caller, order)
    assert isinstance(answer, Answer)
    shown = present(answer, order.action)
    assert shown.result == {"text": "token is [redacted]", "login": {"password": "[redacted]"}}
    assert shown.redacted_paths == ("/text", "/login/password")


async def test_content_blocks_come_as_data(caller: Caller, bank: tuple[Bank, int]) -> None:
    answer = await run(caller, mcp_order(bank[1], "picture"))
    assert isinstance(answer, Answer)
    assert answer.outcome is Outcome.SUCCEEDED
    assert "image/png" in str(answer.value)


async def test_an_mcp_server_that_dies_in_the_middle_leaves_doubt(caller: Caller) -> None:
    server = Bank()
    async with serving(server.app()) as port:
        connector, order = caller.connectors["mcp"], mcp_order(port, "slow", timeout_s=2.5)
        ready = await connector.prepare(order)
        assert isinstance(ready, Ready)
        call = asyncio.create_task(connector.call(order, ready))
        while not server.calls:
            await asyncio.sleep(0.01)
    answer = await call
    assert answer.outcome is Outcome.UNKNOWN
    assert await connector.call(order, ready) == Answer(outcome=Outcome.FAILED, error="connection")


@pytest.mark.parametrize(
    ("status", "expected"), [(401, Outcome.FAILED), (500, Outcome.UNKNOWN), (307, Outcome.UNKNOWN)]
)
async def test_an_http_status_below_mcp_says_what_is_known(caller: Caller, status: int, expected: Outcome) -> None:
    server, door = Bank(), {"closed": False}
    inner = server.app()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and door["closed"]:
            await Response("no", status, headers={"location": "/mcp2"})(scope, receive, send)
        else:
            await inner(scope, receive, send)

    async with serving(app) as port:
        connector, order = caller.connectors["mcp"], mcp_order(port)
        ready = await connector.prepare(order)
        assert isinstance(ready, Ready)
        door["closed"] = True
        answer = await connector.call(order, ready)
    assert answer.outcome is expected
    assert server.calls == []


async def test_drift_of_the_live_definition_refuses(caller: Caller, bank: tuple[Bank, int]) -> None:
    tools = {tool.name: tool for tool in await bank[0].server.list_tools()}
    pinned = definition_digest(tools["say"])
    fits = await run(caller, mcp_order(bank[1], upstream_digest=pinned))
    assert isinstance(fits, Answer)
    drifted = await run(caller, mcp_order(bank[1], upstream_digest=definition_digest(tools["fail"])))
    assert isinstance(drifted, Refuse)
    assert drifted.reason is Reason.SCHEMA_DRIFT
    gone = await run(caller, mcp_order(bank[1], "vanished", upstream_digest=pinned))
    assert isinstance(gone, Refuse)
    assert gone.reason is Reason.SCHEMA_DRIFT
    assert len(bank[0].calls) == 1


async def test_an_mcp_server_that_is_not_there_is_refused_before_the_claim(caller: Caller) -> None:
    async with raw_server(None) as port:
        order = mcp_order(port)
    for refusal in (await run(caller, order), await talking_to(caller, b"HTTP/1.1 404 Not Found\r\n\r\n")):
        assert isinstance(refusal, Refuse)
        assert refusal.reason is Reason.TOOL_UNREACHABLE


async def talking_to(caller: Caller, reply: bytes) -> Answer | Refuse:
    async with raw_server(reply) as port:
        return await run(caller, mcp_order(port))


async def test_a_server_of_the_older_protocol_works_too(caller: Caller) -> None:
    bank = Bank()
    inner = bank.app()

    async def older(scope: Any, receive: Any, send: Any) -> None:
        if dict(scope.get("headers", [])).get(b"mcp-method") == b"server/discover":
            body = {"jsonrpc": "2.0", "id": None, "error": {"code": -32601, "message": "no such method"}}
            await JSONResponse(body, 404)(scope, receive, send)
        else:
            await inner(scope, receive, send)

    async with serving(older) as port:
        answers = [await run(caller, mcp_order(port)) for _ in range(2)]
        failed = await run(caller, mcp_order(port, "fail"))
    assert answers == [Answer(outcome=Outcome.SUCCEEDED, value={"said": "hello"})] * 2
    assert isinstance(failed, Answer)
    assert failed.error == "tool_error"
    assert bank.calls == ["hello", "hello"]
    assert isinstance(connector := caller.connectors["mcp"], McpConnector)
    assert [known.mode for known in connector._known.values()] == ["legacy"]


async def test_mcp_over_tls_checks_the_name_at_the_checked_address(tmp_path: Path) -> None:
    tls = certificate_for("localhost", tmp_path)
    trusting = caller_in(tmp_path, ca_file=tls[0])
    async with serving(Bank().app(), tls=tls) as port:
        tool = {"egress": ["localhost"], "endpoint": f"https://localhost:{port}/mcp"}
        answer = await run(trusting, mcp_order(port, tool=tool))
        await trusting.close()
    assert answer == Answer(outcome=Outcome.SUCCEEDED, value={"said": "hello"})
