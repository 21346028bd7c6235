"""The active projector: one replica holds the lock and follows the four streams; the others wait, healthy.

Every failure of Postgres or the broker ends a tenure, and the next one begins at the cursor. A hole in a stream ends the
process: it is named, never skipped. Source: design, bus sections 7 (projector row) and 8.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import structlog

from remit.clock import monotonic
from remit.errors import PermanentError, TransientError
from remit.ledger_chain import evidence_from
from remit.runtime.crash import crash_point
from services.audit.chain import GapError
from services.audit.database import Fence, Pool, try_fence
from services.audit.source import Source, fresh, taken
from services.audit.together import together

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from remit.runtime.bus import Bus, Stored
    from remit.runtime.delivery import Inbound
    from services.audit.handlers import AuditHandlers
    from services.audit.project import Admitted
    from services.audit.store import Store

log = structlog.get_logger("audit.projector")

DURABLE = "audit"
STANDBY_POLL_S = 1.0
PASS_S = 1.0
"""Longest wait of one pass: heartbeats and signs of life are at most so late."""
QUIET_PASS_S = 5.0
HEAL_ATTEMPTS = 3
HEAL_PAUSE_S = 0.2

Stamp = Callable[[], None]
Ready: TypeAlias = "tuple[list[Msg], list[Admitted]]"
"""Messages to acknowledge once their admitted ones are committed."""
Project: TypeAlias = "Callable[[list[Admitted]], Awaitable[None]]"
Task = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenure:
    """What one holder of the lock works with; `tasks` run beside the streams."""

    handlers: AuditHandlers
    store: Store
    on_finished: Callable[[list[Any]], None]
    on_held: Callable[[], None]
    """Told when claims are held, for the alarm."""
    tasks: tuple[Task, ...] = ()


class Projector:
    """Runs for ever; `begin` builds a tenure for a fence, `stamp` says that the process is alive and not stuck."""

    def __init__(  # noqa: PLR0913  (composed once, in app.py)
        self,
        *,
        pool: Pool,
        bus: Bus,
        source: Callable[[str], Source],
        begin: Callable[[Fence], Tenure],
        stamp: Stamp,
        linger_s: float,
        heartbeat_s: float,
    ) -> None:
        """Bind the parts; nothing is read yet."""
        self._pool, self._bus, self._source, self._begin, self._stamp = pool, bus, source, begin, stamp
        self._linger_s, self._heartbeat_s = linger_s, heartbeat_s
        self._beat_at = 0.0

    async def run(self) -> None:
        """Be the active projector whenever the lock is free.

        Raises:
            GapError: a stream has a hole, or is not the one that was projected.
            TamperError: rows of the ledger are not what was chained.

        """
        said = False
        while True:
            self._stamp()
            try:
                async with try_fence(self._pool) as fence:
                    if fence is not None:
                        log.info("active projector")
                        await self._serve(fence)
                    elif not said:
                        log.info("standing by: another replica holds the projector lock")
                        said = True
            except TransientError as error:
                log.warning("projection interrupted, it goes on from the cursor", detail=str(error))
                said = False
            await asyncio.sleep(STANDBY_POLL_S)

    async def _serve(self, fence: Fence) -> None:
        tenure = self._begin(fence)
        handlers = tenure.handlers

        async def actions(admitted: list[Admitted]) -> None:
            tenure.on_finished(await handlers.on_actions(admitted))
            self._beat_at = monotonic()

        # Of both before either is projected: a remit that was revoked after the backup must not be claimed under meanwhile.
        for stream in ("ACTIONS", "REMITS"):
            await handlers.resume(stream)
            await self._check_age(stream, tenure)
        try:
            await together(
                self._follow("ACTIONS", tenure, actions),
                self._follow("REMITS", tenure, handlers.on_remits),
                self._collect("DLQ", handlers.on_dead_letters),
                self._collect("ADVISORIES", handlers.on_advisories),
                *(task() for task in tenure.tasks),
            )
        except PermanentError as error:
            log.error("the projector halts", detail=str(error))  # noqa: TRY400  (no stack needed)
            raise

    async def _follow(self, stream: str, tenure: Tenure, project: Project) -> None:
        """Project one chained stream, contiguously from the cursor on; the next batch is verified while one is committed."""
        source = self._source(stream)
        following = await tenure.handlers.resume(stream)
        await self._check_anchor(stream, tenure)
        await source.restart_at(following)
        ready: asyncio.Queue[Ready] = asyncio.Queue(1)
        try:
            await together(
                self._read(source, tenure, following - 1, ready), self._write(source, tenure, project, ready)
            )
        finally:
            await source.close()

    async def _read(self, source: Source, tenure: Tenure, last_seq: int, ready: asyncio.Queue[Ready]) -> None:
        healed = 0
        while True:
            messages = await source.batch(wait_s=PASS_S, linger_s=self._linger_s)
            self._stamp()
            found, missing = fresh(messages, last_seq)
            if missing is not None:
                healed += 1
                await self._heal(source, last_seq + 1, missing, attempt=healed)
                continue
            admitted: list[Admitted] = []
            if found:
                healed, last_seq = 0, found[-1].seq or 0
                admitted = await asyncio.to_thread(tenure.handlers.admit, source.stream, found)
            await ready.put((messages, admitted))

    async def _write(self, source: Source, tenure: Tenure, project: Project, ready: asyncio.Queue[Ready]) -> None:
        while True:
            messages, admitted = await ready.get()
            if admitted:
                crash_point("audit", "a")
                await project(admitted)
                crash_point("audit", "d")
            await source.acknowledge(messages)
            if admitted:
                crash_point("audit", "e")
            if source.stream == "ACTIONS":
                await self._beat(tenure)

    async def _beat(self, tenure: Tenure) -> None:
        if monotonic() - self._beat_at >= self._heartbeat_s:
            await tenure.store.beat()
            self._beat_at = monotonic()

    async def _heal(self, source: Source, following: int, missing: int, *, attempt: int) -> None:
        """Let the durable deliver again from `following`, the first of this batch: lost deliveries come back, holes do not.

        Raises:
            GapError: it still is not delivered.

        """
        stream = source.stream
        if attempt <= HEAL_ATTEMPTS:
            log.warning("sequence not delivered, asking again", stream=stream, missing=missing, attempt=attempt)
            await asyncio.sleep(HEAL_PAUSE_S)
            await source.restart_at(following)
            return
        held = await self._bus.leader_read(stream, {"seq": missing})
        where = "the leader holds it, the consumer's replica does not" if held else "no replica that answers holds it"
        raise GapError(
            f"{stream} sequence {missing} is missing: {where}. Nothing was skipped; repair the damaged replica "
            "or restore the stream from a backup, then start audit again"
        )

    async def _check_anchor(self, stream: str, tenure: Tenure) -> None:
        """Compare the last projected message with the stream's: a recreated stream counts from 1 again.

        Raises:
            GapError: the stream is not the one that was projected.

        """
        last_seq = tenure.handlers.positions[stream].last_seq
        if last_seq == 0:
            return
        found = await self._bus.leader_read(stream, {"seq": last_seq})
        record = await tenure.store.record_at(stream, last_seq)
        if found is None or not _is_same(found, record):
            raise GapError(
                f"{stream} sequence {last_seq} is not what the ledger holds: the stream was cut, replaced or recreated. "
                "Restore it from a backup, or rebuild the ledger; nothing was projected"
            )

    async def _check_age(self, stream: str, tenure: Tenure) -> None:
        """Hold every claim when the durable was acknowledged beyond the cursor: Postgres is older than it was.

        An acknowledgement follows its commit, so what lies between is gone, and with it rows that keep a call from being made
        again. It is projected again; claims come back by `infra.postgres.reclaim`. Asked before the durable is set back.
        """
        cursor = tenure.handlers.positions[stream].last_seq
        info = await self._bus.consumer_info(stream, DURABLE)
        acknowledged: int = 0 if info is None else info["ack_floor"]["stream_seq"]
        if acknowledged > cursor:
            await tenure.store.hold(acknowledged)
        if await tenure.store.is_held():
            log.error(
                "claims are held; run `python -m infra.postgres.reclaim`, then release them",
                stream=stream, cursor=cursor, acknowledged=acknowledged,
            )  # fmt: skip
            tenure.on_held()

    async def _collect(self, stream: str, handle: Callable[[list[Inbound]], Awaitable[None]]) -> None:
        """Keep a stream of evidence; it has no cursor, because its retention is limited and its rows have the sequence as key."""
        source = self._source(stream)
        await source.open()
        try:
            while True:
                messages = await source.batch(wait_s=QUIET_PASS_S, linger_s=self._linger_s)
                if messages:
                    await handle(taken(messages))
                    await source.acknowledge(messages)
        finally:
            await source.close()


def _is_same(found: Stored, record: bytes | None) -> bool:
    if found.time is None:
        return False
    return evidence_from((found.seq, found.time), found.subject, found.body, found.headers).record == record
