"""One action's chain of custody: the eight boxes from human to result, and the four checks that tie them together.

What is not recorded is "not checked", never a tick. Source: design, dashboard section 3.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dashboard.model import words

if TYPE_CHECKING:
    from datetime import datetime

    from dashboard.model.rows import ActionRow, RemitRow

BoxState = Literal["done", "open", "missing", "bad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One station; `value` is foreign text, `note` is ours."""

    title: str
    value: str
    note: str
    at: datetime | None
    state: BoxState


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison; `ok` is None when it could not be made."""

    question: str
    ok: bool | None
    found: str

    @property
    def answer(self) -> str:
        """The check in a word."""
        return "not checked" if self.ok is None else "yes" if self.ok else "NO"


def boxes(row: ActionRow, remit: RemitRow | None) -> tuple[Box, ...]:
    """Return the eight stations in order."""
    after = (_proposed(row), _policy(row), _approved(row), _token(row), _executed(row), _result(row))
    return (_human(row, remit), _agent(row), *after)


def _human(row: ActionRow, remit: RemitRow | None) -> Box:
    return Box(
        title="Human",
        value=words.short_human(row.human),
        note="delegated this task" if remit else "no remit recorded",
        at=remit.granted_at if remit else None,
        state="done" if remit else "missing",
    )


def _agent(row: ActionRow) -> Box:
    return Box(
        title="Agent",
        value=words.short_agent(row.agent_id),
        note=row.agent_version or "",
        at=None,
        state="done",
    )


def _proposed(row: ActionRow) -> Box:
    return Box(
        title="Proposed",
        value=words.short_digest(row.args_digest),
        note=f"risk {row.risk}",
        at=row.proposed_at,
        state="done",
    )


def _policy(row: ActionRow) -> Box:
    if row.verdict is None:
        return Box(title="Policy", value="—", note="not evaluated yet", at=None, state="open")
    return Box(
        title="Policy",
        value=words.VERDICTS.get(row.verdict, row.verdict),
        note=", ".join(row.rule_ids) or words.reason(row.reason),
        at=row.evaluated_at,
        state="bad" if row.verdict == "deny" else "done",
    )


def _approved(row: ActionRow) -> Box:
    if row.verdict == "allow":
        return Box(title="Approved", value="by rule", note="nobody was asked", at=row.decided_at, state="done")
    if row.approval_status is None:
        return Box(title="Approved", value="—", note="nobody was asked", at=None, state=_ended(row))
    state: BoxState = {"approved": "done", "requested": "open"}.get(row.approval_status, "bad")  # type: ignore[assignment]  # a mapping of literals loses them
    who = ", ".join(words.short_human(vote.human) for vote in row.votes) or words.short_human(row.approver)
    note = "waiting" if row.approval_status == "requested" else row.approval_status
    return Box(
        title="Approved", value=who if row.approver or row.votes else "—", note=note, at=row.decided_at, state=state
    )


def _token(row: ActionRow) -> Box:
    if row.jti is None:
        return Box(title="Token", value="—", note="none was minted", at=None, state=_ended(row))
    return Box(title="Token", value=row.jti[:12], note="one call, single use", at=row.tokenized_at, state="done")


def _executed(row: ActionRow) -> Box:
    if row.executed_at is None:
        return Box(title="Executed", value="—", note="no call was made", at=None, state=_ended(row))
    same = row.executed_digest == row.args_digest
    return Box(
        title="Executed",
        value=words.short_digest(row.executed_digest),
        note=f"by {row.executor}" if row.executor else "",
        at=row.executed_at,
        state="done" if same else "bad",
    )


def _result(row: ActionRow) -> Box:
    if row.outcome is None:
        if not row.has_ended:
            return Box(title="Result", value="—", note="no outcome yet", at=None, state="open")
        note = words.reason(row.refused_reason or row.reason)
        return Box(title="Result", value=row.result_status or "ended", note=note, at=row.last_event_at, state="bad")
    note = {"match": "matches", "differs": "DIFFERS"}.get(row.match or "", "match not checked")
    good = row.outcome == "succeeded" and row.match != "differs"
    return Box(title="Result", value=row.outcome, note=note, at=row.executed_at, state="done" if good else "bad")


def _ended(row: ActionRow) -> BoxState:
    return "missing" if row.has_ended else "open"


def checks(row: ActionRow) -> tuple[Check, ...]:
    """Return the four comparisons that make up the match."""
    ran = row.executed_at is not None
    return (
        Check(
            question="Executed digest = approved digest",
            ok=row.executed_digest == row.args_digest if row.executed_digest else None,
            found=f"{words.short_digest(row.executed_digest)} / {words.short_digest(row.args_digest)}",
        ),
        Check(
            question="Covered by a grant",
            ok=row.grant_no is not None if ran else None,
            found=f"grant {row.grant_no}" if row.grant_no is not None else "no grant recorded",
        ),
        Check(
            question="Inside the token's lifetime",
            ok=row.executed_at <= row.token_expires_at if row.executed_at and row.token_expires_at else None,
            found=f"token until {words.clock(row.token_expires_at)}",
        ),
        Check(
            question="Effect within declared bounds",
            ok=row.effect_ok,
            found="as the executor compared it" if row.effect_ok is not None else "no bounds declared",
        ),
    )
