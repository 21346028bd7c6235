"""The projector's side of the hash chain: links for a batch, the receipt of an action, the next checkpoint. Pure.

What a link and a checkpoint are is defined in `remit.ledger_chain`, which the verifier uses as well.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from remit.errors import PermanentError
from remit.events import ActionEvaluated, ActionExecuted, Audited
from remit.ledger_chain import Checkpoint, link, merkle_root, sign_checkpoint, spelled
from remit.reasons import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from nacl.signing import SigningKey

    from remit.projection.tracking import Tracked


class TamperError(PermanentError):
    """Rows that were already chained no longer are what was chained; nobody may go on as if they were."""


class GapError(PermanentError):
    """The stream does not hold the next sequence: a hole is never skipped."""


def next_missing(last_seq: int, sequences: Sequence[int]) -> int | None:
    """Return the first sequence after `last_seq` that ascending `sequences` leave out, or None when they are contiguous."""
    for expected, found in enumerate(sequences, last_seq + 1):
        if found != expected:
            return expected
    return None


def receipt(tracked: Tracked) -> Audited:
    """Return the receipt of a finished action: which records it is, and the heads of both chains at its last one.

    Raises:
        LookupError: the action is not finished.

    """
    state, terminal = tracked.state, tracked.terminal
    if terminal is None or state.head is None:
        raise LookupError(f"action {state.action_id} is not finished")
    first, last = state.chain[0], state.chain[-1]
    said = terminal.data
    return Audited(
        txn=said.txn,
        remit_id=said.remit_id,
        principal=said.principal,
        action=said.action,
        terminal=terminal.short,
        events=len(state.chain),
        first_seq=first.seq or 0,
        last_seq=last.seq or 0,
        action_head=state.head,
        ledger_head=spelled(tracked.link),
        flags=receipt_flags(tracked),
    )


def receipt_flags(tracked: Tracked) -> list[str]:
    """Return what a reader of the receipt should look at: evidence beside the chain, doubt, other arguments executed."""
    flags = set(tracked.flags)
    executed = tracked.state.find(ActionExecuted)
    if executed is not None and executed.data.outcome is Outcome.UNKNOWN:
        flags.add("outcome_unknown")
    if executed is not None and not executed.data.effect_matches_decision:
        flags.add("effect_differs")
    evaluated = tracked.state.find(ActionEvaluated)
    if evaluated is not None and evaluated.data.unnamed_sinks:
        flags.add("unnamed_sinks")
    return sorted(flags)


def verified_checkpoint(
    previous: tuple[int, bytes], rows: Sequence[tuple[int, bytes, bytes]], *, stream: str, at: datetime, kid: str
) -> Checkpoint:
    """Recompute the chain from the previous checkpoint over (sequence, record digest, stored chain hash) and state its head.

    `previous` is (sequence, chain hash); the result is not signed yet.

    Raises:
        TamperError: a row is missing, or its stored hash is not the recomputed one.

    """
    seq, head = previous
    for found, record, stored in rows:
        if found != seq + 1:
            raise TamperError(f"{stream}: row {seq + 1} is missing from the ledger; run `remit audit verify`")
        head = link(head, found, record)
        if head != stored:
            raise TamperError(f"{stream}: row {found} is not what was chained; run `remit audit verify`")
        seq = found
    return Checkpoint(
        stream=stream,
        seq=seq,
        chain_head=spelled(head),
        previous_seq=previous[0],
        merkle_root=spelled(merkle_root([record for _, record, _ in rows])),
        at=at,
        kid=kid,
    )


def signed_checkpoint(checkpoint: Checkpoint, key: SigningKey) -> Checkpoint:
    """Return the checkpoint with its signature."""
    return replace(checkpoint, signature=sign_checkpoint(checkpoint, key))
