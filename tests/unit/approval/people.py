"""People, votes and states of approval tests."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import SecretStr

from remit.commands import ApproveCommand, DenyCommand, Reply
from remit.identity_claims import Person
from remit.remits import Human
from remit.runtime.ledger import Draft
from services.approval.decide import Facts, Limits
from services.approval.voting import Moment, Voter
from tests.support.factories import (
    ACTION_ID,
    COMMON,
    DANA,
    DIGEST,
    EVALUATED,
    NOW,
    REQUESTED,
    action_until,
    decision,
    grow,
)

DEADLINE = NOW + timedelta(minutes=15)
LIMITS = Limits(
    ask_for=timedelta(minutes=15), approved_for_policy=timedelta(minutes=1), approved_for_human=timedelta(minutes=5)
)
NOTHING = Facts()
MIA = Human(iss=DANA.iss, sub="mia")


def person(human: Human = DANA, *roles: str, email: str | None = None) -> Person:
    return Person(
        human=human,
        roles=frozenset(roles or ("payments",)),
        name=None,
        authenticated_at=None,
        expires_at=NOW + timedelta(hours=1),
        email=email,
    )


def voter(human: Human = DANA, *roles: str, key: str = "key-00001", email: str | None = None) -> Voter:
    return Voter(person=person(human, *roles, email=email), idempotency_key=key)


def approve(**more: Any) -> ApproveCommand:
    """Return the approval of the first card that is shown."""
    fields: dict[str, Any] = {
        "action_id": ACTION_ID,
        "args_digest": COMMON["action"].args_digest,
        "shown_digest": DIGEST,
        "version": 1,
        **more,
    }
    return ApproveCommand(id_token=_token(), idempotency_key="key-00001", **fields)


def deny(**more: Any) -> DenyCommand:
    return DenyCommand(id_token=_token(), idempotency_key="key-00001", action_id=ACTION_ID, **more)


def _token() -> Any:
    return SecretStr("not-looked-at")


def moment(**more: Any) -> Moment:
    fields: dict[str, Any] = {"now": NOW, **more}
    return Moment(**fields)


def evaluated(verdict: Any = None, **more: Any) -> Any:
    """Return the state after an evaluation with these fields."""
    update = {**more, **({"decision": decision(verdict)} if verdict else {})}
    return grow(action_until("proposed"), "action.evaluated", EVALUATED.model_copy(update=update))


def requested(*, quorum: int = 1, risk: str = "T3") -> Any:
    """Return the state of an action that waits for people."""
    action = COMMON["action"].model_copy(update={"risk": risk})
    said = REQUESTED.model_copy(update={"quorum": quorum, "action": action})
    state = evaluated(quorum=quorum, action=action)
    return grow(state, "action.approval_requested", said, expirytime=DEADLINE)


def appended(state: Any, draft: Any) -> Any:
    """Fold a draft as the ledger would append it."""
    kind = f"action.{draft.event.short}"
    return grow(state, kind, draft.data, discriminator=draft.discriminator, expirytime=draft.expirytime)


def drafted(decision: object) -> Any:
    """Return a decision that is an event to append; its data has the fields of its kind."""
    assert isinstance(decision, Draft), decision
    return decision


def answered(decision: object) -> Reply:
    """Return a decision that is an answer."""
    assert isinstance(decision, Reply), decision
    return decision
