"""The broker goes away under a running projector: it comes back by itself, loses nothing and counts nothing twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from infra.local.nats_server import NatsServer, server_config
from infra.provision import provision
from tests.support import factories as f
from tests.support.audit_stage import audit_stage
from tests.support.postgres import fresh_database, postgres
from tests.support.servers import connected
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)


async def test_a_killed_broker_costs_nothing(keys: Path, tmp_path: Path) -> None:
    async with (
        postgres(tmp_path / "pg") as server,
        fresh_database(server) as url,
        NatsServer(server_config(keys, tmp_path / "nats"), tmp_path / "nats") as broker,
    ):
        async with connected(broker.url, keys, "provisioner") as client:
            await provision(client)
        async with audit_stage(broker.url, url, keys, tmp_path) as stage, stage.running():
            await stage.action("before", *f.APPROVED_PATH)
            await eventually(stage.projected, 4)
            await broker.kill()
            await broker.start()
            await stage.action("after", *f.APPROVED_PATH)
            await eventually(stage.projected, 8, within_s=40)
            assert await stage.value("SELECT count(*) FROM audit.audit_event WHERE verify_status = 'valid'") == 8
