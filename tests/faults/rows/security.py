"""Rows that attack instead of break: each is a pytest file of `tests/security`, run as it stands; a run is one of its tests."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from typing import TYPE_CHECKING

from tests.faults.row import Row

if TYPE_CHECKING:
    from tests.faults.row import Trial

SECURITY = "tests/security"
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
PASSED = re.compile(r"(\d+) passed")
LONG = {"REMIT_RACE_RUNS": "1000"}
"""The release form of the races: a thousand revocations against a thousand starts."""


async def attack(trial: Trial, *arguments: str) -> None:
    """Run tests; each that fails is a violation, and so is a run without any."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=900", *arguments),
        env={**os.environ, **LONG},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await process.communicate())[0].decode(errors="replace")
    (trial.directory / "pytest.log").write_text(output)
    failed, passed = FAILED.findall(output), PASSED.search(output)
    for name in failed:
        trial.check("I8", ok=False, detail=f"{name} failed")
    ran = int(passed[1]) if passed else 0
    trial.tally.runs += ran
    trial.check("I8", ok=bool(failed) or (ran > 0 and not process.returncode), detail=f"no test ran: {output[-400:]}")
    trial.say(f"{ran} attacks failed to get in")


def _row(number: int, title: str, *arguments: str, release: bool = True) -> Row:
    async def run(trial: Trial) -> None:
        await attack(trial, *arguments)

    return Row(number=number, title=title, run=run, release=release)


def _file(name: str) -> str:
    return f"{SECURITY}/{name}"


ROWS = (
    _row(25, "oversize and header bombs", _file("test_oversize_proposal.py"), release=False),
    _row(
        26, "forged, expired, replayed, foreign tokens", _file("test_token_mutation.py"), _file("test_token_kinds.py")
    ),
    _row(27, "50 executors race for one token", _file("test_races.py"), "-k", "executors"),
    _row(28, "approve, deny, expire, revoke in one instant", _file("test_races.py"), "-k", "one_instant"),
    _row(29, "revoke against start", _file("test_races.py"), "-k", "revoke and not instant"),
    _row(31, "every vector of an agent", *map(_file, ("test_forgery_vectors.py", "test_principal_by_subject.py"))),
    _row(32, "a compromised service", _file("test_compromised_service.py"), "-k", "not poisoned"),
    _row(33, "poisoned message ids", _file("test_compromised_service.py"), _file("test_forgery_by_service.py")),
    _row(37, "a database superuser changes history", _file("test_tampering.py")),
)
