"""Schema `control`: the last fence before an effect, and the few functions through which it is passed.

`control.claim` decides in one READ COMMITTED transaction and one round trip whether a call may be made. It returns

* `claimed`         the row is `in_flight` and committed: call now, once;
* `exists`          the action has a row already; read it, call nothing;
* `evidence_stale`  the projector's heartbeat is too old; nothing was stored, ask again later;
* any other word    a member of `remit.reasons.Reason`; the row is stored as `refused` with that reason, no budget was spent.

`control.may_send` asks again before a call is repeated or sent late, `control.take_over` before an interrupted call is continued,
`control.refuse` ends an announced action. All four run with their owner's rights: the executor itself may neither insert rows nor
change what a claim says, and a row lock on kill switches would need the right to lift them.

Locks are taken in one fixed order, so that claims and revocations cannot deadlock: the action's row, the queue of `stop`, the
stop rows global, human, agent, tool, remit (shared), the budget rows by number (exclusive). Whoever updates stop rows queues
first and holds no row that a claim waits for. A revoke that has committed is seen by every later claim; a claim that holds the
share locks makes the revoke wait. Source: design, bus section 7.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    "CREATE SCHEMA control",
    # Kill switches. A missing row refuses the claim: a lock needs a row to be taken on.
    """
    CREATE TABLE control.stop (
        kind text NOT NULL CHECK (kind IN ('global', 'human', 'agent', 'tool', 'remit')),
        target text NOT NULL,
        engaged_at timestamptz,
        reason text,
        by_iss text,
        by_sub text,
        PRIMARY KEY (kind, target)
    )
    """,
    "INSERT INTO control.stop (kind, target) VALUES ('global', '*')",
    """
    CREATE TABLE control.remit (
        remit_id text PRIMARY KEY,
        human_iss text NOT NULL,
        human_sub text NOT NULL,
        agent_id text NOT NULL,
        digest text NOT NULL,
        granted_seq bigint NOT NULL,
        not_before timestamptz NOT NULL,
        expires_at timestamptz NOT NULL,
        max_calls integer NOT NULL CHECK (max_calls >= 1),
        ended_at timestamptz,
        ended_reason text,
        document jsonb NOT NULL
    )
    """,
    "CREATE INDEX remit_of_human ON control.remit (human_iss, human_sub)",
    "CREATE INDEX remit_of_agent ON control.remit (agent_id)",
    # Row 0 counts all calls of the remit, row k those under its k-th grant. max_calls NULL: that grant has no bound of its own.
    # Half-empty pages keep the counter's updates on their page (HOT).
    """
    CREATE TABLE control.budget (
        remit_id text NOT NULL REFERENCES control.remit,
        grant_no integer NOT NULL CHECK (grant_no >= 0),
        used integer NOT NULL DEFAULT 0 CHECK (used >= 0),
        max_calls integer CHECK (max_calls >= 1),
        PRIMARY KEY (remit_id, grant_no)
    ) WITH (fillfactor = 50)
    """,
    # No foreign key to remit: each claim would lock the remit's row once more, and approval may refuse an action whose remit
    # it never saw. jti is NULL on rows that never held a token (revoked before the claim, or a replayed token).
    """
    CREATE TABLE control.execution (
        action_id text PRIMARY KEY,
        jti text UNIQUE,
        remit_id text NOT NULL,
        grant_no integer,
        attempt integer NOT NULL DEFAULT 0,
        args_digest text,
        claim_id text,
        executor text,
        state text NOT NULL CHECK (state IN ('in_flight', 'succeeded', 'failed', 'unknown', 'refused')),
        reason text,
        claimed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        deadline timestamptz,
        finished_at timestamptz,
        request jsonb,
        draft jsonb
    ) WITH (fillfactor = 80)
    """,
    "CREATE INDEX execution_in_flight ON control.execution (deadline) WHERE state = 'in_flight'",
    "CREATE INDEX execution_unknown ON control.execution (finished_at) WHERE state = 'unknown'",
    """
    CREATE TABLE control.outbox (
        id bigserial PRIMARY KEY,
        service text NOT NULL,
        subject_id text NOT NULL,
        event_type text NOT NULL,
        discriminator text NOT NULL,
        draft jsonb NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        done_at timestamptz
    ) WITH (fillfactor = 80)
    """,
    "CREATE INDEX outbox_undone ON control.outbox (service, created_at) WHERE done_at IS NULL",
    """
    CREATE TABLE control.pending (
        action_id text PRIMARY KEY,
        remit_id text NOT NULL,
        expires_at timestamptz NOT NULL,
        approvers text[] NOT NULL,
        quorum integer NOT NULL,
        round integer NOT NULL,
        requested_seq bigint NOT NULL
    )
    """,
    "CREATE INDEX pending_by_expiry ON control.pending (expires_at)",
    "CREATE INDEX pending_by_remit ON control.pending (remit_id)",
    """
    CREATE TABLE control.block (
        remit_id text NOT NULL,
        session text NOT NULL,
        class text NOT NULL,
        reason text NOT NULL,
        by_iss text NOT NULL,
        by_sub text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        expires_at timestamptz,
        PRIMARY KEY (remit_id, session, class)
    )
    """,
    """
    CREATE TABLE control.heartbeat (
        service text PRIMARY KEY,
        at timestamptz NOT NULL,
        position bigint NOT NULL
    ) WITH (fillfactor = 50)
    """,
)

# The share locks make a revocation strict; this queue makes it fast. Postgres lets new share lockers of a row pass a waiting
# updater, so under steady claims a revoke starved for up to 3 s; an advisory lock is granted in order of arrival (below 0.2 s).
QUEUE = """
CREATE FUNCTION control.wait_for_claims() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    PERFORM pg_advisory_xact_lock('control.stop'::regclass::oid::bigint);
    RETURN NULL;
END
$$
"""
QUEUE_TRIGGER = """
CREATE TRIGGER wait_for_claims BEFORE UPDATE OR DELETE ON control.stop
FOR EACH STATEMENT EXECUTE FUNCTION control.wait_for_claims()
"""

# One statement locks and reads all five stop rows: LockRows stands above the sort, so the order of locking is `place`.
STOPPED = """
CREATE FUNCTION control.stopped(p_human text, p_agent text, p_tool text, p_remit_id text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    v_row record;
    v_found integer := 0;
    v_refusal text;
BEGIN
    PERFORM pg_advisory_xact_lock_shared('control.stop'::regclass::oid::bigint);
    FOR v_row IN
        SELECT s.kind, s.engaged_at
        FROM (VALUES (1, 'global', '*'), (2, 'human', p_human), (3, 'agent', p_agent),
                     (4, 'tool', p_tool), (5, 'remit', p_remit_id)) AS wanted (place, kind, target)
        JOIN control.stop AS s ON s.kind = wanted.kind AND s.target = wanted.target
        ORDER BY wanted.place
        FOR SHARE OF s
    LOOP
        v_found := v_found + 1;
        IF v_row.engaged_at IS NOT NULL AND v_refusal IS NULL THEN
            v_refusal := CASE v_row.kind WHEN 'remit' THEN 'remit_revoked' ELSE 'stopped' END;
        END IF;
    END LOOP;
    IF v_found < 5 THEN
        RETURN 'stop_row_missing';
    END IF;
    RETURN v_refusal;
END
$$
"""

# Counts the call only when every row has room; a grant without its row is refused, because a missing rule never permits.
SPEND = """
CREATE FUNCTION control.spend(p_remit_id text, p_grant_no integer) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    v_row record;
    v_found integer := 0;
BEGIN
    FOR v_row IN
        SELECT b.used, b.max_calls FROM control.budget AS b
        WHERE b.remit_id = p_remit_id AND b.grant_no IN (0, p_grant_no)
        ORDER BY b.grant_no
        FOR UPDATE
    LOOP
        v_found := v_found + 1;
        IF v_row.used >= v_row.max_calls THEN
            RETURN false;
        END IF;
    END LOOP;
    IF v_found < 2 THEN
        RETURN false;
    END IF;
    UPDATE control.budget AS b SET used = b.used + 1
    WHERE b.remit_id = p_remit_id AND b.grant_no IN (0, p_grant_no);
    RETURN true;
END
$$
"""

REMIT_REFUSAL = """
CREATE FUNCTION control.remit_refusal(p_remit_id text, p_human text, p_agent text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    v_remit control.remit;
BEGIN
    -- No lock: the share lock on the remit's stop row already orders this read against a revocation.
    SELECT * INTO v_remit FROM control.remit AS r WHERE r.remit_id = p_remit_id;
    RETURN CASE
        WHEN NOT FOUND THEN 'unknown_remit'
        WHEN v_remit.human_iss || '|' || v_remit.human_sub <> p_human OR v_remit.agent_id <> p_agent THEN 'foreign_remit'
        WHEN v_remit.ended_reason = 'exhausted' THEN 'budget_exhausted'
        WHEN v_remit.ended_reason = 'expired' THEN 'remit_expired'
        WHEN v_remit.ended_at IS NOT NULL THEN 'remit_revoked'
        WHEN clock_timestamp() < v_remit.not_before THEN 'remit_not_yet_valid'
        WHEN clock_timestamp() >= v_remit.expires_at THEN 'remit_expired'
    END;
END
$$
"""

EVIDENCE = """
CREATE FUNCTION control.evidence_is_fresh(p_max_age_s double precision) RETURNS boolean
LANGUAGE sql SET search_path = pg_catalog AS $$
    SELECT EXISTS (SELECT FROM control.heartbeat AS h
                   WHERE h.service = 'audit' AND h.at >= clock_timestamp() - make_interval(secs => p_max_age_s))
$$
"""

# The claim id repeats what `started` announced, so two replicas can claim under one id; the nonce tells a lost answer from a lost
# race.
CLAIM = """
CREATE FUNCTION control.claim(
    p_action_id text, p_jti text, p_remit_id text, p_grant_no integer, p_attempt integer, p_args_digest text,
    p_claim_id text, p_executor text, p_deadline_s double precision, p_token_exp timestamptz,
    p_human text, p_agent text, p_tool text, p_evidence_max_age_s double precision, p_nonce text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    v_refusal text;
BEGIN
    IF NOT control.evidence_is_fresh(p_evidence_max_age_s) THEN
        RETURN 'evidence_stale';
    END IF;

    INSERT INTO control.execution (action_id, jti, remit_id, grant_no, attempt, args_digest, claim_id, executor, state,
                                   deadline, request)
    VALUES (p_action_id, p_jti, p_remit_id, p_grant_no, p_attempt, p_args_digest, p_claim_id, p_executor, 'in_flight',
            clock_timestamp() + make_interval(secs => p_deadline_s),
            jsonb_build_object('human', p_human, 'agent', p_agent, 'tool', p_tool, 'nonce', p_nonce))
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        -- Either this action is taken, or its token was used by another one. Only a NULL jti can be stored for the latter.
        INSERT INTO control.execution (action_id, remit_id, grant_no, attempt, args_digest, claim_id, executor, state, reason,
                                       finished_at)
        VALUES (p_action_id, p_remit_id, p_grant_no, p_attempt, p_args_digest, p_claim_id, p_executor, 'refused',
                'token_replayed', clock_timestamp())
        ON CONFLICT DO NOTHING;
        RETURN CASE WHEN FOUND THEN 'token_replayed' ELSE 'exists' END;
    END IF;

    v_refusal := control.stopped(p_human, p_agent, p_tool, p_remit_id);
    -- Time is read after the locks were granted: waiting for them must not stretch a token's or a remit's life.
    IF v_refusal IS NULL AND clock_timestamp() >= p_token_exp THEN
        v_refusal := 'token_expired';
    END IF;
    IF v_refusal IS NULL THEN
        v_refusal := control.remit_refusal(p_remit_id, p_human, p_agent);
    END IF;
    IF v_refusal IS NULL AND control.spend(p_remit_id, p_grant_no) IS NOT TRUE THEN
        v_refusal := 'budget_exhausted';
    END IF;
    IF v_refusal IS NULL THEN
        RETURN 'claimed';
    END IF;
    UPDATE control.execution AS e SET state = 'refused', reason = v_refusal, finished_at = clock_timestamp(), deadline = NULL
    WHERE e.action_id = p_action_id;
    RETURN v_refusal;
END
$$
"""

# What can have changed since a claim: kill switches and the remit's end. The budget may well be spent, by this very claim.
HALTED = """
CREATE FUNCTION control.is_halted(p_row control.execution) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    v_human text := p_row.request ->> 'human';
    v_agent text := p_row.request ->> 'agent';
BEGIN
    RETURN control.stopped(v_human, v_agent, p_row.request ->> 'tool', p_row.remit_id) IS NOT NULL
        OR coalesce(control.remit_refusal(p_row.remit_id, v_human, v_agent), 'budget_exhausted') <> 'budget_exhausted';
END
$$
"""

# A repetition is a new effect in time, and so is a first call that comes later than its claim promised. Passing moves the
# deadline, so that no sweeper ends the claim while the call is under way.
MAY_SEND = """
CREATE FUNCTION control.may_send(
    p_action_id text, p_claim_id text, p_token_exp timestamptz, p_deadline_s double precision,
    p_evidence_max_age_s double precision
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    v_row control.execution;
BEGIN
    SELECT * INTO v_row FROM control.execution AS e
    WHERE e.action_id = p_action_id AND e.claim_id = p_claim_id AND e.state = 'in_flight'
    FOR UPDATE;
    IF NOT FOUND OR NOT control.evidence_is_fresh(p_evidence_max_age_s) OR control.is_halted(v_row)
       OR clock_timestamp() >= p_token_exp
    THEN
        RETURN false;
    END IF;
    UPDATE control.execution AS e
    SET deadline = greatest(e.deadline, clock_timestamp() + make_interval(secs => p_deadline_s))
    WHERE e.action_id = p_action_id;
    RETURN true;
END
$$
"""

# Returns `taken`, `evidence_stale` (ask again later) or `ended`.
TAKE_OVER = """
CREATE FUNCTION control.take_over(
    p_action_id text, p_claim_id text, p_new_claim_id text, p_executor text, p_deadline_s double precision,
    p_evidence_max_age_s double precision
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    v_row control.execution;
BEGIN
    SELECT * INTO v_row FROM control.execution AS e
    WHERE e.action_id = p_action_id AND e.claim_id = p_claim_id AND e.state = 'in_flight' AND NOT e.request ? 'repeated'
    FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'ended';
    END IF;
    IF NOT control.evidence_is_fresh(p_evidence_max_age_s) THEN
        RETURN 'evidence_stale';
    END IF;
    IF control.is_halted(v_row) THEN
        RETURN 'ended';
    END IF;
    UPDATE control.execution AS e
    SET claim_id = p_new_claim_id, executor = p_executor, request = e.request || '{"repeated": true}',
        deadline = clock_timestamp() + make_interval(secs => p_deadline_s)
    WHERE e.action_id = p_action_id;
    RETURN 'taken';
END
$$
"""

# True when the row is ours now: nobody can claim the action any more.
REFUSE = """
CREATE FUNCTION control.refuse(
    p_action_id text, p_remit_id text, p_attempt integer, p_claim_id text, p_executor text, p_reason text
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    INSERT INTO control.execution (action_id, remit_id, attempt, claim_id, executor, state, reason, finished_at)
    VALUES (p_action_id, p_remit_id, p_attempt, p_claim_id, p_executor, 'refused', p_reason, clock_timestamp())
    ON CONFLICT (action_id) DO NOTHING;
    RETURN FOUND;
END
$$
"""

ROUTINES = (
    QUEUE, QUEUE_TRIGGER, STOPPED, SPEND, REMIT_REFUSAL, EVIDENCE, CLAIM, HALTED, MAY_SEND, TAKE_OVER, REFUSE,
    # Functions are open to everybody by default; the roles open them again to whom they are meant for.
    "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA control FROM PUBLIC",
)  # fmt: skip


def upgrade() -> None:
    """Create the schema, its tables and the functions of the fence."""
    for statement in (*TABLES, *ROUTINES):
        op.execute(statement)


def downgrade() -> None:
    """Drop everything; claims are gone afterwards, so this is for empty databases only."""
    op.execute("DROP SCHEMA control CASCADE")
