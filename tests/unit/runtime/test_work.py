"""What one delivery leads to: junk ends nothing, what cannot be processed ends its action, nothing goes round for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from remit.envelope import CHAIN_HEADER, pack_chain
from remit.errors import EnvelopeError, PermanentError, TransientError
from remit.events import ActionRefused, Refused
from remit.reasons import Reason, Stage
from remit.runtime.inbound import Inbound
from remit.runtime.ledger import Draft, Ledger
from remit.runtime.telemetry import Telemetry
from remit.runtime.work import MAX_DELIVERIES, ActionWork, RejectedError, event_work, raw_work
from tests.support import factories
from tests.support.factories import ACTION_ID, APPROVED_PATH, SIGNERS, TRUST, action_until
from tests.unit.runtime.memory_bus import MemoryBus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from remit.fold import ActionState

STATE = action_until(*APPROVED_PATH)
REFUSED = Refused(**factories.COMMON, stage=Stage.TOKENS, reason=Reason.UNPROCESSABLE)


class Tokens:
    """A tokens service at its step, over a stream in memory."""

    def __init__(self) -> None:
        self.bus = MemoryBus()
        for recorded in STATE.chain:
            self.bus.put(recorded)
        self.ledger = Ledger(
            bus=self.bus, signer=SIGNERS["tokens"], trust=TRUST, tenant="default", telemetry=Telemetry("t")
        )

    def work(
        self, handler: Callable[[ActionState], Awaitable[Draft | None]], ending: Draft | None = None
    ) -> ActionWork:
        ended = ending or Draft(event=ActionRefused, data=REFUSED)
        return ActionWork(
            service="tokens", ledger=self.ledger, telemetry=Telemetry("t"), handler=handler,
            unprocessable=lambda _: ended, verify_chain=True,
        )  # fmt: skip

    async def types(self) -> list[str]:
        return [r.event.short for r in (await self.ledger.read(ACTION_ID)).chain]


def delivery(**changes: Any) -> Inbound:
    signed = STATE.chain[-1].signed
    headers = {**signed.headers(), CHAIN_HEADER: pack_chain(STATE.chain[:-1])}
    return Inbound(subject=signed.subject, body=signed.body, headers=headers, seq=4, **changes)


@pytest.fixture
def tokens() -> Tokens:
    return Tokens()


async def _broken(_: ActionState) -> Draft | None:
    raise PermanentError("cannot ever work")


async def _down(_: ActionState) -> Draft | None:
    raise TransientError("the dependency is down")


async def test_permanent_error_ends_the_action_before_the_message(tokens: Tokens) -> None:
    with pytest.raises(RejectedError) as rejected:
        await tokens.work(_broken)(delivery())
    assert rejected.value.code == "permanent"
    assert await tokens.types() == [*APPROVED_PATH, "refused"]


async def test_last_delivery_ends_the_action_without_asking_the_handler(tokens: Tokens) -> None:
    with pytest.raises(RejectedError) as rejected:
        await tokens.work(_down)(delivery(delivered=MAX_DELIVERIES))
    assert rejected.value.code == "unprocessable"
    assert await tokens.types() == [*APPROVED_PATH, "refused"]


async def test_terminal_event_that_may_not_follow_still_ends_the_message(tokens: Tokens) -> None:
    misplaced = Draft(
        event=ActionRefused, data=REFUSED.model_copy(update={"stage": Stage.EXECUTOR, "reason": Reason.UNPROCESSABLE})
    )
    with pytest.raises(RejectedError):
        await tokens.work(_down, misplaced)(delivery(delivered=MAX_DELIVERIES))
    assert await tokens.types() == list(APPROVED_PATH)


async def test_action_that_moved_on_is_not_ended(tokens: Tokens) -> None:
    moved = factories.grow(STATE, "action.tokenized")
    tokens.bus.put(moved.chain[-1])
    with pytest.raises(RejectedError):
        await tokens.work(_broken)(delivery())
    assert await tokens.types() == [*APPROVED_PATH, "tokenized"]


async def test_last_delivery_of_a_step_that_is_done_is_acknowledged(tokens: Tokens) -> None:
    tokens.bus.put(factories.grow(STATE, "action.tokenized").chain[-1])
    await tokens.work(_down)(delivery(delivered=MAX_DELIVERIES))
    assert await tokens.types() == [*APPROVED_PATH, "tokenized"]


async def test_junk_ends_no_action(tokens: Tokens) -> None:
    junk = Inbound(subject=f"action.{ACTION_ID}.approved", body=b"{}", headers={}, seq=5, delivered=MAX_DELIVERIES)
    with pytest.raises(EnvelopeError):
        await tokens.work(_down)(junk)
    assert await tokens.types() == list(APPROVED_PATH)


async def test_event_and_raw_work_give_up_too() -> None:
    heard: list[str] = []

    async def hear(_: object) -> None:
        heard.append("worked")

    async def give_up(_: Inbound) -> None:
        heard.append("gave up")

    last = delivery(delivered=MAX_DELIVERIES)
    for work in (event_work(hear, TRUST), raw_work(hear)):
        await work(delivery(delivered=MAX_DELIVERIES - 1))
        with pytest.raises(RejectedError):
            await work(last)
    await raw_work(hear, give_up)(last)
    assert heard == ["worked", "worked", "gave up"]
