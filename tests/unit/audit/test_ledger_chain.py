"""The chain is what its definition says, computed here a second time with hashlib alone."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.canonical import b64url
from remit.errors import CanonicalError, EnvelopeError
from remit.fold import RemitState
from remit.ledger_chain import (
    MAX_EVENT_ID,
    Checkpoint,
    admit,
    believe,
    evidence_from,
    genesis,
    judge_remit,
    link,
    merkle_root,
    parse_checkpoint,
    record_digest,
    sign_checkpoint,
)
from tests.support import factories as f
from tests.support.ledger_stream import StreamWriter, evidence


def sha(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()


def test_a_link_is_the_hash_that_is_documented() -> None:
    stored_us = int(f.NOW.timestamp()) * 1_000_000 + 7
    record = sha(b"action.x.proposed\x00kid-1\x00" + b"s" * 64 + sha(b"body") + stored_us.to_bytes(8, "big"))
    at = f.NOW.replace(microsecond=7)
    assert record_digest("action.x.proposed", "kid-1", b"s" * 64, sha(b"body"), at) == record
    assert link(genesis("ACTIONS"), 1, record) == sha(sha(b"remit.ledger.v1:ACTIONS") + b"\x00" * 7 + b"\x01" + record)
    assert genesis("ACTIONS") != genesis("REMITS")


def rfc6962(leaves: list[bytes]) -> bytes:
    if not leaves:
        return sha(b"")
    if len(leaves) == 1:
        return sha(b"\x00" + leaves[0])
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha(b"\x01" + rfc6962(leaves[:split]) + rfc6962(leaves[split:]))


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=40))
def test_the_root_is_that_of_rfc_6962(leaves: list[bytes]) -> None:
    assert merkle_root(leaves) == rfc6962(leaves)


@pytest.mark.parametrize(
    ("headers", "kid", "signature"),
    [
        ({}, None, None),
        ({"Remit-Kid": "k", "Remit-Sig": b64url(b"s")}, "k", b"s"),
        ({"Remit-Kid": "k\x00", "Remit-Sig": "!"}, None, None),
        ({"Remit-Kid": "k" * 300, "Remit-Sig": "ü"}, None, None),
        ({"Remit-Kid": "", "Remit-Sig": ""}, None, None),
    ],
)
def test_headers_that_cannot_be_stored_are_absent(
    headers: dict[str, str], kid: str | None, signature: bytes | None
) -> None:
    found = evidence_from((1, f.NOW), "action.a\x00b.proposed", b"", headers)
    assert (found.kid, found.signature, found.subject) == (kid, signature, "action.a\ufffdb.proposed")


def test_a_believed_event_comes_back_whole() -> None:
    writer = StreamWriter()
    state = writer.action("pay", "proposed")
    assert admit(evidence(writer.messages[0]), f.TRUST) == (state.chain[0], "valid")


@pytest.mark.parametrize(
    ("kind", "more", "code"),
    [
        ("action.proposed", {"subject": "not-an-id"}, "subject"),
        ("remit.granted", {"subject": "not-an-id"}, "subject"),
        ("action.proposed", {"id": "x" * (MAX_EVENT_ID + 1)}, "schema"),
    ],
)
def test_ids_that_could_not_be_keys_are_not_believed(kind: str, more: dict[str, Any], code: str) -> None:
    writer = StreamWriter()
    identity = more.pop("id", None)
    recorded = f.record(kind, **more)
    if identity:
        event = recorded.event.model_copy(update={"id": identity})
        recorded = f.seal(event, subject=recorded.signed.subject, signer=f.SIGNERS["intake"])
    writer.add(recorded)
    assert admit(evidence(writer.messages[0]), f.TRUST) == (None, code)


def test_an_unsigned_message_is_not_believed() -> None:
    with pytest.raises(EnvelopeError) as caught:
        believe(evidence_from((1, f.NOW), "action.x.proposed", b"{}", {}), f.TRUST)
    assert caught.value.code == "signature"


def test_remit_records_are_judged_in_order() -> None:
    state = RemitState(f.REMIT.remit_id)
    granted = f.record("remit.granted")
    assert judge_remit(state, None, 1, "schema") == (state, "schema")
    state, status = judge_remit(state, granted, 2)
    assert (status, state.status, state.seq) == ("valid", "active", 2)
    again = f.record("remit.granted", place=f.Place(n=2, prev=state.head))
    assert judge_remit(state, again, 3)[1] == "illegal"
    assert judge_remit(state, f.record("remit.revoked", place=f.Place(n=3)), 4)[1] == "order"
    assert judge_remit(state, f.record("remit.revoked", place=f.Place(n=2, prev=f.DIGEST)), 4)[1] == "chain"


def checkpoint() -> Checkpoint:
    made = Checkpoint(
        stream="ACTIONS", seq=7, chain_head=f.DIGEST, previous_seq=0, merkle_root=f.DIGEST, at=f.NOW, kid="checkpoint-1"
    )
    return replace(made, signature=sign_checkpoint(made, f.SIGNERS["audit"].key))


def test_a_checkpoint_is_believed_from_its_key_only() -> None:
    made = checkpoint()
    assert made.is_signed_by(f.SIGNERS["audit"].key.verify_key)
    assert not made.is_signed_by(f.SIGNERS["intake"].key.verify_key)
    assert not replace(made, seq=8).is_signed_by(f.SIGNERS["audit"].key.verify_key)
    assert not replace(made, signature=b"short").is_signed_by(f.SIGNERS["audit"].key.verify_key)


@pytest.mark.parametrize("line", ["", "{}", "[]", '{"checkpoint":{},"sig":""}', '{"checkpoint":[],"sig":"x"}'])
def test_what_is_no_checkpoint_is_refused(line: str) -> None:
    with pytest.raises(CanonicalError):
        parse_checkpoint(line)
