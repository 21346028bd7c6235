"""Certificates of `infra.nats.tls` on real servers: each door is strictly verified, and neither opens the other's."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import httpx
import pytest
from cryptography import x509
from nats.aio.client import Client
from nats.errors import Error as NatsError

from infra.local import key_ring, keys
from infra.local.child import LOOPBACK, free_port
from infra.local.nats_server import NatsServer, server_config
from infra.nats.config import Cluster, TlsFiles
from infra.nats.tls import LEAF_LIFE, RENEW_BEFORE, Authority, Usage
from remit.clock import now
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)

REFUSED = (OSError, NatsError, TimeoutError, asyncio.IncompleteReadError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two nodes that found each other under TLS, and where their certificates lie."""

    directory: Path
    nodes: tuple[NatsServer, NatsServer]
    route_port: int

    def context(self, stem: str | None, authority: str = "clients") -> ssl.SSLContext:
        """Return a client's context that verifies as strictly as Python 3.13 does; `stem` is what it shows."""
        found = ssl.create_default_context(cafile=self.directory / "ca" / f"{authority}.crt")
        found.verify_flags |= ssl.VERIFY_X509_STRICT
        if stem is not None:
            found.load_cert_chain(self.directory / "tls" / f"{stem}.crt", self.directory / "tls" / f"{stem}.key")
        return found


def files(directory: Path, stem: str, authority: str) -> TlsFiles:
    tls = directory / "tls"
    return TlsFiles(
        cert_file=tls / f"{stem}.crt", key_file=tls / f"{stem}.key", ca_file=directory / "ca" / f"{authority}.crt"
    )


def certificates(directory: Path) -> None:
    clients, routes = Authority(directory / "ca", "clients"), Authority(directory / "ca", "routes")
    clients.issue(directory / "tls" / "server", ("localhost", LOOPBACK), Usage(server=True))
    clients.issue(directory / "tls" / "client", ("a1",), Usage(client=True))
    routes.issue(directory / "tls" / "route", (LOOPBACK,), Usage(server=True, client=True))


@pytest.fixture(scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """Two running nodes."""
    directory = tmp_path_factory.mktemp("tls")
    keys.generate(directory / "keys", "test", ["a1"])
    certificates(directory)
    ports = [free_port(), free_port()]
    routes = tuple(f"nats-route://{LOOPBACK}:{port}" for port in ports)
    async with AsyncExitStack() as stack:
        nodes: list[NatsServer] = []
        for name, port in zip(("n1", "n2"), ports, strict=True):
            cluster = Cluster(
                server_name=name, listen=f"{LOOPBACK}:{port}", routes=routes, tls=files(directory, "route", "routes")
            )
            plain = server_config(directory / "keys", directory / name)
            config = replace(plain, tls=files(directory, "server", "clients"), cluster=cluster)
            nodes.append(await stack.enter_async_context(NatsServer(config, directory / name)))
        yield Pair(directory=directory, nodes=(nodes[0], nodes[1]), route_port=ports[0])


async def login(pair: Pair, context: ssl.SSLContext) -> None:
    """Connect as agent a1 and leave again."""
    client = Client()
    try:
        await client.connect(
            pair.nodes[0].url,
            nkeys_seed_str=key_ring.load_agent_seed(pair.directory / "keys", "a1"),
            tls=context,
            tls_handshake_first=True,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=2,
            error_cb=_ignore,
        )
    finally:
        await client.close()


async def _ignore(_: Exception) -> None:
    """The exception itself is awaited."""


async def is_open_to_a_route(pair: Pair, stem: str) -> bool:
    """Return whether a node greets a route connection that shows one certificate."""
    context = pair.context(stem, "routes")
    try:
        async with asyncio.timeout(5.0):
            reader, writer = await asyncio.open_connection(LOOPBACK, pair.route_port, ssl=context)
            # In TLS 1.3 a refused client only hears of it when it reads.
            greeting = await reader.readline()
    except OSError:
        return False
    writer.transport.abort()
    return greeting.startswith(b"INFO ")


async def test_nodes_find_each_other_under_tls(pair: Pair) -> None:
    async def has_routes() -> bool:
        async with httpx.AsyncClient(trust_env=False) as http:
            return (await http.get(f"{pair.nodes[0].monitoring_url}/routez")).json()["num_routes"] > 0

    await eventually(has_routes)


async def test_a_client_with_its_certificate_logs_in(pair: Pair) -> None:
    await login(pair, pair.context("client"))


@pytest.mark.parametrize("stem", [None, "route"], ids=["no certificate", "a route's certificate"])
async def test_a_client_with_anything_else_does_not(pair: Pair, stem: str | None) -> None:
    with pytest.raises(REFUSED):
        await login(pair, pair.context(stem))


async def test_a_client_that_trusts_another_authority_tells_a_node_nothing(pair: Pair) -> None:
    port = int(pair.nodes[0].url.rsplit(":", 1)[1])
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.open_connection(LOOPBACK, port, ssl=pair.context("client", "routes"))


async def test_a_clients_certificate_opens_no_route(pair: Pair) -> None:
    assert await is_open_to_a_route(pair, "route")
    assert not await is_open_to_a_route(pair, "client")


def test_a_certificate_is_kept_until_it_runs_out_or_its_names_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, leaf = Usage(server=True), tmp_path / "server"
    assert Authority(tmp_path, "ca").issue(leaf, ("n1", "127.0.0.1"), usage)
    assert not Authority(tmp_path, "ca").issue(leaf, ("n1", "127.0.0.1"), usage)
    assert Authority(tmp_path, "ca").issue(leaf, ("n1", "n1.example"), usage)
    late = now() + LEAF_LIFE - RENEW_BEFORE
    monkeypatch.setattr("infra.nats.tls.now", lambda: late)
    assert Authority(tmp_path, "ca").issue(leaf, ("n1", "n1.example"), usage)
    found = x509.load_pem_x509_certificate(leaf.with_suffix(".crt").read_bytes())
    assert found.not_valid_after_utc > late + RENEW_BEFORE
