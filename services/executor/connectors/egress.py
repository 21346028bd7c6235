"""Where the executor may connect: listed hosts only, checked again on the addresses their names resolve to.

A connector talks to the very address that was checked, so a name that resolves differently a moment later changes nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from remit.clock import monotonic
from remit.reasons import Reason
from services.executor.connectors.protocol import Address
from services.executor.decide import Refuse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remit.bundle import ToolEntry

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_ADDRESSES = 8
_LAST_32_BITS = tuple(
    ipaddress.IPv6Network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96")
)
"""Networks whose addresses end in an IPv4 address."""
_ISATAP = frozenset({0x0000_5EFE, 0x0200_5EFE})
"""Upper half of an interface identifier that ends in an IPv4 address."""
_NOT_EMBEDDING = frozenset({ipaddress.IPv6Address("::"), ipaddress.IPv6Address("::1")})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The network part of a tool's endpoint."""

    scheme: str
    host: str
    port: int


def endpoint_of(url: str) -> Endpoint | None:
    """Return scheme, host and port of an endpoint, or None when it is not a plain http(s) URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname or parts.username or parts.password:
        return None
    return Endpoint(parts.scheme, parts.hostname.lower(), DEFAULT_PORTS[parts.scheme] if port is None else port)


def is_listed(endpoint: Endpoint, egress: Sequence[str]) -> bool:
    """Return whether `host` or `host:port` stands in the allow-list; an empty list allows nothing."""
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    names = {endpoint.host, host, f"{host}:{endpoint.port}"}
    return any(entry.lower() in names for entry in egress)


def is_allowed_address(ip: IpAddress, endpoint: Endpoint, egress: Sequence[str]) -> bool:
    """Return whether an address may be called: public, or listed as address or network; link-local only as itself.

    An IPv6 address that carries an IPv4 address reaches that one through a translator or a tunnel, so both must be allowed.
    `localhost` is loopback by definition (RFC 6761 section 6.3). Link-local holds the metadata services of clouds.
    """
    if endpoint.host == "localhost" and is_loopback(str(ip)):
        return True
    networks = [network for entry in egress if (network := _network(entry)) is not None]
    plain = _plain(ip)
    if any(network.num_addresses == 1 and plain in network for network in networks):
        return True
    return all(_is_admitted(face, networks) for face in (plain, *_embedded(ip)))


def _is_admitted(ip: IpAddress, networks: Sequence[IpNetwork]) -> bool:
    if ip.is_link_local:
        return any(network.num_addresses == 1 and ip in network for network in networks)
    return _is_public(ip) or any(ip in network for network in networks)


def is_loopback(ip: str) -> bool:
    """Return whether an address never leaves the host."""
    return _plain(ipaddress.ip_address(ip)).is_loopback


def _plain(ip: IpAddress) -> IpAddress:
    """Return the address that is really called: a mapped one is IPv4 on the wire (RFC 4291 section 2.5.5.2)."""
    return ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped else ip


def _is_public(ip: IpAddress) -> bool:
    # `is_global` of the standard library knows neither site-local addresses (RFC 3879) nor, in some versions, these two.
    is_odd = ip.is_multicast or ip.is_unspecified or (isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local)
    return ip.is_global and not is_odd


def _embedded(ip: IpAddress) -> tuple[ipaddress.IPv4Address, ...]:
    """Return the IPv4 addresses that an IPv6 address carries to a translator or a tunnel.

    Source: RFC 6052 (64:ff9b::/96), RFC 8215 (64:ff9b:1::/48), RFC 3056 (2002::/16), RFC 4380 (2001::/32), RFC 4291 section
    2.5.5.1 (::a.b.c.d), RFC 2765 (::ffff:0:a.b.c.d), RFC 5214 (ISATAP).
    """
    if not isinstance(ip, ipaddress.IPv6Address) or ip in _NOT_EMBEDDING:
        return ()
    found = [ip.sixtofour, *(ip.teredo or ())]
    if any(ip in network for network in _LAST_32_BITS) or (int(ip) >> 32) & 0xFFFF_FFFF in _ISATAP:
        found.append(ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF))
    return tuple(address for address in found if address is not None)


def _network(entry: str) -> IpNetwork | None:
    host = entry
    if entry.startswith("["):
        host = entry[1:].partition("]")[0]
    elif entry.count(":") == 1:
        host = entry.partition(":")[0]
    try:
        return ipaddress.ip_network(host)
    except ValueError:
        return None


@dataclass(slots=True)
class Egress:
    """Checks, resolves and warms up; remembers a reachable address for a moment."""

    tls: ssl.SSLContext
    connect_timeout_s: float = 5.0
    remember_s: float = 5.0
    _reachable: dict[str, tuple[float, Address]] = field(default_factory=dict[str, tuple[float, Address]])

    async def admit(self, tool: ToolEntry) -> Address | Refuse:
        """Return the address to call, reachable right now, or the refusal."""
        endpoint = endpoint_of(tool.endpoint or "")
        if endpoint is None:
            return Refuse(
                Reason.EGRESS_DENIED, f"the endpoint of {tool.tool} is not an http(s) URL without credentials"
            )
        if not is_listed(endpoint, tool.egress):
            return Refuse(
                Reason.EGRESS_DENIED, f"{endpoint.host}:{endpoint.port} is not in the egress list of {tool.tool}"
            )
        # The list is part of the key: a re-applied registry must not profit from what the old one allowed.
        key = f"{tool.tool} {tool.endpoint} {tool.egress}"
        known = self._reachable.get(key)
        if known is not None and monotonic() - known[0] < self.remember_s:
            return known[1]
        found = await self._locate(tool, endpoint)
        if isinstance(found, Address):
            self._reachable[key] = (monotonic(), found)
        return found

    def forget(self) -> None:
        """Check and connect anew at the next call, because something did not answer."""
        self._reachable.clear()

    async def _locate(self, tool: ToolEntry, endpoint: Endpoint) -> Address | Refuse:
        addresses = await self._resolve(endpoint)
        if not addresses:
            return Refuse(Reason.TOOL_UNREACHABLE, f"{endpoint.host} of {tool.tool} has no address")
        for ip in addresses:
            if not is_allowed_address(ip, endpoint, tool.egress):
                return Refuse(
                    Reason.EGRESS_DENIED,
                    f"{endpoint.host} of {tool.tool} resolves to an address that is not public and not listed in its egress",
                )
        for ip in addresses:
            if await self._answers(str(ip), endpoint):
                return Address(scheme=endpoint.scheme, host=endpoint.host, port=endpoint.port, ip=str(ip))
        return Refuse(
            Reason.TOOL_UNREACHABLE, f"{tool.tool} does not accept connections at {endpoint.host}:{endpoint.port}"
        )

    async def _resolve(self, endpoint: Endpoint) -> list[IpAddress]:
        try:
            async with asyncio.timeout(self.connect_timeout_s):
                found = await asyncio.get_running_loop().getaddrinfo(endpoint.host, endpoint.port, type=1)
        except (OSError, TimeoutError, UnicodeError):
            return []
        unique = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
        return [ipaddress.ip_address(text) for text in list(unique)[:MAX_ADDRESSES]]

    async def _answers(self, ip: str, endpoint: Endpoint) -> bool:
        tls = self.tls if endpoint.scheme == "https" else None
        name = endpoint.host if tls else None
        try:
            async with asyncio.timeout(self.connect_timeout_s):
                _, writer = await asyncio.open_connection(ip, endpoint.port, ssl=tls, server_hostname=name)
        except (OSError, TimeoutError, ssl.SSLError):
            return False
        writer.close()
        return True
