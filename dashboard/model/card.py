"""The approval card, as decisions: which state it is in, what may be pressed, what changed, what it says in one sentence.

Source: design, dashboard section 2 (fields 0-9, states).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, cast

from remit.canonical import canonical, digest
from remit.errors import CanonicalError

if TYPE_CHECKING:
    from datetime import datetime

    from dashboard.model.rows import ActionRow
    from dashboard.model.viewer import Viewer

MAX_CHANGES = 4
MAX_INLINE_ARGS = 8_192
"""Above this Approve stays disabled until all of it was opened (design, dashboard section 2)."""
REDACTED = re.compile(r"redacted(?: \(\d+ chars\))?")
"""What the projector writes in place of a secret."""
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
PLAIN = re.compile(r"^(?:[A-Za-z0-9 ,;:()'\-]|\.(?=\s|$))*$")
"""What a registry template may say around its values: nothing that markdown could turn into something else."""


class CardState(StrEnum):
    """What the card is about now; each has its own words and its own buttons."""

    WAITING = "waiting"
    VOTED = "voted"
    NOT_YOURS = "not_yours"
    OWN_TASK = "own_task"
    UNINSPECTABLE = "uninspectable"
    EXPIRED = "expired"
    DENIED = "denied"
    WITHDRAWN = "withdrawn"
    APPROVED = "approved"
    EXECUTING = "executing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"
    REFUSED = "refused"
    NOT_ASKED = "not_asked"


WAITING_STATES = frozenset(
    {CardState.WAITING, CardState.VOTED, CardState.NOT_YOURS, CardState.OWN_TASK, CardState.UNINSPECTABLE}
)
_OUTCOMES = {"succeeded": CardState.SUCCEEDED, "failed": CardState.FAILED, "unknown": CardState.UNKNOWN}
_ENDS = {"expired": CardState.EXPIRED, "denied": CardState.DENIED, "withdrawn": CardState.WITHDRAWN}


def state_of(row: ActionRow, viewer: Viewer, now: datetime) -> CardState:
    """Return the state of one action's card for one person at `now`."""
    if row.outcome in _OUTCOMES:
        return _OUTCOMES[row.outcome]
    if row.approval_status in _ENDS:
        return _ENDS[row.approval_status]
    if row.has_ended:
        return CardState.REFUSED
    if row.approval_status == "requested":
        return _waiting(row, viewer, now)
    if row.approval_status == "approved":
        return CardState.EXECUTING if row.tokenized_at else CardState.APPROVED
    return CardState.NOT_ASKED


def _waiting(row: ActionRow, viewer: Viewer, now: datetime) -> CardState:
    # The deadline counts, not the event that records it: the sweeper may be late, the service refuses at once.
    if row.expires_at is not None and row.expires_at <= now:
        return CardState.EXPIRED
    if row.human == viewer.key:
        return CardState.OWN_TASK
    if any(vote.human == viewer.key for vote in row.votes):
        return CardState.VOTED
    if not viewer.is_in(row.approvers):
        return CardState.NOT_YOURS
    return CardState.UNINSPECTABLE if exact_call(row).fidelity == "altered" else CardState.WAITING


def may_approve(state: CardState) -> bool:
    """Return whether Approve is worth pressing; approval itself decides."""
    return state is CardState.WAITING


def may_deny(state: CardState, row: ActionRow, viewer: Viewer) -> bool:
    """Return whether Deny is worth pressing: the approvers, and the person the task is done for."""
    if state is CardState.OWN_TASK:
        return True
    return state in WAITING_STATES and viewer.is_in(row.approvers)


Fidelity = Literal["whole", "redacted", "altered"]


@dataclass(frozen=True, slots=True)
class ExactCall:
    """Field 9: the canonical bytes as text, and how they relate to the digest that approval is asked for.

    `whole` hashes to it; `redacted` cannot, because secrets were taken out of the copy; `altered` should and does not.
    """

    text: str
    fidelity: Fidelity

    @property
    def is_long(self) -> bool:
        """Whether it is more than fits on the card at once."""
        return len(self.text) > MAX_INLINE_ARGS


def exact_call(row: ActionRow) -> ExactCall:
    """Return the arguments as canonical JSON, checked against the digest that travels with the action."""
    try:
        text, found = canonical(row.args).decode(), digest(row.args)
    except CanonicalError:
        return ExactCall(text="", fidelity="altered")
    if found == row.args_digest:
        return ExactCall(text=text, fidelity="whole")
    return ExactCall(text=text, fidelity="redacted" if REDACTED.search(text) else "altered")


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a sentence: our own words, or a value that must be shown as a code span."""

    text: str
    is_value: bool = False


def sentence(row: ActionRow, template: str | None) -> tuple[Part, ...]:
    """Return field 1: the registry's template with its values, or the plain call when there is none that is safe."""
    args = cast("dict[str, Any]", row.args) if isinstance(row.args, dict) else {}
    if template is not None:
        pieces = PLACEHOLDER.split(template)
        words, names = pieces[::2], pieces[1::2]
        if all(PLAIN.match(word) for word in words) and all(name in args for name in names):
            return tuple(_interleave(words, [args[name] for name in names]))
    call = (Part("Call "), Part(row.name, is_value=True))
    return call if row.resource_id is None else (*call, Part(" on "), Part(row.resource_id, is_value=True))


def _interleave(words: list[str], values: list[Any]) -> list[Part]:
    parts = [Part(words[0])] if words[0] else []
    for value, word in zip(values, words[1:], strict=True):
        parts.append(Part(value if isinstance(value, str) else canonical(value).decode(), is_value=True))
        if word:
            parts.append(Part(word))
    return parts


@dataclass(frozen=True, slots=True)
class Change:
    """One argument against the last approved call; `old` is None when it was not there."""

    path: str
    old: str | None
    new: str | None


def changes(previous: object, current: object) -> tuple[Change, ...]:
    """Return what differs, leaf by leaf and as canonical JSON (a list is one leaf), at most `MAX_CHANGES`."""
    old, new = _flat(previous), _flat(current)
    differing = [path for path in {**old, **new} if old.get(path) != new.get(path)]
    return tuple(Change(path, old.get(path), new.get(path)) for path in differing[:MAX_CHANGES])


def _flat(value: object, path: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        found: dict[str, str] = {}
        for key, item in cast("dict[str, object]", value).items():
            found.update(_flat(item, f"{path}.{key}" if path else key))
        return found
    try:
        return {path: canonical(value).decode()}
    except CanonicalError:
        return {path: "(no canonical form)"}
