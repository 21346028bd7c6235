"""Every released event is pinned by its schema and a recorded sample; the AsyncAPI document is what the code says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from remit.asyncapi import document
from remit.canonical import b64url_decode
from remit.envelope import Signed, check_signature, parse
from remit.errors import EnvelopeError
from tests.contract import generate
from tests.support import factories

KINDS = sorted(factories.KINDS)


def _recorded(kind: str) -> Signed:
    raw = json.loads((generate.SAMPLES / f"{kind}.v1.json").read_text())
    return Signed(
        subject=raw["subject"], body=raw["body"].encode(), kid=raw["kid"], signature=b64url_decode(raw["signature"])
    )


@pytest.mark.parametrize("name", sorted(generate.schemas()))
def test_schema_is_what_was_released(name: str) -> None:
    assert (generate.SCHEMAS / name).read_text() == generate.schemas()[name], "run `make contract` if this is meant"


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_sample_still_verifies_and_parses(kind: str) -> None:
    signed = _recorded(kind)
    event = generate.event_of(kind)
    check_signature(signed, factories.TRUST, event)
    parsed = parse(signed, event)
    assert parsed.model_dump_json(exclude_none=True).encode() == signed.body


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["envelope", "data"])
def test_unknown_field_is_refused(kind: str, place: str) -> None:
    signed = _recorded(kind)
    body: dict[str, Any] = json.loads(signed.body)
    (body if place == "envelope" else body["data"])["surprise"] = 1
    with pytest.raises(EnvelopeError) as refusal:
        parse(Signed(signed.subject, json.dumps(body).encode(), signed.kid, signed.signature), generate.event_of(kind))
    assert refusal.value.code == "schema"


@pytest.mark.parametrize("kind", KINDS)
def test_newer_version_waits_for_an_upgraded_replica(kind: str) -> None:
    signed = _recorded(kind)
    body = signed.body.replace(f"io.remit.{kind}.v1".encode(), f"io.remit.{kind}.v2".encode())
    with pytest.raises(EnvelopeError) as refusal:
        parse(Signed(signed.subject, body, signed.kid, signed.signature), generate.event_of(kind))
    assert refusal.value.code == "version"


def test_asyncapi_document_has_not_drifted() -> None:
    assert json.loads(generate.ASYNCAPI.read_text()) == json.loads(json.dumps(document()))


def test_services_readme_is_the_pipeline_table() -> None:
    assert generate.SERVICES.read_text() == generate.services_readme(), "run `make contract`"


def test_attribute_names_are_cloudevents_names() -> None:
    names = set(factories.KINDS["action.proposed"].model_fields)
    assert all(name.isalnum() and name.islower() and len(name) <= 20 for name in names)
