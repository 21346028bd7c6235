"""From a decision to a signed event: the draft a handler returns, and the sealer that gives it place, ids and signature.

Source: design, bus sections 5 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from remit.clock import now
from remit.envelope import MAX_EVENT_BYTES, Recorded, Signer, seal, source_of
from remit.errors import ConfigurationError, PermanentError, RemitError
from remit.events import (
    ActionApproved,
    ActionEvaluated,
    ActionExecuted,
    ActionTokenized,
    Event,
    RemitExhaustedEvent,
    subject_of,
)
from remit.ids import event_id
from remit.runtime.crash import crash_point

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from pydantic import BaseModel

    from remit.fold import ActionState, RemitState
    from remit.runtime.bus import Appended, Bus

FACTS: frozenset[type[Event]] = frozenset({ActionExecuted, RemitExhaustedEvent})
"""True whatever the race; everything else is a decision."""
CARRIES_CHAIN: frozenset[type[Event]] = frozenset({ActionEvaluated, ActionApproved, ActionTokenized})
"""Events whose consumer needs the whole action; the others are read one by one or are terminal."""
SCHEMA_BASE = "https://remit.example/schemas"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a handler decides; the ledger adds position, predecessor, ids and signature.

    `discriminator` tells repetitions of a type apart: attempt, round, or a person's idempotency key (`ids.event_id`).
    """

    event: type[Event]
    data: BaseModel
    discriminator: str = "1"
    expirytime: datetime | None = None
    traceparent: str | None = None


class Superseded(RemitError):  # noqa: N818  (a signal in the design's words, not a failure)
    """A decision lost its compare-and-set; `state` is the truth to decide on again."""

    def __init__(self, state: ActionState) -> None:
        """Carry the refolded state."""
        super().__init__(f"action {state.action_id} moved on")
        self.state = state


class SupersededRemit(RemitError):  # noqa: N818  (a signal in the design's words, not a failure)
    """A remit decision lost its compare-and-set; `state` is the truth."""

    def __init__(self, state: RemitState) -> None:
        """Carry the refolded state."""
        super().__init__(f"remit {state.remit_id} moved on")
        self.state = state


class OversizeError(PermanentError):
    """The sealed event would be larger than the stream takes; nothing was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an event goes: after `prev` at position `n`, caused by (stream sequence, event id)."""

    subject_id: str
    n: int
    prev: str | None
    cause: tuple[int | None, str | None]
    traceparent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealer:
    """Builds and signs events of one service."""

    signer: Signer
    tenant: str

    def seal(self, draft: Draft, place: Place) -> Recorded:
        """Return the signed event.

        Raises:
            ConfigurationError: this service may not write that type.

        """
        if self.signer.service not in draft.event.writers:
            raise ConfigurationError(f"{self.signer.service} may not write {draft.event.short}")
        root = "action" if draft.event.stream == "ACTIONS" else "remit"
        event = draft.event(
            id=event_id(place.subject_id, f"{root}.{draft.event.short}", draft.discriminator),
            source=source_of(self.signer.service),
            type=draft.event.model_fields["type"].default,
            subject=place.subject_id,
            time=now(),
            dataschema=f"{SCHEMA_BASE}/{root}.{draft.event.short}/1.0.0",
            n=place.n,
            prev=place.prev,
            causeseq=place.cause[0],
            causationid=place.cause[1],
            correlationid=place.subject_id,
            kid=self.signer.kid,
            traceparent=place.traceparent,
            partitionkey=self.tenant,
            expirytime=draft.expirytime,
            data=draft.data,  # type: ignore[call-arg]  # every concrete event class has `data`; the base leaves it open
        )
        return seal(event, subject=subject_of(draft.event, place.subject_id), signer=self.signer)

    def headers(self, recorded: Recorded, expected: int) -> dict[str, str]:
        """Return the event's headers with the compare-and-set on everything stored for its action or remit.

        Raises:
            OversizeError: event and headers do not fit together.

        """
        root, subject_id, _ = recorded.signed.subject.split(".")
        headers = recorded.signed.headers()
        headers["Nats-Msg-Id"] = self.signer.message_id(recorded.event.id)
        headers["Nats-Expected-Last-Subject-Sequence"] = str(expected)
        headers["Nats-Expected-Last-Subject-Sequence-Subject"] = f"{root}.{subject_id}.>"
        if recorded.event.traceparent:
            headers["traceparent"] = recorded.event.traceparent
        size = wire_size(recorded.signed.body, headers)
        if size > MAX_EVENT_BYTES:
            raise OversizeError(f"event on {recorded.signed.subject} has {size} bytes, limit {MAX_EVENT_BYTES}")
        return headers

    async def store(self, bus: Bus, recorded: Recorded, headers: dict[str, str]) -> Appended:
        """Append what was sealed, between crash points b (decided, not published) and c (stored, not known here).

        Raises:
            RemitError: as `Bus.append`.

        """
        crash_point(self.signer.service, "b")
        stored = await bus.append(recorded.signed.subject, recorded.signed.body, headers)
        crash_point(self.signer.service, "c")
        return stored


def wire_size(body: bytes, headers: Mapping[str, str]) -> int:
    """Return the bytes of a message as the broker counts them against `max_msg_size`: headers and body."""
    # One `name: value` line each; what an event carries in its headers is ASCII throughout.
    return len(body) + len("NATS/1.0\r\n\r\n") + sum(len(name) + len(value) + 4 for name, value in headers.items())
