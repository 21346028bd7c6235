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
from services.approval.constraints import constraint_flaw
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
    ],
)
def test_terms_that_could_not_hold_name_the_field(bundle: CompiledBundle, more: dict[str, Any], field: str) -> None:
    reply = answered(check_terms(terms(**more), bundle, NOW))
    assert (reply.status, reply.field) == ("invalid", field)


AT = "terms.grants.0.arguments"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"properties": {"ammount": {"maximum": 1}}}, ".properties.ammount"),
        ({"properties": {"amount": {"maxium": 100}}}, ".properties.amount.maxium"),
        ({"propertes": {"amount": {"maximum": 100}}}, ".propertes"),
        ({"amount": {"maximum": 100}}, ".amount"),
        ({"properties": {"recipient": {"Const": "X"}}}, ".properties.recipient.Const"),
        ({"allOf": [{"properties": {"amuont": {"maximum": 1}}}]}, ".allOf.0.properties.amuont"),
        ({"not": {"properties": {"amuont": {"const": 1}}}}, ".not.properties.amuont"),
        ({"anyOf": [{"required": ["memo"]}]}, ".anyOf.0.required"),
        ({"dependentRequired": {"memo": ["date"]}}, ".dependentRequired"),
        ({"maximum": 100}, ".maximum"),
        ({"properties": {"amount": {"maxLength": 3}}}, ".properties.amount.maxLength"),
        ({"properties": {"recipient": {"format": "iban"}}}, ".properties.recipient.format"),
        ({"properties": {"recipient": {"$schema": "x"}}}, ".properties.recipient.$schema"),
        ({"then": {"properties": {"amount": {"maximum": 1}}}}, ".then"),
        ({"$defs": {"small": {"maximum": 1}}}, ".$defs"),
        ({"properties": {"amount": {"$ref": "#"}}}, ".properties.amount.$ref"),
    ],
)
def test_a_constraint_that_would_limit_nothing_is_refused_by_its_path(
    bundle: CompiledBundle, arguments: dict[str, Any], field: str
) -> None:
    reply = answered(check_terms(terms(grants=[grant(arguments=arguments)]), bundle, NOW))
    assert (reply.status, reply.field) == ("invalid", AT + field), reply.detail


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {
            "type": "object",
            "properties": {"amount": {"maximum": 100, "description": "at most"}},
            "required": ["amount"],
        },
        {"anyOf": [{"properties": {"recipient": {"const": "X"}}}, {"properties": {"amount": {"enum": [1, 2]}}}]},
        {"properties": {"date": {"pattern": "^2024-", "format": "date"}}, "additionalProperties": True},
        {"if": {"properties": {"recipient": {"const": "X"}}}, "then": {"properties": {"amount": {"maximum": 5}}}},
        {"not": {"properties": {"subject": {"minLength": 40}}}},
    ],
)
def test_a_constraint_in_known_words_on_known_arguments_is_granted(
    bundle: CompiledBundle, arguments: dict[str, Any]
) -> None:
    assert check_terms(terms(grants=[grant(arguments=arguments)]), bundle, NOW) is None


NESTED: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "$defs": {"person": {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}},
    "properties": {
        "people": {"type": "array", "items": {"$ref": "#/$defs/person"}},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "free": {"type": "object"},
        "ways": {"anyOf": [{"$ref": "#/$defs/person"}, {"type": "string"}]},
    },
    "anyOf": [{"required": ["people"]}, {"required": ["note"]}],
}


@pytest.mark.parametrize(
    ("constraint", "where"),
    [
        (
            {"properties": {"people": {"items": {"properties": {"nane": {"const": "x"}}}}}},
            "/properties/people/items/properties/nane",
        ),
        ({"properties": {"people": {"contains": {"required": ["nane"]}}}}, "/properties/people/contains/required"),
        ({"properties": {"people": {"items": {"properties": {"age": {"maximum": 3}}}}}}, None),
        ({"properties": {"note": {"maximum": 3}}}, "/properties/note/maximum"),
        ({"properties": {"note": {"maxLength": 3}}}, None),
        ({"properties": {"free": {"properties": {"anything": {"const": 1}}}}}, None),
        ({"properties": {"ways": {"properties": {"nane": {"const": 1}}}}}, "/properties/ways/properties/nane"),
        ({"properties": {"nope": {"const": 1}}}, "/properties/nope"),
    ],
)  # fmt: skip
def test_constraints_are_checked_at_every_depth_of_the_registered_schema(
    constraint: dict[str, Any], where: str | None
) -> None:
    found = constraint_flaw(constraint, NESTED)
    assert (found[0] if found else None) == where


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
