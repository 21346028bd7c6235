"""Approval's answers in the words of the screen: what happened, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dashboard.model import words

if TYPE_CHECKING:
    from remit.commands import Reply

Tone = Literal["good", "neutral", "bad"]

_TITLES: dict[str, tuple[str, Tone]] = {
    "ok": ("Done", "good"),
    "decided": ("Already decided", "neutral"),
    "stale": ("Something changed since this was shown: review it again", "neutral"),
    "forbidden": ("Not allowed for you", "bad"),
    "too_early": ("Too early: read the card first", "neutral"),
    "invalid": ("Not accepted", "bad"),
    "login_needed": ("Your sign-in is too old: sign in again", "bad"),
    "unavailable": ("No answer", "bad"),
    "revoke_too_late": ("Too late: the call was already made", "bad"),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply for people: our title, approval's detail (foreign text), and how it went."""

    title: str
    detail: str
    tone: Tone


def answer(reply: Reply) -> Answer:
    """Return the reply in words; a status this version does not know is a failure."""
    title, tone = _TITLES.get(reply.status, ("Not understood", "bad"))
    if reply.status == "ok" and reply.votes is not None and reply.quorum is not None and reply.votes < reply.quorum:
        title = f"Vote {reply.votes} of {reply.quorum} counted: another person must approve too"
    if reply.status == "decided" and reply.decision:
        by = f" by {words.short_human(reply.decided_by.sub)}" if reply.decided_by else ""
        return Answer(title, f"{words.reason(reply.decision)}{by}. {reply.detail}".strip(), tone)
    return Answer(title, reply.detail, tone)
