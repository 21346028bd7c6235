"""What one agent lets the broker and intake say to another: the reply subject of a request is the asker's own choice.

The answer to `propose` or `status` may be sent to another agent's results or inbox, which the account border cannot prevent: both
live in the same account. So an agent believes only what names it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from infra.local import key_ring
from remit.canonical import b64url
from remit.events import ActionEvaluated, ActionProposed
from remit.ids import action_id
from remit.nkey import signing_key
from remit.proposal import SIGNATURE_HEADER, signed_bytes
from remit.reasons import Reason, Verdict
from tests.security.scene import Scene, running_scene
from tests.support import factories
from tests.support.live_stage import waiting
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)

KEY = "pay-the-bill"
DENIED = factories.EVALUATED.model_copy(update={"decision": factories.decision(Verdict.DENY, Reason.NO_GRANT)})


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """A broker with a registry and a running intake."""
    async with running_scene(tmp_path) as made:
        await made.publish_registry()
        async with made.intake():
            yield made


async def test_no_agent_ends_another_agents_wait_even_with_the_very_same_bytes(scene: Scene) -> None:
    victim, twin = (action_id("default", name, KEY) for name in ("bookkeeper", "a1"))
    async with scene.agent() as agent, scene.attacker("agents/a1") as evil:
        call = asyncio.create_task(
            agent.propose(
                "bank.send_money", factories.ARGUMENTS, remit=factories.REMIT.remit_id, idempotency_key=KEY, wait=3
            )
        )
        await eventually(lambda: exists(scene, victim))
        body = (await scene.state(victim)).must(ActionProposed).data.proposal.encode()
        key = signing_key(key_ring.load_nats_seed(scene.keys, "agents/a1"))
        signature = b64url(key.sign(signed_bytes("a1", body)).signature)
        await evil.ask("propose.a1", body, headers={SIGNATURE_HEADER: signature})
        await eventually(lambda: exists(scene, twin))
        await scene.write("policy", ActionEvaluated, DENIED, twin)
        for reply in ("results.bookkeeper.x1", f"results.bookkeeper.{victim}", "results.bookkeeper.rejected"):
            evil.publish(f"status.a1.{twin}", b"", reply=reply)
            evil.publish(f"status.a1.{victim}", b"", reply=reply)
            evil.publish("propose.a1", body, reply=reply, headers={SIGNATURE_HEADER: signature})
        await evil.flush()
        assert waiting(await call).action_id == victim


async def exists(scene: Scene, action: str) -> bool:
    """Return whether an action was proposed."""
    return bool((await scene.state(action)).chain)
