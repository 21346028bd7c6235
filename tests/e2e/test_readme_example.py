"""The README's agent runs exactly as printed."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from remit import Reason

if TYPE_CHECKING:
    from tests.support.live_stage import Live

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def example() -> str:
    """Return the one Python block of the README."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return block


async def run_example(live: Live, directory: Path, remit: str) -> str:
    """Write the block to a file, run it with the variables that the demo writes, and return what it printed."""
    script = directory / "agent.py"
    script.write_text(example())
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", '. "$1" && exec "$2" "$3"', "sh"),
        *(live.stage.write_variables(remit), sys.executable, script),
        cwd=directory,
        env={"PATH": os.environ["PATH"]},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


def test_block_is_the_file_that_the_text_names() -> None:
    assert example() == (ROOT / "infra" / "demo" / "example_agent.py").read_text()
    assert len([line for line in example().splitlines() if line]) <= 20


async def test_readme_example_prints_the_result(live: Live, tmp_path: Path) -> None:
    said = await run_example(live, tmp_path, await live.grant("bank.read_file"))
    assert said.startswith("succeeded {'result': ")
    assert "Car Rental" in said


async def test_readme_example_prints_a_refusal(live: Live, tmp_path: Path) -> None:
    said = await run_example(live, tmp_path, await live.grant("bank.get_iban"))
    assert said.startswith(f"refused: {Reason.NO_GRANT} no grant of the remit is for bank.read_file")
