"""Who may say yes to an action, pure: the right group, not oneself, not twice, and at T4 not the agent's owner.

People are told apart conservatively: by subject within one issuer, and by e-mail address across issuers.
Source: design, section 7; dashboard section 2 (T4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.approval.answers import forbidden, stale

if TYPE_CHECKING:
    from remit.commands import Reply
    from remit.events import ActionApprovalRequested, ActionEvaluated
    from remit.identity_claims import Person


@dataclass(frozen=True, slots=True, kw_only=True)
class Ties:
    """Addresses that tie a person to an action."""

    human_email: str | None = None
    """Of the person the task is done for, as the ID token of the grant said."""
    agent_owner: str | None = None
    """As the registry names them; looked up at T4 only. None there means that the agent is not registered any more."""


def not_entitled(
    evaluated: ActionEvaluated, request: ActionApprovalRequested, person: Person, ties: Ties
) -> Reply | None:
    """Return why this person's yes does not count, and whose would; None when it does."""
    groups = ", ".join(sorted(request.data.approvers))
    if not person.has(*request.data.approvers):
        return forbidden(f"approving this needs one of the groups {groups}")
    if person.human == evaluated.data.principal.human or same_address(person.email, ties.human_email):
        return forbidden(f"nobody approves what is done for themselves; another person of {groups} must")
    return _voted(request, person, groups) or _owner(evaluated, person, ties, groups)


def _voted(request: ActionApprovalRequested, person: Person, groups: str) -> Reply | None:
    votes = request.data.votes
    if any((vote.iss, vote.sub) == (person.human.iss, person.human.sub) for vote in votes):
        return forbidden(f"you have voted already; another person of {groups} must")
    if votes and votes[0].iss != person.human.iss:
        # One person may have an account at each issuer, and nothing proves that two accounts are two people.
        return forbidden(f"the votes on one action come from one issuer; the first came from {votes[0].iss}")
    return None


def _owner(evaluated: ActionEvaluated, person: Person, ties: Ties, groups: str) -> Reply | None:
    if evaluated.data.action.risk != "T4":
        return None
    if ties.agent_owner is None:
        return stale(f"agent {evaluated.data.principal.agent.name} is not registered any more")
    if same_address(person.email, ties.agent_owner):
        return forbidden(f"at T4 the owner of the agent does not approve; another person of {groups} must")
    return None


def same_address(one: str | None, other: str | None) -> bool:
    """Return whether two addresses are known and equal, in whatever case they are spelled."""
    return one is not None and other is not None and one.strip().casefold() == other.strip().casefold()
