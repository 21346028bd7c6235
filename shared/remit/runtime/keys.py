"""What a service reads of its environment's key directory: the signed key file, and its own secrets only.

    trust.json trust.sig trust.root   public: key file, its signature by the root, the root's public key (both base64url)
    <service>/nats.nk                 nkey seed of the service's broker login
    <service>/event.json              {"kid", "seed"}: signs the service's events
    <service>/message_id.key          base64url, makes the service's `Nats-Msg-Id` unguessable
    executor/x25519.key               base64url; action tokens are sealed to its public half
    executor/dpop.pem                 P-256; `cnf.jkt` of every action token
    tokens/token_keys.json            {"active", "keys": [{"kid", "pem"}]}: ES256; all are published, the active one signs
    audit/checkpoint.json             {"kid", "seed"}: signs checkpoints

The root that signs the key file is held by no service, so a service that is taken over cannot give itself another one's types.
Source: design, bus section 5.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from nacl.exceptions import BadSignatureError
from nacl.public import PrivateKey
from nacl.signing import SigningKey, VerifyKey

from remit.canonical import b64url, b64url_decode, canonical
from remit.envelope import Signer, TrustedKey
from remit.errors import CanonicalError, ConfigurationError
from remit.runtime.trust import TrustRing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TRUST_FILE, SIGNATURE_FILE, ROOT_FILE = "trust.json", "trust.sig", "trust.root"
P256_BYTES = 32
"""Length of a coordinate on P-256 (RFC 7518 section 6.2.1.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """The verified key file; `executor_x25519` is the raw public key that tokens are sealed to.

    `checkpoint_keys` are by kid, the retired ones included: what they signed must stay provable.
    """

    environment: str
    keys: Mapping[str, TrustedKey]
    executor_x25519: bytes
    executor_jkt: str
    checkpoint_keys: Mapping[str, VerifyKey]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceKeys:
    """What every service needs: its broker login, its event signer, and whom to believe."""

    nkey_seed: str = field(repr=False)
    signer: Signer = field(repr=False)
    environment: Trust = field(repr=False)
    trust: TrustRing = field(repr=False)


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


def read(path: Path) -> str:
    """Return a key file's text without the final newline.

    Raises:
        ConfigurationError: it is not there or not readable; the message names it and how it is made.

    """
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path} ({error.strerror}); make the keys with `python -m infra.local.keys DIRECTORY` "
            "and point REMIT_KEYS_DIR at them"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Return one JSON object of the key directory.

    Raises:
        ConfigurationError: missing, unreadable or not JSON.

    """
    try:
        return json.loads(read(path))
    except ValueError:
        raise ConfigurationError(f"{path} is not a JSON object; restore it from a copy") from None


def read_root(directory: Path) -> VerifyKey:
    """Return the root's public key, which nothing vouches for but the directory's own permissions.

    Raises:
        ConfigurationError: the file is missing or misspelt.

    """
    try:
        return VerifyKey(b64url_decode(read(directory / ROOT_FILE)))
    except (CanonicalError, ValueError):
        raise ConfigurationError(f"{directory / ROOT_FILE} is not a base64url Ed25519 key; restore it") from None


def load_document(directory: Path, *, root: VerifyKey | None = None) -> dict[str, Any]:
    """Return the key file's JSON after checking the root's signature over its exact bytes.

    Raises:
        ConfigurationError: a file is missing or misspelt, or the signature does not fit.

    """
    text, signature = read(directory / TRUST_FILE), read(directory / SIGNATURE_FILE)
    root = root or read_root(directory)
    try:
        root.verify(text.encode(), b64url_decode(signature))
        return json.loads(text)
    except (BadSignatureError, CanonicalError, ValueError):
        raise ConfigurationError(
            f"{directory / TRUST_FILE} does not carry a valid signature of the root key in {ROOT_FILE}; "
            "restore the three trust files together from a copy"
        ) from None


def load_trust(directory: Path, *, root: VerifyKey | None = None) -> Trust:
    """Return the verified key file; `root` insists on a root key that was read before.

    Raises:
        ConfigurationError: the signature does not fit, or the content is not a key file.

    """
    document = load_document(directory, root=root)
    try:
        keys = [_trusted(row) for row in document["keys"]]
        return Trust(
            environment=document["environment"],
            keys={key.kid: key for key in keys},
            executor_x25519=b64url_decode(document["executor"]["x25519"]),
            executor_jkt=document["executor"]["jkt"],
            checkpoint_keys={
                row["kid"]: VerifyKey(b64url_decode(row["public_key"]))
                for row in (*document.get("checkpoints", ()), document["checkpoint"])
            },
        )
    except (KeyError, TypeError, CanonicalError) as error:
        raise ConfigurationError(f"{directory / TRUST_FILE} is not a key file: {type(error).__name__}") from None


def load_ring(directory: Path) -> TrustRing:
    """Return the event keys as they change; the root is the one of now, so a replaced root needs a restart."""
    root = read_root(directory)
    files = (directory / TRUST_FILE, directory / SIGNATURE_FILE)
    return TrustRing(files, lambda: load_trust(directory, root=root).keys)


def _trusted(row: dict[str, Any]) -> TrustedKey:
    return TrustedKey(
        kid=row["kid"],
        service=row["service"],
        types=frozenset(row["types"]),
        key=VerifyKey(b64url_decode(row["public_key"])),
    )


def load_seeded(path: Path) -> tuple[str, SigningKey]:
    """Return the kid and the Ed25519 key of a `{"kid", "seed"}` file."""
    raw = read_json(path)
    return raw["kid"], SigningKey(b64url_decode(raw["seed"]))


def load_signer(directory: Path, service: str) -> Signer:
    """Return a service's event signer."""
    kid, key = load_seeded(directory / service / "event.json")
    secret = b64url_decode(read(directory / service / "message_id.key"))
    return Signer(kid=kid, service=service, key=key, message_id_secret=secret)


def load_service_keys(directory: Path, service: str) -> ServiceKeys:
    """Return what one service needs to log in, to sign, and to verify others.

    Raises:
        ConfigurationError: a file is missing, or the key file does not list the service's key.

    """
    keys = ServiceKeys(
        nkey_seed=read(directory / service / "nats.nk"),
        signer=load_signer(directory, service),
        environment=load_trust(directory),
        trust=load_ring(directory),
    )
    if keys.signer.kid not in keys.trust:
        raise ConfigurationError(f"kid {keys.signer.kid} of {service} is not in {TRUST_FILE}; nobody would believe it")
    return keys


def load_checkpoint(directory: Path) -> tuple[str, SigningKey]:
    """Return the kid and the key that audit signs checkpoints with."""
    return load_seeded(directory / "audit" / "checkpoint.json")


def load_executor(directory: Path) -> ExecutorKeys:
    """Return the executor's decryption key and proof-of-possession key."""
    dpop = _p256(read(directory / "executor" / "dpop.pem"))
    sealed = PrivateKey(b64url_decode(read(directory / "executor" / "x25519.key")))
    return ExecutorKeys(x25519=sealed, dpop=dpop, jkt=thumbprint(dpop.public_key()))


def load_token_keys(directory: Path) -> TokenKeys:
    """Return the signing keys of the tokens service."""
    document = read_json(directory / "tokens" / "token_keys.json")
    keys = {row["kid"]: _p256(row["pem"]) for row in document["keys"]}
    return TokenKeys(active=document["active"], private_keys=keys)


def thumbprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return the RFC 7638 thumbprint of a P-256 key."""
    numbers = key.public_numbers()
    jwk = {
        "crv": "P-256",
        "kty": "EC",
        "x": b64url(numbers.x.to_bytes(P256_BYTES, "big")),
        "y": b64url(numbers.y.to_bytes(P256_BYTES, "big")),
    }
    return b64url(hashlib.sha256(canonical(jwk)).digest())


def _p256(pem: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError("a key of the key directory is not an elliptic-curve key")
    return key
