"""Rows of the read model as the projector writes them, for tests of the running dashboard."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from remit.canonical import digest
from remit.clock import now

AGENT = "spiffe://acme.example/agent/bookkeeper"
REMIT = "rem_" + "a" * 32


ARGUMENTS: dict[str, Any] = {"recipient": "UK12345678901234567890", "amount": 98.7, "subject": "Bill"}
SAME_FOR_ALL: dict[str, Any] = {
    "version": 3,
    "remit_id": REMIT,
    "grant_no": 2,
    "tool": "bank",
    "action": "send_money",
    "tier": 3,
    "effect": "write",
    "environment": "demo",
    "resource_id": "UK12345678901234567890",
    "agent_id": AGENT,
    "agent_name": "bookkeeper",
    "agent_version": "claude 5",
    "session": "run-1",
    "shape_digest": digest("shape"),
    "schema_digest": digest("schema"),
    "scopes_requested": ["bank.send_money"],
    "scopes_granted": [],
    "scopes_used": [],
    "policy_version": digest("policy"),
    "bundle_version": 3,
    "rule_id": "payments-need-a-person",
    "matched_policies": ["payments-need-a-person"],
    "verdict": "ask",
    "reason": "approval_required",
    "unnamed_sinks": ["recipient"],
    "approval_status": "requested",
    "approver_group": ["payments"],
    "quorum": 1,
    "round": 1,
    "votes": [],
    "shown_digest": digest("shown"),
    "batch_pos": 0,
    "narrowed": False,
    "asked_agent": False,
    "canary": False,
    "redacted_paths": [],
    "latency_ms": {"policy": 8},
    "last_type": "approval_requested",
    "flags": [],
    "rationale": "Paying the December bill as requested in the task.",
}
"""Columns of `actions_all` of an ask for the group `payments` that do not depend on time or number."""


def action(number: int, human: str, **changes: Any) -> dict[str, Any]:
    """Return an action that waits for the group `payments`, as columns of `actions_all`."""
    args = changes.pop("args", ARGUMENTS)
    at = now()
    own: dict[str, Any] = {
        "action_id": f"{number:032x}",
        "human": human,
        "args": args,
        "args_digest": digest(args),
        "expires_at": at + timedelta(minutes=12),
        "proposed_at": at - timedelta(seconds=40),
        "evaluated_at": at - timedelta(seconds=39),
        "requested_at": at - timedelta(seconds=39),
        "first_seq": number * 10,
        "last_seq": number * 10 + 2,
        "last_event_at": at - timedelta(seconds=39),
    }
    return {**SAME_FOR_ALL, **own, **changes}


def executed(number: int, human: str, approver: str, *, minutes_ago: int = 5, **changes: Any) -> dict[str, Any]:
    """Return an action that was approved, executed and matched."""
    at = now() - timedelta(minutes=minutes_ago)
    row = action(number, human)
    done: dict[str, Any] = {
        "proposed_at": at,
        "evaluated_at": at + timedelta(milliseconds=8),
        "requested_at": at + timedelta(milliseconds=20),
        "approval_status": "approved",
        "approver": approver,
        "votes": [{"by": approver, "at": at.isoformat()}],
        "decided_at": at + timedelta(seconds=11),
        "wait_ms": 11_000,
        "tokenized_at": at + timedelta(seconds=11, milliseconds=30),
        "started_at": at + timedelta(seconds=11, milliseconds=45),
        "executed_at": at + timedelta(seconds=11, milliseconds=90),
        "token_expires_at": at + timedelta(seconds=71),
        "jti": f"tok_{number:032x}",
        "attempt": 1,
        "executor": "executor-1",
        "outcome": "succeeded",
        "match": "match",
        "executed_digest": row["args_digest"],
        "result_status": "succeeded",
        "result_digest": digest("result"),
        "terminal": "executed",
        "scopes_granted": ["bank.send_money"],
        "scopes_used": ["bank.send_money"],
        "latency_ms": {"policy": 8, "approval": 10_992, "tokens": 30, "executor": 60, "total": 11_090},
        "total_ms": 11_090,
    }
    return {**row, **done, **changes}


def by_rule(number: int, human: str, *, minutes_ago: int = 5, **changes: Any) -> dict[str, Any]:
    """Return a read that policy allowed by itself."""
    args = {"file_path": "bill-december-2023.txt"}
    row = executed(number, human, "", minutes_ago=minutes_ago)
    at = row["proposed_at"]
    alone: dict[str, Any] = {
        "action": "read_file",
        "tier": 1,
        "effect": "read",
        "verdict": "allow",
        "reason": "policy_permits",
        "args": args,
        "args_digest": digest(args),
        "executed_digest": digest(args),
        "approval_status": None,
        "approver": None,
        "votes": None,
        "decided_at": None,
        "wait_ms": None,
        "unnamed_sinks": [],
        "approver_group": [],
        "matched_policies": ["reads-in-a-grant"],
        "rule_id": "reads-in-a-grant",
        "grant_no": 1,
        "resource_id": "bill-december-2023.txt",
        "tokenized_at": at,
        "latency_ms": {"policy": 6, "approval": 9, "tokens": 22, "executor": 41, "total": 78},
        "total_ms": 78,
    }
    return {**row, **alone, **changes}


def blocked(number: int, human: str, *, minutes_ago: int = 5) -> dict[str, Any]:
    """Return a call that policy denied."""
    at = now() - timedelta(minutes=minutes_ago)
    return action(
        number,
        human,
        verdict="deny",
        reason="arguments_outside_grant",
        approval_status=None,
        votes=None,
        expires_at=None,
        proposed_at=at,
        evaluated_at=at,
        requested_at=None,
        terminal="evaluated",
        result_status="blocked",
        detail="amount is over the grant's maximum",
        round=None,
        grant_no=None,
        last_type="evaluated",
    )


def remit(human: str, **changes: Any) -> dict[str, Any]:
    """Return an active delegation."""
    at = now()
    iss, _, sub = human.rpartition("|")
    row: dict[str, Any] = {
        "remit_id": REMIT,
        "version": 1,
        "status": "active",
        "human": human,
        "human_iss": iss,
        "human_sub": sub,
        "agent_id": AGENT,
        "task": "Pay the bill in bill-december-2023.txt",
        "task_shape": digest("task"),
        "environment": "demo",
        "not_before": at - timedelta(hours=1),
        "expires_at": at + timedelta(hours=6),
        "max_calls": 5,
        "digest": digest("remit"),
        "granted_at": at - timedelta(hours=1),
        "granted_seq": 1,
        "granted_by": human,
        "last_seq": 1,
    }
    return {**row, **changes}


def grant(number: int, human: str, name: str, *, used: int = 0) -> dict[str, Any]:
    """Return one grant of that delegation."""
    at = now()
    return {
        "remit_id": REMIT,
        "grant_no": number,
        "agent_id": AGENT,
        "human": human,
        "tool": "bank",
        "action": name,
        "arguments": {"properties": {"amount": {"maximum": 100}}},
        "shape_digest": digest(name),
        "max_calls": 1,
        "used": used,
        "granted_at": at - timedelta(hours=1),
        "expires_at": at + timedelta(hours=6),
    }


def tool(name: str, summary: str | None) -> dict[str, Any]:
    """Return a registered action."""
    return {
        "tool": "bank",
        "action": name,
        "tier": 3,
        "effect": "write",
        "reversibility": "irreversible",
        "idempotency": "key",
        "environment": "demo",
        "owner": "payments",
        "connector": "http",
        "resource": "https://bank.example",
        "summary": summary,
        "description": "Sends money.",
        "sinks": ["recipient"],
        "sensitive": [],
        "arguments": {},
        "schema_digest": digest("s"),
        "bundle_version": 3,
    }


def agent() -> dict[str, Any]:
    """Return the registered agent."""
    return {"agent_id": AGENT, "name": "bookkeeper", "model": "claude 5", "state": "active", "last_seen": now()}
