"""The teller serves one call at a time: the same idempotency key gets the same answer and never a second effect."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from infra.demo.bank.effects import Effect, EffectLog, Kind
from infra.demo.bank.operations import OperationError, Reply, perform
from infra.demo.bank.world import WorldConfig, changes, fresh_world
from remit import clock
from remit.canonical import digest
from remit.errors import CanonicalError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue


class _Answer(NamedTuple):
    tool: str
    arguments_digest: str | None
    reply: Reply


class Teller:
    """The current world, the answers given so far, and the log of both.

    Answers outlive a reset, because a key is used once and for all; they do not outlive the process, as the world does not.
    """

    def __init__(self, log: EffectLog) -> None:
        """Open with a world whose slots carry their defaults."""
        self._log = log
        self._lock = asyncio.Lock()
        self._number = 0
        self._run = ""
        self._world = fresh_world({})
        self._answers: dict[str, _Answer] = {}

    async def reset(self, config: WorldConfig) -> int:
        """Start over with a fresh world and return its number.

        Raises:
            UnknownSlotError: the configuration names a slot that the environment does not have; the old world stays.

        """
        async with self._lock:
            self._world = fresh_world(config.slots)
            self._run = config.run
            self._number += 1
            return self._number

    async def serve(self, tool: str, arguments: Mapping[str, JsonValue], key: str | None) -> Reply:
        """Perform the call, or repeat the answer that its key already has; the log line is on disk before this returns."""
        try:
            arguments_digest = digest(dict(arguments))
        except CanonicalError:
            arguments_digest = None
        # One call at a time: two deliveries of one key must not both find the memory empty.
        async with self._lock:
            before = self._world.model_dump()
            kind, reply = self._answer(_Answer(tool, arguments_digest, Reply(text="")), arguments, key)
            effect = Effect(
                seq=self._log.next_seq(),
                time=clock.now(),
                world=self._number,
                run=self._run,
                tool=tool,
                arguments_digest=arguments_digest,
                idempotency_key=key,
                kind=kind,
                changes=changes(before, self._world.model_dump()),
            )
            await asyncio.to_thread(self._log.append, effect)
            return reply

    def _answer(self, asked: _Answer, arguments: Mapping[str, JsonValue], key: str | None) -> tuple[Kind, Reply]:
        known = self._answers.get(key) if key else None
        if known is not None:
            if known[:2] == asked[:2]:
                return "replay", known.reply
            return "conflict", Reply(text="the idempotency key belongs to another call", is_error=True)
        if asked.arguments_digest is None:
            return "error", Reply(text="the arguments have no canonical form", is_error=True)
        try:
            reply = perform(self._world, asked.tool, arguments)
        except OperationError as error:
            return "error", Reply(text=str(error), is_error=True)
        if key:
            self._answers[key] = asked._replace(reply=reply)
        return "effect", reply
