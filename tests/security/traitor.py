"""A compromised service: its own broker login, its own signing key, and every event type it can think of for a live action."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remit.envelope import Signer, seal
from remit.events import ACTION_EVENTS, ActionEvaluated, ActionProposed, Event, subject_of
from remit.fold import may_follow
from remit.reasons import Stage
from tests.support import factories

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remit.envelope import Signed
    from remit.fold import ActionState

STRANGE = "sha-256:" + "A" * 43
"""The digest of nothing that was ever stored."""


@dataclass(frozen=True, slots=True)
class Forgery:
    """One event that may not fold, and the finding that keeps it as evidence."""

    event: type[Event]
    signed: Signed
    code: str


@dataclass(frozen=True, slots=True)
class Traitor:
    """One service turned; `kids` are what the others sign with, by service."""

    signer: Signer
    kids: dict[str, str]

    @property
    def service(self) -> str:
        """Whose login and key these are."""
        return self.signer.service

    def forgeries(self, state: ActionState) -> Iterator[Forgery]:
        """Yield each event type in every way that this key can sign it and that may not fold after `state`."""
        for event in ACTION_EVENTS:
            yield from self._own(event, state) if self.service in event.writers else self._foreign(event, state)

    def _own(self, event: type[Event], state: ActionState) -> Iterator[Forgery]:
        at_hand = len(state.chain) + 1
        yield Forgery(event, self.sign(event, state, n=at_hand + 1), "order")
        yield Forgery(event, self.sign(event, state, n=1), "order")
        yield Forgery(event, self.sign(event, state, prev=STRANGE), "chain")
        if not may_follow(state.last, self.built(event, state)):  # type: ignore[arg-type]  # an action's event
            yield Forgery(event, self.sign(event, state), "illegal")

    def _foreign(self, event: type[Event], state: ActionState) -> Iterator[Forgery]:
        yield Forgery(event, self.sign(event, state), "type")
        yield Forgery(event, self.sign(event, state, kid=self.kids[event.writers[0]]), "signature")

    def built(self, event: type[Event], state: ActionState, **changes: Any) -> Event:
        """Return an event that is right in everything but what `changes` say."""
        opened, judged = state.must(ActionProposed).data, state.must(ActionEvaluated).data
        common = {name: getattr(judged, name) for name in ("txn", "remit_id", "principal", "action")}
        kind = f"action.{event.short}"
        data: Any = opened if event is ActionProposed else factories.EXAMPLES[kind].model_copy(update=common)
        stage = {"stage": Stage(self.service)} if event.short == "refused" and self.service in event.writers else {}
        place = factories.Place(n=len(state.chain) + 1, prev=state.head, causeseq=state.last_seq)
        honest = factories.record(
            kind, data.model_copy(update=stage), place=place, subject=state.action_id, discriminator="forged"
        ).event
        owner = {"kid": self.signer.kid, "source": f"/remit/{self.service}"}
        return honest.model_copy(update={**owner, **changes})

    def sign(self, event: type[Event], state: ActionState, **changes: Any) -> Signed:
        """Return the same, signed with this service's own key."""
        built = self.built(event, state, **changes)
        signed = seal(built, subject=subject_of(event, state.action_id), signer=self.signer).signed
        return type(signed)(signed.subject, signed.body, built.kid, signed.signature)
