"""Evidence of every kill switch, and the human's address for "nobody approves what is done for themselves".

`control.stop_log` is written by a trigger with its owner's rights: whoever may engage or lift a switch can neither do it unseen
nor write, change or delete an entry. Source: design, bus sections 7 and 8; README section 7.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

STATEMENTS = (
    # Two accounts of one person at two issuers share an address; NULL where the ID token of the grant carried none.
    "ALTER TABLE control.remit ADD COLUMN human_email text",
    """
    CREATE TABLE control.stop_log (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        at timestamptz NOT NULL DEFAULT clock_timestamp(),
        kind text NOT NULL,
        target text NOT NULL,
        change text NOT NULL CHECK (change IN ('engaged', 'lifted')),
        reason text,
        by_iss text,
        by_sub text,
        login text NOT NULL
    )
    """,
    "CREATE INDEX stop_log_of_target ON control.stop_log (kind, target, id)",
    """
    CREATE FUNCTION control.log_stop() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
    BEGIN
        INSERT INTO control.stop_log (kind, target, change, reason, by_iss, by_sub, login)
        VALUES (NEW.kind, NEW.target, CASE WHEN NEW.engaged_at IS NULL THEN 'lifted' ELSE 'engaged' END,
                NEW.reason, NEW.by_iss, NEW.by_sub, session_user);
        RETURN NULL;
    END
    $$
    """,
    # Engaging an engaged switch again is logged too: who else wanted it stopped, and why.
    "CREATE TRIGGER log_change AFTER UPDATE ON control.stop FOR EACH ROW EXECUTE FUNCTION control.log_stop()",
    """
    CREATE TRIGGER log_engaged AFTER INSERT ON control.stop
        FOR EACH ROW WHEN (NEW.engaged_at IS NOT NULL) EXECUTE FUNCTION control.log_stop()
    """,
    """
    CREATE FUNCTION control.refuse_change() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog AS $$
    BEGIN
        RAISE EXCEPTION 'control.% is insert-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'insufficient_privilege';
    END
    $$
    """,
    """
    CREATE TRIGGER insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON control.stop_log
        FOR EACH STATEMENT EXECUTE FUNCTION control.refuse_change()
    """,
)


def upgrade() -> None:
    """Create the log, its triggers, and the new column."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Drop them; the log is gone afterwards, so this is for empty databases only."""
    op.execute("DROP TRIGGER log_change ON control.stop")
    op.execute("DROP TRIGGER log_engaged ON control.stop")
    op.execute("DROP TABLE control.stop_log")
    op.execute("DROP FUNCTION control.log_stop()")
    op.execute("DROP FUNCTION control.refuse_change()")
    op.execute("ALTER TABLE control.remit DROP COLUMN human_email")
