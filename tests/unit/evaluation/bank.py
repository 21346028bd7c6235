"""The small bank that evaluation tests judge by: one registry, one remit, one proposal, each changed by keyword."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from remit.bundle import BundleContent
from remit.evaluation import CompiledBundle, Evaluation, Facts, evaluate
from remit.fold import RemitState
from remit.proposal import Proposal
from remit.remits import RemitDocument
from tests.support.factories import AGENT_KEY, public_nkey

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
REMIT_ID = "rem_" + "0" * 31 + "1"
IBAN = "UK12345678901234567890"
READS = '@id("reads") permit(principal, action in Action::"effect:read", resource);'
SMALL = (
    '@id("small-payments") permit(principal, action == Action::"bank.send_money", resource) when '
    '{ context.unnamed_sink_count == 0 && context.args.amount.lessThanOrEqual(decimal("100.0")) };'
)
ASK = (
    '@id("ask-payments") @approvers("payments") @quorum("1") '
    'permit(principal, action in Action::"effect:write", resource) when { context has approval };'
)
POLICIES = f"{READS}\n{SMALL}\n{ASK}"
SEND_MONEY: dict[str, Any] = {
    "description": "Send money to a recipient.",
    "summary": "Send {amount} to {recipient}",
    "arguments": {
        "type": "object",
        "additionalProperties": False,
        "required": ["recipient", "amount"],
        "properties": {
            "recipient": {"type": "string", "x-remit-sink": True, "x-remit-resource": True},
            "copies": {"type": ["array", "null"], "items": {"type": "string"}, "x-remit-sink": True},
            "amount": {"type": "number"},
            "note": {"type": ["object", "string", "null"]},
        },
    },
    "risk": "T3",
    "effect": "write",
    "reversibility": "irreversible",
    "idempotency": "key",
}
READ_FILE: dict[str, Any] = {
    "description": "Read a file.",
    "arguments": {
        "type": "object",
        "additionalProperties": False,
        "required": ["file_path"],
        "properties": {"file_path": {"type": "string", "x-remit-resource": True}, "lines": {"type": "integer"}},
    },
    "risk": "T1",
    "effect": "read",
    "reversibility": "reversible",
    "idempotency": "natural",
}
TOOL: dict[str, Any] = {
    "tool": "bank",
    "resource": "https://remit.example/tools/bank",
    "connector": "mcp",
    "endpoint": "https://bank.internal.example/mcp",
    "environment": "demo",
    "owner": "payments team",
    "actions": {"send_money": SEND_MONEY, "read_file": READ_FILE},
}
AGENT: dict[str, Any] = {
    "name": "bookkeeper",
    "id": "spiffe://acme.example/agent/bookkeeper",
    "client_id": "https://agents.example/bookkeeper",
    "public_key": public_nkey(AGENT_KEY),
    "owner": "acme",
    "runtime": "python-3.11",
    "model_family": "claude",
    "model_version": "5",
    "config_digest": "sha-256:config",
}
IDENTITY: dict[str, Any] = {
    "runtime": "python-3.11",
    "model_family": "claude",
    "model_version": "5",
    "config_digest": "sha-256:config",
    "session": "run-1",
}


def content(policies: str = POLICIES, *, tool: dict[str, Any] | None = None, **tools: dict[str, Any]) -> BundleContent:
    return BundleContent.model_validate(
        {
            "tools": {"bank": {**TOOL, **(tool or {})}, **tools},
            "agents": {"bookkeeper": AGENT},
            "policies": {"main.cedar": policies},
        }
    )


def bundle(policies: str = POLICIES) -> CompiledBundle:
    return CompiledBundle.compile(content(policies), version=7)


def action_entry(entry: dict[str, Any] = SEND_MONEY, **changes: Any) -> dict[str, Any]:
    return {**entry, **changes}


def grant(action: str = "send_money", **more: Any) -> dict[str, Any]:
    return {"type": "tool_call", "tool": "bank", "action": action, **more}


def document(**changes: Any) -> RemitDocument:
    return RemitDocument.model_validate(
        {
            "remit_id": REMIT_ID,
            "human": {"iss": "https://idp.example", "sub": "emma"},
            "agent_id": AGENT["id"],
            "task": f"Pay the bill in bill-december-2023.txt to {IBAN}.",
            "grants": [grant("read_file"), grant(max_calls=1)],
            "environment": "demo",
            "not_before": NOW - timedelta(hours=1),
            "expires_at": NOW + timedelta(hours=1),
            "max_calls": 5,
            **changes,
        }
    )


def remit(status: str = "active", **changes: Any) -> RemitState:
    return RemitState(remit_id=REMIT_ID, status=status, document=document(**changes))  # type: ignore[arg-type]  # tests say any status


def proposal(action: str = "send_money", *, tool: str = "bank", session: str = "run-1", **arguments: Any) -> Proposal:
    given = arguments or {"recipient": IBAN, "amount": 98.7}
    return Proposal.model_validate(
        {
            "idempotency_key": "pay",
            "remit_id": REMIT_ID,
            "tool": tool,
            "action": action,
            "arguments": given,
            "identity": {**IDENTITY, "session": session},
        }
    )


def facts(given: Proposal | None = None, **changes: Any) -> Facts:
    base: dict[str, Any] = {
        "proposal": given or proposal(),
        "agent": bundle().agent("bookkeeper"),
        "remit": remit(),
        "now": NOW,
    }
    return Facts(**{**base, **changes})


def judged(policies: str = POLICIES, given: Proposal | None = None, **changes: Any) -> Evaluation:
    return evaluate(bundle(policies), facts(given, **changes))
