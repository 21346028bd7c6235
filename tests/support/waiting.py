"""Wait for something to become true, instead of sleeping and hoping."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


async def eventually(ask: Callable[[], Any], expected: object = True, *, within_s: float = 15.0) -> None:  # noqa: FBT002  (the plain claim)
    """Ask until the answer equals `expected`; fail with the last answer otherwise."""
    answer: object = None
    deadline = asyncio.get_running_loop().time() + within_s
    while asyncio.get_running_loop().time() < deadline:
        answer = ask()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer == expected:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"still {answer!r}, expected {expected!r}")
