"""The public key file of one environment: which kid belongs to which service and may sign which event types.

It is signed by a root key that no service holds, so a service that is taken over cannot give itself another service's types.
Source: design, bus section 5.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from nacl.signing import SigningKey

from infra.local import secret_files
from remit.canonical import b64url, b64url_decode
from remit.envelope import event_type_key
from remit.events import ACTION_EVENTS, REMIT_EVENTS
from remit.runtime.keys import ROOT_FILE, SIGNATURE_FILE, TRUST_FILE, Trust, load_document, load_trust, read_json

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ROOT_FILE", "SIGNATURE_FILE", "TRUST_FILE", "Trust", "event_types", "load_document", "load_trust", "sign"]

ROOT_SEED = "offline/root.json"
"""The root's private half; move the folder `offline` away from any machine that runs a service."""
BUNDLE_TYPE = "registry.bundle"
"""What a key must list to sign a registry bundle; only approval's does."""


def event_types(service: str) -> list[str]:
    """Return the types a service's keys may sign, as `action.evaluated` or `remit.granted`."""
    found = [event_type_key(kind) for kind in (*ACTION_EVENTS, *REMIT_EVENTS) if service in kind.writers]
    return sorted([*found, BUNDLE_TYPE] if service == "approval" else found)


def sign(directory: Path, document: dict[str, Any]) -> None:
    """Write the key file with its signature, unless it already says exactly this.

    Raises:
        FileNotFoundError: the root key is not here, and there is something to sign.

    """
    text = json.dumps(document, indent=2, sort_keys=True)
    path = directory / TRUST_FILE
    if path.exists() and load_document(directory) == document:
        return
    root = SigningKey(b64url_decode(read_json(directory / ROOT_SEED)["seed"]))
    # The signature is written first: a reader in between refuses, and asks again, instead of believing half a change.
    secret_files.write(directory / ROOT_FILE, b64url(bytes(root.verify_key)))
    secret_files.write(directory / SIGNATURE_FILE, b64url(root.sign(text.encode()).signature))
    secret_files.write(path, text)
