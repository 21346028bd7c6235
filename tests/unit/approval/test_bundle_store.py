"""A stored bundle is believed whole or not at all."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from remit.bundle import BundleContent
from remit.bundle_store import (
    BUNDLE_KEY,
    MAX_PART_BYTES,
    EncodedBundle,
    assemble,
    decode_manifest,
    encode_bundle,
)
from remit.canonical import b64url, digest_bytes
from remit.errors import BundleError
from tests.support.factories import NOW, SIGNERS, TRUST

SMALL = BundleContent(tools={}, agents={}, policies={"a.cedar": "// nothing"})
LARGE = BundleContent(tools={}, agents={}, policies={"a.cedar": "// " + "x" * (2 * MAX_PART_BYTES)})


def encoded(content: BundleContent = SMALL, by: str = "approval") -> EncodedBundle:
    return encode_bundle(content, version=3, issued_at=NOW, applied_by="otto", signer=SIGNERS[by])


def changed(bundle: EncodedBundle, **members: Any) -> bytes:
    return json.dumps({**json.loads(bundle.value), **members}).encode()


@pytest.mark.parametrize(("content", "parts"), [(SMALL, 1), (LARGE, 3)])
def test_what_was_stored_is_what_is_read(content: BundleContent, parts: int) -> None:
    bundle = encoded(content)
    manifest = decode_manifest(bundle.value, TRUST)
    assert (manifest, len(bundle.parts)) == (bundle.manifest, parts)
    assert all(len(part) <= MAX_PART_BYTES for part in bundle.parts.values())
    assert assemble(manifest, [bundle.parts[f"part.{name}"] for name in manifest.parts]) == content
    assert manifest.content_digest == content.digest()


@pytest.mark.parametrize(
    "value",
    [
        b"{}",
        b"not json",
        encoded(by="policy").value,
        changed(encoded(), kid="nobody"),
        changed(encoded(), manifest=b64url(b"{}")),
        changed(encoded(), sig=b64url(b"\x00" * 64)),
        changed(encoded(), sig="!"),
        changed(encoded(), more=1),
    ],
    ids=["empty", "junk", "other service", "unknown kid", "other manifest", "bad signature", "misspelt", "more fields"],
)
def test_a_manifest_that_approval_did_not_sign_is_refused(value: bytes) -> None:
    with pytest.raises(BundleError):
        decode_manifest(value, TRUST)


def test_a_key_of_approval_that_is_for_events_only_signs_no_bundle() -> None:
    value, kid = encoded().value, SIGNERS["approval"].kid
    key = TRUST[kid]
    with pytest.raises(BundleError, match=r"may not sign bundles: .*registry\.bundle"):
        decode_manifest(value, {kid: replace(key, types=key.types - {"registry.bundle"})})


def test_an_event_signature_does_not_pass_for_a_manifest() -> None:
    bundle, signer = encoded(), SIGNERS["approval"]
    manifest = bundle.manifest.model_dump_json().encode()
    signature = signer.key.sign(b"action.x.approved\x00" + manifest).signature
    with pytest.raises(BundleError):
        decode_manifest(changed(bundle, sig=b64url(signature)), TRUST)


def test_altered_missing_or_reordered_parts_are_refused() -> None:
    bundle = encoded(LARGE)
    parts = list(bundle.parts.values())
    for wrong in (parts[:-1], parts[::-1], [parts[0] + b" ", *parts[1:]], []):
        with pytest.raises(BundleError, match="parts"):
            assemble(bundle.manifest, wrong)


def test_a_manifest_of_other_content_is_refused() -> None:
    bundle = encoded()
    manifest = bundle.manifest.model_copy(update={"content_digest": LARGE.digest()})
    with pytest.raises(BundleError, match="content"):
        assemble(manifest, list(bundle.parts.values()))


@pytest.mark.parametrize("parts", [[], ["x"] * 65], ids=["none", "too many"])
def test_a_manifest_names_some_parts_but_not_endlessly_many(parts: list[str]) -> None:
    signer, value = (
        SIGNERS["approval"],
        encoded().manifest.model_copy(update={"parts": parts}).model_dump_json().encode(),
    )
    signature = signer.key.sign(b"registry.bundle\x00" + value).signature
    with pytest.raises(BundleError, match="parts"):
        decode_manifest(changed(encoded(), manifest=b64url(value), sig=b64url(signature)), TRUST)


def test_content_of_another_version_is_refused() -> None:
    raw = b'{"policies":{}}'
    update = {"parts": [hashlib.sha256(raw).hexdigest()], "content_digest": digest_bytes(raw)}
    with pytest.raises(BundleError, match="tools"):
        assemble(encoded().manifest.model_copy(update=update), [raw])


def test_too_much_is_refused_before_it_is_stored() -> None:
    huge = BundleContent(tools={}, agents={}, policies={"a.cedar": "x" * (65 * MAX_PART_BYTES)})
    with pytest.raises(BundleError, match="limit"):
        encoded(huge)


def test_the_key_is_the_one_readers_poll() -> None:
    assert BUNDLE_KEY == "bundle"
    assert replace(encoded(), parts={}).value == encoded().value
