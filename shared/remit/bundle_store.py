"""How a bundle lies in the bucket REGISTRY: one signed manifest, and parts named by their own digest.

A reader believes nothing before the signature of approval and the digest of the joined parts agree; a bundle
is accepted whole or refused whole. Source: design, bus section 2 (REGISTRY).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nacl.exceptions import BadSignatureError
from pydantic import BaseModel, ConfigDict, ValidationError

from remit.bundle import BundleContent, Manifest
from remit.canonical import b64url, b64url_decode, canonical, digest_bytes, strict_loads
from remit.envelope import Signer, TrustedKey, message
from remit.errors import BundleError, CanonicalError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

BUNDLE_KEY = "bundle"
"""Key of the manifest inside the bucket."""
SIGNED_AS = "registry.bundle"
"""What the signature covers in place of a subject, so that no event can pass for a manifest; the key must list it as a type."""
MAX_PART_BYTES = 200_000
"""Under the broker's `max_payload` of 256 KB with room for headers."""
MAX_PARTS = 64
"""Bounds what a reader fetches: 12.8 MB of registry and policies."""
WRITER = "approval"
"""The one service whose key may sign a manifest."""


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    manifest: str
    kid: str
    sig: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedBundle:
    """Ready to store: first the parts (key to bytes), then `value` under `bundle` by compare-and-set."""

    manifest: Manifest
    value: bytes
    parts: Mapping[str, bytes]


def part_key(sha256_hex: str) -> str:
    """Return the key of a part."""
    return f"part.{sha256_hex}"


def encode_bundle(
    content: BundleContent, *, version: int, issued_at: datetime, applied_by: str, signer: Signer
) -> EncodedBundle:
    """Split, name and sign a bundle.

    Raises:
        BundleError: the content is too large to be stored.

    """
    raw = canonical(content.model_dump(mode="json", exclude_none=True))
    pieces = [raw[at : at + MAX_PART_BYTES] for at in range(0, len(raw), MAX_PART_BYTES)]
    if len(pieces) > MAX_PARTS:
        limit = MAX_PARTS * MAX_PART_BYTES
        raise BundleError(f"bundle has {len(raw)} bytes, the limit is {limit}; make the registry smaller")
    named = [(hashlib.sha256(piece).hexdigest(), piece) for piece in pieces]
    manifest = Manifest(
        version=version,
        issued_at=issued_at,
        content_digest=digest_bytes(raw),
        parts=[name for name, _ in named],
        applied_by=applied_by,
    )
    signed = manifest.model_dump_json().encode()
    signature = signer.key.sign(message(SIGNED_AS, signed)).signature
    stored = _Stored(manifest=b64url(signed), kid=signer.kid, sig=b64url(signature))
    return EncodedBundle(
        manifest=manifest,
        value=stored.model_dump_json().encode(),
        parts={part_key(name): piece for name, piece in named},
    )


def decode_manifest(value: bytes, trust: Mapping[str, TrustedKey]) -> Manifest:
    """Return the manifest only if approval signed it, with a key that may sign bundles.

    Raises:
        BundleError: misspelt, unknown or foreign kid, a key for events only, bad signature, or not of this schema.

    """
    try:
        strict_loads(value)
        stored = _Stored.model_validate_json(value)
        signed, signature = b64url_decode(stored.manifest), b64url_decode(stored.sig)
    except (CanonicalError, ValidationError):
        raise BundleError(f"the value of {BUNDLE_KEY} is no signed manifest; run `remit apply`") from None
    key = trust.get(stored.kid)
    if key is None or key.service != WRITER:
        raise BundleError(f"the manifest is signed by a kid that is not a key of {WRITER} in the key file")
    if SIGNED_AS not in key.types:
        raise BundleError(f"kid {key.kid} of {WRITER} may not sign bundles: its types in the key file lack {SIGNED_AS}")
    try:
        key.key.verify(message(SIGNED_AS, signed), signature)
        manifest = Manifest.model_validate_json(signed)
    except (BadSignatureError, ValueError):
        raise BundleError(f"the manifest is not signed by kid {key.kid}, or of another version") from None
    if not 1 <= len(manifest.parts) <= MAX_PARTS:
        count = len(manifest.parts)
        raise BundleError(f"manifest {manifest.version} names {count} parts, expected 1 to {MAX_PARTS}")
    return manifest


def assemble(manifest: Manifest, parts: Sequence[bytes]) -> BundleContent:
    """Join the parts in the manifest's order and return the content.

    Raises:
        BundleError: a part is missing or altered, or the content does not fit its schema.

    """
    if [hashlib.sha256(part).hexdigest() for part in parts] != manifest.parts:
        raise BundleError(f"bundle {manifest.version}: the parts are not the ones its manifest names")
    raw = b"".join(parts)
    if digest_bytes(raw) != manifest.content_digest:
        raise BundleError(f"bundle {manifest.version}: the content is not the one its manifest names")
    try:
        return BundleContent.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"bundle {manifest.version}: {where}: {first['msg']}") from None
