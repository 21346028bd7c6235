"""The permission table of the design, copied as data: the test's own source, never derived from what configures the broker.

Source: design, bus section 9 ("Exact permission lists"), row by row; braces are written out. `C` and `G` are its abbreviations.
"""

from __future__ import annotations

from dataclasses import dataclass


def C(stream: str, durable: str) -> list[str]:  # noqa: N802  (the design's own abbreviation)
    """Return the four lines of a pull consumer."""
    return [
        f"$JS.API.CONSUMER.INFO.{stream}.{durable}",
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}",
        f"$JS.ACK.{stream}.{durable}.>",
        f"$JS.ACK.*.*.{stream}.{durable}.>",
    ]


def G(*streams: str) -> list[str]:  # noqa: N802  (the design's own abbreviation)
    """Return the leader reads of streams."""
    return [f"$JS.API.STREAM.MSG.GET.{stream}" for stream in streams]


@dataclass(frozen=True, slots=True)
class Row:
    """One principal: publish.allow, subscribe.allow, allow_responses."""

    publish: list[str]
    subscribe: list[str]
    allow_responses: bool = False


def agent(name: str) -> Row:
    """Return the row of one agent (account AGENTS)."""
    return Row([f"propose.{name}", f"status.{name}.*"], [f"_IBX.{name}.>", f"results.{name}.>"])


ACTIONS, REMITS, REGISTRY = "ACTIONS", "REMITS", "KV_REGISTRY"
BEYOND_THE_DESIGN = {
    # A rebuild reads REMITS as well, and begins at sequence 1 each time; the two durables are nobody else's.
    "operator": [
        *C(REMITS, "audit_rebuild"),
        "$JS.API.CONSUMER.RESET.ACTIONS.audit_rebuild",
        "$JS.API.CONSUMER.RESET.REMITS.audit_rebuild",
    ],
}
"""What ARCHITECTURE.md adds to the design's table, each with its reason; everything else must agree to the letter."""
SERVICES: dict[str, Row] = {
    "intake": Row(
        [
            *C("INTAKE", "intake"), *C(ACTIONS, "results"), *G(ACTIONS, REGISTRY),
            "action.*.proposed", "results.*.*", "dlq.intake",
        ],
        ["_IBX.intake.>", "status.*.*"],
        allow_responses=True,
    ),
    "policy": Row(
        [*C(ACTIONS, "policy"), *G(ACTIONS, REMITS, REGISTRY), "action.*.evaluated", "dlq.policy"],
        ["_IBX.policy.>", "redrive.policy"],
    ),
    "approval": Row(
        [
            *C(ACTIONS, "approval"), *G(ACTIONS, REMITS, REGISTRY),
            "action.*.approval_requested", "action.*.approved", "action.*.refused", "action.*.revoked",
            "remit.*.granted", "remit.*.amended", "remit.*.revoked", "remit.*.exhausted",
            "$KV.REGISTRY.>", "dlq.approval",
        ],
        ["_IBX.approval.>", "human.*", "redrive.approval"],
        allow_responses=True,
    ),
    "tokens": Row(
        [
            *C(ACTIONS, "tokens"), *G(ACTIONS, REMITS, REGISTRY),
            "action.*.tokenized", "action.*.refused", "dlq.tokens",
        ],
        ["_IBX.tokens.>", "redrive.tokens"],
    ),
    "executor": Row(
        [
            *C(ACTIONS, "executor"), *G(ACTIONS, REMITS, REGISTRY),
            "action.*.started", "action.*.executed", "action.*.refused", "redrive.tokens", "dlq.executor",
        ],
        ["_IBX.executor.>", "redrive.executor"],
    ),
    "audit": Row(
        [
            *C(ACTIONS, "audit"), *C(REMITS, "audit"), *C("DLQ", "audit"), *C("ADVISORIES", "audit"),
            "$JS.API.CONSUMER.RESET.ACTIONS.audit", "$JS.API.CONSUMER.RESET.REMITS.audit",
            "$JS.API.STREAM.INFO.ACTIONS", "$JS.API.STREAM.INFO.REMITS", *G(ACTIONS, REMITS, REGISTRY),
            "action.*.audited", "redrive.*", "dlq.audit",
        ],
        ["_IBX.audit.>"],
    ),
}  # fmt: skip
CLIENTS: dict[str, Row] = {
    "dashboard": Row(
        ["human.grant", "human.approve", "human.narrow", "human.ask", "human.deny", "human.revoke"],
        ["_IBX.dashboard.>"],
    ),
    "cli": Row(["human.*"], ["_IBX.cli.>"]),
    "provisioner": Row(
        [
            "$JS.API.STREAM.CREATE.*", "$JS.API.STREAM.UPDATE.*", "$JS.API.STREAM.INFO.*",
            "$JS.API.CONSUMER.CREATE.>", "$JS.API.CONSUMER.DURABLE.CREATE.>", "$JS.API.CONSUMER.INFO.>",
        ],
        ["_IBX.provisioner.>"],
    ),
    "operator": Row(
        [
            "$JS.API.CONSUMER.PAUSE.ACTIONS.executor", "$JS.API.STREAM.LEADER.STEPDOWN.*", "$JS.API.STREAM.INFO.*",
            "$JS.API.STREAM.SNAPSHOT.*", "$JS.SNAPSHOT.ACK.>", *C(ACTIONS, "audit_rebuild"),
            *BEYOND_THE_DESIGN["operator"],
        ],
        ["_IBX.operator.>"],
    ),
}  # fmt: skip
REMIT: dict[str, Row] = {**SERVICES, **CLIENTS}
"""Everybody of account REMIT."""
TABLE: dict[str, Row] = {**REMIT, "agents/a1": agent("a1"), "agents/a2": agent("a2")}
"""Every principal of the table; agents are alike, so two of them stand for all."""

NOBODY = (
    ">", "*", "*.>", "*.*", "*.*.*", "$JS.>", "$JS.API.>", "$JS.ACK.>", "$SYS.>", "$KV.>", "$O.>", "$JS.EVENT.>",
    "_INBOX.>", "_INBOX.x1", "_IBX.>", "_IBX.*.>", "_R_.>", "_R_.x1.y1", "results.>", "action.>", "remit.>",
    "in.>", "in.propose.>", "in.propose.*", "in.propose.a1", "in.propose.a2", "in.propose.x1", "propose.>", "propose.*",
    "status.>", "redrive.>", "dlq.>", "dlq.x1", "action.x1.unheard_of", "remit.x1.unheard_of", "action.x1", "remit.x1",
    "$JS.API.INFO", "$JS.API.ACCOUNT.PURGE.REMIT", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST",
    "$JS.API.CONSUMER.NAMES.ACTIONS", "$JS.API.CONSUMER.LIST.ACTIONS", "$JS.API.META.LEADER.STEPDOWN",
    "$JS.API.SERVER.REMOVE", "$JS.API.STREAM.RESTORE.ACTIONS", "$JS.API.STREAM.PEER.REMOVE.ACTIONS",
    "$JS.API.STREAM.TEMPLATE.CREATE.x1", "$JS.FC.ACTIONS.policy.x1", "$JS.SNAPSHOT.RESTORE.x1.y1",
    "$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.REMIT.CONNZ", "$SYS.REQ.USER.INFO.x1", "$SYS.ACCOUNT.REMIT.CONNECT",
    "$SYS.REQ.CLAIMS.UPDATE", "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.ACTIONS.policy",
    "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.ACTIONS.executor", "$NRG.V.x1", "$JSC.x1", "$GR.x1",
    *(
        f"$JS.API.{verb}.{stream}"
        for stream in ("INTAKE", "ACTIONS", "REMITS", "DLQ", "ADVISORIES", "KV_REGISTRY")
        for verb in ("STREAM.DELETE", "STREAM.PURGE", "STREAM.MSG.DELETE", "DIRECT.GET", "CONSUMER.NAMES")
    ),
    *(f"$JS.API.STREAM.MSG.GET.{stream}" for stream in ("INTAKE", "DLQ", "ADVISORIES")),
    *(
        f"$JS.API.CONSUMER.{verb}.ACTIONS.{durable}"
        for durable in ("policy", "approval", "tokens", "executor", "results", "audit")
        for verb in ("DELETE", "UNPIN")
    ),
    "$JS.API.CONSUMER.DELETE.INTAKE.intake", "$JS.API.CONSUMER.DELETE.REMITS.audit",
    "$JS.API.CONSUMER.PAUSE.ACTIONS.policy", "$JS.API.CONSUMER.PAUSE.INTAKE.intake",
    "$JS.API.CONSUMER.RESET.ACTIONS.executor", "$JS.API.CONSUMER.RESET.ACTIONS.tokens",
    "$JS.API.CONSUMER.MSG.NEXT.ACTIONS.x1", "$JS.API.DIRECT.GET.ACTIONS.action.x1.approved",
)  # fmt: skip
"""What no row of the table grants, although some of it looks close to what is granted."""
