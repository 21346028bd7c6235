"""The executor between real servers: one effect, every refusal said, every crash survived without a second effect."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from remit.ids import action_id
from remit.reasons import Outcome, Reason

from tests.support import execution as x
from tests.support import factories as f
from tests.support.execution_stage import Stage, staged
from tests.support.postgres import fresh_database, postgres
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
async def server_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture
async def pool(server_url: str) -> AsyncIterator[asyncpg.Pool[asyncpg.Record]]:
    async with fresh_database(server_url) as url, asyncpg.create_pool(url, min_size=1, max_size=4) as found:
        await x.admit_claims(found)
        yield found


@pytest.fixture
async def stage(nats_url: str, keys: Path, pool: asyncpg.Pool[asyncpg.Record]) -> AsyncIterator[Stage]:
    host, port = pool.get_idle_size, pool  # the pool knows its own address
    assert host
    url = await database_url(port)
    async with staged(nats_url, url, keys) as found:
        yield found
