"""Server files of the three containers: one node a file, every stream on all of them, clients and routes under mutual TLS.

Paths are those inside a container. Source: design, bus section 2; parts section 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from infra.nats.config import Cluster, ServerConfig, TlsFiles, render

if TYPE_CHECKING:
    from infra.local.key_ring import NatsUsers

NODES = ("nats-1", "nats-2", "nats-3")
CLIENT_PORT, ROUTE_PORT, MONITOR_PORT = 4222, 6222, 8222
MOUNTED = Path("/etc/remit-nats")
"""Where a container sees its server file and certificates."""
STORE = Path("/data/jetstream")


def route_name(node: str) -> str:
    """Return a node's name on the network of routes alone: only there it listens for routes, never where agents are."""
    return f"{node}-routes"


def server_names(node: str) -> tuple[str, ...]:
    """Return what clients may call a node: its name, and this machine where its port is published."""
    return (node, "localhost", "127.0.0.1")


def node_file(node: str, users: NatsUsers, *, store_bytes: int) -> str:
    """Return one node's server file; `store_bytes` is the most its streams may take on its own disk.

    Raises:
        ValueError: a principal has no key, or a key or name has the wrong form.

    """
    return render(
        ServerConfig(
            users=users.users,
            agents=users.agents,
            store_dir=STORE,
            host="0.0.0.0",  # noqa: S104  (a container's own network; compose publishes it on loopback)
            port=CLIENT_PORT,
            monitor_port=MONITOR_PORT,
            max_file_bytes=store_bytes,
            tls=_tls("server", "clients"),
            cluster=Cluster(
                server_name=node,
                listen=f"{route_name(node)}:{ROUTE_PORT}",
                routes=tuple(f"nats-route://{route_name(name)}:{ROUTE_PORT}" for name in NODES),
                tls=_tls("route", "routes"),
            ),
        )
    )


def _tls(stem: str, authority: str) -> TlsFiles:
    folder = MOUNTED / "tls"
    return TlsFiles(
        cert_file=folder / f"{stem}.crt", key_file=folder / f"{stem}.key", ca_file=folder / f"{authority}.crt"
    )
