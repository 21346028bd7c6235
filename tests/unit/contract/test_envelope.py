"""An event is believed only on its own subject, from the service that may write it, byte for byte."""

from __future__ import annotations

from dataclasses import replace

import pytest

from remit.envelope import (
    MAX_EVENT_BYTES,
    Signed,
    pack_chain,
    seal,
    signed_from,
    unpack_chain,
    verify,
)
from remit.errors import EnvelopeError
from tests.support import factories
from tests.support.factories import SIGNERS, TRUST, action_until, record


def _code(signed: Signed) -> str:
    with pytest.raises(EnvelopeError) as refusal:
        verify(signed, TRUST)
    return refusal.value.code


@pytest.mark.parametrize("kind", sorted(factories.KINDS))
def test_signed_event_verifies(kind: str) -> None:
    recorded = record(kind)
    assert verify(recorded.signed, TRUST).event == recorded.event


def test_changed_byte_is_refused() -> None:
    signed = record("action.approved").signed
    assert _code(replace(signed, body=signed.body.replace(b"UK1", b"UK2", 1))) == "signature"


def test_event_moved_to_another_action_is_refused() -> None:
    signed = record("action.approved").signed
    assert _code(replace(signed, subject="action." + "f" * 32 + ".approved")) == "signature"


def test_event_moved_to_another_type_is_refused() -> None:
    signed = record("action.approved").signed
    assert _code(replace(signed, subject=signed.subject.replace("approved", "refused"))) == "signature"


def test_key_of_another_service_may_not_emit() -> None:
    recorded = record("action.approved")
    forged = seal(recorded.event, subject=recorded.signed.subject, signer=SIGNERS["policy"])
    assert _code(forged.signed) == "type"


def test_unknown_kid_is_refused() -> None:
    assert _code(replace(record("action.approved").signed, kid="mallory")) == "kid"


def test_body_that_names_another_kid_is_refused() -> None:
    event = record("action.refused").event.model_copy(update={"kid": "approval-other"})
    assert _code(seal(event, subject=f"action.{event.subject}.refused", signer=SIGNERS["approval"]).signed) == "type"


def test_source_must_be_the_owner_of_the_kid() -> None:
    event = record("action.refused").event.model_copy(update={"source": "/remit/tokens"})
    assert _code(seal(event, subject=f"action.{event.subject}.refused", signer=SIGNERS["approval"]).signed) == "type"


def test_body_that_names_another_subject_is_refused() -> None:
    event = record("action.approved").event
    moved = seal(event, subject="action." + "f" * 32 + ".approved", signer=SIGNERS["approval"])
    assert _code(moved.signed) == "subject"


@pytest.mark.parametrize("subject", ["action.x", "action.x.unheard", "in.propose.a1", "action.x.approved.more"])
def test_foreign_subject_is_refused(subject: str) -> None:
    assert _code(replace(record("action.approved").signed, subject=subject)) == "subject"


def test_oversize_event_is_refused_before_anything_else() -> None:
    signed = record("action.approved").signed
    assert _code(replace(signed, body=signed.body + b" " * MAX_EVENT_BYTES)) == "oversize"


@pytest.mark.parametrize("headers", [None, {}, {"Remit-Kid": "k"}, {"Remit-Kid": "k", "Remit-Sig": "***"}])
def test_missing_or_misspelt_signature_header_is_refused(headers: dict[str, str] | None) -> None:
    with pytest.raises(EnvelopeError) as refusal:
        signed_from("action.x.approved", b"{}", headers)
    assert refusal.value.code == "signature"


def test_short_signature_is_refused() -> None:
    assert _code(replace(record("action.approved").signed, signature=b"short")) == "signature"


def test_chain_header_round_trips() -> None:
    state = action_until(*factories.APPROVED_PATH)
    header = pack_chain(state.chain)
    assert unpack_chain(header, root="action", subject_id=state.action_id) == tuple(r.signed for r in state.chain)


@pytest.mark.parametrize("header", ["x", "a:b:c", "a:b:*:*", ",", "a:b:QQ:QQ="])
def test_misspelt_chain_header_is_refused(header: str) -> None:
    with pytest.raises(EnvelopeError) as refusal:
        unpack_chain(header, root="action", subject_id="x")
    assert refusal.value.code == "chain"


def test_empty_chain_header_is_an_empty_chain() -> None:
    assert unpack_chain("", root="action", subject_id="x") == ()


def test_message_id_needs_the_secret() -> None:
    event_id = record("action.approved").event.id
    assert SIGNERS["approval"].message_id(event_id) != SIGNERS["policy"].message_id(event_id) != event_id
