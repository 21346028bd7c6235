"""What an action's events add up to, as one row of `audit.actions_all`: a pure function of the fold.

Recomputed whole whenever an event was folded, so that projecting twice, late or anew gives the same row.
Source: design, dashboard section 3 (read model) and standards section 3.4 (telemetry fields).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remit.canonical import canonical, digest, strict_loads
from remit.errors import CanonicalError
from remit.events import (
    ActionApprovalRequested,
    ActionApproved,
    ActionAudited,
    ActionEvaluated,
    ActionExecuted,
    ActionProposed,
    ActionRefused,
    ActionRevoked,
    ActionStarted,
    ActionTokenized,
)
from remit.fold import ActionState, is_terminal
from remit.projection.display import hidden, redact_arguments, redact_text
from remit.projection.fields import clean, clean_or_none, milliseconds, numeric_date, person, small, stamp, texts
from remit.projection.shapes import call_shape
from remit.reasons import Outcome, Reason, Stage

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from pydantic import JsonValue

    from remit.projection.tracking import Row, Tracked

DWELL_MS = {1: 700, 2: 1_000, 3: 3_000, 4: 8_000}
"""Least time a reviewer looks at a card, by tier (design, dashboard section 2)."""
MAX_RATIONALE = 2_000
_STATUS_OF_REFUSAL = {Reason.DENIED: "denied", Reason.EXPIRED: "expired"}


def opening(event: ActionProposed, sensitive: Collection[str] | None = ()) -> Row:
    """Return the columns a proposal fixes; `sensitive` are the arguments the registry marks x-remit-sensitive, None all."""
    said, agent, tool = event.data, event.data.principal.agent, event.data.principal.tool
    proposal = _proposal(said.proposal)
    arguments: dict[str, Any] = proposal.get("arguments") or {}
    action = said.action.name.removeprefix(f"{tool.name}.")
    shown = redact_arguments(arguments, sensitive)
    return {
        "action_id": event.subject,
        "remit_id": clean(said.remit_id, 64),
        "tool": clean(tool.name),
        "action": clean(action),
        "tier": int(said.action.risk[1]),
        "effect": said.action.effect,
        "environment": clean(said.action.environment),
        "resource_id": clean_or_none(_resource(said.action.resource_id, shown)),
        "agent_id": clean(agent.id),
        "agent_name": clean(agent.name),
        "agent_version": clean(f"{agent.model_family} {agent.model_version}"),
        "session": clean(agent.session),
        "shape_digest": call_shape(tool.name, action, arguments),
        "args": shown,
        "args_digest": said.action.args_digest,
        "schema_digest": tool.schema_digest,
        "scopes_requested": texts(said.scopes_requested),
        "rationale": clean_or_none(redact_text(proposal.get("rationale")), MAX_RATIONALE),
        "proposed_at": stamp(event.time),
        # Nothing in an event tells these apart yet; a canary never becomes an action of an agent.
        "batch_pos": 0,
        "asked_agent": False,
        "canary": False,
    }


def _resource(value: str | None, shown: Mapping[str, JsonValue]) -> str | None:
    """Return the resource as people may see it: it is the copy of an argument, so it shows what that argument shows."""
    if value is None or value in shown.values() or any(value in _spellings(member) for member in shown.values()):
        return value
    return hidden(value)


def _spellings(member: JsonValue) -> tuple[str, str]:
    text = member if isinstance(member, str) else canonical(member).decode()
    return text, digest(text)  # A long one is named by its digest.


def _proposal(text: str) -> dict[str, Any]:
    try:
        found = strict_loads(text.encode())
    except CanonicalError:
        return {}
    # A service that signs anything else than a proposal must not be able to stop the projector.
    fits = isinstance(found, dict) and isinstance(found.get("arguments"), dict)
    return found if fits and isinstance(found.get("rationale"), str | None) else {}


def action_row(tracked: Tracked) -> Row:
    """Return the row of an action whose `proposed` is folded."""
    state = tracked.state
    last = state.chain[-1]
    row: Row = {
        **tracked.opening,
        "version": last.event.n,
        "first_seq": state.chain[0].seq,
        "last_seq": last.seq,
        "last_type": last.event.short,
        "last_event_at": stamp(tracked.recorded_at),
        "receipt_seq": last.seq if isinstance(last.event, ActionAudited) else None,
        **_evaluation(state.find(ActionEvaluated)),
        **_approval(state),
        **_token(state),
        **_execution(state.find(ActionExecuted)),
        **_ending(tracked),
    }
    row["flags"] = sorted(tracked.flags)
    row["latency_ms"] = _latencies(state)
    row["total_ms"] = row["latency_ms"].get("total")
    return row


def _evaluation(event: ActionEvaluated | None) -> Row:
    if event is None:
        return {"matched_policies": [], "unnamed_sinks": [], "approver_group": []}
    said, human = event.data, event.data.principal.human
    return {
        "human": person(human),
        "human_iss": clean_or_none(human.iss if human else None),
        "human_sub": clean_or_none(human.sub if human else None),
        "grant_no": None if said.grant_no is None else small(said.grant_no),
        "verdict": said.decision.verdict.value,
        "reason": said.decision.reason.value,
        "detail": clean_or_none(said.detail),
        "policy_version": said.decision.policy_version,
        "bundle_version": small(said.decision.bundle_version),
        "rule_id": clean(said.matched_policies[0]) if said.matched_policies else None,
        "matched_policies": texts(said.matched_policies),
        "unnamed_sinks": texts(said.unnamed_sinks),
        "approver_group": texts(said.approvers),
        "quorum": small(said.quorum),
        "evaluated_at": stamp(event.time),
    }


def _approval(state: ActionState) -> Row:
    requests = [r.event for r in state.chain if isinstance(r.event, ActionApprovalRequested)]
    approved = state.find(ActionApproved)
    row: Row = {"narrowed": approved is not None and approved.data.narrowing is not None}
    if not requests:
        return row
    first, latest = requests[0], requests[-1]
    status, decided_at, approver = _decision(state)
    tier = int(latest.data.action.risk[1])
    votes = approved.data.votes if approved else latest.data.votes
    return row | {
        "approval_status": status,
        "approver_group": texts(latest.data.approvers),
        "approver": approver,
        "votes": [{"by": clean(f"{v.iss}|{v.sub}", 768), "at": v.at.isoformat()} for v in votes],
        "quorum": small(latest.data.quorum),
        "round": small(latest.data.round),
        "requested_at": stamp(first.time),
        "expires_at": stamp(latest.expirytime),
        "shown_digest": latest.data.shown_digest,
        "decided_at": stamp(decided_at),
        "approved_until": stamp(approved.data.approved_until) if approved else None,
        "wait_ms": milliseconds(first.time, decided_at),
        "dwell_min_ms": DWELL_MS[tier],
    }


def _decision(state: ActionState) -> tuple[str, datetime | None, str | None]:
    """Return approval status, when it was reached, and by whom."""
    approved, refused, revoked = state.find(ActionApproved), state.find(ActionRefused), state.find(ActionRevoked)
    if approved is not None:
        last_vote = approved.data.votes[-1] if approved.data.votes else None
        return "approved", approved.time, clean(f"{last_vote.iss}|{last_vote.sub}", 768) if last_vote else None
    if refused is not None and refused.data.stage is Stage.APPROVAL:
        status = _STATUS_OF_REFUSAL.get(refused.data.reason, "withdrawn")
        return status, refused.time, person(refused.data.by)
    if revoked is not None:
        return "withdrawn", revoked.time, person(revoked.data.by)
    return "requested", None, None


def _token(state: ActionState) -> Row:
    minted, started = state.find(ActionTokenized), state.find(ActionStarted)
    if minted is None:
        return {"scopes_granted": []}
    row: Row = {
        "scopes_granted": texts(minted.data.scopes_granted),
        "jti": clean(minted.data.jti),
        "attempt": small(minted.data.attempt),
        "token_expires_at": numeric_date(minted.data.exp),
        "tokenized_at": stamp(minted.time),
    }
    if started is not None:
        row |= {
            "started_at": stamp(started.time),
            "executor": clean(started.data.executor),
            "claim_id": clean(started.data.claim_id),
        }
    return row


def _execution(event: ActionExecuted | None) -> Row:
    if event is None:
        return {"redacted_paths": [], "scopes_used": []}
    said = event.data
    # Effect bounds beyond the result's schema are declared nowhere yet: null means "not checked", never a tick.
    effect_ok = False if said.result_omitted == "schema_violation" or not said.effect_matches_decision else None
    return {
        "outcome": said.outcome.value,
        "match": _match(said.outcome, same=said.executed_digest == said.action.args_digest and effect_ok is not False),
        "executed_digest": said.executed_digest,
        "effect_ok": effect_ok,
        "error": clean_or_none(said.error),
        "result_digest": said.result_digest,
        "result_omitted": said.result_omitted,
        "redacted_paths": texts(said.redacted_paths),
        "scopes_used": texts(said.scopes_used),
        "executed_at": stamp(event.time),
    }


def _match(outcome: Outcome, *, same: bool) -> str:
    if outcome is Outcome.UNKNOWN:
        return "not_checked"
    return "match" if same else "differs"


def _ending(tracked: Tracked) -> Row:
    event = tracked.terminal
    row: Row = {"terminal": event.short if event else None}
    match event:
        case ActionRefused():
            row |= {"refused_stage": event.data.stage.value, "refused_reason": event.data.reason.value}
            row |= {"result_status": "refused", "detail": clean_or_none(event.data.detail)}
        case ActionExecuted():
            error = f": {clean(event.data.error)}" if event.data.error else ""
            row["result_status"] = f"{event.data.outcome.value}{error}"
        case ActionEvaluated():
            row["result_status"] = "blocked"
        case ActionRevoked():
            row |= {"result_status": "revoked", "detail": clean(event.data.cause)}
        case _:
            pass
    return row


def _latencies(state: ActionState) -> dict[str, int]:
    """Return milliseconds by stage: what the signed times say, then what the executor measured itself."""
    times = {r.event.short: r.event.time for r in reversed(state.chain)}
    answered = times.get("approved") or (times.get("refused") if "tokenized" not in times else None)
    stages = {
        "policy": milliseconds(times.get("proposed"), times.get("evaluated")),
        "approval": milliseconds(times.get("evaluated"), answered),
        "tokens": milliseconds(times.get("approved"), times.get("tokenized")),
        "executor": milliseconds(times.get("tokenized"), times.get("executed")),
    }
    found = {stage: value for stage, value in stages.items() if value is not None}
    last = next(r.event for r in reversed(state.chain) if not isinstance(r.event, ActionAudited))
    if is_terminal(last):  # pyright: ignore[reportArgumentType]  (every event of an action is an ActionEvent)
        found["total"] = milliseconds(state.chain[0].event.time, last.time) or 0
    executed = state.find(ActionExecuted)
    measured = executed.data.latency_ms if executed else {}
    return found | {clean(name, 64): small(value) for name, value in measured.items()}
