"""The model against Postgres: every transition it knows is what the database does, and the database does no other."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from itertools import permutations
from typing import TYPE_CHECKING, NamedTuple

import pytest

from remit.reasons import Reason
from services.executor.row_model import OPERATIONS, Fence, Operation, Row, perform, reachable
from tests.support import fence as real
from tests.support.postgres import postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

HALTS = ("", Reason.REMIT_REVOKED, Reason.STOPPED, Reason.BLOCKED)
WALKS, STEPS = int(os.environ.get("REMIT_RACE_RUNS", "40")), 12
HALT, LIFT = Operation("halt"), Operation("lift")
MOVES = (*OPERATIONS, HALT, LIFT)


@pytest.fixture(scope="module")
async def on(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[real.Fence]:
    async with postgres(tmp_path_factory.mktemp("postgres")) as url, real.fenced(url) as found:
        yield found


class Case(NamedTuple):
    """One transition: how its row is reached, what is done then, and behind which fence."""

    row: Row
    way: tuple[Operation, ...]
    operation: Operation
    fence: Fence
    action: real.Operated

    async def prepare(self) -> None:
        for operation in self.way:
            await self.action.perform(operation)

    async def differs(self) -> str | None:
        answer = await self.action.perform(self.operation, is_stale=self.fence.is_stale)
        found, said = (await self.action.row(), answer), perform(self.row, self.operation, self.fence)
        return (
            None if found == said else f"{self.row} {self.operation} {self.fence}: found {found}, the model says {said}"
        )


async def cases_behind(on: real.Fence, halt: str, operations: Iterable[Operation]) -> list[Case]:
    """Return every reachable row with every operation, behind a fence that is open until all rows are reached."""
    operations, ways = tuple(operations), reachable()
    remit_id = f"rem_{halt or 'open'}_{operations[0].name}"
    await on.admit(remit_id)
    cases = [
        Case(row, way, operation, Fence(halt, is_stale), real.Operated(on, real.order_under(remit_id, key)))
        for row, way in ways.items()
        for operation in operations
        for is_stale in (False, True)
        if (key := f"{halt}/{row}/{operation}/{is_stale}")
    ]
    await asyncio.gather(*(case.prepare() for case in cases))
    await on.halt(remit_id, halt)
    return cases


@pytest.mark.parametrize("halt", HALTS, ids=lambda halt: halt or "open")
async def test_every_transition_of_the_model_is_what_postgres_does(on: real.Fence, halt: str) -> None:
    cases = await cases_behind(on, halt, [each for each in OPERATIONS if each.name != "lease"])
    found = await asyncio.gather(*(case.differs() for case in cases))
    assert len(found) == len(reachable()) * (len(OPERATIONS) - 1) * 2
    assert [each for each in found if each] == []
    # A lease takes whatever is over: the rows of these cases must not meet those of the next.
    await on.pool.execute("UPDATE control.execution SET deadline = clock_timestamp() + interval '1 hour'")


async def test_a_lease_takes_exactly_the_claims_past_their_deadline(on: real.Fence) -> None:
    cases = await cases_behind(on, "", [Operation("lease")])
    leased = {row.action_id for row in await on.store.lease_interrupted(1_000)}
    for case in cases:
        answer = "leased" if case.action.order.action_id in leased else "nothing"
        assert (await case.action.row(), answer) == perform(case.row, case.operation, case.fence)


class Seen(NamedTuple):
    """The row, and whether its remit is stopped."""

    row: Row = Row()
    halt: str = ""


class Move(NamedTuple):
    """One worker's operation, with or without fresh evidence, and what it was told."""

    operation: Operation
    is_stale: bool
    answer: str = ""


def after(seen: Seen, move: Move, *, is_alone: bool) -> list[Seen]:
    """Return the states that the model allows once this move was answered so."""
    if move.operation == HALT:
        return [seen._replace(halt=Reason.REMIT_REVOKED)]
    if move.operation == LIFT:
        return [seen._replace(halt="")]
    row, answer = perform(seen.row, move.operation, Fence(seen.halt, move.is_stale))
    found = [seen._replace(row=row)] if answer == move.answer else []
    if move.operation.name == "lease" and move.answer == "nothing" and not is_alone:
        found.append(seen)  # It skips a row that somebody holds at this moment.
    return found


def explained(seen: Seen, moves: Sequence[Move], row: Row) -> set[Seen]:
    """Return the states in which some order of the moves, one after another, ends with this row and these answers."""
    found: set[Seen] = set()
    for order in permutations(moves):
        states = {seen}
        for move in order:
            states = {then for state in states for then in after(state, move, is_alone=len(moves) == 1)}
        found |= {state for state in states if state.row == row}
    return found


async def told(action: real.Operated, move: Move) -> Move:
    if move.operation == HALT:
        await action.fence.halt(action.order.remit_id, Reason.REMIT_REVOKED)
        return move
    if move.operation == LIFT:
        await action.fence.lift(action.order.remit_id)
        return move
    return move._replace(answer=await action.perform(move.operation, is_stale=move.is_stale))


@pytest.mark.timeout(600)
async def test_random_walks_of_several_workers_never_leave_the_model(on: real.Fence) -> None:
    """One to three workers act at once at each step; some order of what they did must explain every answer and the row."""
    counted: Counter[str] = Counter()
    for seed in range(WALKS):
        dice = random.Random(seed)  # noqa: S311  (seeded: a failure can be repeated)
        remit_id = f"rem_walk_{seed}"
        await on.admit(remit_id)
        action, states = real.Operated(on, real.order_under(remit_id, remit_id)), {Seen()}
        for step in range(STEPS):
            chosen = [Move(pick(dice, step), dice.random() < 0.1) for _ in range(dice.randint(1, 3))]
            moves = await asyncio.gather(*(told(action, move) for move in chosen))
            row = await action.row()
            before, states = states, {then for seen in states for then in explained(seen, moves, row)}
            assert states, f"seed {seed} step {step}: from {before} no order of {moves} leads to {row}"
            counted.update(move.operation.name for move in moves)
        await on.pool.execute("UPDATE control.execution SET deadline = clock_timestamp() + interval '1 hour'")
    assert set(counted) == {operation.name for operation in MOVES}


def pick(dice: random.Random, step: int) -> Operation:
    """Return an operation; a claim is likelier at the beginning, or nothing would ever be in flight."""
    return Operation("claim") if step < 2 and dice.random() < 0.6 else dice.choice(MOVES)


def test_the_comparison_can_fail() -> None:
    """Two winners of one claim, a call after a stop: no order explains them."""
    claims = [Move(Operation("claim"), is_stale=False, answer="claimed")] * 2
    assert explained(Seen(), claims, Row("in_flight", 1)) == set()
    late = [Move(Operation("may_send"), is_stale=False, answer="yes")]
    assert explained(Seen(Row("in_flight", 1), Reason.REMIT_REVOKED), late, Row("in_flight", 1)) == set()
