"""The public key file of one environment: which kid belongs to which service and may sign which event types.

It is signed by a root key that no service holds, so a service that is taken over cannot give itself another service's types.
Source: design, bus section 5.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from infra.local import secret_files
from remit.canonical import b64url, b64url_decode
from remit.envelope import TrustedKey, event_type_key
from remit.errors import CanonicalError, ConfigurationError
from remit.events import ACTION_EVENTS, REMIT_EVENTS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TRUST_FILE, SIGNATURE_FILE, ROOT_FILE = "trust.json", "trust.sig", "trust.root"
ROOT_SEED = "offline/root.json"
"""The root's private half; move the folder `offline` away from any machine that runs a service."""
BUNDLE_TYPE = "registry.bundle"
"""What a key must list to sign a registry bundle; only approval's does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """The verified key file; `executor_x25519` is the raw public key tokens are sealed to."""

    environment: str
    keys: Mapping[str, TrustedKey]
    executor_x25519: bytes
    executor_jkt: str
    checkpoint_kid: str
    checkpoint_key: VerifyKey


def event_types(service: str) -> list[str]:
    """Return the types a service's keys may sign, as `action.evaluated` or `remit.granted`."""
    found = [event_type_key(kind) for kind in (*ACTION_EVENTS, *REMIT_EVENTS) if service in kind.writers]
    return sorted([*found, BUNDLE_TYPE] if service == "approval" else found)


def load_document(directory: Path) -> dict[str, Any]:
    """Return the key file's JSON after checking the root's signature over its exact bytes.

    Raises:
        ConfigurationError: the signature does not fit, or a file is misspelt.
        FileNotFoundError: a file is missing.

    """
    text = secret_files.read(directory / TRUST_FILE)
    signature = secret_files.read(directory / SIGNATURE_FILE)
    try:
        root = VerifyKey(b64url_decode(secret_files.read(directory / ROOT_FILE)))
        root.verify(text.encode(), b64url_decode(signature))
        return json.loads(text)
    except (BadSignatureError, CanonicalError, ValueError):
        raise ConfigurationError(
            f"{directory / TRUST_FILE} does not carry a valid signature of the root key in {ROOT_FILE}; "
            "restore the three trust files together from a copy"
        ) from None


def load(directory: Path) -> Trust:
    """Return the verified key file.

    Raises:
        ConfigurationError: the signature does not fit, or the content is not a key file.
        FileNotFoundError: a file is missing.

    """
    document = load_document(directory)
    try:
        keys = [
            TrustedKey(
                kid=row["kid"],
                service=row["service"],
                types=frozenset(row["types"]),
                key=VerifyKey(b64url_decode(row["public_key"])),
            )
            for row in document["keys"]
        ]
        return Trust(
            environment=document["environment"],
            keys={key.kid: key for key in keys},
            executor_x25519=b64url_decode(document["executor"]["x25519"]),
            executor_jkt=document["executor"]["jkt"],
            checkpoint_kid=document["checkpoint"]["kid"],
            checkpoint_key=VerifyKey(b64url_decode(document["checkpoint"]["public_key"])),
        )
    except (KeyError, TypeError, CanonicalError) as error:
        raise ConfigurationError(f"{directory / TRUST_FILE} is not a key file: {error!r}") from None


def sign(directory: Path, document: dict[str, Any]) -> None:
    """Write the key file with its signature, unless it already says exactly this.

    Raises:
        FileNotFoundError: the root key is not here, and there is something to sign.

    """
    text = json.dumps(document, indent=2, sort_keys=True)
    path = directory / TRUST_FILE
    if path.exists() and load_document(directory) == document:
        return
    root = SigningKey(b64url_decode(secret_files.read_json(directory / ROOT_SEED)["seed"]))
    # The signature is written first: a reader in between refuses, and asks again, instead of believing half a change.
    secret_files.write(directory / ROOT_FILE, b64url(bytes(root.verify_key)))
    secret_files.write(directory / SIGNATURE_FILE, b64url(root.sign(text.encode()).signature))
    secret_files.write(path, text)
