"""A remit must be able to mean what its human thinks it means."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from remit.commands import RevokeCommand
from remit.evaluation import CompiledBundle
from remit.registry_files import load_registry
from remit.remits import Grant, RemitTerms
from services.approval.authority import needs, revocation_refusal
from services.approval.terms import check_terms, remit_digest, remit_document
from tests.support.factories import DANA, EMMA, NOW
from tests.unit.approval.people import answered, approve, person

REGISTRY = Path(__file__).resolve().parents[3] / "infra" / "demo" / "registry"
ENVIRONMENT = {
    "BOOKKEEPER_PUBLIC_KEY": "U" + "A" * 55,
    "BANK_URL": "http://127.0.0.1:9",
    "BANK_HOST": "127.0.0.1:9",
}


@pytest.fixture(scope="module")
def bundle() -> CompiledBundle:
    return CompiledBundle.compile(load_registry(REGISTRY, ENVIRONMENT), version=1)


def terms(**more: Any) -> RemitTerms:
    fields: dict[str, Any] = {
        "agent_id": "spiffe://acme.example/agent/bookkeeper",
        "task": "Pay the bill",
        "grants": [grant()],
        "environment": "demo",
        "not_before": NOW,
        "expires_at": NOW + timedelta(hours=1),
        "max_calls": 5,
    }
    return RemitTerms(**{**fields, **more})


def grant(**more: Any) -> Grant:
    fields: dict[str, Any] = {"type": "tool_call", "tool": "bank", "action": "send_money", **more}
    return Grant(**fields)


def test_terms_that_fit_the_registry_are_granted(bundle: CompiledBundle) -> None:
    limited = grant(arguments={"properties": {"amount": {"maximum": 100}}}, max_calls=1)
    here = grant(locations=["http://127.0.0.1:9/mcp"])
    assert check_terms(terms(grants=[limited, here]), bundle, NOW) is None


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"expires_at": NOW, "not_before": NOW - timedelta(hours=1)}, "terms.expires_at"),
        ({"agent_id": "spiffe://acme.example/agent/nobody"}, "terms.agent_id"),
        ({"environment": "production"}, "terms.environment"),
        ({"grants": [grant(), grant(tool="mail")]}, "terms.grants.1.tool"),
        ({"grants": [grant(action="rob")]}, "terms.grants.0.action"),
        ({"grants": [grant(locations=["https://elsewhere.example"])]}, "terms.grants.0.locations"),
        ({"grants": [grant(arguments={"type": "nonsense"})]}, "terms.grants.0.arguments"),
        ({"grants": [grant(arguments={"$ref": "https://evil.example/x"})]}, "terms.grants.0.arguments"),
        ({"grants": [grant(arguments={"properties": {"ammount": {"maximum": 1}}})]}, "terms.grants.0.arguments"),
    ],
)
def test_terms_that_could_not_hold_name_the_field(bundle: CompiledBundle, more: dict[str, Any], field: str) -> None:
    reply = answered(check_terms(terms(**more), bundle, NOW))
    assert (reply.status, reply.field) == ("invalid", field)


def test_the_same_command_always_makes_the_same_remit() -> None:
    first, again = remit_document(terms(), EMMA, "key-00001"), remit_document(terms(), EMMA, "key-00001")
    assert (first, remit_digest(first)) == (again, remit_digest(again))


@pytest.mark.parametrize(("human", "key"), [(DANA, "key-00001"), (EMMA, "key-00002")])
def test_another_person_or_key_makes_another_remit(human: Any, key: str) -> None:
    assert remit_document(terms(), human, key).remit_id != remit_document(terms(), EMMA, "key-00001").remit_id


def revoke(**more: Any) -> RevokeCommand:
    fields: dict[str, Any] = {"kind": "remit", "target": "rem_" + "0" * 32, "reason": "done", **more}
    return RevokeCommand(id_token=approve().id_token, idempotency_key="key-00001", **fields)


@pytest.mark.parametrize(
    ("command", "roles", "owner", "allowed"),
    [
        (revoke(), ("operator",), EMMA, True),
        (revoke(kind="global", target="*"), ("operator",), None, True),
        (revoke(), ("delegator",), DANA, True),
        (revoke(), ("delegator", "payments", "admin"), EMMA, False),
        (revoke(kind="human", target=f"{DANA.iss}|{DANA.sub}"), ("delegator",), None, True),
        (revoke(kind="human", target=f"{EMMA.iss}|{EMMA.sub}"), ("delegator",), None, False),
        (revoke(kind="human", target=f"{DANA.iss}|{DANA.sub}", lift=True), ("delegator",), None, False),
        (revoke(kind="agent", target="spiffe://a"), ("admin",), None, False),
    ],
)
def test_people_take_back_what_is_theirs_and_operators_everything(
    command: RevokeCommand, roles: tuple[str, ...], owner: Any, *, allowed: bool
) -> None:
    refusal = revocation_refusal(command, person(DANA, *roles), owner)
    assert (refusal is None) is allowed


def test_a_role_is_needed_and_named() -> None:
    assert needs(person(EMMA, "delegator"), "delegator", "admin") is None
    assert "delegator or admin" in answered(needs(person(EMMA, "payments"), "delegator", "admin")).detail
