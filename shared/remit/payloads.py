"""What each event carries: the common part, and per type what changed. Frozen, strict, no unknown fields.

Source: design, standards section 3.2 (what each type must carry).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from remit.reasons import Outcome, Reason, Stage, Verdict
from remit.remits import Human, RemitDocument

Digest = Annotated[str, Field(pattern=r"^sha-256:[A-Za-z0-9_-]{43}$")]
"""Digest spelling of `remit.canonical.digest`."""


class Frozen(BaseModel):
    """Base of everything on the wire: immutable, strict types, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class AgentIdentity(Frozen):
    """Composite identity of the agent as it presented itself in the signed proposal."""

    id: str = Field(description="Stable SPIFFE id from the registry.")
    name: str = Field(description="Registry name; the agent's subject token on the bus.")
    client_id: str = Field(description="OAuth client id from the registry.")
    runtime: str
    model_family: str
    model_version: str
    config_digest: str
    session: str = Field(description="Agent session (one run of the agent).")


class ToolIdentity(Frozen):
    """The target as pinned by the registry."""

    kind: Literal["mcp", "http", "noop"]
    resource: str = Field(description="Resource identifier of the tool; audience of the action token.")
    name: str
    schema_digest: Digest = Field(description="Registry pin of the action's schema; drift refuses.")


class Principal(Frozen):
    """Who acts for whom on what; `human` is unknown until policy has read the remit."""

    human: Human | None = None
    agent: AgentIdentity
    tool: ToolIdentity


class ActionRef(Frozen):
    """The one call this action is about."""

    name: str = Field(description="`tool.action`.")
    args_digest: Digest
    resource_id: str | None = Field(default=None, description="Value of the argument marked x-remit-resource.")
    environment: str
    risk: Literal["T1", "T2", "T3", "T4"]
    effect: Literal["read", "write", "destructive"]

    @property
    def block_class(self) -> str:
        """What a denial blocks for its remit: this operation on this resource."""
        return f"{self.name}|{self.resource_id or ''}"


class Common(Frozen):
    """Carried by every event of an action, so that each event can be read alone."""

    txn: str = Field(description="The action id, again, under its token claim name.")
    remit_id: str
    principal: Principal
    action: ActionRef


class Decision(Frozen):
    """One run of the policy evaluation."""

    evaluation_id: str
    verdict: Verdict
    reason: Reason
    policy_version: Digest
    bundle_version: int
    evaluated_at: AwareDatetime


class Vote(Frozen):
    """One named person's approval."""

    iss: str
    sub: str
    at: AwareDatetime


class Proposed(Common):
    """intake: an authenticated, well-formed, schema-valid proposal."""

    proposal: str = Field(description="The agent's signed bytes, verbatim.")
    proposal_sig: str = Field(description="Agent's Ed25519 signature, base64url.")
    idempotency_key: str
    scopes_requested: list[str]
    bundle_digest: Digest = Field(description="Registry bundle that intake validated against.")


class Evaluated(Common):
    """policy: the verdict and everything that shaped it."""

    decision: Decision
    matched_policies: list[str]
    unnamed_sinks: list[str]
    approvers: list[str] = Field(description="Groups that may approve; empty unless verdict is ask.")
    quorum: int
    grant_no: int | None = Field(default=None, description="1-based index of the grant that covers the call.")
    remit_version: int | None = Field(default=None, description="Stream sequence of the remit event judged against.")
    task_digest: Digest | None = None
    scopes_grantable: list[str]
    detail: str | None = Field(default=None, description="What to change, without argument values.")


class ApprovalRequested(Common):
    """approval: people are asked; repeated with round+1 for each vote below the quorum. Deadline in `expirytime`."""

    round: int
    approvers: list[str]
    quorum: int
    votes: list[Vote]
    shown_digest: Digest = Field(description="Digest of what approvers are shown.")


class Approved(Common):
    """approval: policy allowed, or enough people approved these exact arguments."""

    by: Literal["policy", "human"]
    approval_id: str
    votes: list[Vote]
    approved_at: AwareDatetime
    approved_until: AwareDatetime
    narrowing: dict[str, JsonValue] | None = Field(default=None, description="Stricter JSON Schema over arguments.")
    shown_digest: Digest | None = None


class Refused(Common):
    """approval, tokens or executor: the action ends without an effect."""

    stage: Stage
    reason: Reason
    detail: str | None = None
    by: Human | None = None
    alternatives: list[str] = Field(default_factory=list[str], description="What the agent may do instead.")


class Tokenized(Common):
    """tokens: a single-use token for exactly this call, sealed to the executor."""

    reevaluation: Decision
    scopes_granted: list[str]
    jti: str
    attempt: int
    exp: int = Field(description="NumericDate, seconds.")
    token_digest: Digest
    sealed_token: str = Field(description="base64url of a NaCl sealed box holding the JWS.")
    sealed_to: str = Field(description="Thumbprint of the executor key the box is sealed to.")


class Started(Common):
    """executor: the claim comes next; nothing was called yet."""

    claim_id: str
    attempt: int
    jti: str
    executor: str = Field(description="Replica name.")


class Executed(Common):
    """executor: the outcome, durable in Postgres before this event exists."""

    outcome: Outcome
    attempt: int
    claim_id: str
    latency_ms: dict[str, int] = Field(description="Milliseconds per stage; key `total` from proposal to outcome.")
    result: JsonValue = Field(default=None, description="Redacted result as the agent gets it.")
    result_digest: Digest | None = Field(
        default=None,
        description="Digest of `result` as published: after redaction, so that a removed secret cannot be guessed from it.",
    )
    result_omitted: Literal["too_large", "schema_violation"] | None = None
    error: str | None = Field(default=None, description="Error class: tool_error, timeout, connection, interrupted...")
    finding: str | None = Field(default=None, description="How a person resolved an unknown outcome, and who.")
    redacted_paths: list[str] = Field(description="JSON pointers removed from the result.")
    scopes_used: list[str]
    executed_digest: Digest = Field(description="Digest of the arguments that were really sent.")
    effect_matches_decision: bool


class Revoked(Common):
    """approval: ended by a person before any claim."""

    by: Human
    cause: str


class Audited(Common):
    """audit: the receipt; exactly one closes each action."""

    terminal: str = Field(description="Short type of the event that ended the action.")
    events: int
    first_seq: int
    last_seq: int
    action_head: Digest = Field(description="Head of the action's own chain.")
    ledger_head: Digest = Field(description="Chain hash of the whole ledger at `last_seq`.")
    flags: list[str] = Field(description="Evidence findings, empty when all is well.")


class RemitGranted(Frozen):
    """approval: a human delegated one task to one agent."""

    remit: RemitDocument
    remit_digest: Digest
    by: Human


class RemitAmended(Frozen):
    """approval: the remit as it stands now, narrower than before."""

    remit: RemitDocument
    remit_digest: Digest
    by: Human


class RemitRevoked(Frozen):
    """approval: nothing more may happen under this remit."""

    remit_digest: Digest
    by: Human
    cause: str


class RemitExhausted(Frozen):
    """approval: the budget row is spent; found by its sweeper."""

    remit_digest: Digest
    used: int
