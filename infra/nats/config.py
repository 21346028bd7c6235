"""Renders the server file: two accounts with a narrow border, exact permissions, `sync_interval: always`.

The output is JSON, which the server's configuration language contains, so that no name can break out of its quotes.
Source: design, bus section 2.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.nats.identity import PUBLIC_KEY
from infra.nats.permissions import BREAK_GLASS, PRINCIPALS, RESPONSE_EXPIRY_S, SYSTEM_USER, Permissions, agent
from remit.runtime.streams import GIB

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_PAYLOAD = 256 * 1024
AGENT_MAX_PAYLOAD = 65_536

MAX_AGENT_CONNECTIONS = 2_000
MAX_CONNECTIONS = MAX_AGENT_CONNECTIONS + 512
"""Of the whole server: agents that use up their account's connections leave room for every service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Certificate, key and authority of one listener; both sides must present a certificate."""

    cert_file: Path
    key_file: Path
    ca_file: Path

    def block(self, *, clients: bool) -> dict[str, Any]:
        """Return the `tls` block; `handshake_first` exists only where clients connect."""
        block: dict[str, Any] = {
            "cert_file": str(self.cert_file),
            "key_file": str(self.key_file),
            "ca_file": str(self.ca_file),
            "verify": True,
            "min_version": "1.3",
        }
        return {**block, "handshake_first": True} if clients else block


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What makes a server one of three; `routes` are `nats-route://host:port`, one for each node, itself included."""

    server_name: str
    listen: str
    routes: tuple[str, ...]
    tls: TlsFiles | None = None
    name: str = "remit"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Everything one server file depends on; `users` and `agents` map names to public nkeys."""

    users: Mapping[str, str]
    agents: Mapping[str, str]
    store_dir: Path
    host: str = "127.0.0.1"
    port: int = -1
    monitor_port: int = -1
    max_file_bytes: int = 6 * GIB
    tls: TlsFiles | None = None
    cluster: Cluster | None = None
    allowed_extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Top-level settings a fault test turns by hand; never used in a real profile."""


def render(config: ServerConfig) -> str:
    """Return the server file.

    Raises:
        ValueError: a principal of the table has no key, or a name or key has the wrong form.

    """
    missing = sorted({*PRINCIPALS, SYSTEM_USER} - set(config.users))
    if missing:
        raise ValueError(
            f"no public nkey for {', '.join(missing)}; run `python -m infra.local.keys` for this directory"
        )
    document: dict[str, Any] = {
        "listen": f"{config.host}:{config.port}",
        "http": f"127.0.0.1:{config.monitor_port}",
        "max_payload": MAX_PAYLOAD,
        "max_connections": MAX_CONNECTIONS,
        "ping_interval": "10s",
        "ping_max": 2,
        "write_deadline": "5s",
        "jetstream": {
            "store_dir": str(config.store_dir),
            "sync_interval": "always",
            "max_file_store": config.max_file_bytes,
        },
        "system_account": "SYS",
        "accounts": {
            "SYS": {"users": [{"nkey": _key(SYSTEM_USER, config.users[SYSTEM_USER])}]},
            "AGENTS": _agents(config),
            "REMIT": _remit(config),
        },
    }
    if config.tls is not None:
        document["tls"] = config.tls.block(clients=True)
    if config.cluster is not None:
        document |= _cluster(config.cluster)
    return json.dumps(document | dict(config.allowed_extra), indent=2) + "\n"


def _agents(config: ServerConfig) -> dict[str, Any]:
    return {
        "limits": {
            "max_connections": MAX_AGENT_CONNECTIONS,
            "max_subscriptions": 20_000,
            "max_payload": AGENT_MAX_PAYLOAD,
        },
        "imports": [
            {"service": {"account": "REMIT", "subject": "in.propose.*"}, "to": "propose.*"},
            {"service": {"account": "REMIT", "subject": "status.*.*"}},
            {"stream": {"account": "REMIT", "subject": "results.>"}},
        ],
        "users": [_user(name, key, agent(name)) for name, key in sorted(config.agents.items())],
    }


def _remit(config: ServerConfig) -> dict[str, Any]:
    border = {"accounts": ["AGENTS"]}
    logins = PRINCIPALS | {name: row for name, row in BREAK_GLASS.items() if name in config.users}
    # The account's limit counts every replica in the cluster, the server's own limit only what lies on its disk.
    nodes = len(config.cluster.routes) if config.cluster is not None else 1
    return {
        "jetstream": {"max_file": config.max_file_bytes * nodes, "max_streams": 10, "max_consumers": 100},
        "exports": [
            {"service": "in.propose.*", **border},
            {"service": "status.*.*", **border},
            {"stream": "results.>", **border},
        ],
        "users": [_user(name, config.users[name], row) for name, row in logins.items()],
    }


def _user(name: str, key: str, row: Permissions) -> dict[str, Any]:
    permissions: dict[str, Any] = {
        "publish": {"allow": list(row.publish)},
        "subscribe": {"allow": list(row.subscribe)},
    }
    if row.allow_responses:
        permissions["allow_responses"] = {"max": 1, "expires": f"{RESPONSE_EXPIRY_S}s"}
    return {"nkey": _key(name, key), "permissions": permissions}


def _key(name: str, key: str) -> str:
    if not PUBLIC_KEY.fullmatch(key):
        raise ValueError(f"the key of {name} is not a public user nkey (U and 55 base32 characters)")
    return key


def _cluster(cluster: Cluster) -> dict[str, Any]:
    block: dict[str, Any] = {
        "name": cluster.name,
        "listen": cluster.listen,
        "routes": list(cluster.routes),
        # Otherwise clients are told addresses of the other nodes, which no certificate names and agents need not know.
        "no_advertise": True,
    }
    if cluster.tls is not None:
        block["tls"] = cluster.tls.block(clients=False)
    return {"server_name": cluster.server_name, "cluster": block}
