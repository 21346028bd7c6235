"""The moves of the executor's protocol, and of those that were rejected, as the model searches them. Pure.

A world is all that survives or can be lost: row, ledger, outbox, tool, and each worker's place in the code. Places are the crash
points of the design: between any two moves a worker may crash, or stand still for as long as it likes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from services.executor.row_model import CONTINUED, FIRST, Fence, Operation, Row, RowState, perform

if TYPE_CHECKING:
    from collections.abc import Iterator

Claiming = Literal["naive", "lease", "fenced", "split"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One way to make a call at most once.

    `naive` acts and then notes it; `lease` claims for a time and lets another worker call again afterwards; `fenced` is the claim
    that is `in_flight` from its first commit; `split` claims in one transaction and marks `in_flight` in a second.
    """

    name: str
    claiming: Claiming
    is_repeatable: bool = False
    """The registry declares repetition harmless, so doubt is answered by asking the tool again with the same key."""
    tool_knows_keys: bool = False
    fences_repetition: bool = True
    sweeps: bool = True
    relays: bool = True
    is_safe: bool = True
    """Whether no violation may be found."""


PROTOCOLS = (
    Protocol(name="naive: act, then mark done", claiming="naive", is_safe=False),
    Protocol(name="lease, take-over without in_flight fence", claiming="lease", is_safe=False),
    Protocol(name="chosen: claim = in_flight, one transaction", claiming="fenced"),
    Protocol(name="chosen, repeatable action", claiming="fenced", is_repeatable=True, tool_knows_keys=True),
    Protocol(name="chosen without its sweeper", claiming="fenced", sweeps=False, is_safe=False),
    Protocol(name="chosen without its relay", claiming="fenced", relays=False, is_safe=False),
    Protocol(
        name="repeatable, repetition without the fence", claiming="fenced", is_repeatable=True, tool_knows_keys=True,
        fences_repetition=False, is_safe=False,
    ),
    Protocol(
        name="repeatable in name only: tool ignores keys", claiming="fenced", is_repeatable=True, is_safe=False
    ),
    Protocol(name="split: claim, then in_flight", claiming="split"),
    Protocol(name="split, repeatable action", claiming="split", is_repeatable=True, tool_knows_keys=True),
)  # fmt: skip


class Worker(NamedTuple):
    """Where a worker stands, under which claim, and whether it passed the fence before a revocation returned."""

    pc: str = "idle"
    claim: int = 0
    passed: bool = False


class World(NamedTuple):
    """One reachable state; `fault` names a broken promise."""

    row: Row = Row()
    ledger: str = "tokenized"
    outbox: tuple[str, ...] = ()
    workers: tuple[Worker, ...] = (Worker(), Worker())
    effects: int = 0
    halted: bool = False
    """A revocation has returned."""
    crashes: int = 3
    deliveries: int = 5
    fault: str = ""


Move = tuple[str, World]
CALLING = frozenset({"call", "call again"})


def moves(protocol: Protocol, world: World) -> Iterator[Move]:
    """Yield every next world with the name of the move that leads there."""
    for label, after in _moves(protocol, world):
        yield label, after if after.fault else after._replace(fault=_false_word(after))


def _moves(protocol: Protocol, world: World) -> Iterator[Move]:
    for at, worker in enumerate(world.workers):
        yield from _STEPS[worker.pc](protocol, world, at)
        if worker.pc != "idle" and world.crashes:
            yield f"crash {at}", _place(world._replace(crashes=world.crashes - 1), at, Worker())
    for event in world.outbox if protocol.relays else ():
        yield f"relay {event}", _append(world, event)
    if not world.halted:
        yield "revoke: stop", world._replace(halted=True)
    revoked, answer = perform(world.row, Operation("forestall"))
    if answer == "taken" and world.row.state == "none" and protocol.claiming != "naive":
        yield "revoke: action", world._replace(row=revoked, outbox=(*world.outbox, "revoked"), halted=True)
    if world.row.state == "unknown" and not any(worker.pc in CALLING for worker in world.workers):
        truth: RowState = "succeeded" if world.effects else "failed"
        row, _ = perform(world.row, Operation("resolve", outcome=truth))
        yield "resolve", world._replace(row=row, outbox=(*world.outbox, truth))


def _place(world: World, at: int, worker: Worker) -> World:
    workers = list(world.workers)
    workers[at] = worker
    return world._replace(workers=tuple(workers))


def _idle(protocol: Protocol, world: World, at: int) -> Iterator[Move]:
    is_open = world.ledger in {"tokenized", "started"}
    # The last delivery is never lost: what was not acknowledged comes again, once nobody works on it.
    comes_again = all(worker.pc == "idle" for worker in world.workers)
    if is_open and (world.deliveries or comes_again):
        left = max(0, world.deliveries - 1)
        yield f"deliver {at}", _place(world._replace(deliveries=left), at, Worker("announce"))
    if world.row.state == "in_flight" and protocol.claiming in {"fenced", "split"} and protocol.sweeps:
        yield f"lease expires {at}", _place(world, at, Worker("sweep", world.row.holder))


def _announce(_: Protocol, world: World, at: int) -> Iterator[Move]:
    if world.ledger not in {"tokenized", "started"}:
        yield f"ack {at}", _place(world, at, Worker())
        return
    yield f"announce {at}", _place(world._replace(ledger="started"), at, Worker("claim"))
    if world.ledger == "tokenized":
        yield f"refuse {at}", _place(world._replace(ledger="refused"), at, Worker())
        return
    row, answer = perform(world.row, Operation("refuse"))
    if answer == "taken":
        yield f"refuse {at}", _place(world._replace(row=row), at, Worker("say no"))


def _claim(protocol: Protocol, world: World, at: int) -> Iterator[Move]:
    if protocol.claiming == "fenced":
        row, answer = perform(world.row, Operation("claim"), _fence(world))
        is_mine, claim, then = answer == "claimed", FIRST, "call"
    else:
        row, is_mine = _claim_otherwise(protocol, world, at)
        claim, then = at + 1, "mark" if protocol.claiming == "split" else "call"
    if is_mine:
        yield f"claim {at}", _place(world._replace(row=row), at, Worker(then, claim, passed=_passes(protocol, world)))
    elif row.state == "refused" and row.holder:
        yield f"claim refused {at}", _place(world._replace(row=row), at, Worker("say no"))
    elif row.state == "unknown" != world.row.state:
        after = world._replace(row=row, outbox=(*world.outbox, "unknown"))
        yield f"give up {at}", _place(after, at, Worker("publish"))
    else:
        yield f"exists {at}", _place(world, at, Worker())


def _claim_otherwise(protocol: Protocol, world: World, at: int) -> tuple[Row, bool]:
    """Return the row, and whether this worker holds it, where the claim is not the fence that was chosen."""
    row, mine = world.row, at + 1
    if row.state == "none" and world.halted:
        return Row("refused", mine), False
    match protocol.claiming:
        case "naive":
            return row, row.state == "none"
        case "lease" if row.state == "in_flight" and world.halted:
            return Row("unknown", row.holder), False
        case "lease":
            takes = row.state in {"none", "in_flight"}
            return (Row("in_flight", mine) if takes else row), takes
        case _:
            takes = row.state in {"none", "claimed"}
            return (Row("claimed", mine) if takes else row), takes


def _passes(protocol: Protocol, world: World) -> bool:
    """Return whether the claim just made is one that a revocation would have had to wait for."""
    return protocol.claiming in {"fenced", "lease"} and not world.halted


def _mark(_: Protocol, world: World, at: int) -> Iterator[Move]:
    if world.row != Row("claimed", at + 1):
        yield f"overtaken {at}", _place(world, at, Worker())
    elif world.halted:
        yield f"mark refused {at}", _place(world._replace(row=Row("refused", at + 1)), at, Worker("say no"))
    else:
        after = world._replace(row=Row("in_flight", at + 1))
        yield f"mark {at}", _place(after, at, Worker("call", at + 1, passed=True))


def _call(protocol: Protocol, world: World, at: int) -> Iterator[Move]:
    worker = world.workers[at]
    is_again = worker.pc == "call again"
    effects = 1 if protocol.tool_knows_keys else world.effects + 1
    after = world._replace(effects=effects, fault=_broken_by_call(world, worker, effects))
    yield f"effect {at}", _place(after, at, worker._replace(pc="succeeded"))
    yield f"effect, answer lost {at}", _place(after, at, worker._replace(pc="doubt"))
    # Refused at the door: definite for a first call, silent about the first one when it is a repetition.
    yield f"no effect {at}", _place(world, at, worker._replace(pc="unknown" if is_again else "failed"))


def _broken_by_call(world: World, worker: Worker, effects: int) -> str:
    if world.row.state in {"none", "claimed", "refused"}:
        return "effect without claim"
    if world.halted and not worker.passed:
        return "effect after revoke"
    return "double effect" if effects > 1 else ""


def _doubt(protocol: Protocol, world: World, at: int) -> Iterator[Move]:
    worker = world.workers[at]
    if protocol.is_repeatable:
        row, answer = perform(world.row, Operation("may_send", worker.claim), _fence(world))
        if answer == "yes" or not protocol.fences_repetition:
            passed = answer == "yes" or not world.halted
            again = worker._replace(pc="call again", passed=passed)
            yield f"repeat {at}", _place(world._replace(row=row), at, again)
            return
    yield from _record(protocol, _place(world, at, worker._replace(pc="unknown")), at)


def _record(protocol: Protocol, world: World, at: int) -> Iterator[Move]:
    worker = world.workers[at]
    outcome = cast("RowState", worker.pc)  # these places are named by what was learned
    if protocol.claiming == "naive":
        row, answer = Row(outcome), "stored"
    else:
        row, answer = perform(world.row, Operation("conclude", worker.claim, outcome))
    if answer == "not held":
        yield f"too late {at}", _place(world, at, Worker())
    else:
        after = world._replace(row=row, outbox=(*world.outbox, outcome))
        yield f"record {outcome} {at}", _place(after, at, Worker("publish"))


def _publish(_: Protocol, world: World, at: int) -> Iterator[Move]:
    # The relay may have been faster; and what was concluded first is not always appended first.
    for event in world.outbox:
        yield f"publish {event} {at}", _place(_append(world, event), at, Worker())
    if not world.outbox:
        yield f"published already {at}", _place(world, at, Worker())


def _say_no(_: Protocol, world: World, at: int) -> Iterator[Move]:
    ledger = "refused" if world.ledger in {"tokenized", "started"} else world.ledger
    yield f"say no {at}", _place(world._replace(ledger=ledger), at, Worker())


def _sweep(protocol: Protocol, world: World, at: int) -> Iterator[Move]:
    worker = world.workers[at]
    if protocol.is_repeatable:
        row, answer = perform(world.row, Operation("take_over", worker.claim), _fence(world))
        if answer == "taken":
            yield f"take over {at}", _place(world._replace(row=row), at, Worker("call again", CONTINUED, passed=True))
            return
    yield from _record(protocol, _place(world, at, worker._replace(pc="unknown")), at)


def _fence(world: World) -> Fence:
    return Fence("revoked" if world.halted else "")


def _append(world: World, event: str) -> World:
    """Append a queued event; what can no longer follow is left out (and alarmed)."""
    open_for = {"unknown": {"started"}, "revoked": {"tokenized", "started"}}.get(event, {"started", "unknown"})
    left = list(world.outbox)
    left.remove(event)
    return world._replace(ledger=event if world.ledger in open_for else world.ledger, outbox=tuple(left))


def _false_word(world: World) -> str:
    """Return what the ledger says wrongly: a denied effect, an invented one, an outcome that nobody will append."""
    if world.effects and world.ledger in {"refused", "revoked", "failed"}:
        return "effect denied"
    if not world.effects and world.ledger == "succeeded":
        return "effect invented"
    is_final = world.row.state in {"succeeded", "failed", "unknown"}
    return "outcome lost" if is_final and not world.outbox and world.ledger != world.row.state else ""


_STEPS = {
    "idle": _idle,
    "announce": _announce,
    "claim": _claim,
    "mark": _mark,
    "call": _call,
    "call again": _call,
    "doubt": _doubt,
    "succeeded": _record,
    "failed": _record,
    "unknown": _record,
    "publish": _publish,
    "say no": _say_no,
    "sweep": _sweep,
}
