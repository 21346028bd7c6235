"""HTTP tools: one request built from the registry's template, to the checked address, without redirects or proxies."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx

from remit.canonical import canonical, strict_loads
from remit.errors import CanonicalError
from remit.reasons import Reason
from services.executor.connectors import outcomes
from services.executor.connectors.egress import is_loopback
from services.executor.connectors.protocol import Address, Ready
from services.executor.decide import Refuse

if TYPE_CHECKING:
    import ssl

    from pydantic import JsonValue

    from services.executor.connectors.credentials import CredentialProvider
    from services.executor.connectors.egress import Egress
    from services.executor.decide import Order
    from services.executor.results import Answer

MAX_BODY_BYTES = 1_048_576
"""A result is at most 24 KiB; whatever is far larger is not read to its end."""
KEEPALIVE_S = 4.0
"""Below the 5 s after which common servers close an idle connection: a request on a closing one would be in doubt."""
_BODILESS = frozenset({"GET", "DELETE"})
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_NOT_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
)


class HttpConnector:
    """Calls HTTP APIs; one connection pool for each tool."""

    def __init__(self, *, egress: Egress, credentials: CredentialProvider, tls: ssl.SSLContext) -> None:
        self._egress, self._credentials, self._tls = egress, credentials, tls
        self._clients: dict[str, httpx.AsyncClient] = {}

    async def prepare(self, order: Order) -> Ready | Refuse:
        """Check the path arguments, the egress list, the credential, and that somebody answers."""
        unfit = unfit_segment(order)
        if unfit is not None:
            return Refuse(Reason.SCHEMA_VIOLATION, f"argument {unfit} cannot stand in a path")
        return await admit(order, egress=self._egress, credentials=self._credentials)

    async def call(self, order: Order, ready: Ready) -> Answer:
        """Send one request and read at most the result's size."""
        if ready.address is None:
            return outcomes.refused_before_sending()
        request = self._request(order, ready, ready.address)
        try:
            async with asyncio.timeout(order.action.entry.timeout_s):
                response = await self._client(order).send(request, stream=True)
                try:
                    body = await _read(response)
                finally:
                    await response.aclose()
        except _NOT_SENT:
            self._egress.forget()
            return outcomes.refused_before_sending()
        except (httpx.TimeoutException, TimeoutError):
            return outcomes.lost("timeout")
        except (httpx.TransportError, httpx.DecodingError):
            self._egress.forget()
            return outcomes.lost("connection")
        if body is None:
            return outcomes.of_status(response.status_code, order.action.entry, is_oversize=True)
        return outcomes.of_status(response.status_code, order.action.entry, value=_value(response, body))

    async def close(self) -> None:
        """Close every pool."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.aclose()

    def _client(self, order: Order) -> httpx.AsyncClient:
        key = f"{order.action.tool.tool} {order.action.tool.endpoint}"
        client = self._clients.get(key)
        if client is None:
            limits = httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=KEEPALIVE_S)
            client = httpx.AsyncClient(verify=self._tls, limits=limits, follow_redirects=False, trust_env=False)
            self._clients[key] = client
        return client

    def _request(self, order: Order, ready: Ready, address: Address) -> httpx.Request:
        template = order.action.entry.http
        assert template is not None  # noqa: S101  (the bundle refuses an http action without one)
        path, rest = fill(template.path, order.arguments)
        base = httpx.URL(order.action.tool.endpoint or "")
        url = base.copy_with(
            host=address.ip, raw_path=base.raw_path.partition(b"?")[0].rstrip(b"/") + path.encode("ascii")
        )
        options: dict[str, Any] = {}
        if template.method in _BODILESS:
            options["params"] = query(rest) or None
        else:
            options["content"] = canonical(rest)
        timeout_s = order.action.entry.timeout_s
        return self._client(order).build_request(
            template.method,
            url,
            headers=headers(order, ready, host=base.netloc.decode("ascii"), has_body="content" in options),
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, self._egress.connect_timeout_s)),
            extensions={"sni_hostname": address.host},
            **options,
        )


async def admit(order: Order, *, egress: Egress, credentials: CredentialProvider) -> Ready | Refuse:
    """Return address and credential of a tool, or why the call cannot be made."""
    tool = order.action.tool
    address = await egress.admit(tool)
    if isinstance(address, Refuse):
        return address
    if tool.credential is None:
        return Ready(address=address)
    if address.scheme != "https" and not is_loopback(address.ip):
        return Refuse(
            Reason.EGRESS_DENIED,
            f"{tool.tool} takes a credential over plain http at {address.host}:{address.port}; register an https endpoint",
        )
    secret = await credentials.fetch(tool.credential)
    if secret is None:
        return Refuse(Reason.CREDENTIAL_MISSING, f"credential {tool.credential} of {tool.tool} is missing or unusable")
    return Ready(address=address, credential=secret)


def headers(order: Order, ready: Ready, *, host: str, has_body: bool) -> dict[str, str]:
    """Return the headers of one call; the upstream's own credential, never the action token nor the agent's."""
    found = {
        "Host": host,
        "Accept": "application/json",
        "Accept-Encoding": "identity",  # what is counted is what was sent: no decompression bombs
        "User-Agent": "remit-executor",
        "Idempotency-Key": order.action_id,
    }
    if has_body:
        found["Content-Type"] = "application/json"
    if ready.credential is not None:
        found["Authorization"] = f"Bearer {ready.credential}"
    if order.traceparent is not None:
        found["traceparent"] = order.traceparent
    return found


def fill(path: str, arguments: dict[str, JsonValue]) -> tuple[str, dict[str, JsonValue]]:
    """Return the path with its arguments percent-encoded, and the arguments that are left for query or body."""
    names = set(_PLACEHOLDER.findall(path))
    filled = _PLACEHOLDER.sub(lambda match: quote(_text(arguments[match[1]]), safe=""), path)
    return filled, {name: value for name, value in arguments.items() if name not in names}


def unfit_segment(order: Order) -> str | None:
    """Return the path argument that would leave its segment or vanish from the path, or None.

    Percent-encoding keeps `/` inside a segment, but dots stay dots, and servers remove dot segments (RFC 3986 section 5.2.4).
    """
    template = order.action.entry.http
    for name in _PLACEHOLDER.findall(template.path) if template else ():
        value = order.arguments.get(name)
        if not isinstance(value, str | int) or _text(value) in {"", ".", ".."}:
            return name
    return None


def query(arguments: dict[str, JsonValue]) -> list[tuple[str, str]]:
    """Return query parameters: lists repeat their name, null is left out, records travel as JSON."""
    found: list[tuple[str, str]] = []
    for name, value in arguments.items():
        values = value if isinstance(value, list) else [value]
        found.extend((name, _text(each)) for each in values if each is not None)
    return found


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else canonical(value).decode()


async def _read(response: httpx.Response) -> bytes | None:
    """Return the body, or None when it is larger than any result may be."""
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MAX_BODY_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


def _value(response: httpx.Response, body: bytes) -> JsonValue:
    if not body:
        return None
    if "json" in response.headers.get("content-type", ""):
        try:
            return strict_loads(body)
        except CanonicalError:
            return body.decode("utf-8", "replace")
    return body.decode("utf-8", "replace")
