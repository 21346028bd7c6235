"""Schema `audit`: the ledger, insert-only and chained, and the read models that the projector derives from it.

`audit_event` and `checkpoint` refuse UPDATE, DELETE and TRUNCATE by trigger, whoever asks; the roles have no such right to begin
with. Everything else can be thrown away and projected again. Indices serve the queries of the dashboard by name.
Source: design, bus section 8; dashboard sections 3 (read model) and 3.11 (queries).
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

LEDGER = (
    "CREATE SCHEMA audit",
    # Every stored message of ACTIONS and REMITS, believed or not. `verify_status` is 'valid', or why it was not folded.
    # chain_hash covers subject, kid, sig, body and recorded_at, the broker's time (remit.ledger_chain); the other columns are
    # derived from them, and `remit audit verify` compares them.
    # The body's digest is stored, so that whoever may not read bodies can still recompute the chain.
    """
    CREATE TABLE audit.audit_event (
        stream text NOT NULL CHECK (stream IN ('ACTIONS', 'REMITS')),
        stream_seq bigint NOT NULL CHECK (stream_seq >= 1),
        event_id text,
        subject text NOT NULL,
        type text,
        action_id text,
        remit_id text,
        n integer,
        body bytea NOT NULL,
        body_sha256 bytea NOT NULL GENERATED ALWAYS AS (sha256(body)) STORED,
        kid text,
        sig bytea,
        verify_status text NOT NULL,
        chain_hash bytea NOT NULL CHECK (octet_length(chain_hash) = 32),
        recorded_at timestamptz NOT NULL,
        occurred_at timestamptz,
        human text,
        agent_id text,
        tool text,
        action text,
        detail jsonb,
        PRIMARY KEY (stream, stream_seq)
    )
    """,
    """
    CREATE UNIQUE INDEX audit_event_valid ON audit.audit_event
        (COALESCE(action_id, remit_id), type, event_id) WHERE verify_status = 'valid'
    """,
    "CREATE INDEX audit_event_of_action ON audit.audit_event (action_id, stream_seq) WHERE action_id IS NOT NULL",
    "CREATE INDEX audit_event_of_remit ON audit.audit_event (remit_id, recorded_at, stream_seq)",
    "CREATE INDEX audit_event_by_time ON audit.audit_event (recorded_at, stream_seq)",
    """
    CREATE TABLE audit.checkpoint (
        stream text NOT NULL,
        seq bigint NOT NULL,
        chain_head bytea NOT NULL,
        previous_seq bigint NOT NULL,
        merkle_root bytea NOT NULL,
        at timestamptz NOT NULL,
        kid text NOT NULL,
        line text NOT NULL,
        PRIMARY KEY (stream, seq)
    )
    """,
    """
    CREATE FUNCTION audit.refuse_change() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog AS $$
    BEGIN
        RAISE EXCEPTION 'audit.% is insert-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'insufficient_privilege';
    END
    $$
    """,
    *(
        f"""
        CREATE TRIGGER insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit.{table}
            FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change()
        """
        for table in ("audit_event", "checkpoint")
    ),
    # Where each projection stands. `epoch` changes with a rebuild; `approvals_seq` rises whenever an approval's status does.
    """
    CREATE TABLE audit.progress (
        stream text PRIMARY KEY CHECK (stream IN ('ACTIONS', 'REMITS')),
        last_seq bigint NOT NULL DEFAULT 0,
        chain_head bytea NOT NULL,
        epoch text NOT NULL DEFAULT replace(gen_random_uuid()::text, '-', ''),
        approvals_seq bigint NOT NULL DEFAULT 0,
        verified_seq bigint NOT NULL DEFAULT 0,
        verified_at timestamptz,
        touched_at timestamptz NOT NULL DEFAULT clock_timestamp()
    ) WITH (fillfactor = 50)
    """,
    """
    INSERT INTO audit.progress (stream, chain_head)
    SELECT name, sha256(convert_to('remit.ledger.v1:' || name, 'UTF8')) FROM (VALUES ('ACTIONS'), ('REMITS')) AS streams (name)
    """,
)

ACTIONS = (
    """
    CREATE TABLE audit.actions_all (
        action_id text PRIMARY KEY,
        version integer NOT NULL,
        remit_id text NOT NULL,
        grant_no integer,
        tool text NOT NULL,
        action text NOT NULL,
        tier smallint NOT NULL,
        effect text NOT NULL,
        environment text NOT NULL,
        resource_id text,
        agent_id text NOT NULL,
        agent_name text NOT NULL,
        agent_version text NOT NULL,
        session text NOT NULL,
        human text,
        human_iss text,
        human_sub text,
        task text,
        task_shape text,
        shape_digest text NOT NULL,
        args jsonb NOT NULL,
        args_digest text NOT NULL,
        schema_digest text NOT NULL,
        scopes_requested text[] NOT NULL,
        scopes_granted text[] NOT NULL,
        scopes_used text[] NOT NULL,
        policy_version text,
        bundle_version integer,
        rule_id text,
        matched_policies text[] NOT NULL,
        verdict text,
        reason text,
        detail text,
        unnamed_sinks text[] NOT NULL,
        approval_status text CHECK (approval_status IN ('requested', 'approved', 'denied', 'expired', 'withdrawn')),
        approver_group text[] NOT NULL,
        quorum integer,
        round integer,
        approver text,
        votes jsonb,
        expires_at timestamptz,
        shown_digest text,
        approved_until timestamptz,
        proposed_at timestamptz NOT NULL,
        evaluated_at timestamptz,
        requested_at timestamptz,
        decided_at timestamptz,
        tokenized_at timestamptz,
        started_at timestamptz,
        executed_at timestamptz,
        wait_ms integer,
        review_ms integer,
        dwell_min_ms integer,
        batch_pos integer NOT NULL,
        narrowed boolean NOT NULL,
        asked_agent boolean NOT NULL,
        canary boolean NOT NULL,
        jti text,
        attempt integer,
        token_expires_at timestamptz,
        executor text,
        claim_id text,
        outcome text,
        match text CHECK (match IN ('match', 'differs', 'not_checked')),
        executed_digest text,
        effect_ok boolean,
        result_status text,
        result_digest text,
        result_omitted text,
        error text,
        redacted_paths text[] NOT NULL,
        latency_ms jsonb NOT NULL,
        total_ms integer,
        terminal text,
        refused_stage text,
        refused_reason text,
        receipt_seq bigint,
        first_seq bigint NOT NULL,
        last_seq bigint NOT NULL,
        last_type text NOT NULL,
        last_event_at timestamptz NOT NULL,
        flags text[] NOT NULL,
        rationale text
    ) WITH (fillfactor = 60)
    """,
    "CREATE VIEW audit.actions AS SELECT * FROM audit.actions_all WHERE NOT canary",
    "CREATE INDEX actions_queue ON audit.actions_all (tier DESC, expires_at) WHERE approval_status = 'requested'",
    """
    CREATE INDEX actions_asked ON audit.actions_all (agent_id, tool, action, proposed_at DESC)
        INCLUDE (approval_status, decided_at) WHERE verdict = 'ask'
    """,
    "CREATE INDEX actions_by_time ON audit.actions_all (proposed_at)",
    "CREATE INDEX actions_of_remit ON audit.actions_all (remit_id, proposed_at)",
    "CREATE INDEX actions_decided ON audit.actions_all (decided_at) WHERE verdict = 'ask'",
    "CREATE INDEX actions_blocked ON audit.actions_all (proposed_at) WHERE verdict = 'deny'",
    "CREATE INDEX actions_by_agent ON audit.actions_all (agent_id, proposed_at)",
    "CREATE INDEX actions_by_shape ON audit.actions_all (shape_digest, proposed_at)",
    # Digests and ids are searched by their first characters (Investigate).
    "CREATE INDEX actions_by_id_prefix ON audit.actions_all (action_id text_pattern_ops)",
    "CREATE INDEX actions_by_digest_prefix ON audit.actions_all (args_digest text_pattern_ops)",
    "CREATE INDEX actions_by_token ON audit.actions_all (jti text_pattern_ops) WHERE jti IS NOT NULL",
    "CREATE INDEX actions_by_resource ON audit.actions_all (resource_id, proposed_at) WHERE resource_id IS NOT NULL",
    # The work lists of the reconciler: actions that stand still, and finished ones without a receipt.
    "CREATE INDEX actions_unfinished ON audit.actions_all (last_event_at) WHERE terminal IS NULL",
    """
    CREATE INDEX actions_without_receipt ON audit.actions_all (last_event_at)
        WHERE terminal IS NOT NULL AND receipt_seq IS NULL
    """,
)

READ_MODELS = (
    """
    CREATE TABLE audit.remits (
        remit_id text PRIMARY KEY,
        version integer NOT NULL,
        status text NOT NULL CHECK (status IN ('active', 'revoked', 'exhausted')),
        human text NOT NULL,
        human_iss text NOT NULL,
        human_sub text NOT NULL,
        agent_id text NOT NULL,
        agent_pin jsonb,
        task text NOT NULL,
        task_shape text NOT NULL,
        environment text NOT NULL,
        not_before timestamptz NOT NULL,
        expires_at timestamptz NOT NULL,
        max_calls integer NOT NULL,
        digest text NOT NULL,
        granted_at timestamptz NOT NULL,
        granted_seq bigint NOT NULL,
        granted_by text NOT NULL,
        ended_at timestamptz,
        ended_reason text,
        last_action_at timestamptz,
        last_seq bigint NOT NULL
    ) WITH (fillfactor = 70)
    """,
    "CREATE INDEX remits_active ON audit.remits (expires_at) WHERE ended_at IS NULL",
    "CREATE INDEX remits_recent ON audit.remits (last_action_at DESC)",
    "CREATE INDEX remits_of_agent ON audit.remits (agent_id, expires_at)",
    "CREATE INDEX remits_of_human ON audit.remits (human, granted_at)",
    """
    CREATE TABLE audit.grants (
        remit_id text NOT NULL,
        grant_no integer NOT NULL,
        agent_id text NOT NULL,
        human text NOT NULL,
        tool text NOT NULL,
        action text NOT NULL,
        arguments jsonb,
        shape_digest text NOT NULL,
        max_calls integer,
        used integer NOT NULL DEFAULT 0,
        last_used_at timestamptz,
        granted_at timestamptz NOT NULL,
        expires_at timestamptz NOT NULL,
        revoked_at timestamptz,
        PRIMARY KEY (remit_id, grant_no)
    ) WITH (fillfactor = 70)
    """,
    "CREATE INDEX grants_by_time ON audit.grants (granted_at)",
    "CREATE INDEX grants_of_agent ON audit.grants (agent_id, granted_at)",
    # Null stands for "not checked": how many resources a constrained grant would match is known only to its tool.
    """
    CREATE TABLE audit.grant_width (
        agent_id text NOT NULL,
        tool text NOT NULL,
        action text NOT NULL,
        shape_digest text NOT NULL,
        res_used integer NOT NULL,
        res_matched integer,
        computed_at timestamptz NOT NULL,
        PRIMARY KEY (agent_id, tool, action, shape_digest)
    )
    """,
    """
    CREATE TABLE audit.tools (
        tool text NOT NULL,
        action text NOT NULL,
        tier smallint NOT NULL,
        effect text NOT NULL,
        reversibility text NOT NULL,
        idempotency text NOT NULL,
        environment text NOT NULL,
        owner text NOT NULL,
        connector text NOT NULL,
        resource text NOT NULL,
        description text NOT NULL,
        summary text,
        sinks text[] NOT NULL,
        sensitive text[] NOT NULL,
        resource_argument text,
        arguments jsonb NOT NULL,
        schema_digest text NOT NULL,
        live_digest text,
        bundle_version integer NOT NULL,
        PRIMARY KEY (tool, action)
    )
    """,
    """
    CREATE TABLE audit.agents (
        agent_id text PRIMARY KEY,
        name text NOT NULL,
        client_id text,
        owner text,
        runtime text,
        model text,
        config_digest text,
        state text NOT NULL CHECK (state IN ('active', 'removed', 'unknown')),
        last_seen timestamptz,
        bundle_version integer
    ) WITH (fillfactor = 70)
    """,
    """
    CREATE TABLE audit.rejected (
        seq bigint PRIMARY KEY,
        at timestamptz NOT NULL,
        service text NOT NULL,
        code text NOT NULL,
        detail text,
        source_stream text,
        source_seq bigint,
        source_subject text,
        agent text,
        letter bytea NOT NULL
    )
    """,
    "CREATE INDEX rejected_by_time ON audit.rejected (at)",
    """
    CREATE TABLE audit.advisory (
        seq bigint PRIMARY KEY,
        at timestamptz NOT NULL,
        kind text NOT NULL,
        stream text,
        consumer text,
        stream_seq bigint,
        deliveries bigint,
        reason text
    )
    """,
    "CREATE INDEX advisory_by_time ON audit.advisory (at)",
)

VIEWS = (
    # Timelines and the chain without bodies: arguments and sealed tokens stay with whoever may read the ledger itself.
    """
    CREATE VIEW audit.events AS
    SELECT stream, stream_seq, recorded_at AS ts, occurred_at, event_id, subject, type, n, action_id, remit_id, human, agent_id,
           tool, action, kid, verify_status, detail, body_sha256, sig, chain_hash
    FROM audit.audit_event
    """,
    """
    CREATE VIEW audit.cursor AS
    SELECT stream, last_seq, epoch, approvals_seq, chain_head, verified_seq, verified_at, touched_at
    FROM audit.progress WHERE stream = 'ACTIONS'
    """,
    "CREATE VIEW audit.switches AS SELECT kind, target, engaged_at, reason, by_iss, by_sub FROM control.stop",
)


def upgrade() -> None:
    """Create the schema, its tables, triggers and views."""
    for statement in (*LEDGER, *ACTIONS, *READ_MODELS, *VIEWS):
        op.execute(statement)


def downgrade() -> None:
    """Drop everything; only ACTIONS and REMITS could bring the ledger back."""
    op.execute("DROP SCHEMA audit CASCADE")
