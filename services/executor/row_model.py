"""The fence as a table: what each operation does to an action's row in `control.execution`, and what it answers. Pure.

One rule a statement of `claims.ClaimStore` and of approval's store. The protocol model (`model`) is built on them, and a test
holds every one against Postgres. Source: design, bus section 7.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

RowState = Literal["none", "claimed", "in_flight", "succeeded", "failed", "unknown", "refused"]
"""`claimed` exists only in the protocol that splits the claim from its mark; Postgres never holds it."""
FIRST, CONTINUED = 1, 2
"""The claim that was announced, and the one that continues it."""
OUTCOMES: tuple[RowState, ...] = ("succeeded", "failed", "unknown")


class Row(NamedTuple):
    """The row of one action. A refusal without a holder is approval's revocation."""

    state: RowState = "none"
    holder: int = 0
    is_over: bool = False
    """The deadline has passed."""


class Fence(NamedTuple):
    """What stands between a claim and its call: a reason to refuse, and whether nobody writes the evidence."""

    halt: str = ""
    is_stale: bool = False


class Operation(NamedTuple):
    """One call of a store; `claim` is whose, `outcome` what was learned."""

    name: str
    claim: int = FIRST
    outcome: RowState = "succeeded"


OPEN = Fence()
OPERATIONS: tuple[Operation, ...] = (
    Operation("claim"),
    Operation("refuse"),
    Operation("forestall"),
    *(Operation("may_send", claim) for claim in (FIRST, CONTINUED)),
    *(Operation("take_over", claim) for claim in (FIRST, CONTINUED)),
    *(Operation("conclude", claim, outcome) for claim in (FIRST, CONTINUED) for outcome in OUTCOMES),
    *(Operation("resolve", outcome=outcome) for outcome in ("succeeded", "failed")),
    Operation("expire"),
    Operation("lease"),
)
Answered = tuple[Row, str]


def perform(row: Row, operation: Operation, fence: Fence = OPEN) -> Answered:
    """Return the row afterwards and the answer."""
    return _RULES[operation.name](row, operation, fence)


def _claim(row: Row, _: Operation, fence: Fence) -> Answered:
    if fence.is_stale:
        return row, "evidence_stale"
    if row.state != "none":
        return row, "exists"
    if fence.halt:
        return Row("refused", FIRST), fence.halt
    return Row("in_flight", FIRST), "claimed"


def _refuse(row: Row, _: Operation, __: Fence) -> Answered:
    return (Row("refused", FIRST), "taken") if row.state == "none" else (row, "exists")


def _forestall(row: Row, _: Operation, __: Fence) -> Answered:
    """Take the row for a revocation; the same revocation again finds its own."""
    if row.state == "none":
        return Row("refused"), "taken"
    return row, "taken" if row == Row("refused") else "too_late"


def _may_send(row: Row, operation: Operation, fence: Fence) -> Answered:
    if not _holds(row, operation) or fence != OPEN:
        return row, "no"
    return row._replace(is_over=False), "yes"


def _take_over(row: Row, operation: Operation, fence: Fence) -> Answered:
    if not _holds(row, operation) or row.holder == CONTINUED:
        return row, "ended"
    if fence.is_stale:
        return row, "evidence_stale"
    if fence.halt:
        return row, "ended"
    return Row("in_flight", CONTINUED), "taken"


def _conclude(row: Row, operation: Operation, _: Fence) -> Answered:
    stored = Row(operation.outcome, row.holder)
    if _holds(row, operation):
        return stored, "stored"
    if row.state == "unknown" and row.holder == operation.claim and operation.outcome != "unknown":
        return stored, "resolved"
    return row, "not held"


def _resolve(row: Row, operation: Operation, _: Fence) -> Answered:
    return (Row(operation.outcome, row.holder), "stored") if row.state == "unknown" else (row, "not unknown")


def _expire(row: Row, _: Operation, __: Fence) -> Answered:
    return (row._replace(is_over=True) if row.state == "in_flight" else row), "passed"


def _lease(row: Row, _: Operation, __: Fence) -> Answered:
    if row.state == "in_flight" and row.is_over:
        return row._replace(is_over=False), "leased"
    return row, "nothing"


def _holds(row: Row, operation: Operation) -> bool:
    return row.state == "in_flight" and row.holder == operation.claim


_RULES = {
    "claim": _claim,
    "refuse": _refuse,
    "forestall": _forestall,
    "may_send": _may_send,
    "take_over": _take_over,
    "conclude": _conclude,
    "resolve": _resolve,
    "expire": _expire,
    "lease": _lease,
}


def reachable() -> dict[Row, tuple[Operation, ...]]:
    """Return every row that an open fence leads to, with a shortest way there."""
    found: dict[Row, tuple[Operation, ...]] = {Row(): ()}
    queue = [Row()]
    for row in queue:
        for operation in OPERATIONS:
            after, _ = perform(row, operation)
            if after not in found:
                found[after] = (*found[row], operation)
                queue.append(after)
    return found
