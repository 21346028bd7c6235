"""One agent against intake on a real broker: floods and malformed bytes cost the others nothing, and the process lives on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from nats.errors import TimeoutError as NatsTimeoutError

from infra.local import key_ring
from infra.local.nats_server import NatsServer, server_config
from infra.provision import provision
from remit.canonical import b64url, canonical
from remit.nkey import signing_key
from remit.proposal import SIGNATURE_HEADER, Notice, signed_bytes
from remit.reasons import Reason
from remit.runtime import service as runtime
from tests.integration.agent_world import World
from tests.support import factories
from tests.support.servers import connected
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from remit.runtime.service import Service

ABSENT = "0" * 32
MALFORMED = {
    "subject is no UTF-8": b"PUB status.bookkeeper.\xff 0\r\n\r\n",
    "vertical tab in the subject": b"PUB status.bookkeeper.a\x0b7 0\r\n\r\n",
    "header without an end": b"HPUB status.bookkeeper.x 8 8\r\nNATS/1.0\r\n",
    "status that is no UTF-8": b"HPUB status.bookkeeper.x 16 16\r\nNATS/1.0 \xff\xff\xff\r\n\r\n\r\n",
    "header that is no UTF-8": b"HPUB propose.bookkeeper 20 20\r\nNATS/1.0\r\nX: \xff\xff\r\n\r\n\r\n",
}


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(runtime, "die", lambda _, why: found.append(why))
    return found


@pytest.fixture
async def world(tmp_path: Path, keys: Path) -> AsyncIterator[World]:
    async with NatsServer(server_config(keys, tmp_path / "data"), tmp_path / "nats") as server:
        async with connected(server.url, keys, "provisioner") as client:
            await provision(client)
        made = World(server, keys)
        await made.publish_registry()
        yield made


async def _answered(client: Client) -> bool:
    try:
        reply = await client.request(f"status.a1.{ABSENT}", b"", timeout=2)
    except NatsTimeoutError:
        return False
    return Notice.model_validate_json(reply.data).status == "rejected"


def dropped(service: Service) -> float:
    """Return how many questions cost their agent its quota."""
    labels = {"subject": "status.*.*", "why": "quota"}
    return service.telemetry.registry.get_sample_value("remit_requests_dropped_total", labels) or 0


async def test_flood_of_questions_costs_the_others_nothing(world: World, keys: Path, ended: list[str]) -> None:
    url, heard = world.server.url, list[bytes]()

    async def hear(message: Msg) -> None:
        heard.append(message.data)

    async with world.intake() as service:
        async with connected(url, keys, "agents/bookkeeper") as evil, connected(url, keys, "agents/a1") as good:
            await evil.subscribe("_IBX.bookkeeper.flood.*", cb=hear)
            for number in range(20_000):
                await evil.publish(f"status.bookkeeper.{ABSENT}", b"", reply=f"_IBX.bookkeeper.flood.{number}")
            await evil.flush(timeout=30)
            await eventually(lambda: _answered(good))
            await eventually(lambda: dropped(service) > 19_000)
        assert len(heard) <= 20_000 - dropped(service)
    assert ended == []


@pytest.mark.parametrize("wire", MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_bytes_deafen_nobody(world: World, keys: Path, ended: list[str], wire: bytes) -> None:
    url = world.server.url
    async with world.intake() as service:
        async with connected(url, keys, "agents/bookkeeper") as evil, connected(url, keys, "agents/a1") as good:
            await evil._send_command(wire)
            await evil.flush()
            await eventually(lambda: _answered(good), within_s=3)
        info = await service.bus.consumer_info("INTAKE", "intake")
    assert info is not None
    assert (info["num_pending"], info["num_ack_pending"]) == (0, 0)
    assert ended == []


async def test_proposal_full_of_quotes_is_taken_in(world: World, keys: Path) -> None:
    body = canonical({**factories.PROPOSAL, "arguments": {"recipient": "UK" + '"' * 11_900, "amount": 1}})
    key = signing_key(key_ring.load_nats_seed(keys, "agents/bookkeeper"))
    signature = b64url(key.sign(signed_bytes("bookkeeper", body)).signature)
    heard: list[Notice] = []

    async def hear(message: Msg) -> None:
        heard.append(Notice.model_validate_json(message.data))

    async with world.intake(), connected(world.server.url, keys, "agents/bookkeeper") as client:
        await client.subscribe("results.bookkeeper.>", cb=hear)
        await client.request("propose.bookkeeper", body, headers={SIGNATURE_HEADER: signature}, timeout=5)
        await eventually(lambda: len(heard), 1)
    assert heard[0].status == "proposed"
    assert heard[0].reason is not Reason.OVERSIZE
