"""A hold is part of the fence: while claims are held nothing is claimed, and no row is occupied by a refusal either.

A Postgres that is older than its streams lacks rows of calls that were made. Withholding audit's heartbeat alone would let a beat
that was under way pass, and a refusal or a revocation of a forgotten call would turn what may have happened into what did not.
The error is 40001, which every service takes for an unwilling database: asked again later. Whoever gives claims back logs in as
the owner and is not concerned. Source: design, bus section 1 rule 10; ARCHITECTURE decision 63.
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

EVIDENCE = """
CREATE OR REPLACE FUNCTION control.evidence_is_fresh(p_max_age_s double precision) RETURNS boolean
LANGUAGE sql SET search_path = pg_catalog AS $$
    SELECT EXISTS (SELECT FROM control.heartbeat AS h
                   WHERE h.service = 'audit' AND h.at >= clock_timestamp() - make_interval(secs => p_max_age_s))
       AND NOT EXISTS (SELECT FROM control.heartbeat AS h WHERE h.service = 'hold')
$$
"""

# session_user is who logged in, also inside the functions that run as the owner.
HELD = """
CREATE FUNCTION control.refuse_nothing_while_held() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    IF session_user IN ('remit_executor', 'remit_approval')
       AND EXISTS (SELECT FROM control.heartbeat AS h WHERE h.service = 'hold') THEN
        RAISE EXCEPTION 'claims are held: % may have happened', NEW.action_id USING ERRCODE = '40001';
    END IF;
    RETURN NEW;
END
$$
"""

HELD_TRIGGER = """
CREATE TRIGGER refuse_nothing_while_held BEFORE INSERT ON control.execution
FOR EACH ROW WHEN (NEW.state = 'refused') EXECUTE FUNCTION control.refuse_nothing_while_held()
"""

STATEMENTS = (
    EVIDENCE, HELD, HELD_TRIGGER,
    "REVOKE ALL ON FUNCTION control.refuse_nothing_while_held() FROM PUBLIC",
)  # fmt: skip


def upgrade() -> None:
    """Let the hold reach claims, refusals and revocations."""
    for statement in STATEMENTS:
        op.execute(statement)
