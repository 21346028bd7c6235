"""Which role may give which command, pure; roles come from the verified ID token and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.approval.answers import forbidden

if TYPE_CHECKING:
    from remit.commands import Reply, RevokeCommand
    from remit.identity_claims import Person
    from remit.remits import Human

DELEGATOR = "delegator"
OPERATOR = "operator"
ADMIN = "admin"


def needs(person: Person, *roles: str) -> Reply | None:
    """Return the answer to a person who holds none of the roles, or None."""
    return None if person.has(*roles) else forbidden(f"this needs the role {' or '.join(roles)}")


def human_target(human: Human) -> str:
    """Return how stop rows name a human."""
    return f"{human.iss}|{human.sub}"


def revocation_refusal(command: RevokeCommand, person: Person, owner: Human | None) -> Reply | None:
    """Return why a person may not revoke or lift this, or None; `owner` is the human of the action or remit.

    A human may always take back what is theirs; everything else, and every lift, is the operator's.
    """
    if person.has(OPERATOR):
        return None
    if command.lift:
        return forbidden(f"lifting a switch needs the role {OPERATOR}")
    own = owner == person.human or (command.kind == "human" and command.target == human_target(person.human))
    if own:
        return None
    return forbidden(f"revoking this needs the role {OPERATOR}, or to be the person it belongs to")
