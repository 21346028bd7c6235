"""What an approval counts for: how many people, each holding one of which groups.

The approval service checks the groups of each voter when they vote; here only what was asked and how many agreed is compared.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Requirement:
    """At least `count` distinct people, each holding at least one of `groups`; as a fact, that many did agree."""

    count: int
    groups: frozenset[str]

    def satisfies(self, wanted: Requirement) -> bool:
        """Return whether this approval is enough for `wanted`: all who could have voted here may vote there."""
        return self.count >= wanted.count and bool(self.groups) and self.groups <= wanted.groups

    def and_also(self, other: Requirement) -> Requirement | None:
        """Return the least requirement that satisfies both, or None when no group may vote for both."""
        shared = self.groups & other.groups
        return Requirement(max(self.count, other.count), shared) if shared else None


ApprovalFact = Requirement
"""The approval that was really given: distinct voters, and the groups that were asked."""


def strictest_first(requirements: set[Requirement]) -> list[Requirement]:
    """Return requirements in the order Remit prefers to ask: most people first, then by group names."""
    return sorted(requirements, key=lambda each: (-each.count, sorted(each.groups)))
