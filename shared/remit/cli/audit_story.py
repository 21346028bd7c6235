"""One action as people read it: the questions of an incident in order, each answered or marked "not checked"."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.text import Text

from remit.cli.output import console, table

if TYPE_CHECKING:
    from collections.abc import Mapping

VERDICTS = {"allow": "allowed by rule", "ask": "a person was asked", "deny": "blocked"}
MATCHES = {"match": "yes", "differs": "NO", "not_checked": "not checked"}
LABEL_WIDTH = 18
MAX_VALUE = 400
"""Values are data of agents and people: cut here, whole with --json."""


def print_story(found: Mapping[str, Any]) -> None:
    """Print the row of one action and its events, as `audit_rows.story` returns them."""
    out = console()
    name = f"{found['tool']}.{found['action']}"
    out.print(
        Text.assemble(("action ", "dim"), (found["action_id"], "bold"), f"  {name}  T{found['tier']}  ", _ending(found))
    )
    for label, value in _answers(found).items():
        if value:
            out.print(Text.assemble((f"  {label:<{LABEL_WIDTH}}", "dim"), _cut(value)))
    out.print()
    rows = [_event_row(event) for event in found["events"]]
    table(["row", "time", "event", "status", "chain", ""], rows)


def _event_row(event: Mapping[str, Any]) -> list[str]:
    at = event["ts"].strftime("%H:%M:%S.%f")[:-3]
    place, link = str(event["stream_seq"]), event["chain_hash"][:12]
    return [place, at, event["type"] or "?", event["verify_status"], link, _detail(event)]


def _answers(found: Mapping[str, Any]) -> dict[str, str]:
    return {
        "for": found["human"] or "unknown human",
        "task": found["task"] or "not known",
        "agent": f"{found['agent_id']}  {found['agent_version']}  session {found['session']}",
        "remit": f"{found['remit_id']}"
        + (f", grant {found['grant_no']}" if found["grant_no"] else ", no grant covers this"),
        "arguments": f"{json.dumps(found['args'], ensure_ascii=False)}  {found['args_digest']}",
        "resource": found["resource_id"] or "",
        "verdict": _verdict(found),
        "unnamed sinks": ", ".join(found["unnamed_sinks"]),
        "approval": _approval(found),
        "token": _token(found),
        "result": _result(found),
        "same arguments": _same(found),
        "in token": _in_token(found),
        "effect in bounds": {True: "yes", False: "NO", None: "not checked"}[found["effect_ok"]]
        if found["outcome"]
        else "",
        "redacted": ", ".join(found["redacted_paths"]),
        "latency": ", ".join(f"{stage} {ms} ms" for stage, ms in (found["latency_ms"] or {}).items()),
        "chain": _chain(found),
        "flags": ", ".join(found["flags"]),
    }


def _verdict(found: Mapping[str, Any]) -> str:
    if not found["verdict"]:
        return "not decided yet"
    rule = f", rule {found['rule_id']}" if found["rule_id"] else ""
    return f"{VERDICTS[found['verdict']]} ({found['reason']}{rule}), policy {found['policy_version']}"


def _approval(found: Mapping[str, Any]) -> str:
    if not found["approval_status"]:
        return ""
    voters = ", ".join(f"{vote['by']} at {vote['at']}" for vote in found["votes"] or [])
    by = voters or found["approver"] or ", ".join(found["approver_group"])
    waited = f", waited {found['wait_ms']} ms" if found["wait_ms"] is not None else ""
    narrowed = ", narrowed" if found["narrowed"] else ""
    return f"{found['approval_status']}: {by} (quorum {found['quorum']}){waited}{narrowed}"


def _token(found: Mapping[str, Any]) -> str:
    if not found["jti"]:
        return ""
    scopes = ", ".join(found["scopes_granted"])
    return f"{found['jti']}, attempt {found['attempt']}, expires {found['token_expires_at']}, {scopes}"


def _result(found: Mapping[str, Any]) -> str:
    if not found["outcome"]:
        return found["detail"] or ""
    return f"{found['result_status']}, executed by {found['executor']} at {found['executed_at']}"


def _same(found: Mapping[str, Any]) -> str:
    if not found["outcome"]:
        return ""
    return f"{MATCHES[found['match']]}  {found['executed_digest']}"


def _in_token(found: Mapping[str, Any]) -> str:
    if not found["started_at"] or not found["token_expires_at"]:
        return ""
    return "yes" if found["started_at"] <= found["token_expires_at"] else "NO, started after its expiry"


def _chain(found: Mapping[str, Any]) -> str:
    receipt = f"receipt {found['receipt_seq']}" if found["receipt_seq"] else "no receipt yet"
    return f"rows {found['first_seq']} to {found['last_seq']}, {receipt}"


def _ending(found: Mapping[str, Any]) -> Text:
    ending = found["result_status"] or f"open, last {found['last_type']}"
    return Text(ending, style="green" if ending == "succeeded" else "yellow")


def _detail(event: Mapping[str, Any]) -> str:
    said = {name: value for name, value in event["detail"].items() if value not in (None, [], False)}
    return _cut("  ".join(f"{name}={value}" for name, value in said.items()))


def _cut(value: str) -> str:
    return value if len(value) <= MAX_VALUE else f"{value[:MAX_VALUE]}… ({len(value)} characters)"
