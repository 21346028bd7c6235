"""The engine on a real broker: every answer of a handler becomes the right answer to the broker, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from remit.errors import PermanentError, TransientError
from remit.events import ActionEvaluated, ActionProposed
from remit.fold import ActionState
from remit.reasons import Reason, Verdict
from remit.runtime.bus import Bus
from remit.runtime.keys import load_service_keys
from remit.runtime.ledger import Draft, Ledger
from remit.runtime.runner import Runner
from remit.runtime.service import Service
from remit.runtime.settings import ServiceSettings
from remit.runtime.telemetry import Telemetry
from tests.support import factories
from tests.support.factories import ACTION_ID
from tests.support.servers import connected
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

EVALUATED = Draft(event=ActionEvaluated, data=factories.EVALUATED)
DENIED = Draft(
    event=ActionEvaluated,
    data=factories.EVALUATED.model_copy(update={"decision": factories.decision(Verdict.DENY, Reason.UNPROCESSABLE)}),
)


class Stage:
    """A policy service with a handler of the test's own, an intake that feeds it, and eyes on the streams."""

    def __init__(self, url: str, keys: Path) -> None:
        self.url, self.keys = url, keys
        self.calls = 0

    @asynccontextmanager
    async def running(
        self, handler: Callable[[ActionState], Awaitable[Draft | None]], **settings: Any
    ) -> AsyncGenerator[Service]:
        async def counted(state: ActionState) -> Draft | None:
            self.calls += 1
            return await handler(state)

        service = Service("policy", ServiceSettings(nats_url=self.url, keys_dir=self.keys, **settings))
        service.on_action(ActionProposed, counted, emits=(ActionEvaluated,), unprocessable=lambda _: DENIED)
        running = asyncio.create_task(Runner(service)._main())
        await eventually(lambda: service.probes.started)
        yield service
        service.stopping.set()
        await running

    async def propose(self, action_id: str = ACTION_ID) -> None:
        async with connected(self.url, self.keys, "intake") as client:
            mine = load_service_keys(self.keys, "intake")
            bus = Bus(client)  # type: ignore[arg-type]  # a nats-py client, whose own annotations are wider
            ledger = Ledger(bus=bus, signer=mine.signer, trust=mine.trust, tenant="default", telemetry=Telemetry("t"))
            await ledger.append(ActionState(action_id=action_id), Draft(event=ActionProposed, data=factories.PROPOSED))

    async def stored(self, stream: str, subject: str) -> bytes | None:
        async with connected(self.url, self.keys, "audit") as client:
            bus = Bus(client)  # type: ignore[arg-type]  # as above
            if stream == "DLQ":
                return await self._consume_dlq(client, subject)
            stored = await bus.leader_read(stream, {"last_by_subj": subject})
            return stored.body if stored else None

    @staticmethod
    async def _consume_dlq(client: Any, subject: str) -> bytes | None:
        reply = client.new_inbox()
        subscription = await client.subscribe(reply)
        await client.publish("$JS.API.CONSUMER.MSG.NEXT.DLQ.audit", b'{"batch":1,"expires":1000000000}', reply=reply)
        message = await subscription.next_msg(timeout=3)
        return message.data if message.subject == subject else None

    async def pending(self) -> tuple[int, int]:
        async with connected(self.url, self.keys, "policy") as client:
            bus = Bus(client)  # type: ignore[arg-type]  # as above
            info = await bus.consumer_info("ACTIONS", "policy") or {}
            return info["num_pending"], info["num_ack_pending"]


@pytest.fixture
def stage(nats_url: str, keys: Path) -> Stage:
    return Stage(nats_url, keys)


async def _evaluate(_: ActionState) -> Draft | None:
    return EVALUATED


async def test_draft_is_appended_and_the_message_acknowledged(stage: Stage) -> None:
    async with stage.running(_evaluate):
        await stage.propose()
        body = await _until_stored(stage, f"action.{ACTION_ID}.evaluated")
        assert json.loads(body)["n"] == 2
        await eventually(stage.pending, (0, 0))
    assert stage.calls == 1


async def _until_stored(stage: Stage, subject: str) -> bytes:
    for _ in range(100):
        body = await stage.stored("ACTIONS", subject)
        if body is not None:
            return body
        await asyncio.sleep(0.05)
    raise AssertionError(f"nothing was stored on {subject}")


async def test_transient_error_is_delivered_again(stage: Stage) -> None:
    async def twice_down(_: ActionState) -> Draft | None:
        if stage.calls < 2:
            raise TransientError("the dependency is down")
        return EVALUATED

    async with stage.running(twice_down):
        await stage.propose()
        await _until_stored(stage, f"action.{ACTION_ID}.evaluated")
    assert stage.calls == 2


async def test_bug_backs_off_and_is_never_acknowledged(stage: Stage) -> None:
    async def buggy(_: ActionState) -> Draft | None:
        if stage.calls < 2:
            raise ZeroDivisionError
        return EVALUATED

    async with stage.running(buggy):
        await stage.propose()
        await _until_stored(stage, f"action.{ACTION_ID}.evaluated")
    assert stage.calls == 2


async def test_permanent_error_ends_the_action_and_becomes_a_dead_letter(stage: Stage) -> None:
    async def broken(_: ActionState) -> Draft | None:
        raise PermanentError("cannot ever work")

    async with stage.running(broken):
        await stage.propose()
        await eventually(stage.pending, (0, 0))
        letter = await stage.stored("DLQ", "dlq.policy")
        body = await stage.stored("ACTIONS", f"action.{ACTION_ID}.evaluated")
    assert letter is not None
    assert json.loads(letter)["code"] == "permanent"
    assert body is not None
    assert json.loads(body)["data"]["decision"]["verdict"] == "deny"


async def test_junk_is_kept_as_evidence_and_never_decided(stage: Stage) -> None:
    async with stage.running(_evaluate):
        async with connected(stage.url, stage.keys, "intake") as compromised:
            await compromised.jetstream().publish(f"action.{'a' * 32}.proposed", b'{"junk":1}', timeout=5)
        await eventually(stage.pending, (0, 0))
        letter = await stage.stored("DLQ", "dlq.policy")
    assert letter is not None
    assert json.loads(letter)["code"] == "signature"
    assert stage.calls == 0


async def test_replicas_share_the_work_and_no_action_is_decided_twice(stage: Stage) -> None:
    ids = [f"{i:032x}" for i in range(60)]
    async with stage.running(_evaluate, workers=4), stage.running(_evaluate, workers=4) as second:
        for action_id in ids:
            await stage.propose(action_id)
        await eventually(stage.pending, (0, 0))
        labels = {"durable": "policy", "result": "ok"}
        share = second.telemetry.registry.get_sample_value("remit_messages_handled_total", labels) or 0
    assert stage.calls == len(ids)
    assert 0 < share < len(ids)


async def test_health_says_when_it_is_ready(stage: Stage) -> None:
    async with stage.running(_evaluate) as service:
        assert service.probes.unready() == []
    assert Service("policy", ServiceSettings(nats_url=stage.url, keys_dir=stage.keys)).probes.unready() != []
