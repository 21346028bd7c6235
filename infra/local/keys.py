"""Key material of one environment, one folder a principal, so that each gets only its own (`python -m infra.local.keys`).

    trust.json trust.sig trust.root   public: key file, its signature by the root, the root's public key (both base64url)
    offline/root.json                 {"seed"}: signs the key file; keep it away from every service
    <principal>/nats.nk               nkey seed of a service, dashboard, cli, provisioner, operator or sys
    restorer/nats.nk                  only for as long as streams are restored (`--break-glass restorer`)
    agents/<name>/nats.nk             nkey seed of an agent; also signs its proposals
    <service>/event.json              {"kid", "seed"}: signs the service's events (approval: the registry bundle too)
    <service>/message_id.key          base64url, makes the service's `Nats-Msg-Id` unguessable
    executor/x25519.key               base64url; action tokens are sealed to its public half
    executor/dpop.pem                 P-256; `cnf.jkt` of every action token
    tokens/token_keys.json            {"active", "keys": [{"kid", "pem"}]}: ES256; all are published, the active one signs
    audit/checkpoint.json             {"kid", "seed"}: signs checkpoints
    dashboard/cookie.secret           signs session cookies

Seeds are 32 bytes in unpadded base64url. Nothing here is ever printed.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from nacl.signing import SigningKey

from infra.local import secret_files, trust
from infra.nats import identity
from infra.nats.permissions import BREAK_GLASS, PRINCIPALS, SYSTEM_USER
from infra.nats.permissions import agent as agent_permissions
from remit.canonical import b64url
from remit.clock import now
from remit.errors import ConfigurationError
from remit.pipeline import PIPELINE
from remit.runtime.keys import load_checkpoint, load_executor, load_seeded, read_json

if TYPE_CHECKING:
    from collections.abc import Iterable

SERVICES: tuple[str, ...] = tuple(row.name for row in PIPELINE)


def generate(directory: Path, environment: str, agents: Iterable[str] = ()) -> None:
    """Make every key that is missing and keep every key that exists; sign the key file when it changed.

    Raises:
        ConfigurationError: the directory belongs to another environment, or its key file is not validly signed.
        FileNotFoundError: something must be signed and the root key is not here.
        ValueError: an agent's name is not one plain subject token.

    """
    secret_files.make_private(directory)
    if not (directory / trust.TRUST_FILE).exists():
        _seed_file(directory / trust.ROOT_SEED)
    for principal in (*PRINCIPALS, SYSTEM_USER):
        _nats_seed(directory / principal)
    for name in agents:
        agent_permissions(name)  # refuses a name that would widen a permission list
        _nats_seed(directory / "agents" / name)
    for service in SERVICES:
        _seed_file(directory / service / "event.json", kid=f"{service}-{now():%Y-%m}")
        _secret(directory / service / "message_id.key")
    _special_keys(directory)
    trust.sign(directory, _trust_document(directory, environment))


def rotate(directory: Path, service: str) -> str:
    """Give a service a new event key and return its kid; the old public half stays trusted, the old seed is gone.

    Running replicas go on with the old key until they restart, and both kinds of event verify meanwhile.

    Raises:
        ConfigurationError: no such service.

    """
    if service not in SERVICES:
        raise ConfigurationError(f"there is no service {service!r}; the services are {', '.join(SERVICES)}")
    document = trust.load_document(directory)
    taken = {row["kid"] for row in document["keys"]}
    base = f"{service}-{now():%Y-%m}"
    kid = _free_kid(base, taken)
    fresh = SigningKey.generate()
    # The key file comes first: a replica that starts in between must never sign with a kid that nobody trusts.
    document["keys"].append(_trust_row(service, kid, fresh))
    trust.sign(directory, document)
    secret_files.write_json(directory / service / "event.json", {"kid": kid, "seed": b64url(bytes(fresh))})
    return kid


def rotate_checkpoint(directory: Path) -> str:
    """Give audit a new checkpoint key and return its kid; what the old one signed stays provable, the old seed is gone."""
    document = trust.load_document(directory)
    document["checkpoints"] = [*document.get("checkpoints", []), document["checkpoint"]]
    kid = _free_kid(f"checkpoint-{now():%Y-%m}", {row["kid"] for row in document["checkpoints"]})
    fresh = SigningKey.generate()
    document["checkpoint"] = {"kid": kid, "public_key": b64url(bytes(fresh.verify_key))}
    trust.sign(directory, document)
    secret_files.write_json(directory / "audit" / "checkpoint.json", {"kid": kid, "seed": b64url(bytes(fresh))})
    return kid


def break_glass(directory: Path, name: str) -> None:
    """Make the key of a login that nobody has in daily life; remove its folder, and the login with it, when the work is done.

    Raises:
        ConfigurationError: there is no such login.

    """
    if name not in BREAK_GLASS:
        raise ConfigurationError(f"there is no break-glass login {name!r}; there is {', '.join(BREAK_GLASS)}")
    _nats_seed(directory / name)


def _free_kid(base: str, taken: set[str]) -> str:
    return next(name for n in range(1, 1_000) if (name := base if n == 1 else f"{base}-{n}") not in taken)


def distrust(directory: Path, kid: str) -> None:
    """Take a kid out of the key file, when its key is known to be stolen; its old events no longer verify.

    Raises:
        ConfigurationError: the kid is unknown, or still signs; rotate first.

    """
    document = trust.load_document(directory)
    rows = [row for row in document["keys"] if row["kid"] == kid]
    if not rows:
        raise ConfigurationError(f"kid {kid!r} is not in the key file")
    if read_json(directory / rows[0]["service"] / "event.json")["kid"] == kid:
        raise ConfigurationError(f"kid {kid!r} still signs; rotate {rows[0]['service']} first")
    document["keys"] = [row for row in document["keys"] if row["kid"] != kid]
    trust.sign(directory, document)


def _nats_seed(folder: Path) -> None:
    if not (folder / "nats.nk").exists():
        secret_files.write(folder / "nats.nk", identity.new_seed())


def _secret(path: Path) -> None:
    if not path.exists():
        secret_files.write(path, b64url(secrets.token_bytes(32)))


def _seed_file(path: Path, kid: str | None = None) -> None:
    if not path.exists():
        seed = b64url(bytes(SigningKey.generate()))
        secret_files.write_json(path, {"seed": seed} if kid is None else {"kid": kid, "seed": seed})


def _p256_pem() -> str:
    return (
        ec.generate_private_key(ec.SECP256R1())
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
    )


def _special_keys(directory: Path) -> None:
    _secret(directory / "executor" / "x25519.key")
    if not (directory / "executor" / "dpop.pem").exists():
        secret_files.write(directory / "executor" / "dpop.pem", _p256_pem())
    if not (directory / "tokens" / "token_keys.json").exists():
        kid = f"token-{now():%Y-%m}"
        keys = {"active": kid, "keys": [{"kid": kid, "pem": _p256_pem()}]}
        secret_files.write_json(directory / "tokens" / "token_keys.json", keys)
    _seed_file(directory / "audit" / "checkpoint.json", kid=f"checkpoint-{now():%Y-%m}")
    _secret(directory / "dashboard" / "cookie.secret")


def _trust_row(service: str, kid: str, key: SigningKey) -> dict[str, Any]:
    return {
        "kid": kid,
        "service": service,
        "public_key": b64url(bytes(key.verify_key)),
        "types": trust.event_types(service),
    }


def _trust_document(directory: Path, environment: str) -> dict[str, Any]:
    old: dict[str, Any] = {"environment": environment, "keys": []}
    if (directory / trust.TRUST_FILE).exists():
        old = trust.load_document(directory)
    if old["environment"] != environment:
        raise ConfigurationError(
            f"{directory} holds the keys of environment {old['environment']!r}, not {environment!r}; "
            "every environment has its own directory"
        )
    rows = {row["kid"]: {**row, "types": trust.event_types(row["service"])} for row in old["keys"]}
    for service in SERVICES:
        kid, key = load_seeded(directory / service / "event.json")
        rows[kid] = _trust_row(service, kid, key)
    checkpoint_kid, checkpoint = load_checkpoint(directory)
    executor = load_executor(directory)
    retired = {row["kid"]: row for row in (*old.get("checkpoints", ()), old.get("checkpoint")) if row}
    retired.pop(checkpoint_kid, None)
    document = {
        "environment": environment,
        "keys": [rows[kid] for kid in sorted(rows)],
        "executor": {"x25519": b64url(bytes(executor.x25519.public_key)), "jkt": executor.jkt},
        "checkpoint": {"kid": checkpoint_kid, "public_key": b64url(bytes(checkpoint.verify_key))},
    }
    return document | ({"checkpoints": [retired[kid] for kid in sorted(retired)]} if retired else {})


def main() -> None:
    """Make the keys of an environment, or rotate one service's event key or the checkpoint key."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.keys", description=main.__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--environment", default="local")
    parser.add_argument("--agent", action="append", default=[], help="name of an agent; may be repeated")
    parser.add_argument("--rotate", metavar="SERVICE", help="give this service a new event key, or `checkpoint`")
    parser.add_argument("--break-glass", metavar="LOGIN", help="make the key of `restorer`, for a restore of streams")
    options = parser.parse_args()
    if options.break_glass:
        break_glass(options.directory, options.break_glass)
        sys.stdout.write(
            f"key made; let the brokers read their file again, and remove {options.break_glass}/ afterwards\n"
        )
        return
    if options.rotate:
        is_checkpoint = options.rotate == "checkpoint"
        kid = rotate_checkpoint(options.directory) if is_checkpoint else rotate(options.directory, options.rotate)
        sys.stdout.write(f"{kid} signs from the next start on\n")
        return
    generate(options.directory, options.environment, options.agent)
    sys.stdout.write(f"keys of environment {options.environment} are in {options.directory}\n")


if __name__ == "__main__":
    main()
