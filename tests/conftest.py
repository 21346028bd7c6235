"""Fixtures that more than one folder needs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import lanes, servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def pytest_report_header() -> str:
    """Say which servers the tests will get."""
    return lanes.announcement()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which servers they got."""
    if line := lanes.summary():
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key directory of the test environment."""
    given = os.environ.get("REMIT_KEYS_DIR")
    return Path(given) if given else servers.make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
async def nats_url(tmp_path: Path, keys: Path) -> AsyncIterator[str]:
    """A provisioned broker of the test's own."""
    async with servers.provisioned_nats(tmp_path / "nats", keys) as url:
        yield url
