"""What passes between an agent and intake: the signed proposal, and the notices that come back.

The agent signs `propose.<agent>`, NUL, body with its nkey (Ed25519); the header `Remit-Sig` holds base64url of the signature.
Source: design, bus section 5.
"""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from remit.reasons import Outcome, Reason, Stage

MAX_PROPOSAL_BYTES = 24_576
"""A proposal travels inside `proposed` and once more as evidence beside `tokenized`; four such copies stay under 64 KiB."""
SIGNATURE_HEADER = "Remit-Sig"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PresentedIdentity(_Frozen):
    """How the agent describes itself; compared with the registry and with the remit's pin."""

    runtime: str = Field(min_length=1, max_length=200)
    model_family: str = Field(min_length=1, max_length=200)
    model_version: str = Field(min_length=1, max_length=200)
    config_digest: str = Field(min_length=1, max_length=200)
    session: str = Field(min_length=1, max_length=200)


class Proposal(_Frozen):
    """One call the agent asks for, exactly as it shall be made."""

    v: Literal[1] = 1
    idempotency_key: str = Field(pattern=r"^[\x21-\x7e]{1,128}$")
    remit_id: str = Field(max_length=64)
    tool: str = Field(max_length=63)
    action: str = Field(max_length=63)
    arguments: dict[str, JsonValue]
    identity: PresentedIdentity
    rationale: str | None = Field(default=None, max_length=2000, description="Agent's own words; shown as unverified.")


class Notice(_Frozen):
    """What intake tells the agent about one proposal, on `results.<agent>.<action_id>` and as the answer to `status`.

    `rejected` means no action exists (intake refused); `action_id` is then absent and `proposal_digest` says which bytes.
    """

    v: Literal[1] = 1
    status: Literal["rejected", "proposed", "pending", "refused", "succeeded", "failed", "unknown"]
    event_id: str = Field(description="Agents drop repeated notices by this id.")
    agent: str | None = Field(default=None, description="To whom this is said; an agent believes nothing else.")
    action_id: str | None = None
    proposal_digest: str | None = None
    idempotency_key: str | None = None
    stage: Stage | None = None
    reason: Reason | None = None
    detail: str | None = Field(default=None, description="What was found, what was expected, what to do.")
    alternatives: list[str] = Field(default_factory=list[str])
    expires_at: AwareDatetime | None = Field(default=None, description="Deadline of a pending approval.")
    outcome: Outcome | None = None
    result: JsonValue = None
    result_omitted: str | None = None
    redacted_paths: list[str] = Field(default_factory=list[str])


def signed_bytes(agent: str, body: bytes) -> bytes:
    """Return what the agent's signature covers: its own subject inside AGENTS, one NUL, the body."""
    return f"propose.{agent}".encode() + b"\x00" + body
