"""The wheel is the package `remit` and nothing else, and an agent's own project can live beside it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("faststream", "sqlalchemy", "streamlit", "httpx", "typer", "cedarpy", "jwt")
PROGRAM = """
import importlib.util
import json
import sys

import shared
from remit import Agent, Identity, Pending, Refusal, Result

heavy = sys.argv[1:]
print(json.dumps({
    "shared": shared.WHOSE,
    "agent": Agent.__module__,
    "imported": [name for name in heavy if name in sys.modules],
    "installed": [name for name in heavy if importlib.util.find_spec(name)],
}))
"""


@dataclass(frozen=True)
class Installed:
    """The wheel, and an interpreter that has it and what it needs."""

    wheel: Path
    python: Path


async def run(*arguments: str | Path, cwd: Path = ROOT, expected: int = 0) -> str:
    """Run a program to its end and return what it said."""
    env = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    process = await asyncio.create_subprocess_exec(
        *map(str, arguments), cwd=cwd, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said = (await process.communicate())[0].decode()
    assert process.returncode == expected, said
    return said


def uv() -> str | None:
    """Return the uv that `make setup` put into the checkout, or one on the path; None when there is neither."""
    return shutil.which("uv", path=ROOT / ".uv-bootstrap" / "bin") or shutil.which("uv")


@pytest.fixture(scope="module")
async def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build the wheel and install it, without any extra, into a virtual environment of its own."""
    directory = tmp_path_factory.mktemp("wheel")
    venv, out, tool = directory / "venv", directory / "dist", uv()
    python = venv / "bin" / "python"
    if tool:
        await run(tool, "build", "--wheel", "--out-dir", out, "--python", sys.executable, ROOT)
        await run(tool, "venv", "--python", sys.executable, venv)
        (wheel,) = out.glob("*.whl")
        await run(tool, "pip", "install", "--python", python, wheel)
    else:
        await run(sys.executable, "-m", "venv", venv)
        await run(python, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", out, ROOT)
        (wheel,) = out.glob("*.whl")
        await run(python, "-m", "pip", "install", wheel)
    return Installed(wheel, python)


async def test_wheel_holds_the_package_remit_and_nothing_else(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        names = archive.namelist()
    top = {name.partition("/")[0] for name in names}
    assert top == {"remit", f"remit-{installed.wheel.name.split('-')[1]}.dist-info"}
    assert {"remit/py.typed", "remit/client/agent.py"} <= set(names)


async def test_agent_project_keeps_its_own_shared_package_and_imports_nothing_heavy(
    installed: Installed, tmp_path: Path
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "__init__.py").write_text('WHOSE = "the project\'s own"\n')
    (tmp_path / "main.py").write_text(PROGRAM)
    said = await run(installed.python, "main.py", *HEAVY, cwd=tmp_path)
    assert json.loads(said) == {
        "shared": "the project's own",
        "agent": "remit.client.agent",
        "imported": [],
        "installed": [],
    }


async def test_command_line_without_its_extra_says_what_to_install(installed: Installed, tmp_path: Path) -> None:
    said = await run(installed.python.parent / "remit", "--help", cwd=tmp_path, expected=1)
    assert "remit[cli]" in said
    assert "Traceback" not in said
