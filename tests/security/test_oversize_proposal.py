"""Proposals of 64 KiB to 1 MiB and header bombs from one agent: an explicit answer to the sender, and nothing to the others.

Source: design, bus section 10, row 25.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from infra.nats.config import AGENT_MAX_PAYLOAD, MAX_PAYLOAD
from remit.proposal import MAX_PROPOSAL_BYTES
from remit.runtime import service as runtime
from tests.security.raw_client import header_block
from tests.security.scene import Scene, running_scene
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.security.raw_client import RawClient

pytestmark = pytest.mark.timeout(60)

KIB = 1024
HEAD = len(header_block({}))
BOMBS = {
    "one long value": b"NATS/1.0\r\nX: " + b"x" * 60_000 + b"\r\n\r\n",
    "one long name": b"NATS/1.0\r\n" + b"X" * 60_000 + b": x\r\n\r\n",
    "ten thousand lines": b"NATS/1.0\r\n" + b"a:b\r\n" * 10_000 + b"\r\n",
    "the same name over and over": b"NATS/1.0\r\n" + b"Remit-Sig: x\r\n" * 4_000 + b"\r\n",
    "folded lines": b"NATS/1.0\r\nRemit-Sig: x\r\n" + b" folded\r\n" * 6_000 + b"\r\n",
    "only line ends": b"NATS/1.0\r\n" + b"\r\n" * 30_000,
    "a signature of 50 KiB": b"NATS/1.0\r\nRemit-Sig: " + b"A" * 50_000 + b"\r\n\r\n",
}


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """One broker with a registry for the module."""
    async with running_scene(tmp_path_factory.mktemp("oversize")) as made:
        await made.publish_registry()
        yield made


@pytest.fixture(scope="module")
async def intake(scene: Scene) -> AsyncIterator[list[str]]:
    """One running intake for the module; the list says why it would have ended."""
    ended = list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "die", lambda _, why: ended.append(why))
        async with scene.intake():
            yield ended


async def others_are_served(scene: Scene, ended: list[str]) -> None:
    """Assert that another agent is answered at once, and that nothing is left over for intake."""
    async with scene.attacker("agents/bookkeeper") as other:
        other.subscribe("results.bookkeeper.>")
        async with asyncio.timeout(5):
            await other.ask(f"status.bookkeeper.{0:032x}")
            assert (await other.ask("propose.bookkeeper", b"{}"))["stream"] == "INTAKE"
            await eventually(lambda: len(other.heard), 1)
    assert other.heard[0].answer["status"] == "rejected"

    async def left() -> int:
        return (await scene.marks())["INTAKE"].messages

    await eventually(left, 0)
    assert ended == []


@pytest.mark.parametrize("size", [AGENT_MAX_PAYLOAD + 1, 128 * KIB, MAX_PAYLOAD, MAX_PAYLOAD + 1, 1024 * KIB])
async def test_proposal_over_the_accounts_limit_is_told_so_and_its_sender_disconnected(
    scene: Scene, intake: list[str], size: int
) -> None:
    before = await scene.marks()
    async with scene.attacker("agents/a1") as evil:
        evil.publish("propose.a1", b"x" * size)
        await asyncio.wait_for(evil.closed.wait(), 10)
        assert evil.errors == ["'Maximum Payload Violation'"]
    assert await scene.marks() == before
    await others_are_served(scene, intake)


async def test_size_that_is_only_announced_is_refused_before_it_is_sent(scene: Scene, intake: list[str]) -> None:
    async with scene.attacker("agents/a1") as evil:
        evil.write(b"PUB propose.a1 %d\r\n" % (1024 * KIB))
        await asyncio.wait_for(evil.closed.wait(), 10)
        assert evil.errors == ["'Maximum Payload Violation'"]
    await others_are_served(scene, intake)


async def test_control_line_without_an_end_costs_the_sender_its_connection(scene: Scene, intake: list[str]) -> None:
    async with scene.attacker("agents/a1") as evil:
        evil.write(b"PUB propose." + b"a" * 100_000)
        await asyncio.wait_for(evil.closed.wait(), 10)
        assert evil.errors[:1] == ["'maximum control line exceeded'"]
    await others_are_served(scene, intake)


@pytest.mark.parametrize("size", [MAX_PROPOSAL_BYTES + 1, 48 * KIB, AGENT_MAX_PAYLOAD - KIB])
async def test_proposal_that_the_broker_takes_and_the_contract_does_not_is_rejected_by_reason(
    scene: Scene, intake: list[str], size: int
) -> None:
    async with scene.attacker("agents/a1") as evil:
        evil.subscribe("results.a1.>")
        assert (await evil.ask("propose.a1", b"x" * size, headers={"Remit-Sig": "x"}))["stream"] == "INTAKE"
        assert await rejection(evil) == "oversize"
    await others_are_served(scene, intake)


async def rejection(client: RawClient) -> str:
    """Wait for intake's answer and return its reason."""
    await eventually(lambda: len(client.heard), 1)
    answer = client.heard.pop().answer
    assert answer["status"] == "rejected"
    return answer["reason"]


async def test_message_over_the_streams_limit_is_refused_by_the_stream(scene: Scene, intake: list[str]) -> None:
    before = await scene.marks()
    async with scene.attacker("agents/a1") as evil:
        # Body and headers together are just within the account's limit; the stream counts its own record on top.
        answer = await evil.ask("propose.a1", b"x" * (AGENT_MAX_PAYLOAD - HEAD), headers=header_block({}))
    stored = (await scene.marks())["INTAKE"].last_seq - before["INTAKE"].last_seq
    assert ("error" in answer) is (stored == 0)
    await others_are_served(scene, intake)


@pytest.mark.parametrize("block", BOMBS.values(), ids=BOMBS.keys())
async def test_header_bomb_is_answered_and_hurts_nobody_else(scene: Scene, intake: list[str], block: bytes) -> None:
    async with scene.attacker("agents/a1") as evil:
        evil.subscribe("results.a1.>")
        for _ in range(20):
            evil.publish("propose.a1", b"{}", headers=block)
            evil.publish(f"status.a1.{0:032x}", b"", headers=block, reply="_IBX.a1.x1")
        evil.subscribe("_IBX.a1.x1")
        await evil.flush()
        assert evil.errors == []
        await eventually(lambda: sum(m.subject.startswith("results.") for m in evil.heard), 20)
    await others_are_served(scene, intake)


async def test_header_bomb_over_the_limit_is_told_so(scene: Scene, intake: list[str]) -> None:
    async with scene.attacker("agents/a1") as evil:
        evil.publish("propose.a1", b"{}", headers=b"NATS/1.0\r\nX: " + b"x" * AGENT_MAX_PAYLOAD + b"\r\n\r\n")
        await asyncio.wait_for(evil.closed.wait(), 10)
        assert evil.errors == ["'Maximum Payload Violation'"]
    await others_are_served(scene, intake)
