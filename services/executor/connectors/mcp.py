"""MCP tools over streamable HTTP: one exchange a call, so that a broken connection puts one call in doubt and no other.

Connections are kept in one pool for each tool and the negotiated protocol is remembered, but no session outlives its call: in the
SDK one failed request tears down the session with everything else that is in flight on it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import httpx2
import mcp_types as types
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import TypeAdapter, ValidationError

from remit.canonical import digest
from remit.reasons import Outcome, Reason
from services.executor.connectors import outcomes
from services.executor.connectors.http import KEEPALIVE_S, admit
from services.executor.decide import Refuse
from services.executor.results import Answer

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from mcp.client.session import ClientSession
    from pydantic import JsonValue

    from remit.bundle import ActionEntry
    from services.executor.connectors.credentials import CredentialProvider
    from services.executor.connectors.egress import Egress
    from services.executor.connectors.protocol import Address, Ready
    from services.executor.decide import Order

KEY_META = "io.remit/idempotency-key"
MAX_BODY_BYTES = 4_194_304
"""Of one response; the whole of it must be parsed to know whether the tool failed."""
LEAVE_S = 2.0
"""Seconds for closing an exchange whose answer is known."""
MAX_TOOL_PAGES = 50
NOT_EXECUTED = frozenset(
    {
        types.METHOD_NOT_FOUND,
        types.HEADER_MISMATCH,
        types.UNSUPPORTED_PROTOCOL_VERSION,
        types.MISSING_REQUIRED_CLIENT_CAPABILITY,
    }
)
"""JSON-RPC errors by which a server says that it did not run the tool (MCP 2026-07-28, base protocol).

Invalid params is not among them: it means an unknown tool or malformed arguments, but a tool that is running can answer it too.
"""
_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.LocalProtocolError)
_BROKEN = (MCPError, ValidationError, httpx2.HTTPError, OSError, TimeoutError, RuntimeError, ExceptionGroup)
"""What the SDK raises for what servers and networks do; task groups wrap transport errors."""
_RESULT: TypeAdapter[types.CallToolResult | types.InputRequiredResult] = TypeAdapter(
    types.CallToolResult | types.InputRequiredResult
)
_DEFINITION = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")


@dataclass(slots=True)
class Exchange(httpx2.AsyncBaseTransport):
    """The transport of one call: sends to the checked address, bounds responses, and remembers the fate of the one request."""

    pool: httpx2.AsyncHTTPTransport
    address: Address
    is_watching: bool = False
    status: int | None = None
    failure: httpx2.TransportError | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request to the address that the egress rules admitted."""
        host = request.headers["host"]
        request.url = request.url.copy_with(host=self.address.ip)
        request.headers["host"] = host
        request.extensions = {**request.extensions, "sni_hostname": self.address.host}
        is_first = self.is_watching and request.method == "POST" and self.status is None and self.failure is None
        try:
            response = await self.pool.handle_async_request(request)
        except httpx2.TransportError as error:
            if is_first:
                self.failure = error
            raise
        if is_first:
            self.status = response.status_code
        response.stream = _Bounded(response.stream)
        return response


class _Bounded(httpx2.AsyncByteStream):
    """A response body that ends with an error instead of filling the memory."""

    def __init__(self, inner: Any) -> None:  # noqa: ANN401  (the transport's own stream type)
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._inner:
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise httpx2.ReadError("response is larger than any result may be")
            yield part

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass(slots=True)
class _Known:
    """What is remembered of one tool."""

    pool: httpx2.AsyncHTTPTransport
    discover: types.DiscoverResult | None = None
    mode: str | None = None
    """Negotiated: a protocol version or `legacy`; None until asked."""


@dataclass(slots=True)
class McpConnector:
    """Calls tools of MCP servers."""

    egress: Egress
    credentials: CredentialProvider
    tls: ssl.SSLContext
    _known: dict[str, _Known] = field(default_factory=dict[str, _Known])

    async def prepare(self, order: Order) -> Ready | Refuse:
        """Check egress and credential, negotiate once, and compare the live definition with the pin before each call."""
        ready = await admit(order, egress=self.egress, credentials=self.credentials)
        if isinstance(ready, Refuse):
            return ready
        known = self._of(order)
        pinned = order.action.entry.upstream_digest
        if known.mode is not None and pinned is None:
            return ready
        found: types.Tool | None = None
        try:
            async with asyncio.timeout(order.action.entry.timeout_s), self._client(order, ready, known) as client:
                _remember(known, client)
                if pinned is not None:
                    found = await _find(client, upstream_name(order))
        except _BROKEN:
            known.mode = None
            self.egress.forget()
            return Refuse(Reason.TOOL_UNREACHABLE, f"{order.action.tool.tool} does not speak MCP at its endpoint")
        if pinned is not None and (found is None or definition_digest(found) != pinned):
            return Refuse(Reason.SCHEMA_DRIFT, f"{order.action.id} is not what was pinned; import and apply it again")
        return ready

    async def call(self, order: Order, ready: Ready) -> Answer:
        """Make one `tools/call`."""
        if ready.address is None:
            return outcomes.refused_before_sending()
        known = self._of(order)
        exchange = Exchange(known.pool, ready.address)
        answer: Answer | None = None
        timeout_s = order.action.entry.timeout_s
        try:
            async with asyncio.timeout(timeout_s + LEAVE_S), self._client(order, ready, known, exchange) as client:
                exchange.is_watching = True
                answer = await _ask(client.session, order, exchange, timeout_s=timeout_s)
        except _BROKEN as error:
            # A failure while leaving changes nothing about an answer that is already known.
            answer = answer or _without_result(order.action.entry, exchange, error)
        if answer.outcome is not Outcome.SUCCEEDED and answer.error != "tool_error":
            known.mode = None
            self.egress.forget()
        return answer

    async def close(self) -> None:
        """Close every pool."""
        known, self._known = list(self._known.values()), {}
        for each in known:
            await each.pool.aclose()

    def _of(self, order: Order) -> _Known:
        key = f"{order.action.tool.tool} {order.action.tool.endpoint}"
        found = self._known.get(key)
        if found is None:
            limits = httpx2.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=KEEPALIVE_S)
            found = _Known(httpx2.AsyncHTTPTransport(verify=self.tls, limits=limits, trust_env=False))
            self._known[key] = found
        return found

    def _client(self, order: Order, ready: Ready, known: _Known, exchange: Exchange | None = None) -> Client:
        assert ready.address is not None  # noqa: S101  (`admit` returned it)
        headers = {"User-Agent": "remit-executor", "Accept-Encoding": "identity", "Idempotency-Key": order.action_id}
        if ready.credential is not None:
            headers["Authorization"] = f"Bearer {ready.credential}"
        timeout_s = order.action.entry.timeout_s
        # Closing this client would close the pool below it; it holds nothing of its own, so it is left to the collector.
        http = httpx2.AsyncClient(
            transport=exchange or Exchange(known.pool, ready.address),
            headers=headers,
            timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, self.egress.connect_timeout_s)),
            max_redirects=0,
            trust_env=False,
        )
        return Client(
            streamable_http_client(order.action.tool.endpoint or "", http_client=http),
            mode=known.mode or "auto",
            prior_discover=known.discover,
            read_timeout_seconds=timeout_s,
            client_info=types.Implementation(name="remit-executor", version="1"),
            cache=None,
        )


def _remember(known: _Known, client: Client) -> None:
    version = client.protocol_version
    known.mode = version if version in MODERN_PROTOCOL_VERSIONS else "legacy"
    known.discover = client.session.discover_result


def upstream_name(order: Order) -> str:
    """Return the tool's name on its own server."""
    return order.action.entry.upstream_name or order.action.name


async def _find(client: Client, name: str) -> types.Tool | None:
    cursor: str | None = None
    for _ in range(MAX_TOOL_PAGES):
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            if tool.name == name:
                return tool
        cursor = page.next_cursor
        if cursor is None:
            return None
    return None


def definition_digest(tool: types.Tool) -> str:
    """Return the digest of a live tool definition; the description counts, because it is what the model reads.

    Source: design, standards section 6.
    """
    raw = tool.model_dump(mode="json", by_alias=True, exclude_none=True)
    return digest({name: raw[name] for name in _DEFINITION if name in raw})


async def _ask(session: ClientSession, order: Order, exchange: Exchange, *, timeout_s: float) -> Answer:
    meta = {KEY_META: order.action_id} | ({"traceparent": order.traceparent} if order.traceparent else {})
    request = types.CallToolRequest(
        params=types.CallToolRequestParams(
            name=upstream_name(order), arguments=dict(order.arguments), _meta=cast(types.RequestParamsMeta, meta)
        )
    )
    try:
        # Not `call_tool`: it would list tools after the effect and raise away the result when its own validation fails.
        result = await session.send_request(request, _RESULT, request_read_timeout_seconds=timeout_s)
    except (MCPError, ValidationError) as error:
        return _without_result(order.action.entry, exchange, error)
    if isinstance(result, types.InputRequiredResult):
        return outcomes.lost("input_required")
    value = result_value(result)
    if result.is_error:
        return outcomes.of_tool_error(order.action.entry, value)
    return Answer(outcome=Outcome.SUCCEEDED, value=value)


def result_value(result: types.CallToolResult) -> JsonValue:
    """Return what the tool said: structured content when there is any, else its text, else the content blocks."""
    if result.structured_content is not None:
        return result.structured_content
    texts = [block.text for block in result.content if isinstance(block, types.TextContent)]
    if len(texts) == len(result.content):
        return "\n".join(texts)
    return [block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content]


def _without_result(entry: ActionEntry, exchange: Exchange, error: BaseException | None) -> Answer:
    """Tell a definite refusal from doubt when no result came back."""
    if not exchange.is_watching or isinstance(exchange.failure, _NOT_SENT):
        return outcomes.refused_before_sending()
    if exchange.status is not None and outcomes.is_refusal(exchange.status, entry):
        return Answer(outcome=Outcome.FAILED, error=f"http_{exchange.status}")
    if isinstance(error, MCPError) and _was_not_run(error, entry):
        return Answer(outcome=Outcome.FAILED, error=f"rpc_{error.code}")
    if isinstance(error, TimeoutError | httpx2.TimeoutException) or isinstance(
        exchange.failure, httpx2.TimeoutException
    ):
        return outcomes.lost("timeout")
    if isinstance(error, MCPError) and error.code == types.REQUEST_TIMEOUT:
        return outcomes.lost("timeout")
    if isinstance(error, ValidationError):
        return outcomes.lost("protocol")
    return outcomes.lost("connection" if exchange.failure or exchange.status is None else "protocol")


def _was_not_run(error: MCPError, entry: ActionEntry) -> bool:
    return error.code in NOT_EXECUTED or (error.code == types.INVALID_PARAMS and outcomes.errors_are_final(entry))
