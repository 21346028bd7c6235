"""`make demo`: the whole pipeline at work on recorded tasks, with an attacker in every one of them."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.demo.approver import Approver
from infra.demo.play import Play, TaskRun
from infra.demo.report import Summary, duplicates, settled, summarize
from infra.demo.stage import Stage
from infra.demo.tasks import remit_for, tasks
from remit.clock import monotonic
from remit.errors import RemitError
from remit.ids import fresh_key

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make demo",
        description="Start embedded NATS and Postgres, six services, a bank (MCP), an OpenID provider and the dashboard; let an "
        "agent work through 16 recorded tasks while attackers' texts tell it to do other things.",
        epilog="NATS_URL and DATABASE_URL use given servers. Everything is kept in one directory and removed at the end.",
    )
    parser.add_argument("--once", action="store_true", help="end after the tasks; the last line is RESULT demo {json}")
    parser.add_argument(
        "--scale", default="", type=scale_of, metavar='"policy=3 executor=2"', help="replicas of each service"
    )
    parser.add_argument("--directory", type=Path, help="keep keys, data and logs here instead of a temporary directory")
    parser.add_argument("--no-dashboard", action="store_true", help="do not start the dashboard")
    parser.add_argument("--quiet", action="store_true", help="one line a task instead of one a proposal")
    return parser.parse_args()


def scale_of(text: str) -> dict[str, int]:
    """Parse `policy=3 executor=2`.

    Raises:
        SystemExit: it is not of that form; the message says what was found.

    """
    found: dict[str, int] = {}
    for part in text.split():
        name, _, count = part.partition("=")
        if not count.isdigit() or not 1 <= int(count) <= 16:
            raise SystemExit(
                f'SCALE has "{part}"; expected service=replicas with 1 to 16, such as "policy=3 executor=2"'
            )
        found[name] = int(count)
    return found


def say(line: str) -> None:
    """Print one line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def play(stage: Stage, *, quiet: bool) -> Summary:
    """Apply the registry, let the agent work through the tasks, and read what it came to."""
    began = monotonic()
    people = await stage.people()
    say(f"registry and policies in force: version {await stage.apply_registry(people)}")
    approver = Approver(people, await stage.database(stage.environment.database_url("dashboard")))
    queue = asyncio.create_task(approver.run())
    bank = await stage.bank_control()
    show: Callable[[str], object] = (lambda _: None) if quiet else say
    game = Play(await stage.agent(), people, approver, bank, f"demo-{fresh_key()[:6]}", show)
    runs: list[TaskRun] = []
    for number, task in enumerate(tasks(), 1):
        if not quiet:
            say(f"task {number}/{len(tasks())}  {task.prompt.strip().splitlines()[0][:96]}")
        runs.append(await game.task(task))
        say(f"  {number:2}/{len(tasks())} {runs[-1].line()}")
    queue.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await queue
    admin = await stage.database(stage.environment.admin_url)
    await settled(admin)
    more: dict[str, Any] = {
        "restarts": sum(status.restarts for status in stage.supervisor.status()),
        "seconds": round(monotonic() - began, 1),
    }
    effects = await duplicates(bank, game.run_id)
    return await summarize(runs, admin=admin, effects=effects, audit_verified=await stage.verify_audit(), more=more)


async def extra_remit(stage: Stage) -> str:
    """Delegate the first task once more, for whoever wants to try an agent of their own."""
    return await (await stage.people()).grant(remit_for(tasks()[0]))


def table(summary: Summary) -> str:
    """Return the closing table for people."""
    rows = [
        ("user tasks completed", summary.user_tasks_completed),
        ("injected calls", f"{summary.injected_calls}, of which {summary.injected_executed} ran"),
        ("  without a person's approval", f"{summary.injected_executed_without_approval}"),
        ("  the very same read as the user's own", f"{summary.injected_same_as_own}"),
        ("decided by rule / asked / blocked", f"{summary.allowed} / {summary.asked} / {summary.denied}"),
        ("calls executed, tokens, receipts", f"{summary.executed}, {summary.tokens_consumed}, {summary.receipts}"),
        ("effects done twice, actions lost", f"{summary.duplicates}, {summary.lost}"),
        ("audit chain", "verified" if summary.audit_verified else "NOT VERIFIED"),
        ("by-rule action, proposal to outcome", f"{summary.p50_ms} ms (median)"),
        ("restarts of services", f"{summary.restarts}"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


async def demo(options: argparse.Namespace, directory: Path, stop: asyncio.Event) -> int:
    """Run the demonstration in a directory; return the exit code."""
    async with Stage(directory, scale=options.scale, dashboard=not options.no_dashboard, say=say) as stage:
        if not options.no_dashboard:
            say(
                f"dashboard: {stage.dashboard_url}  (sign in as dana or sam to approve, emma to delegate, otto to operate)"
            )
        summary = await play(stage, quiet=options.quiet)
        say(f"\n{table(summary)}\n")
        if not options.once:
            say(f"dashboard: {stage.dashboard_url}   logs: {directory / 'logs'}")
            say(f"in another shell: source {stage.write_variables(await extra_remit(stage))}")
            say("  then: .venv/bin/python infra/demo/example_agent.py   or: .venv/bin/remit --help")
            say("everything stays up; Ctrl-C stops it")
            await stop.wait()
            say("stopping ...")
    if options.once:
        say(summary.line())
    return 0 if summary.good else 1


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, int]) -> int:
    """Run the work; a signal cancels it and lets it clean up."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        # The work may be waiting for this very signal; whatever else it does is cut short.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), 1.0)
        task.cancel()
    stopped.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        say("stopped")
        return 130


def main() -> int:
    """Run the demonstration; 0 when everything it promises held."""
    options = _arguments()
    stop = asyncio.Event()
    directory = options.directory or Path(tempfile.mkdtemp(prefix="remit-demo-"))
    try:
        return asyncio.run(_until(stop, demo(options, directory.absolute(), stop)))
    except RemitError as error:
        say(f"the demonstration cannot go on: {error}")
        return 1
    finally:
        if options.directory is None:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
