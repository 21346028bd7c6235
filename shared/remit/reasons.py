"""The closed list of refusals and results: every "no" that Remit ever says is one of these words."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """Policy's answer; the default is deny."""

    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"


class Outcome(StrEnum):
    """What became of an effect; doubt is stated, never hidden."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Stage(StrEnum):
    """The service that refused."""

    INTAKE = "intake"
    POLICY = "policy"
    APPROVAL = "approval"
    TOKENS = "tokens"
    EXECUTOR = "executor"


class Reason(StrEnum):
    """Why something was decided; the text beside each member is what an agent developer reads."""

    # Intake: the proposal never became an action.
    MALFORMED = "malformed"
    OVERSIZE = "oversize"
    BAD_SIGNATURE = "bad_signature"
    UNKNOWN_AGENT = "unknown_agent"
    UNSUPPORTED_VERSION = "unsupported_version"
    UNKNOWN_TOOL = "unknown_tool"
    UNKNOWN_ACTION = "unknown_action"
    SCHEMA_VIOLATION = "schema_violation"
    QUOTA_EXCEEDED = "quota_exceeded"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    # Policy: the verdict and why.
    POLICY_PERMITS = "policy_permits"
    APPROVAL_REQUIRED = "approval_required"
    UNKNOWN_REMIT = "unknown_remit"
    FOREIGN_REMIT = "foreign_remit"
    REMIT_NOT_YET_VALID = "remit_not_yet_valid"
    REMIT_EXPIRED = "remit_expired"
    REMIT_REVOKED = "remit_revoked"
    BUDGET_EXHAUSTED = "budget_exhausted"
    IDENTITY_DRIFT = "identity_drift"
    ENVIRONMENT_MISMATCH = "environment_mismatch"
    NO_GRANT = "no_grant"
    ARGUMENTS_OUTSIDE_GRANT = "arguments_outside_grant"
    NO_POLICY = "no_policy"
    POLICY_DENIED = "policy_denied"
    STALE_BUNDLE = "stale_bundle"
    SCHEMA_DRIFT = "schema_drift"
    EVALUATION_ERROR = "evaluation_error"
    UNPROCESSABLE = "unprocessable"
    # Approval: what people (or the clock) said.
    DENIED = "denied"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"
    BLOCKED = "blocked"
    STOPPED = "stopped"
    REVOKED = "revoked"
    # Tokens: the second evaluation.
    APPROVAL_EXPIRED = "approval_expired"
    OUT_OF_SCOPE = "out_of_scope"
    TOKEN_EXPIRED = "token_expired"  # noqa: S105  (a reason code, not a secret)
    # Executor: before the effect.
    TOKEN_INVALID = "token_invalid"  # noqa: S105  (a reason code, not a secret)
    TOKEN_REPLAYED = "token_replayed"  # noqa: S105  (a reason code, not a secret)
    ARGS_MISMATCH = "args_mismatch"
    EGRESS_DENIED = "egress_denied"
    CREDENTIAL_MISSING = "credential_missing"
    TOOL_UNREACHABLE = "tool_unreachable"
    STOP_ROW_MISSING = "stop_row_missing"
