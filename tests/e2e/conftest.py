"""One running stage for the whole folder; a test that kills or scales things brings its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.live_stage import live_stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.live_stage import Live


@pytest.fixture(scope="session")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    """The stage that every test of this folder may use but none may break."""
    async with live_stage(tmp_path_factory.mktemp("live")) as running:
        yield running
