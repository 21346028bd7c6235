"""The tables of schemas `control` and `audit` for reading with SQLAlchemy Core: names, types, keys.

Constraints, defaults, indices and triggers belong to the migrations; a test compares every column with a migrated database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

TEXT, TEXTS, BYTES, JSON = Text(), ARRAY(Text()), LargeBinary(), JSONB()
SMALL, INT, BIG, FLAG, TIME = SmallInteger(), Integer(), BigInteger(), Boolean(), DateTime(timezone=True)

METADATA = MetaData()


def _table(qualified: str, *key: str, **columns: TypeEngine[Any]) -> Table:
    """Return `schema.name`; `key` names the primary key's columns."""
    schema, name = qualified.split(".")
    parts = [Column(column, kind, primary_key=column in key) for column, kind in columns.items()]
    return Table(name, METADATA, *parts, schema=schema)


stop = _table(
    "control.stop", "kind", "target",
    kind=TEXT, target=TEXT, engaged_at=TIME, reason=TEXT, by_iss=TEXT, by_sub=TEXT,
)  # fmt: skip
stop_log = _table(
    "control.stop_log", "id",
    id=BIG, at=TIME, kind=TEXT, target=TEXT, change=TEXT, reason=TEXT, by_iss=TEXT, by_sub=TEXT, login=TEXT,
)  # fmt: skip
"""Every change of a kill switch, written by trigger and insert-only."""
remit = _table(
    "control.remit", "remit_id",
    remit_id=TEXT, human_iss=TEXT, human_sub=TEXT, agent_id=TEXT, digest=TEXT, granted_seq=BIG, not_before=TIME,
    expires_at=TIME, max_calls=INT, ended_at=TIME, ended_reason=TEXT, document=JSON, human_email=TEXT,
)  # fmt: skip
budget = _table(
    "control.budget", "remit_id", "grant_no",
    remit_id=TEXT, grant_no=INT, used=INT, max_calls=INT,
)  # fmt: skip
execution = _table(
    "control.execution", "action_id",
    action_id=TEXT, jti=TEXT, remit_id=TEXT, grant_no=INT, attempt=INT, args_digest=TEXT, claim_id=TEXT, executor=TEXT,
    state=TEXT, reason=TEXT, claimed_at=TIME, deadline=TIME, finished_at=TIME, request=JSON, draft=JSON,
)  # fmt: skip
outbox = _table(
    "control.outbox", "id",
    id=BIG, service=TEXT, subject_id=TEXT, event_type=TEXT, discriminator=TEXT, draft=JSON, created_at=TIME, done_at=TIME,
)  # fmt: skip
pending = _table(
    "control.pending", "action_id",
    action_id=TEXT, remit_id=TEXT, expires_at=TIME, approvers=TEXTS, quorum=INT, round=INT, requested_seq=BIG,
)  # fmt: skip
block = _table(
    "control.block", "remit_id", "session", "class",
    remit_id=TEXT, session=TEXT, **{"class": TEXT}, reason=TEXT, by_iss=TEXT, by_sub=TEXT, created_at=TIME, expires_at=TIME,
)  # fmt: skip
heartbeat = _table("control.heartbeat", "service", service=TEXT, at=TIME, position=BIG)

audit_event = _table(
    "audit.audit_event", "stream", "stream_seq",
    stream=TEXT, stream_seq=BIG, event_id=TEXT, subject=TEXT, type=TEXT, action_id=TEXT, remit_id=TEXT, n=INT,
    body=BYTES, body_sha256=BYTES, kid=TEXT, sig=BYTES, verify_status=TEXT, chain_hash=BYTES, recorded_at=TIME,
    occurred_at=TIME, human=TEXT, agent_id=TEXT, tool=TEXT, action=TEXT, detail=JSON,
)  # fmt: skip
checkpoint = _table(
    "audit.checkpoint", "stream", "seq",
    stream=TEXT, seq=BIG, chain_head=BYTES, previous_seq=BIG, merkle_root=BYTES, at=TIME, kid=TEXT, line=TEXT,
)  # fmt: skip
progress = _table(
    "audit.progress", "stream",
    stream=TEXT, last_seq=BIG, chain_head=BYTES, epoch=TEXT, approvals_seq=BIG, verified_seq=BIG, verified_at=TIME,
    touched_at=TIME,
)  # fmt: skip
actions_all = _table(
    "audit.actions_all", "action_id",
    action_id=TEXT, version=INT, remit_id=TEXT, grant_no=INT, tool=TEXT, action=TEXT, tier=SMALL, effect=TEXT,
    environment=TEXT, resource_id=TEXT, agent_id=TEXT, agent_name=TEXT, agent_version=TEXT, session=TEXT, human=TEXT,
    human_iss=TEXT, human_sub=TEXT, task=TEXT, task_shape=TEXT, shape_digest=TEXT, args=JSON, args_digest=TEXT,
    schema_digest=TEXT, scopes_requested=TEXTS, scopes_granted=TEXTS, scopes_used=TEXTS, policy_version=TEXT,
    bundle_version=INT, rule_id=TEXT, matched_policies=TEXTS, verdict=TEXT, reason=TEXT, detail=TEXT, unnamed_sinks=TEXTS,
    approval_status=TEXT, approver_group=TEXTS, quorum=INT, round=INT, approver=TEXT, votes=JSON, expires_at=TIME,
    shown_digest=TEXT, approved_until=TIME, proposed_at=TIME, evaluated_at=TIME, requested_at=TIME, decided_at=TIME,
    tokenized_at=TIME, started_at=TIME, executed_at=TIME, wait_ms=INT, review_ms=INT, dwell_min_ms=INT, batch_pos=INT,
    narrowed=FLAG, asked_agent=FLAG, canary=FLAG, jti=TEXT, attempt=INT, token_expires_at=TIME, executor=TEXT,
    claim_id=TEXT, outcome=TEXT, match=TEXT, executed_digest=TEXT, effect_ok=FLAG, result_status=TEXT, result_digest=TEXT,
    result_omitted=TEXT, error=TEXT, redacted_paths=TEXTS, latency_ms=JSON, total_ms=INT, terminal=TEXT, refused_stage=TEXT,
    refused_reason=TEXT, receipt_seq=BIG, first_seq=BIG, last_seq=BIG, last_type=TEXT, last_event_at=TIME, flags=TEXTS,
    rationale=TEXT,
)  # fmt: skip
actions = actions_all.to_metadata(METADATA, name="actions")
"""The same without canaries (a view)."""
remits = _table(
    "audit.remits", "remit_id",
    remit_id=TEXT, version=INT, status=TEXT, human=TEXT, human_iss=TEXT, human_sub=TEXT, agent_id=TEXT, agent_pin=JSON,
    task=TEXT, task_shape=TEXT, environment=TEXT, not_before=TIME, expires_at=TIME, max_calls=INT, digest=TEXT,
    granted_at=TIME, granted_seq=BIG, granted_by=TEXT, ended_at=TIME, ended_reason=TEXT, last_action_at=TIME, last_seq=BIG,
)  # fmt: skip
grants = _table(
    "audit.grants", "remit_id", "grant_no",
    remit_id=TEXT, grant_no=INT, agent_id=TEXT, human=TEXT, tool=TEXT, action=TEXT, arguments=JSON, shape_digest=TEXT,
    max_calls=INT, used=INT, last_used_at=TIME, granted_at=TIME, expires_at=TIME, revoked_at=TIME,
)  # fmt: skip
grant_width = _table(
    "audit.grant_width", "agent_id", "tool", "action", "shape_digest",
    agent_id=TEXT, tool=TEXT, action=TEXT, shape_digest=TEXT, res_used=INT, res_matched=INT, computed_at=TIME,
)  # fmt: skip
tools = _table(
    "audit.tools", "tool", "action",
    tool=TEXT, action=TEXT, tier=SMALL, effect=TEXT, reversibility=TEXT, idempotency=TEXT, environment=TEXT, owner=TEXT,
    connector=TEXT, resource=TEXT, description=TEXT, summary=TEXT, sinks=TEXTS, sensitive=TEXTS, resource_argument=TEXT,
    arguments=JSON, schema_digest=TEXT, live_digest=TEXT, bundle_version=INT,
)  # fmt: skip
agents = _table(
    "audit.agents", "agent_id",
    agent_id=TEXT, name=TEXT, client_id=TEXT, owner=TEXT, runtime=TEXT, model=TEXT, config_digest=TEXT, state=TEXT,
    last_seen=TIME, bundle_version=INT,
)  # fmt: skip
rejected = _table(
    "audit.rejected", "seq",
    seq=BIG, at=TIME, service=TEXT, code=TEXT, detail=TEXT, source_stream=TEXT, source_seq=BIG, source_subject=TEXT,
    agent=TEXT, letter=BYTES,
)  # fmt: skip
advisory = _table(
    "audit.advisory", "seq",
    seq=BIG, at=TIME, kind=TEXT, stream=TEXT, consumer=TEXT, stream_seq=BIG, deliveries=BIG, reason=TEXT,
)  # fmt: skip
events = _table(
    "audit.events", "stream", "stream_seq",
    stream=TEXT, stream_seq=BIG, ts=TIME, occurred_at=TIME, event_id=TEXT, subject=TEXT, type=TEXT, n=INT, action_id=TEXT,
    remit_id=TEXT, human=TEXT, agent_id=TEXT, tool=TEXT, action=TEXT, kid=TEXT, verify_status=TEXT, detail=JSON,
    body_sha256=BYTES, sig=BYTES, chain_hash=BYTES,
)  # fmt: skip
"""Every stored message without its body (a view)."""
cursor = _table(
    "audit.cursor", "stream",
    stream=TEXT, last_seq=BIG, epoch=TEXT, approvals_seq=BIG, chain_head=BYTES, verified_seq=BIG, verified_at=TIME,
    touched_at=TIME,
)  # fmt: skip
"""Where the projection of ACTIONS stands: one row (a view of `progress`)."""
switches = _table(
    "audit.switches", "kind", "target",
    kind=TEXT, target=TEXT, engaged_at=TIME, reason=TEXT, by_iss=TEXT, by_sub=TEXT,
)  # fmt: skip
"""Kill switches as the dashboard may see them (a view of `control.stop`)."""
