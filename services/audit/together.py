"""Runs endless work side by side, and ends all of it when one part fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from remit.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Coroutine

AGAIN_S = 1.0
"""A part that has not ended by then did not hear of its cancellation."""


async def together(*work: Coroutine[Any, Any, None]) -> None:
    """Run until one part fails, end the others, and raise what it raised; a lost connection gives way to anything worse.

    A task group cancels its tasks once. Python 3.11's `asyncio.wait_for` drops a cancellation that comes together with the
    result (python/cpython#86296), and nats-py waits by it everywhere: that task would run on, and the group wait for ever.
    """
    tasks = [asyncio.create_task(part) for part in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        await _end(tasks)
    failures = [task.exception() for task in tasks if not task.cancelled()]
    found = [failure for failure in failures if failure is not None]
    if found:
        raise next((failure for failure in found if not isinstance(failure, TransientError)), found[0])


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    cancelled = False
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending, timeout=AGAIN_S)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
