"""Rows of the read model as the pages use them: typed, frozen, and nothing of SQL in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

Json = Any
"""A JSON value as Postgres returns it; foreign, so it reaches the screen through `untrusted` alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueItem:
    """One waiting approval in the rail."""

    action_id: str
    round: int
    name: str
    risk: str
    agent_id: str
    human: str | None
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One approver's yes, before the quorum is complete."""

    human: str
    at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionRow:
    """Everything known of one action; None means it has not happened, or was not recorded.

    `round` is the approval request's, which a decision compares; `scopes` are requested, granted, used.
    """

    action_id: str
    round: int | None
    remit_id: str
    name: str
    risk: str
    effect: str
    environment: str
    resource_id: str | None
    agent_id: str
    agent_version: str | None
    session: str | None
    human: str | None
    args: Json
    args_digest: str
    shown_digest: str | None
    rationale: str | None
    proposed_at: datetime
    verdict: str | None
    reason: str | None
    detail: str | None
    rule_ids: tuple[str, ...]
    policy_version: str | None
    bundle_version: int | None
    unnamed_sinks: tuple[str, ...]
    evaluated_at: datetime | None
    approval_status: str | None
    approvers: tuple[str, ...]
    quorum: int | None
    votes: tuple[Vote, ...]
    expires_at: datetime | None
    approver: str | None
    decided_at: datetime | None
    narrowed: bool
    grant_no: int | None
    jti: str | None
    tokenized_at: datetime | None
    token_expires_at: datetime | None
    executor: str | None
    executed_at: datetime | None
    executed_digest: str | None
    effect_ok: bool | None
    outcome: str | None
    match: str | None
    result_digest: str | None
    result_status: str | None
    redacted_paths: tuple[str, ...]
    scopes: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
    terminal: str | None
    refused_reason: str | None
    last_event_at: datetime | None
    flags: tuple[str, ...]

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen under this action."""
        return self.terminal is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemitRow:
    """One delegation with its use."""

    remit_id: str
    task: str
    human: str
    agent_id: str
    granted_at: datetime | None
    expires_at: datetime
    max_calls: int
    calls: int
    grants: int
    unused: int
    ended_at: datetime | None
    ended_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRow:
    """One action a remit allows, and how often it was used."""

    grant_no: int
    name: str
    arguments: Json
    max_calls: int | None
    used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """One recorded event of an action or a remit."""

    seq: int
    at: datetime
    type: str
    signed_by: str | None
    actor: str | None
    digest: str
    verify_status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What people decided about this agent and action in 90 days."""

    approved: int
    denied: int
    last_denied_at: datetime | None
    previous_args: Json
    previous_at: datetime | None
    waiting_alike: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TodayRow:
    """Counts of one range."""

    n: int
    agents: int
    humans: int
    by_rule: int
    asked: int
    blocked: int
    matched: int
    differs: int
    unknown: int
    wait_p50_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchRow:
    """One engaged kill switch."""

    kind: str
    target: str
    engaged_at: datetime
    reason: str | None
    by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """How far the read model has come, and when it last moved."""

    version: str
    touched_at: datetime | None
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictCount:
    """How many actions got one verdict in one time bucket."""

    at: datetime
    verdict: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyRow:
    """Duration of one stage over a range, in milliseconds."""

    stage: str
    n: int
    p50: float
    p95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRow:
    """How often one agent used one action in a range, and in the range before."""

    name: str
    agent_id: str
    n: int
    before: int
    not_ok: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRow:
    """One action in a list of search results."""

    action_id: str
    remit_id: str
    name: str
    agent_id: str
    human: str | None
    verdict: str | None
    result_status: str | None
    match: str | None
    args_digest: str
    proposed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRow:
    """One registered or seen agent."""

    agent_id: str
    model: str | None
    open_remits: int
    last_seen: datetime | None
    is_stopped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredAction:
    """One action a remit can grant; `sinks` are the arguments that name a destination."""

    name: str
    risk: str
    effect: str
    reversibility: str
    environment: str
    sinks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolInfo:
    """What the registry, signed by an operator, says about an action; `summary` is the template of a card's sentence."""

    summary: str | None
    reversibility: str
    owner: str
