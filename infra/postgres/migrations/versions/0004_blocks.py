"""A denial holds at the last fence too: what a person said no to cannot be claimed, repeated or continued.

`control.claim` learns the call's block class (`ActionRef.block_class`) and refuses with `blocked` while a denial of that class
stands under the remit. Where no class is known, for claims of an older executor, any block of the remit refuses. Whoever blocks
queues behind the claims in progress as one who stops does, so when a denial has returned no later claim of its like commits.
Source: design, standards section 2.5; README section 7.
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

CLAIM_BEFORE = (
    "control.claim(text, text, text, integer, integer, text, text, text, double precision, timestamptz, text, text, text,"
    " double precision, text)"
)
CLAIM_NOW = f"{CLAIM_BEFORE[:-1]}, text)"

# Lifting a block opens nothing that the other rows do not decide, so DELETE does not queue.
QUEUE_TRIGGER = """
CREATE TRIGGER wait_for_claims BEFORE INSERT OR UPDATE ON control.block
FOR EACH STATEMENT EXECUTE FUNCTION control.wait_for_claims()
"""

# Read after the shared lock of control.stopped was granted, by a statement of its own: it sees every block stored before.
BLOCKED = """
CREATE FUNCTION control.is_blocked(p_remit_id text, p_class text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    RETURN EXISTS (SELECT FROM control.block AS b
                   WHERE b.remit_id = p_remit_id AND (p_class IS NULL OR b.class = p_class)
                     AND (b.expires_at IS NULL OR b.expires_at > clock_timestamp()));
END
$$
"""

CLAIM = """
CREATE FUNCTION control.claim(
    p_action_id text, p_jti text, p_remit_id text, p_grant_no integer, p_attempt integer, p_args_digest text,
    p_claim_id text, p_executor text, p_deadline_s double precision, p_token_exp timestamptz,
    p_human text, p_agent text, p_tool text, p_evidence_max_age_s double precision, p_nonce text DEFAULT NULL,
    p_class text DEFAULT NULL
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
            jsonb_build_object('human', p_human, 'agent', p_agent, 'tool', p_tool, 'nonce', p_nonce, 'class', p_class))
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
    IF v_refusal IS NULL AND control.is_blocked(p_remit_id, p_class) IS NOT FALSE THEN
        v_refusal := 'blocked';
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

# What can have changed since a claim: kill switches, the remit's end, denials. The budget may well be spent, by this very claim.
HALTED = """
CREATE OR REPLACE FUNCTION control.is_halted(p_row control.execution) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    v_human text := p_row.request ->> 'human';
    v_agent text := p_row.request ->> 'agent';
BEGIN
    -- The stop rows first: what is read after them is ordered against whoever stops or blocks.
    IF control.stopped(v_human, v_agent, p_row.request ->> 'tool', p_row.remit_id) IS NOT NULL THEN
        RETURN true;
    END IF;
    RETURN coalesce(control.remit_refusal(p_row.remit_id, v_human, v_agent), 'budget_exhausted') <> 'budget_exhausted'
        OR control.is_blocked(p_row.remit_id, p_row.request ->> 'class') IS NOT FALSE;
END
$$
"""

# Whoever may call the function may call its successor: executors go on claiming while the schema is upgraded under them.
KEEP_GRANTS = f"""
DO $$
DECLARE
    v_login name;
BEGIN
    FOR v_login IN
        SELECT r.rolname FROM pg_proc AS p, aclexplode(p.proacl) AS a JOIN pg_roles AS r ON r.oid = a.grantee
        WHERE p.oid = '{CLAIM_BEFORE}'::regprocedure AND a.privilege_type = 'EXECUTE' AND a.grantee <> p.proowner
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION {CLAIM_NOW} TO %I', v_login);
    END LOOP;
END
$$
"""


def upgrade() -> None:
    """Make blocks part of the fence."""
    for statement in (QUEUE_TRIGGER, BLOCKED, CLAIM, HALTED):
        op.execute(statement)
    op.execute(f"REVOKE ALL ON FUNCTION control.is_blocked(text, text), {CLAIM_NOW} FROM PUBLIC")
    op.execute(KEEP_GRANTS)
    op.execute(f"DROP FUNCTION {CLAIM_BEFORE}")


def downgrade() -> None:
    """Refuse: executors of today cannot claim through the earlier fence, and it lets denied calls pass."""
    raise RuntimeError("0004 has no way back; restore a backup together with the executor that belongs to it")
