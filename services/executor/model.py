"""Every order in which the executor's protocol can happen, searched breadth-first: `python -m services.executor.model`.

Two workers, three crashes, five deliveries, a lease that may expire at any moment (so that whoever held it comes back as a
zombie), a revocation at any moment. Protocols that were rejected are searched too: a checker that cannot fail proves nothing.
Source: design, bus section 7 (exhaustive model).
"""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import orjson

from services.executor.model_steps import PROTOCOLS, Protocol, World, moves

if TYPE_CHECKING:
    from collections.abc import Mapping

FAULTY = ("crash", "revoke")
"""Moves that nobody may wait for: an action must settle without them."""
SETTLED = frozenset({"refused", "revoked", "succeeded", "failed", "unknown"})


class Step(NamedTuple):
    """How a world was first reached."""

    before: World | None
    label: str
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search saw of one protocol."""

    protocol: str
    states: int
    transitions: int
    faults: Mapping[str, int]
    """Kinds of violation, each with the number of worlds that show it."""
    shortest: tuple[str, ...] = field(default=())
    """The moves of a shortest counterexample."""

    @property
    def violations(self) -> int:
        """How many worlds break a promise."""
        return sum(self.faults.values())


def search(protocol: Protocol, *, crashes: int = 3, deliveries: int = 5) -> Found:
    """Visit every reachable world; one that broke a promise is not continued."""
    reached: dict[World, Step] = {World(crashes=crashes, deliveries=deliveries): Step(None, "", 0)}
    backwards: dict[World, list[World]] = {}
    transitions = 0
    queue = deque(reached)
    while queue:
        world = queue.popleft()
        if world.fault:
            continue
        for label, after in moves(protocol, world):
            transitions += 1
            if not label.startswith(FAULTY):
                backwards.setdefault(after, []).append(world)
            if after not in reached:
                reached[after] = Step(world, label, reached[world].depth + 1)
                queue.append(after)
    broken = {world: world.fault for world in reached if world.fault}
    broken |= dict.fromkeys(_stuck(reached, backwards), "stuck")
    faults: dict[str, int] = {}
    for kind in broken.values():
        faults[kind] = faults.get(kind, 0) + 1
    first = min(broken, key=lambda world: reached[world].depth, default=None)
    return Found(
        protocol=protocol.name, states=len(reached), transitions=transitions, faults=dict(sorted(faults.items())),
        shortest=() if first is None else _way_to(first, reached),
    )  # fmt: skip


def is_settled(world: World) -> bool:
    """Return whether nothing is left to do but, for an `unknown`, to look."""
    return world.ledger in SETTLED and not world.outbox and all(worker.pc == "idle" for worker in world.workers)


def _stuck(reached: Mapping[World, Step], backwards: Mapping[World, list[World]]) -> list[World]:
    """Return the worlds from which no way leads to a settled one."""
    good = {world for world in reached if world.fault or is_settled(world)}
    queue = list(good)
    for world in queue:
        for before in backwards.get(world, ()):
            if before not in good:
                good.add(before)
                queue.append(before)
    return [world for world in reached if world not in good]


def _way_to(world: World, reached: Mapping[World, Step]) -> tuple[str, ...]:
    labels: list[str] = []
    step = reached[world]
    while step.before is not None:
        labels.append(step.label)
        step = reached[step.before]
    return tuple(reversed(labels))


def main() -> int:
    """Search every protocol, print the table and the result; 0 when exactly the promised ones hold."""
    results = [(protocol, search(protocol)) for protocol in PROTOCOLS]
    out = sys.stdout
    out.write(f"{'protocol':<44}{'states':>9}{'violations':>12}{'shortest':>10}  kinds\n")
    for _, found in results:
        kinds = ", ".join(f"{kind} {count}" for kind, count in found.faults.items())
        out.write(
            f"{found.protocol:<44}{found.states:>9,}{found.violations:>12,}{len(found.shortest) or '-':>10}  {kinds}\n"
        )
    as_promised = all((found.violations == 0) == protocol.is_safe for protocol, found in results)
    summary = {
        found.protocol: {
            "states": found.states, "transitions": found.transitions, "violations": found.violations,
            "faults": found.faults, "counterexample": found.shortest,
        }
        for _, found in results
    }  # fmt: skip
    out.write(f"RESULT model {orjson.dumps({'as_promised': as_promised, 'protocols': summary}).decode()}\n")
    return 0 if as_promised else 1


if __name__ == "__main__":
    raise SystemExit(main())
