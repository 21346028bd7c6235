"""Rows with one thing to change, a read model in memory, and a sender that answers what it is told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from dashboard import process
from dashboard.model.rows import (
    ActionRow,
    AgentRow,
    Cursor,
    EventRow,
    FoundRow,
    GrantRow,
    History,
    LatencyRow,
    QueueItem,
    RegisteredAction,
    RemitRow,
    SwitchRow,
    TodayRow,
    ToolInfo,
    ToolRow,
    VerdictCount,
)
from dashboard.model.viewer import Viewer
from remit.canonical import digest
from remit.clock import now
from remit.commands import Command, Reply

if TYPE_CHECKING:
    from dashboard.model.search import Query
    from dashboard.queries import Queries

ISSUER = "http://localhost:9000"
AGENT = "spiffe://acme.example/agent/bookkeeper"
REMIT = "rem_" + "a" * 32
EMMA, DANA = f"{ISSUER}|emma", f"{ISSUER}|dana"


def at(seconds: int = 0) -> datetime:
    """Return a moment so many seconds from the real now, which pages read themselves."""
    return now() + timedelta(seconds=seconds)


WAITING: dict[str, Any] = {
    "round": 1,
    "remit_id": REMIT,
    "name": "bank.send_money",
    "risk": "T3",
    "effect": "write",
    "environment": "demo",
    "resource_id": "DE89370400440532013000",
    "agent_id": AGENT,
    "agent_version": "model-x 4",
    "session": "s1",
    "human": EMMA,
    "shown_digest": digest("shown"),
    "rationale": "Paying the December bill as requested.",
    "verdict": "ask",
    "reason": "approval_required",
    "detail": None,
    "rule_ids": ("payments-need-a-person",),
    "policy_version": digest("policy"),
    "bundle_version": 3,
    "unnamed_sinks": ("recipient",),
    "approval_status": "requested",
    "approvers": ("payments",),
    "quorum": 1,
    "votes": (),
    "approver": None,
    "decided_at": None,
    "narrowed": False,
    "grant_no": 2,
    "jti": None,
    "tokenized_at": None,
    "token_expires_at": None,
    "executor": None,
    "executed_at": None,
    "executed_digest": None,
    "effect_ok": None,
    "outcome": None,
    "match": None,
    "result_digest": None,
    "result_status": None,
    "redacted_paths": (),
    "scopes": ((), (), ()),
    "terminal": None,
    "refused_reason": None,
    "flags": (),
}
"""Fields of an ask for the group `payments` that do not depend on time or number."""


def an_action(number: int = 1, **changes: Any) -> ActionRow:
    """Return an action that waits for the group `payments`."""
    args = changes.pop("args", {"recipient": "DE89370400440532013000", "amount": 98.7})
    own: dict[str, Any] = {
        "action_id": f"{number:032x}",
        "args": args,
        "args_digest": digest(args),
        "proposed_at": at(-30),
        "evaluated_at": at(-29),
        "expires_at": at(600),
        "last_event_at": at(-29),
    }
    return ActionRow(**{**WAITING, **own, **changes})


def a_done_action(number: int = 9, **changes: Any) -> ActionRow:
    """Return an action that ran and matched."""
    row = an_action(number)
    done: dict[str, Any] = {
        "approval_status": "approved",
        "approver": DANA,
        "decided_at": at(-20),
        "jti": "tok_" + "b" * 32,
        "tokenized_at": at(-19),
        "token_expires_at": at(41),
        "executor": "executor-1",
        "executed_at": at(-18),
        "executed_digest": row.args_digest,
        "effect_ok": True,
        "outcome": "succeeded",
        "match": "match",
        "result_digest": digest("result"),
        "result_status": "succeeded",
        "terminal": "executed",
        "last_event_at": at(-18),
    }
    return replace(row, **{**done, **changes})


def a_viewer(**changes: Any) -> Viewer:
    """Return Dana of the payments group."""
    base: dict[str, Any] = {
        "iss": ISSUER,
        "sub": "dana",
        "name": "Dana",
        "roles": frozenset({"payments"}),
        "expires_at": at(600),
    }
    return Viewer(**{**base, **changes})


def a_user(sub: str = "dana", roles: tuple[str, ...] = ("payments",), *, lives_s: int = 600) -> dict[str, Any]:
    """Return the claims that Streamlit keeps of a signed-in person."""
    return {
        "is_logged_in": True,
        "iss": ISSUER,
        "sub": sub,
        "name": sub.capitalize(),
        "roles": list(roles),
        "exp": int(at(lives_s).timestamp()),
        "tokens": {"id": "header.claims.signature"},
    }


def a_remit(**changes: Any) -> RemitRow:
    """Return Emma's active remit."""
    row = RemitRow(
        remit_id=REMIT,
        task="Pay the bill in bill-december-2023.txt",
        human=EMMA,
        agent_id=AGENT,
        granted_at=at(-600),
        expires_at=at(3600),
        max_calls=5,
        calls=1,
        grants=2,
        unused=1,
        ended_at=None,
        ended_reason=None,
    )
    return replace(row, **changes)


NO_HISTORY = History(approved=0, denied=0, last_denied_at=None, previous_args=None, previous_at=None, waiting_alike=0)


@dataclass
class MemoryQueries:
    """The reads of the pages, out of plain lists."""

    rows: list[ActionRow] = field(default_factory=list[ActionRow])
    remit_rows: list[RemitRow] = field(default_factory=lambda: [a_remit()])
    switch_rows: list[SwitchRow] = field(default_factory=list[SwitchRow])
    past: History = NO_HISTORY
    summary: str | None = None
    age_s: int = 0

    def cursor(self) -> Cursor:
        return Cursor(version="1:7", touched_at=at(-self.age_s), position=7)

    def queue(self, person: Viewer | None) -> list[QueueItem]:
        return [
            QueueItem(
                action_id=row.action_id,
                round=row.round or 1,
                name=row.name,
                risk=row.risk,
                agent_id=row.agent_id,
                human=row.human,
                expires_at=row.expires_at or datetime.max.replace(tzinfo=UTC),
            )
            for row in self.rows
            if row.approval_status == "requested"
            and (person is None or person.key == row.human or person.is_in(row.approvers))
        ]

    def action(self, action_id: str) -> ActionRow | None:
        return next((row for row in self.rows if row.action_id == action_id), None)

    def registry(self) -> list[RegisteredAction]:
        return [
            RegisteredAction(
                name="bank.send_money",
                risk="T3",
                effect="write",
                reversibility="irreversible",
                environment="demo",
                sinks=("recipient",),
            )
        ]

    def remit(self, remit_id: str) -> RemitRow | None:
        return next((row for row in self.remit_rows if row.remit_id == remit_id), None)

    def remits(self, human: str | None) -> list[RemitRow]:
        return [row for row in self.remit_rows if human in {None, row.human}]

    def grants(self, remit_id: str) -> list[GrantRow]:
        del remit_id
        return [GrantRow(grant_no=1, name="bank.send_money", arguments={"properties": {}}, max_calls=1, used=0)]

    def history(self, row: ActionRow) -> History:
        del row
        return self.past

    def tool(self, name: str) -> ToolInfo | None:
        del name
        return ToolInfo(summary=self.summary, reversibility="irreversible", owner="payments")

    def today(self, start: datetime, stop: datetime) -> TodayRow:
        del start, stop
        return TodayRow(
            n=len(self.rows),
            agents=1,
            humans=1,
            by_rule=0,
            asked=len(self.rows),
            blocked=0,
            matched=1,
            differs=0,
            unknown=0,
            wait_p50_ms=42_000,
        )

    def verdicts(self, start: datetime, stop: datetime, bucket: timedelta) -> list[VerdictCount]:
        del stop, bucket
        return [VerdictCount(at=start, verdict="ask", n=2)]

    def latency(self, start: datetime, stop: datetime) -> list[LatencyRow]:
        del start, stop
        return [LatencyRow(stage="policy", n=2, p50=3, p95=9)]

    def top_tools(self, start: datetime, stop: datetime) -> list[ToolRow]:
        del start, stop
        return [ToolRow(name="bank.send_money", agent_id=AGENT, n=2, before=0, not_ok=0.5)]

    def search(self, query: Query) -> list[FoundRow]:
        return [
            FoundRow(
                action_id=row.action_id,
                remit_id=row.remit_id,
                name=row.name,
                agent_id=row.agent_id,
                human=row.human,
                verdict=row.verdict,
                result_status=row.result_status,
                match=row.match,
                args_digest=row.args_digest,
                proposed_at=row.proposed_at,
            )
            for row in self.rows
            if query.text in f"{row.action_id} {row.name} {row.agent_id} {row.human}"
        ]

    def events(self, action_id: str) -> list[EventRow]:
        del action_id
        return [
            EventRow(
                seq=1,
                at=at(-30),
                type="proposed",
                signed_by="intake-1",
                actor=None,
                digest="ab" * 32,
                verify_status="valid",
            ),
            EventRow(
                seq=2,
                at=at(-29),
                type="evaluated",
                signed_by="policy-1",
                actor=None,
                digest="cd" * 32,
                verify_status="valid",
            ),
        ]

    def switches(self) -> list[SwitchRow]:
        return self.switch_rows

    def agents(self) -> list[AgentRow]:
        return [AgentRow(agent_id=AGENT, model="model-x 4", open_remits=1, last_seen=at(-3), is_stopped=False)]


@dataclass
class ScriptedSender:
    """Keeps every command and answers each with the same reply."""

    reply: Reply = field(default_factory=lambda: Reply(status="ok"))
    sent: list[Command] = field(default_factory=list[Command])

    def send(self, command: Command) -> Reply:
        self.sent.append(command)
        return self.reply


def install(queries: MemoryQueries, sender: ScriptedSender | None = None) -> ScriptedSender:
    """Make these what the pages of this process see."""
    found = sender or ScriptedSender()
    process.install(
        process.Backend(
            queries=cast("Queries", queries),
            sender=found,
            live_version=lambda: "1:7",
            issuer=ISSUER,
            roles_claim="roles",
            environment="demo",
        )
    )
    return found
