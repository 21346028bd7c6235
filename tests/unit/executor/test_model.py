"""The exhaustive model: the protocol in use breaks no promise, and every rejected one is caught at what it was rejected for."""

from __future__ import annotations

import pytest

from services.executor.model import search
from services.executor.model_steps import PROTOCOLS, Protocol
from services.executor.row_model import OPERATIONS, perform, reachable

NAMED = {protocol.name: protocol for protocol in PROTOCOLS}
SAFE = [protocol for protocol in PROTOCOLS if protocol.is_safe and protocol.claiming == "fenced"]
CAUGHT = {
    "naive: act, then mark done": ({"effect without claim", "effect after revoke", "effect denied"}, 4),
    "lease, take-over without in_flight fence": ({"double effect"}, 8),
    "chosen without its sweeper": ({"stuck"}, 4),
    "chosen without its relay": ({"stuck"}, 1),
    "repeatable, repetition without the fence": ({"effect after revoke"}, 7),
    "repeatable in name only: tool ignores keys": ({"double effect"}, 6),
}
"""Kinds of violation that must be among those found, and the length of a shortest counterexample."""


@pytest.mark.parametrize("protocol", SAFE, ids=lambda protocol: protocol.name)
def test_the_chosen_protocol_breaks_no_promise(protocol: Protocol) -> None:
    found = search(protocol)
    assert found.states > 10_000
    assert found.faults == {}


@pytest.mark.parametrize(
    "protocol", [p for p in PROTOCOLS if p.claiming == "split"], ids=lambda protocol: protocol.name
)
def test_a_split_claim_would_be_safe_too(protocol: Protocol) -> None:
    assert search(protocol, crashes=2, deliveries=3).faults == {}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_rejected_protocol_is_caught(name: str) -> None:
    kinds, length = CAUGHT[name]
    found = search(NAMED[name], crashes=2, deliveries=3)
    assert not NAMED[name].is_safe
    assert kinds <= found.faults.keys()
    assert len(found.shortest) == length


def test_every_protocol_is_tested() -> None:
    assert {p.name for p in PROTOCOLS if not p.is_safe} == set(CAUGHT)


def test_no_final_row_is_left_again() -> None:
    for row in reachable():
        for operation in OPERATIONS:
            after, _ = perform(row, operation)
            if row.state in {"succeeded", "failed", "refused"}:
                assert after == row
            if row.state == "unknown":
                assert after.state in {"unknown", "succeeded", "failed"}
