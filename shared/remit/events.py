"""Every event that crosses NATS, one class each, in pipeline order: CloudEvents 1.0 structured JSON, frozen and strict.

An unknown field is an unknown constraint, so it is refused. Released fields are never renamed, retyped or removed.
What each event carries stands in `payloads.py`. Source: design, bus section 5 (fields, writers), standards section 3 (spelling).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import AwareDatetime, Field

from remit.payloads import (
    ActionRef,
    AgentIdentity,
    ApprovalRequested,
    Approved,
    Audited,
    Common,
    Decision,
    Digest,
    Evaluated,
    Executed,
    Frozen,
    Principal,
    Proposed,
    Refused,
    RemitAmended,
    RemitExhausted,
    RemitGranted,
    RemitRevoked,
    Revoked,
    Started,
    Tokenized,
    ToolIdentity,
    Vote,
)

__all__ = [
    "ACTION_EVENTS",
    "BY_SUBJECT",
    "REMIT_EVENTS",
    "ActionApprovalRequested",
    "ActionApproved",
    "ActionAudited",
    "ActionEvaluated",
    "ActionEvent",
    "ActionExecuted",
    "ActionProposed",
    "ActionRef",
    "ActionRefused",
    "ActionRevoked",
    "ActionStarted",
    "ActionTokenized",
    "AgentIdentity",
    "ApprovalRequested",
    "Approved",
    "Audited",
    "Common",
    "Decision",
    "Digest",
    "Evaluated",
    "Event",
    "Executed",
    "Frozen",
    "Principal",
    "Proposed",
    "Refused",
    "RemitAmended",
    "RemitAmendedEvent",
    "RemitEvent",
    "RemitExhausted",
    "RemitExhaustedEvent",
    "RemitGranted",
    "RemitGrantedEvent",
    "RemitRevoked",
    "RemitRevokedEvent",
    "Revoked",
    "Started",
    "Tokenized",
    "ToolIdentity",
    "Vote",
    "subject_of",
]


class Event(Frozen):
    """CloudEvents context attributes; subclasses fix `type` and `data`."""

    writers: ClassVar[tuple[str, ...]]
    """Services whose keys may sign this type."""
    short: ClassVar[str]
    """Last token of the subject."""
    stream: ClassVar[Literal["ACTIONS", "REMITS"]] = "ACTIONS"

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: str
    type: str
    subject: str = Field(description="Action id or remit id.")
    time: AwareDatetime
    datacontenttype: Literal["application/json"] = "application/json"
    dataschema: str
    n: int = Field(ge=1, description="Position in the action's valid chain.")
    prev: Digest | None = Field(default=None, description="Digest of the previous valid raw body; absent at n = 1.")
    causeseq: int | None = Field(default=None, description="Stream sequence of the causing event.")
    kid: str
    correlationid: str
    causationid: str | None = Field(default=None, description="Event id of the cause; absent on the first event.")
    traceparent: str | None = None
    tracestate: str | None = None
    authtype: str | None = None
    authid: str | None = None
    partitionkey: str | None = Field(default=None, description="Tenant.")
    expirytime: AwareDatetime | None = Field(default=None, description="Deadline of the pending step.")
    dataclassification: Literal["internal"] = "internal"


class ActionProposed(Event):
    """An agent asks for one call."""

    writers = ("intake",)
    short = "proposed"
    type: Literal["io.remit.action.proposed.v1"] = "io.remit.action.proposed.v1"
    data: Proposed


class ActionEvaluated(Event):
    """Policy answered."""

    writers = ("policy",)
    short = "evaluated"
    type: Literal["io.remit.action.evaluated.v1"] = "io.remit.action.evaluated.v1"
    data: Evaluated


class ActionApprovalRequested(Event):
    """People are asked."""

    writers = ("approval",)
    short = "approval_requested"
    type: Literal["io.remit.action.approval_requested.v1"] = "io.remit.action.approval_requested.v1"
    data: ApprovalRequested


class ActionApproved(Event):
    """Policy or people agreed; not yet a permit."""

    writers = ("approval",)
    short = "approved"
    type: Literal["io.remit.action.approved.v1"] = "io.remit.action.approved.v1"
    data: Approved


class ActionRefused(Event):
    """It ends here, without an effect."""

    writers = ("approval", "tokens", "executor")
    short = "refused"
    type: Literal["io.remit.action.refused.v1"] = "io.remit.action.refused.v1"
    data: Refused


class ActionTokenized(Event):
    """A token exists for this call alone."""

    writers = ("tokens",)
    short = "tokenized"
    type: Literal["io.remit.action.tokenized.v1"] = "io.remit.action.tokenized.v1"
    data: Tokenized


class ActionStarted(Event):
    """The executor is about to claim."""

    writers = ("executor",)
    short = "started"
    type: Literal["io.remit.action.started.v1"] = "io.remit.action.started.v1"
    data: Started


class ActionExecuted(Event):
    """The outcome is known, or known to be unknown."""

    writers = ("executor",)
    short = "executed"
    type: Literal["io.remit.action.executed.v1"] = "io.remit.action.executed.v1"
    data: Executed


class ActionRevoked(Event):
    """A person stopped it in time."""

    writers = ("approval",)
    short = "revoked"
    type: Literal["io.remit.action.revoked.v1"] = "io.remit.action.revoked.v1"
    data: Revoked


class ActionAudited(Event):
    """The receipt."""

    writers = ("audit",)
    short = "audited"
    type: Literal["io.remit.action.audited.v1"] = "io.remit.action.audited.v1"
    data: Audited


class RemitGrantedEvent(Event):
    """A remit begins."""

    writers = ("approval",)
    short = "granted"
    stream = "REMITS"
    type: Literal["io.remit.remit.granted.v1"] = "io.remit.remit.granted.v1"
    data: RemitGranted


class RemitAmendedEvent(Event):
    """A remit became narrower."""

    writers = ("approval",)
    short = "amended"
    stream = "REMITS"
    type: Literal["io.remit.remit.amended.v1"] = "io.remit.remit.amended.v1"
    data: RemitAmended


class RemitRevokedEvent(Event):
    """A remit was taken back."""

    writers = ("approval",)
    short = "revoked"
    stream = "REMITS"
    type: Literal["io.remit.remit.revoked.v1"] = "io.remit.remit.revoked.v1"
    data: RemitRevoked


class RemitExhaustedEvent(Event):
    """A remit has no calls left."""

    writers = ("approval",)
    short = "exhausted"
    stream = "REMITS"
    type: Literal["io.remit.remit.exhausted.v1"] = "io.remit.remit.exhausted.v1"
    data: RemitExhausted


ActionEvent = (
    ActionProposed
    | ActionEvaluated
    | ActionApprovalRequested
    | ActionApproved
    | ActionRefused
    | ActionTokenized
    | ActionStarted
    | ActionExecuted
    | ActionRevoked
    | ActionAudited
)
RemitEvent = RemitGrantedEvent | RemitAmendedEvent | RemitRevokedEvent | RemitExhaustedEvent

ACTION_EVENTS: tuple[type[ActionEvent], ...] = (
    ActionProposed,
    ActionEvaluated,
    ActionApprovalRequested,
    ActionApproved,
    ActionRefused,
    ActionTokenized,
    ActionStarted,
    ActionExecuted,
    ActionRevoked,
    ActionAudited,
)
REMIT_EVENTS: tuple[type[RemitEvent], ...] = (
    RemitGrantedEvent,
    RemitAmendedEvent,
    RemitRevokedEvent,
    RemitExhaustedEvent,
)
BY_SUBJECT: dict[tuple[str, str], type[Event]] = {
    **{("action", event.short): event for event in ACTION_EVENTS},
    **{("remit", event.short): event for event in REMIT_EVENTS},
}
"""Event class by (first, last) token of its subject."""


def subject_of(event: type[Event], subject_id: str = "*") -> str:
    """Return the NATS subject of an event class, for one id or as the wildcard."""
    root = "action" if event.stream == "ACTIONS" else "remit"
    return f"{root}.{subject_id}.{event.short}"
