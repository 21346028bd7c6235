"""The invariants, as pure checks over what a run left behind. Each returns what is wrong, in words; nothing means it holds.

Source: design, bus section 10 (I1-I12). I4, I5 and I6 are recomputed from rows, stream and checkpoints by the proof of
`remit audit verify` (`world_proof.py`); I8 is the subject of `tests/security`; I11 is `Workload.settle`; I12 is judged by the
rows that fill, slow down or flood something.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.faults.oracle import IDEMPOTENCY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.faults.evidence import Claim, Event, Evidence
    from tests.faults.oracle import Effect

CLOCK_SLACK_S = 0.005
"""Oracle, Postgres and broker read the same clock of one host; this allows for its resolution."""
TERMINAL = frozenset({"refused", "revoked", "executed"})
BEFORE_AN_EFFECT = ("proposed", "evaluated", "approved", "tokenized", "started")


@dataclass(slots=True)
class Verdict:
    """The figures of a run, and what is wrong by invariant."""

    actions: int = 0
    duplicates: int = 0
    lost: int = 0
    unrecorded: int = 0
    effects: int = 0
    unknown: int = 0
    violations: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def add(self, invariant: str, details: Iterable[str]) -> int:
        """Note what an invariant's check found and return how much that was."""
        found = list(details)
        self.violations.extend((invariant, detail) for detail in found)
        return len(found)


def judge(evidence: Evidence) -> Verdict:
    """Check everything that the evidence of a finished run can tell."""
    verdict = Verdict(actions=len(evidence.sent))
    verdict.effects = sum(each.kind == "effect" for effects in evidence.effects.values() for each in effects)
    verdict.unknown = sum(claim.state == "unknown" for claim in evidence.claims.values())
    verdict.lost = verdict.add("I1", lost(evidence))
    verdict.duplicates = verdict.add("I2", duplicates(evidence))
    verdict.unrecorded = verdict.add("I2", unrecorded(evidence))
    verdict.add("I3", unauthorised(evidence))
    verdict.add("I4", disordered(evidence))
    verdict.add("I7", hidden_doubt(evidence))
    verdict.add("I9", reused_tokens(evidence))
    verdict.add("I10", late_starts(evidence))
    return verdict


def lost(evidence: Evidence) -> Iterable[str]:
    """I1: every acknowledged proposal reaches exactly one end."""
    for sent in evidence.sent:
        over = [event for event in evidence.valid(sent.action_id) if _is_end(event)]
        ends = [event.type for event in over]
        if sent.stored and not ends:
            kinds = [event.type for event in evidence.valid(sent.action_id)]
            yield f"{sent.key} ({sent.action_id}) has no end; its events are {kinds}"
        said = [event.data.get("outcome") for event in over]
        is_resolved = ends == ["executed", "executed"] and said[0] == "unknown" != said[1]
        if len(ends) > 1 and not is_resolved:
            yield f"{sent.key} ({sent.action_id}) ended more than once: {ends}"


def _is_end(event: Event) -> bool:
    if event.type == "evaluated":
        return event.data.get("decision", {}).get("verdict") == "deny"
    return event.type in TERMINAL


def duplicates(evidence: Evidence) -> Iterable[str]:
    """I2: at most one effect per action, by the oracle's own log; where a repetition is not harmless, at most one call."""
    for action_id, effects in evidence.effects.items():
        done = [each for each in effects if each.kind == "effect"]
        if len(done) > 1:
            yield f"{action_id} happened {len(done)} times"
        if IDEMPOTENCY[effects[0].action] == "none" and len(effects) > 1 and len(done) <= 1:
            yield f"{action_id} was called {len(effects)} times and may not be repeated"


def unrecorded(evidence: Evidence) -> Iterable[str]:
    """I2, claim first: every effect has a claim row that is older than it."""
    for action_id, effects in evidence.effects.items():
        claim = evidence.claims.get(action_id)
        if claim is None or claim.state == "refused":
            yield f"{action_id} had an effect; its claim is {claim.state if claim else 'missing'}"
        elif claim.claimed_at.timestamp() > min(each.time for each in effects) + CLOCK_SLACK_S:
            yield f"{action_id} was claimed after its effect"


def unauthorised(evidence: Evidence) -> Iterable[str]:
    """I3: every effect follows a complete valid chain, with the arguments that were proposed."""
    proposed = {sent.action_id: sent.args_digest for sent in evidence.sent}
    for action_id, effects in evidence.effects.items():
        chain = evidence.valid(action_id)
        path = [kind for kind in dict.fromkeys(event.type for event in chain) if kind in BEFORE_AN_EFFECT]
        if path != list(BEFORE_AN_EFFECT):
            yield f"{action_id} had an effect after {', '.join(path) or 'nothing'}"
            continue
        started = next(event for event in chain if event.type == "started")
        if started.stored_at.timestamp() > effects[0].time + CLOCK_SLACK_S:
            yield f"{action_id} had an effect before it was announced"
        claim = evidence.claims.get(action_id)
        said = {each.arguments_digest for each in effects} | ({claim.args_digest} if claim else set())
        if action_id in proposed and said != {proposed[action_id]}:
            yield f"{action_id} was executed with other arguments than were proposed"


def disordered(evidence: Evidence) -> Iterable[str]:
    """I4: the valid events of an action are numbered without a gap, and nothing follows its receipt."""
    for action_id in evidence.events:
        chain = evidence.valid(action_id)
        if [event.n for event in chain] != list(range(1, len(chain) + 1)):
            yield f"{action_id} is numbered {[event.n for event in chain]}"
        kinds = [event.type for event in chain]
        if "audited" in kinds[:-1]:
            yield f"{action_id} goes on after its receipt: {kinds}"
        repeated = [kind for kind, count in Counter(kinds).items() if count > _most(kind)]
        if repeated:
            yield f"{action_id} holds {', '.join(repeated)} more than once"


def _most(kind: str) -> int:
    return {"tokenized": 3, "approval_requested": 10, "executed": 2}.get(kind, 1)


def hidden_doubt(evidence: Evidence) -> Iterable[str]:
    """I7: no claim stays in flight past its deadline, and ledger and claim say the same of every outcome."""
    for claim in evidence.claims.values():
        if claim.state == "in_flight":
            yield f"{claim.action_id} is still in flight{', past its deadline' if claim.overdue else ''}"
            continue
        said = [event.data.get("outcome") for event in evidence.valid(claim.action_id) if event.type == "executed"]
        if claim.state == "refused":
            if said:
                yield f"{claim.action_id} was refused in its claim, the ledger says {said}"
        elif said[-1:] != [claim.state]:
            yield f"{claim.action_id} is {claim.state} in its claim, the ledger says {said}"
        yield from _false_certainty(claim, evidence.effects.get(claim.action_id, []))


def _false_certainty(claim: Claim, effects: list[Effect]) -> Iterable[str]:
    if claim.state == "succeeded" and not effects:
        yield f"{claim.action_id} is said to have succeeded, the oracle never heard of it"
    if claim.state == "failed" and effects:
        yield f"{claim.action_id} is said to have failed, the oracle did it"


def reused_tokens(evidence: Evidence) -> Iterable[str]:
    """I9: no token carries two claims, and every claim's token was minted for that action."""
    for jti, count in Counter(claim.jti for claim in evidence.claims.values() if claim.jti).items():
        if count > 1:
            yield f"token {jti} carries {count} claims"
    for claim in evidence.claims.values():
        minted = {event.data.get("jti") for event in evidence.valid(claim.action_id) if event.type == "tokenized"}
        if claim.jti is not None and claim.jti not in minted:
            yield f"{claim.action_id} was claimed with a token that was not minted for it"


def late_starts(evidence: Evidence) -> Iterable[str]:
    """I10: nothing is claimed after its token ended, by the servers' own clocks, and nothing started after a revocation."""
    for action_id in evidence.events:
        chain = evidence.valid(action_id)
        kinds = [event.type for event in chain]
        if "revoked" in kinds and "started" in kinds[kinds.index("revoked") :]:
            yield f"{action_id} was started after it was revoked"
        claim = evidence.claims.get(action_id)
        if claim is None or claim.jti is None or claim.state == "refused":
            continue
        ends = [
            event.data.get("exp", 0) for event in chain if event.data.get("jti") == claim.jti and "exp" in event.data
        ]
        if not ends or claim.claimed_at.timestamp() > ends[0]:
            yield f"{action_id} was claimed after its token had ended"
