"""The pipeline as data: who consumes what, who publishes what, by which durable consumer. THE picture.

    agent -propose-> intake -proposed-> policy -evaluated-> approval -approved-> tokens -tokenized-> executor -executed-> audit

A test compares this table with the real subscriptions of every service and with the generated AsyncAPI document.
"""

from __future__ import annotations

from dataclasses import dataclass

from remit.events import (
    ACTION_EVENTS,
    REMIT_EVENTS,
    ActionApprovalRequested,
    ActionApproved,
    ActionEvaluated,
    ActionExecuted,
    ActionProposed,
    ActionRefused,
    ActionRevoked,
    ActionTokenized,
    Event,
    subject_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumption:
    """One durable pull consumer of a service: stream, durable name, the subjects its server-side filter passes."""

    stream: str
    durable: str
    subjects: tuple[str, ...]

    @property
    def name(self) -> str:
        """Stream and durable; the durable alone may name several."""
        return f"{self.stream}/{self.durable}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRow:
    """One service: durable consumers, core subjects it answers, events it publishes, what it owns and holds."""

    name: str
    consumes: tuple[Consumption, ...]
    answers: tuple[str, ...] = ()
    publishes: tuple[str, ...]
    owns: str
    holds: str
    when_down: str


def _events(*kinds: type[Event]) -> tuple[str, ...]:
    return tuple(subject_of(kind) for kind in kinds)


def _written_by(service: str) -> tuple[str, ...]:
    return _events(*(kind for kind in (*ACTION_EVENTS, *REMIT_EVENTS) if service in kind.writers))


def _actions(durable: str, *kinds: type[Event]) -> Consumption:
    return Consumption(stream="ACTIONS", durable=durable, subjects=_events(*kinds))


PIPELINE: tuple[ServiceRow, ...] = (
    ServiceRow(
        name="intake",
        consumes=(
            Consumption(stream="INTAKE", durable="intake", subjects=("in.propose.*",)),
            _actions("results", ActionEvaluated, ActionApprovalRequested, ActionRefused, ActionExecuted, ActionRevoked),
        ),
        answers=("status.*.*",),
        publishes=(*_written_by("intake"), "results.*.*"),
        owns="nothing",
        holds="event signing key",
        when_down="proposals wait in INTAKE, agents get back-pressure",
    ),
    ServiceRow(
        name="policy",
        consumes=(_actions("policy", ActionProposed),),
        answers=("redrive.policy",),
        publishes=_written_by("policy"),
        owns="registry and policy bundle (cache)",
        holds="event signing key",
        when_down="actions wait; nothing is allowed",
    ),
    ServiceRow(
        name="approval",
        consumes=(_actions("approval", ActionEvaluated),),
        answers=("human.*", "redrive.approval"),
        publishes=_written_by("approval"),
        owns="stop rows and blocks (Postgres schema control)",
        holds="event signing key",
        when_down="nobody can approve; nothing is allowed",
    ),
    ServiceRow(
        name="tokens",
        consumes=(_actions("tokens", ActionApproved),),
        answers=("redrive.tokens",),
        publishes=_written_by("tokens"),
        owns="token signing keys, JWKS",
        holds="token signing key, event signing key",
        when_down="no new tokens; old ones expire in seconds",
    ),
    ServiceRow(
        name="executor",
        consumes=(_actions("executor", ActionTokenized),),
        answers=("redrive.executor",),
        publishes=_written_by("executor"),
        owns="claims and budgets (Postgres schema control)",
        holds="upstream credentials, decryption key, event signing key",
        when_down="nothing executes",
    ),
    ServiceRow(
        name="audit",
        consumes=(
            Consumption(stream="ACTIONS", durable="audit", subjects=("action.>",)),
            Consumption(stream="REMITS", durable="audit", subjects=("remit.>",)),
            Consumption(stream="DLQ", durable="audit", subjects=("dlq.>",)),
            Consumption(stream="ADVISORIES", durable="audit", subjects=("$JS.EVENT.ADVISORY.CONSUMER.>",)),
        ),
        publishes=_written_by("audit"),
        owns="Postgres schema audit, hash chain, checkpoints",
        holds="checkpoint key, event signing key",
        when_down="executions wait: evidence gates effect",
    ),
)
BY_NAME: dict[str, ServiceRow] = {row.name: row for row in PIPELINE}
