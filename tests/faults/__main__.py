"""Break things on purpose and prove that nothing is lost, nothing happens twice, nobody gets in.

The last line is `RESULT faults {json}`. Exit code 0: every invariant held. 1: one did not; each is named with row and seed, and
the same row and seed run again with `--rows` and `--seed`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from remit.clock import monotonic
from tests.faults.matrix import all_rows, choose, unmet
from tests.faults.row import Tally, Trial

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tests.faults.row import Row

Result = TypeVar("Result")
STOPPED = 130
"""Exit code shells report after Ctrl-C."""


def say(text: str) -> None:
    """Print one line of progress at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def run_row(row: Row, seed: int, tally: Tally, *, keep: bool) -> None:
    """Run one row under one seed; whatever it raises counts as a violation."""
    needed = unmet(row)
    if needed:
        tally.violations.append(f"row {row.number}: cannot run here; {'; '.join(needed)}")
        say(f"row {row.number}: cannot run here; {'; '.join(needed)}")
        return
    directory = Path(tempfile.mkdtemp(prefix=f"rf{row.number}-"))
    trial = Trial(row=row, seed=seed, directory=directory, tally=tally, tell=say, keep=keep)
    before, began = len(tally.violations), monotonic()
    say(f"row {row.number}: {row.title} (seed {seed})")
    try:
        await row.run(trial)
    except Exception as error:  # noqa: BLE001  (the row failed, the others still tell something)
        traceback.print_exc()
        tally.violations.append(f"{trial.where}: {type(error).__name__}: {error}")
    held = len(tally.violations) == before
    say(f"row {row.number}: {'held' if held else 'VIOLATED'} after {monotonic() - began:.1f} s")
    if held and not keep:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        say(f"row {row.number}: what is left lies in {directory}")


async def run(chosen: list[Row], options: argparse.Namespace) -> Tally:
    """Run rows one after the other, each under as many seeds as asked."""
    tally = Tally()
    for row in chosen:
        for seed in range(options.seed, options.seed + options.runs):
            await run_row(row, seed, tally, keep=options.keep)
    return tally


async def run_apart(chosen: list[Row], options: argparse.Namespace) -> Tally:
    """Run rows in processes of their own, several at a time; each prints as it goes, and its result is added up."""
    tally, places = Tally(), asyncio.Semaphore(options.jobs)

    async def one(number: int) -> None:
        command = (
            "-m",
            "tests.faults",
            "--rows",
            str(number),
            "--seed",
            str(options.seed),
            "--runs",
            str(options.runs),
        )
        async with places:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            try:
                await _follow(process, number, tally)
            finally:
                if process.returncode is None:
                    process.terminate()
                    await process.wait()

    async with asyncio.TaskGroup() as group:
        for number in dict.fromkeys(row.number for row in chosen):
            group.create_task(one(number))
    return tally


async def _follow(process: asyncio.subprocess.Process, number: int, tally: Tally) -> None:
    assert process.stdout is not None
    figures: dict[str, int] | None = None
    async for raw in process.stdout:
        line = raw.decode(errors="replace").rstrip()
        if line.startswith("RESULT faults "):
            figures = json.loads(line.removeprefix("RESULT faults "))
        elif line.startswith("VIOLATION "):
            tally.violations.append(line.removeprefix("VIOLATION "))
        else:
            say(line if line.startswith("row ") else f"row {number}: | {line}")
    await process.wait()
    if figures is None:
        tally.violations.append(f"row {number}: ended with {process.returncode} and without a result")
    else:
        tally.add_figures(figures)


def until_stopped(work: Coroutine[Any, Any, Result]) -> Result | None:
    """Run to the end; on SIGINT or SIGTERM everything that was started is stopped in good order, and None comes back."""

    async def watched() -> Result:
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await work

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        say("stopped; nothing is claimed")
        return None


def parsed() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser and what it found."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--rows", default="release", help="release (default), quick, all, or numbers such as 1,5,8-10")
    parser.add_argument(
        "--seed", type=int, default=1, help="first seed (default 1); the same seed makes the same choices"
    )
    parser.add_argument("--runs", type=int, default=1, help="seeds per row, counted up from the first")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time, each in a process of its own (default 1)")
    parser.add_argument("--keep", action="store_true", help="keep the directory of every run")
    parser.add_argument("--list", action="store_true", help="list the rows and end")
    return parser, parser.parse_args()


def listed(rows: dict[int, list[Row]]) -> None:
    """Print every row with its marks."""
    for row in (row for group in rows.values() for row in group):
        marks = " ".join(word for word, given in (("release", row.release), ("quick", row.quick)) if given)
        say(f"{row.number:>3}  {row.title}{f'  [{marks}]' if marks else ''}")


def main() -> int:
    """Parse, run, print the result."""
    parser, options = parsed()
    for library in ("nats", "asyncpg"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # a server that is killed on purpose is no news
    rows = all_rows()
    if options.list:
        listed(rows)
        return 0
    try:
        chosen = choose(options.rows, rows)
    except ValueError as error:
        parser.error(str(error))
    began = monotonic()
    tally = until_stopped(run(chosen, options) if options.jobs == 1 else run_apart(chosen, options))
    if tally is None:
        return STOPPED
    figures = {"rows": len({row.number for row in chosen}), **tally.figures(), "seconds": round(monotonic() - began)}
    return concluded("faults", figures, tally)


def concluded(name: str, figures: dict[str, int], tally: Tally) -> int:
    """Print violations and the result line; return the exit code."""
    for violation in tally.violations:
        say(f"VIOLATION {violation}")
    say(f"RESULT {name} {json.dumps(figures)}")
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
