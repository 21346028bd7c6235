"""A seed becomes a schedule: which services die or stop, where and when, and what is proposed meanwhile. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from tests.faults.workload import MIX

GENERIC = ("a", "b", "c", "d", "e")
POINTS: dict[str, tuple[str, ...]] = {
    "intake": GENERIC,
    "policy": GENERIC,
    "approval": GENERIC,
    "tokens": GENERIC,
    "executor": (*GENERIC, "X0", "X1", "X2", "X3", "X4", "X5", "X6", "X7"),
    "audit": (*GENERIC, "P"),
}
"""Every crash point of every service (design, bus section 7); P is the projector's, in its transaction before COMMIT."""
WEIGHTS = {"executor": 5, "intake": 2, "policy": 2, "approval": 2, "tokens": 2, "audit": 3}
"""How often each service is chosen: most where an effect could be doubled, then where evidence could be lost."""
KINDS = ("point",) * 7 + ("kill",) * 2 + ("pause",)
HOW_MANY = (1,) * 14 + (2,) * 5 + (3,)
"""Services that fail in one run."""
MAX_PASS = 3
PAUSES_S = (0.2, 3.5)
"""Shorter and longer than the compressed ack_wait of 2 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: die at the `nth` pass of a point, be killed after `after_s`, or stand still from then on for `for_s`."""

    kind: Literal["point", "kill", "pause"]
    service: str
    point: str = ""
    nth: int = 1
    after_s: float = 0.0
    for_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One crash run: its faults, each of another service, and the actions proposed beside them."""

    seed: int
    faults: tuple[Fault, ...]
    actions: tuple[str, ...]
    delays_ms: tuple[int, ...]


def schedule(seed: int) -> Schedule:
    """Return the schedule of a seed; the first fault is always a crash."""
    chance = random.Random(f"crash:{seed}")  # noqa: S311  (reproducible on purpose)
    services: list[str] = []
    for _ in range(chance.choice(HOW_MANY)):
        left = [name for name in WEIGHTS if name not in services]
        services += chance.choices(left, [WEIGHTS[name] for name in left])
    faults = tuple(_fault(chance, service, is_first=number == 0) for number, service in enumerate(services))
    actions = tuple(chance.choice(MIX) for _ in range(chance.randint(2, 5)))
    return Schedule(
        seed=seed, faults=faults, actions=actions, delays_ms=tuple(chance.randrange(30) for _ in actions)
    )  # fmt: skip


def _fault(chance: random.Random, service: str, *, is_first: bool) -> Fault:
    kind = chance.choice(KINDS)
    if kind == "point" or (is_first and kind == "pause"):
        return Fault(
            kind="point", service=service, point=chance.choice(POINTS[service]), nth=chance.randint(1, MAX_PASS)
        )
    after_s = chance.uniform(0, 0.3)
    if kind == "kill":
        return Fault(kind="kill", service=service, after_s=after_s)
    return Fault(kind="pause", service=service, after_s=after_s, for_s=chance.uniform(*PAUSES_S))
