"""Reads the key material that `infra.local.keys` lays out; what is secret never appears in a repr."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from nacl.public import PrivateKey
from nacl.signing import SigningKey

from infra.local import secret_files
from infra.nats import identity
from infra.nats.permissions import PRINCIPALS, SYSTEM_USER
from remit.canonical import b64url, b64url_decode, canonical
from remit.envelope import Signer
from remit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

P256_BYTES = 32
"""Length of a coordinate on P-256 (RFC 7518 section 6.2.1.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceKeys:
    """What a service needs to log in to the broker and to sign its events."""

    nats_seed: str = field(repr=False)
    signer: Signer = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorKeys:
    """What the executor opens sealed tokens with, and proves possession with; `jkt` is RFC 7638 of the latter."""

    x25519: PrivateKey = field(repr=False)
    dpop: ec.EllipticCurvePrivateKey = field(repr=False)
    jkt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKeys:
    """ES256 keys of the tokens service by kid: the active one signs, all are published in its JWKS."""

    active: str
    private_keys: Mapping[str, ec.EllipticCurvePrivateKey] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsUsers:
    """Public nkeys by principal and by agent, as the server file lists them."""

    users: Mapping[str, str]
    agents: Mapping[str, str]


def load_nats_seed(directory: Path, principal: str) -> str:
    """Return a principal's nkey seed; an agent is `agents/<name>`."""
    return secret_files.read(directory / principal / "nats.nk")


def load_agent_seed(directory: Path, name: str) -> str:
    """Return an agent's nkey seed."""
    return load_nats_seed(directory, f"agents/{name}")


def load_agent_public_key(directory: Path, name: str) -> str:
    """Return the public nkey that the registry names for an agent."""
    return identity.public_key(load_agent_seed(directory, name))


def load_nats_users(directory: Path) -> NatsUsers:
    """Return the public nkeys of every principal and of every agent that has a folder."""
    folder = directory / "agents"
    agents = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return NatsUsers(
        users={name: identity.public_key(load_nats_seed(directory, name)) for name in (*PRINCIPALS, SYSTEM_USER)},
        agents={name: load_agent_public_key(directory, name) for name in agents},
    )


def load_event_key(directory: Path, service: str) -> tuple[str, SigningKey]:
    """Return the kid and the key a service signs its events with now."""
    return _seeded(directory / service / "event.json")


def load_service(directory: Path, service: str) -> ServiceKeys:
    """Return a service's broker seed and event signer."""
    kid, key = load_event_key(directory, service)
    secret = b64url_decode(secret_files.read(directory / service / "message_id.key"))
    return ServiceKeys(
        nats_seed=load_nats_seed(directory, service),
        signer=Signer(kid=kid, service=service, key=key, message_id_secret=secret),
    )


def load_checkpoint(directory: Path) -> tuple[str, SigningKey]:
    """Return the kid and the key that audit signs checkpoints with."""
    return _seeded(directory / "audit" / "checkpoint.json")


def load_executor(directory: Path) -> ExecutorKeys:
    """Return the executor's decryption key and proof-of-possession key."""
    dpop = _p256(secret_files.read(directory / "executor" / "dpop.pem"))
    sealed = PrivateKey(b64url_decode(secret_files.read(directory / "executor" / "x25519.key")))
    return ExecutorKeys(x25519=sealed, dpop=dpop, jkt=thumbprint(dpop.public_key()))


def load_token_keys(directory: Path) -> TokenKeys:
    """Return the signing keys of the tokens service."""
    document = secret_files.read_json(directory / "tokens" / "token_keys.json")
    keys = {row["kid"]: _p256(row["pem"]) for row in document["keys"]}
    return TokenKeys(active=document["active"], private_keys=keys)


def load_cookie_secret(directory: Path) -> str:
    """Return the secret that signs the dashboard's cookies."""
    return secret_files.read(directory / "dashboard" / "cookie.secret")


def thumbprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return the JWK thumbprint of a P-256 key (RFC 7638 section 3; base64url of SHA-256)."""
    numbers = key.public_numbers()
    jwk: dict[str, Any] = {
        "crv": "P-256",
        "kty": "EC",
        "x": b64url(numbers.x.to_bytes(P256_BYTES, "big")),
        "y": b64url(numbers.y.to_bytes(P256_BYTES, "big")),
    }
    # RFC 8785 sorts the members as RFC 7638 asks and adds no space.
    return b64url(hashlib.sha256(canonical(jwk)).digest())


def _seeded(path: Path) -> tuple[str, SigningKey]:
    document = secret_files.read_json(path)
    return document["kid"], SigningKey(b64url_decode(document["seed"]))


def _p256(pem: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigurationError("a signing key is not a P-256 key; make it again with `python -m infra.local.keys`")
    return key
