"""Reads broker logins out of a key directory, for whoever starts programs; services read their own by `remit.runtime.keys`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.nats import identity
from infra.nats.permissions import BREAK_GLASS, PRINCIPALS, SYSTEM_USER
from remit.runtime.keys import read

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsUsers:
    """Public nkeys by principal and by agent, as the server file lists them."""

    users: Mapping[str, str]
    agents: Mapping[str, str]


def load_nats_seed(directory: Path, principal: str) -> str:
    """Return a principal's nkey seed; an agent is `agents/<name>`.

    Raises:
        ConfigurationError: the file is missing; the message names it and how it is made.

    """
    return read(directory / principal / "nats.nk")


def load_agent_seed(directory: Path, name: str) -> str:
    """Return an agent's nkey seed."""
    return load_nats_seed(directory, f"agents/{name}")


def load_agent_public_key(directory: Path, name: str) -> str:
    """Return the public nkey that the registry names for an agent."""
    return identity.public_key(load_agent_seed(directory, name))


def load_nats_users(directory: Path) -> NatsUsers:
    """Return the public nkeys of every principal, and of every agent and break-glass login that has a folder."""
    folder = directory / "agents"
    agents = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    at_hand = [name for name in BREAK_GLASS if (directory / name).is_dir()]
    names = (*PRINCIPALS, SYSTEM_USER, *at_hand)
    return NatsUsers(
        users={name: identity.public_key(load_nats_seed(directory, name)) for name in names},
        agents={name: load_agent_public_key(directory, name) for name in agents},
    )
