"""The remit: one human's delegation of one task to one agent, as grants with argument constraints, budget and validity.

Grants are RFC 9396 `authorization_details` of type `tool_call` in grant form (design, standards section 2.2).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator

MAX_GRANTS = 50
"""A remit for one task stays readable by the person who grants it."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Human(_Frozen):
    """The person a task is done for: OpenID issuer and subject."""

    iss: str = Field(min_length=1, max_length=512)
    sub: str = Field(min_length=1, max_length=255)


class AgentPin(_Frozen):
    """Identity fields the human insists on; an absent field is not pinned."""

    runtime: str | None = None
    model_family: str | None = None
    model_version: str | None = None
    config_digest: str | None = None
    session: str | None = None


class Grant(_Frozen):
    """One action the agent may perform, and within which bounds."""

    type: Literal["tool_call"]
    tool: str = Field(min_length=1, max_length=63)
    action: str = Field(min_length=1, max_length=63)
    locations: list[str] | None = None
    arguments: dict[str, JsonValue] | None = Field(
        default=None, description="JSON Schema 2020-12 over the call's arguments; absent means any."
    )
    max_calls: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Calls under this grant; absent means bounded by the remit's total only."
    )
    expires_at: AwareDatetime | None = None


class RemitTerms(_Frozen):
    """What a human submits: everything but the id and the human, which approval fills in from the verified ID token."""

    agent_id: str = Field(description="SPIFFE id of the agent.")
    agent_pin: AgentPin | None = None
    task: str = Field(min_length=1, max_length=4000, description="The task in the human's words.")
    grants: list[Grant] = Field(min_length=1, max_length=MAX_GRANTS)
    environment: str = Field(min_length=1, max_length=63)
    not_before: AwareDatetime
    expires_at: AwareDatetime
    max_calls: Annotated[int, Field(ge=1, le=1_000_000)]

    @model_validator(mode="after")
    def _times_are_ordered(self) -> RemitTerms:
        if self.expires_at <= self.not_before:
            raise ValueError("expires_at must lie after not_before")
        for number, grant in enumerate(self.grants, 1):
            if grant.expires_at is not None and grant.expires_at > self.expires_at:
                raise ValueError(f"grant {number} expires after its remit")
        return self


class RemitDocument(RemitTerms):
    """The remit as granted and signed."""

    remit_id: str = Field(pattern=r"^rem_[0-9a-f]{32}$")
    human: Human
