"""Who may publish and subscribe what, as data: the exact lists of the design, one row per principal.

What is not listed is refused by the broker. Source: design, bus section 9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from remit.ids import AGENT_NAME

RESPONSE_EXPIRY_S = 30
"""How long a responder may answer a request; one answer each, so no service pushes into an inbox unasked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """One principal's account and its two allow lists."""

    account: Literal["REMIT", "AGENTS"]
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    allow_responses: bool = False


def consume(stream: str, durable: str) -> tuple[str, ...]:
    """Return C(S,d): look at, fetch from and acknowledge one pull consumer, and no other.

    The last line is ack v2 (domain and account hash before the stream): with the server's feature flag `js_ack_fc_v2` the
    third alone fails.
    """
    return (
        f"$JS.API.CONSUMER.INFO.{stream}.{durable}",
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}",
        f"$JS.ACK.{stream}.{durable}.>",
        f"$JS.ACK.*.*.{stream}.{durable}.>",
    )


def leader_read(stream: str) -> str:
    """Return G(S): read any message of one stream, answered by its leader."""
    return f"$JS.API.STREAM.MSG.GET.{stream}"


def inbox(name: str) -> str:
    """Return the only reply space a principal may listen on."""
    return f"_IBX.{name}.>"


_READS = (leader_read("ACTIONS"), leader_read("REMITS"), leader_read("KV_REGISTRY"))

INTAKE = Permissions(
    account="REMIT",
    publish=(
        *consume("INTAKE", "intake"),
        *consume("ACTIONS", "results"),
        leader_read("ACTIONS"),
        leader_read("KV_REGISTRY"),
        "action.*.proposed",
        "results.*.*",
        "dlq.intake",
    ),
    subscribe=(inbox("intake"), "status.*.*"),
    allow_responses=True,
)
POLICY = Permissions(
    account="REMIT",
    publish=(*consume("ACTIONS", "policy"), *_READS, "action.*.evaluated", "dlq.policy"),
    subscribe=(inbox("policy"), "redrive.policy"),
)
APPROVAL = Permissions(
    account="REMIT",
    publish=(
        *consume("ACTIONS", "approval"),
        *_READS,
        "action.*.approval_requested",
        "action.*.approved",
        "action.*.refused",
        "action.*.revoked",
        "remit.*.granted",
        "remit.*.amended",
        "remit.*.revoked",
        "remit.*.exhausted",
        "$KV.REGISTRY.>",
        "dlq.approval",
    ),
    subscribe=(inbox("approval"), "human.*", "redrive.approval"),
    allow_responses=True,
)
TOKENS = Permissions(
    account="REMIT",
    publish=(*consume("ACTIONS", "tokens"), *_READS, "action.*.tokenized", "action.*.refused", "dlq.tokens"),
    subscribe=(inbox("tokens"), "redrive.tokens"),
)
EXECUTOR = Permissions(
    account="REMIT",
    publish=(
        *consume("ACTIONS", "executor"),
        *_READS,
        "action.*.started",
        "action.*.executed",
        "action.*.refused",
        "redrive.tokens",
        "dlq.executor",
    ),
    subscribe=(inbox("executor"), "redrive.executor"),
)
AUDIT = Permissions(
    account="REMIT",
    publish=(
        *consume("ACTIONS", "audit"),
        *consume("REMITS", "audit"),
        *consume("DLQ", "audit"),
        *consume("ADVISORIES", "audit"),
        "$JS.API.CONSUMER.RESET.ACTIONS.audit",
        "$JS.API.CONSUMER.RESET.REMITS.audit",
        "$JS.API.STREAM.INFO.ACTIONS",
        "$JS.API.STREAM.INFO.REMITS",
        *_READS,
        "action.*.audited",
        "redrive.*",
        "dlq.audit",
    ),
    subscribe=(inbox("audit"),),
)
DASHBOARD = Permissions(
    account="REMIT",
    publish=("human.grant", "human.approve", "human.narrow", "human.ask", "human.deny", "human.revoke"),
    subscribe=(inbox("dashboard"),),
)
CLI = Permissions(account="REMIT", publish=("human.*",), subscribe=(inbox("cli"),))
PROVISIONER = Permissions(
    account="REMIT",
    publish=(
        "$JS.API.STREAM.CREATE.*",
        "$JS.API.STREAM.UPDATE.*",
        "$JS.API.STREAM.INFO.*",
        "$JS.API.CONSUMER.CREATE.>",
        "$JS.API.CONSUMER.DURABLE.CREATE.>",
        "$JS.API.CONSUMER.INFO.>",
    ),
    subscribe=(inbox("provisioner"),),
)
OPERATOR = Permissions(
    account="REMIT",
    publish=(
        "$JS.API.CONSUMER.PAUSE.ACTIONS.executor",
        "$JS.API.STREAM.LEADER.STEPDOWN.*",
        "$JS.API.STREAM.INFO.*",
        "$JS.API.STREAM.SNAPSHOT.*",
        "$JS.SNAPSHOT.ACK.>",
        *consume("ACTIONS", "audit_rebuild"),
        *consume("REMITS", "audit_rebuild"),
        # A rebuild that is repeated begins at sequence 1 again; these two durables are nobody else's.
        "$JS.API.CONSUMER.RESET.ACTIONS.audit_rebuild",
        "$JS.API.CONSUMER.RESET.REMITS.audit_rebuild",
    ),
    subscribe=(inbox("operator"),),
)
PRINCIPALS: dict[str, Permissions] = {
    "intake": INTAKE,
    "policy": POLICY,
    "approval": APPROVAL,
    "tokens": TOKENS,
    "executor": EXECUTOR,
    "audit": AUDIT,
    "dashboard": DASHBOARD,
    "cli": CLI,
    "provisioner": PROVISIONER,
    "operator": OPERATOR,
}
"""Everybody who logs in to REMIT. The break-glass user of SYS is not here: it has its own account and no limits."""
RESTORER = Permissions(
    account="REMIT",
    publish=("$JS.API.STREAM.RESTORE.*", "$JS.SNAPSHOT.RESTORE.>", "$JS.API.STREAM.INFO.*"),
    subscribe=(inbox("restorer"),),
)
BREAK_GLASS: dict[str, Permissions] = {"restorer": RESTORER}
"""Logins that exist only while their key lies in the key directory: whoever writes whole streams is nobody in daily life."""
SYSTEM_USER = "sys"
"""Principal of the SYS account; its key stays with the person who runs the broker."""


def agent(name: str) -> Permissions:
    """Return what one agent may do: propose and ask about its own actions, hear its own results.

    Raises:
        ValueError: the name is not one plain subject token; a dot or a wildcard in it would widen every list.

    """
    if not AGENT_NAME.fullmatch(name):
        raise ValueError(f"agent name {name!r} does not match {AGENT_NAME.pattern}; choose another name")
    return Permissions(
        account="AGENTS",
        publish=(f"propose.{name}", f"status.{name}.*"),
        subscribe=(inbox(name), f"results.{name}.>"),
    )
