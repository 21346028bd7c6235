"""Each checker finds what it is there for: a run that holds, spoilt in one place, is reported under that invariant."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.evidence import Claim, Event, Evidence, effects_of
from tests.faults.invariants import judge
from tests.faults.oracle import Effect
from tests.faults.workload import Sent

if TYPE_CHECKING:
    from collections.abc import Callable

BEGIN = datetime(2026, 11, 24, 12, tzinfo=UTC)
DIGEST = "sha-256:arguments"
A = "act_1"
KINDS = ("proposed", "evaluated", "approved", "tokenized", "started", "executed", "audited")


def event(number: int, kind: str, **data: Any) -> Event:
    """Return the event at one place of the usual path, a second after the one before."""
    at = BEGIN + timedelta(seconds=number)
    return Event(action_id=A, n=number, type=kind, seq=number, stored_at=at, status="valid", data=data)


def run(action: str = "pay") -> Evidence:
    """Return what one action leaves behind when everything went well."""
    said: dict[str, dict[str, Any]] = {
        "evaluated": {"decision": {"verdict": "allow"}},
        "tokenized": {"jti": "tok_1", "exp": (BEGIN + timedelta(seconds=64)).timestamp()},
        "executed": {"outcome": "succeeded"},
    }
    claimed, happened = BEGIN + timedelta(seconds=5.2), BEGIN + timedelta(seconds=5.5)
    effect = Effect(time=happened.timestamp(), action=action, key=A, arguments_digest=DIGEST, kind="effect")
    claim = Claim(action_id=A, jti="tok_1", state="succeeded", args_digest=DIGEST, claimed_at=claimed, overdue=False)
    return Evidence(
        sent=[Sent("call-0", A, action, DIGEST, stored=True)],
        events={A: [event(n, kind, **said.get(kind, {})) for n, kind in enumerate(KINDS, 1)]},
        claims={A: claim},
        effects={A: [effect]},
    )


def drop(*kinds: str) -> Callable[[Evidence], None]:
    """Remove events and number the rest anew."""

    def spoil(e: Evidence) -> None:
        left = [each for each in e.events[A] if each.type not in kinds]
        e.events[A] = [replace(each, n=n) for n, each in enumerate(left, 1)]

    return spoil


def change_claim(**fields: Any) -> Callable[[Evidence], None]:
    """Let the claim say something else."""

    def spoil(e: Evidence) -> None:
        e.claims[A] = replace(e.claims[A], **fields)

    return spoil


def add_effect(**fields: Any) -> Callable[[Evidence], None]:
    """Let the oracle have heard of it once more."""

    def spoil(e: Evidence) -> None:
        e.effects[A].append(replace(e.effects[A][0], **fields))

    return spoil


def revoke_before_start(e: Evidence) -> None:
    e.events[A].insert(3, event(4, "revoked"))
    e.events[A] = [replace(each, n=n) for n, each in enumerate(e.events[A], 1)]


def outcome(word: str) -> Callable[[Evidence], None]:
    """Let the ledger tell another outcome."""

    def spoil(e: Evidence) -> None:
        e.events[A][5] = replace(e.events[A][5], data={"outcome": word})

    return spoil


def unclaim(e: Evidence) -> None:
    e.claims.clear()


def unhappen(e: Evidence) -> None:
    e.effects.clear()


def misnumber(e: Evidence) -> None:
    e.events[A][3] = replace(e.events[A][3], n=9)


def other_token(e: Evidence) -> None:
    e.claims["act_2"] = replace(e.claims[A], action_id="act_2", state="refused")


def end_twice(e: Evidence) -> None:
    e.events[A].insert(6, event(7, "refused"))
    e.events[A][7] = replace(e.events[A][7], n=8)


@pytest.mark.parametrize("action", ["pay", "set", "send", "ask"])
def test_a_run_that_went_well_holds(action: str) -> None:
    verdict = judge(run(action))
    assert verdict.violations == []
    assert (verdict.actions, verdict.effects, verdict.lost, verdict.duplicates, verdict.unrecorded) == (1, 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("invariant", "action", "spoil"),
    [
        ("I1", "pay", drop("executed", "audited")),
        ("I1", "pay", end_twice),
        ("I2", "pay", add_effect()),
        ("I2", "send", add_effect()),
        ("I2", "send", add_effect(kind="replay")),
        ("I2", "pay", unclaim),
        ("I2", "pay", change_claim(state="refused")),
        ("I2", "pay", change_claim(claimed_at=BEGIN + timedelta(seconds=9))),
        ("I3", "pay", drop("tokenized")),
        ("I3", "pay", drop("approved")),
        ("I3", "pay", change_claim(args_digest="sha-256:other")),
        ("I3", "pay", add_effect(kind="replay", arguments_digest="sha-256:other")),
        ("I4", "pay", misnumber),
        ("I7", "pay", change_claim(state="in_flight", overdue=True)),
        ("I7", "pay", outcome("failed")),
        ("I7", "pay", unhappen),
        ("I9", "pay", change_claim(jti="tok_9")),
        ("I9", "pay", other_token),
        ("I10", "pay", revoke_before_start),
        ("I10", "pay", change_claim(claimed_at=BEGIN + timedelta(seconds=65))),
    ],
)
def test_each_invariant_is_broken_by_what_it_forbids(
    invariant: str, action: str, spoil: Callable[[Evidence], None]
) -> None:
    evidence = run(action)
    spoil(evidence)
    assert invariant in {name for name, _ in judge(evidence).violations}


def test_repeating_what_honours_its_key_is_no_second_effect() -> None:
    evidence = run("pay")
    add_effect(kind="replay")(evidence)
    assert judge(evidence).violations == []


def test_effect_before_its_announcement_is_reported() -> None:
    evidence = run()
    evidence.effects[A] = [replace(evidence.effects[A][0], time=(BEGIN + timedelta(seconds=2)).timestamp())]
    assert {name for name, _ in judge(evidence).violations} == {"I2", "I3"}


def test_effect_under_a_key_that_nobody_proposed_is_judged_too() -> None:
    foreign = replace(run().effects[A][0], key="act_9")
    assert effects_of([foreign], {A}, {A}) == {"act_9": [foreign]}
    assert effects_of([foreign], {A}, {A, "act_9"}) == {}
    evidence = replace(run(), effects={**run().effects, "act_9": [foreign]})
    assert {name for name, _ in judge(evidence).violations} == {"I2", "I3"}


def test_unknown_outcome_may_be_resolved_once_and_nothing_else() -> None:
    evidence = run()
    evidence.events[A].insert(5, replace(evidence.events[A][5], data={"outcome": "unknown"}))
    evidence.events[A] = [replace(each, n=n) for n, each in enumerate(evidence.events[A], 1)]
    assert judge(evidence).violations == []
    evidence.events[A][5] = replace(evidence.events[A][5], data={"outcome": "succeeded"})
    assert "I1" in {name for name, _ in judge(evidence).violations}


def test_steps_in_another_order_are_no_authority() -> None:
    evidence = run()
    evidence.events[A][2], evidence.events[A][4] = evidence.events[A][4], evidence.events[A][2]
    evidence.events[A] = [replace(each, n=n) for n, each in enumerate(evidence.events[A], 1)]
    assert "I3" in {name for name, _ in judge(evidence).violations}


def test_proposal_that_nobody_acknowledged_is_not_lost() -> None:
    evidence = Evidence(sent=[Sent("call-0", A, "pay", DIGEST)], events={}, claims={})
    assert judge(evidence).lost == 0
    evidence.sent[0].stored = True
    assert judge(evidence).lost == 1
