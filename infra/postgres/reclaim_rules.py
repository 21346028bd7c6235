"""What rows of schema `control` an action's or remit's verified events imply. Pure.

A claim that was announced and has no outcome in the ledger may have had its effect: it becomes a claim that nobody may repeat,
which the executor ends as `unknown`, for a person to settle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias

ONCE_DENIED = "denied"
BLOCK_FOR = timedelta(days=1)
"""How long a denial blocks the like of its action, as approval does by default (`approval.settings`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event whose verification the projector has recorded as valid."""

    type: str
    seq: int
    at: datetime
    data: dict[str, Any]
    deadline: datetime | None = None


Chain: TypeAlias = Sequence[Event]
"""All valid events of one action or remit, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A row of `control.execution`; without an outcome it is in flight, past its deadline, and never to be repeated."""

    action_id: str
    jti: str
    remit_id: str
    grant_no: int | None
    attempt: int
    args_digest: str
    claim_id: str | None
    executor: str
    state: str
    reason: str | None
    claimed_at: datetime
    finished_at: datetime | None
    request: dict[str, Any]
    draft: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A row of `control.pending`."""

    action_id: str
    remit_id: str
    expires_at: datetime
    approvers: list[str]
    quorum: int
    round: int
    requested_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A row of `control.block`."""

    remit_id: str
    session: str
    block_class: str
    reason: str
    by: tuple[str, str]
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Remit:
    """What a remit's events say; `revoked` is (reason, issuer, subject) of who took it back."""

    remit_id: str
    document: dict[str, Any]
    digest: str
    granted_seq: int
    ended: str | None
    ended_at: datetime | None
    revoked: tuple[str, str, str] | None

    @property
    def budgets(self) -> list[tuple[int, int]]:
        """Return (grant number, calls); 0 is the remit's own."""
        most: int = self.document["max_calls"]
        grants = enumerate(self.document["grants"], 1)
        return [(0, most), *((number, grant.get("max_calls") or most) for number, grant in grants)]

    @property
    def stops(self) -> list[tuple[str, str]]:
        """Return the switches that a claim under this remit must find."""
        human = self.document["human"]
        return [
            ("human", f"{human['iss']}|{human['sub']}"),
            ("agent", self.document["agent_id"]),
            ("remit", self.remit_id),
        ]


def _last(chain: Chain, *kinds: str) -> Event | None:
    return next((event for event in reversed(chain) if event.type in kinds), None)


def execution(action_id: str, chain: Chain) -> Execution | None:
    """Return the claim that an action's events imply; None when nothing was announced."""
    started, evaluated = _last(chain, "started"), _last(chain, "evaluated")
    if started is None or evaluated is None:
        return None
    said, end = started.data, _last(chain, "executed", "refused", "revoked")
    state, reason, claim_id = "in_flight", None, said["claim_id"]
    if end is not None and end.type == "executed":
        state, claim_id = end.data["outcome"], end.data["claim_id"]
    elif end is not None:
        state, reason = "refused", end.data.get("reason", "revoked")
        claim_id = claim_id if end.type == "refused" else None
    human, agent = said["principal"]["human"], said["principal"]["agent"]
    request = {
        "human": f"{human['iss']}|{human['sub']}",
        "agent": agent["id"],
        "tool": said["action"]["name"],
        "reclaimed": True,
        # Nobody may make the call again under this claim, however harmless its tool calls that.
        "repeated": True,
    }
    draft = {"data": end.data} if end is not None and end.type == "executed" else None
    return Execution(
        action_id=action_id, jti=said["jti"], remit_id=said["remit_id"], grant_no=evaluated.data.get("grant_no"),
        attempt=said["attempt"], args_digest=said["action"]["args_digest"], claim_id=claim_id,
        executor=said["executor"], state=state, reason=reason, claimed_at=started.at,
        finished_at=None if end is None else end.at, request=request, draft=draft,
    )  # fmt: skip


def pending(action_id: str, chain: Chain) -> Pending | None:
    """Return what people still have to decide; None when nothing is asked."""
    last = chain[-1]
    if last.type != "approval_requested" or last.deadline is None:
        return None
    said = last.data
    return Pending(
        action_id=action_id, remit_id=said["remit_id"], expires_at=last.deadline, approvers=said["approvers"],
        quorum=said["quorum"], round=said["round"], requested_seq=last.seq,
    )  # fmt: skip


def block(chain: Chain) -> Block | None:
    """Return what a person's denial forbids; None when nobody denied anything."""
    refused = _last(chain, "refused")
    if refused is None or refused.data.get("reason") != ONCE_DENIED or refused.data.get("by") is None:
        return None
    said, by = refused.data, refused.data["by"]
    return Block(
        remit_id=said["remit_id"], session=said["principal"]["agent"]["session"],
        block_class=f"{said['action']['name']}|{said['action'].get('resource_id') or ''}",
        reason=said.get("detail") or "denied before", by=(by["iss"], by["sub"]),
        created_at=refused.at, expires_at=refused.at + BLOCK_FOR,
    )  # fmt: skip


def remit(remit_id: str, chain: Chain) -> Remit | None:
    """Return a remit as its events leave it; None when it was never granted."""
    granted, newest = _last(chain, "granted"), _last(chain, "granted", "amended")
    if granted is None or newest is None:
        return None
    revoked, exhausted = _last(chain, "revoked"), _last(chain, "exhausted")
    end = revoked or exhausted
    by = revoked.data["by"] if revoked else None
    return Remit(
        remit_id=remit_id, document=newest.data["remit"], digest=newest.data["remit_digest"], granted_seq=granted.seq,
        ended=end.type if end else None, ended_at=end.at if end else None,
        revoked=(revoked.data["cause"], by["iss"], by["sub"]) if revoked and by else None,
    )  # fmt: skip
