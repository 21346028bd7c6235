"""Holds the executor's claims in schema `control` against the ledger: no effect is altered, taken out or left untold there.

Only logins that may read `control.execution` and `control.outbox` can do this; `remit_auditor` may. Times and drafts of a claim
are not compared: once the event exists nothing reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remit.projection.encoding import to_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    import asyncpg

    from remit.ledger_models import ExpectedAction
    from remit.ledger_proof import Verifier

    Connection = asyncpg.Connection[asyncpg.Record]

CODE = "effect"
_COLUMNS = ("jti", "remit_id", "grant_no", "attempt", "args_digest", "claim_id", "state")
# A doubt that was resolved in the claim is told by an event of its own, which may still be on its way.
_DIFFERS = {
    **{name: f"x.{name} IS DISTINCT FROM e.{name}" for name in _COLUMNS},
    "state": "x.state <> e.state AND (e.state <> 'unknown' OR x.state NOT IN ('succeeded', 'failed'))",
}
_EFFECTS = f"""
SELECT action_id, is_missing, differing FROM (
    SELECT e.action_id, x.action_id IS NULL AS is_missing,
           array_remove(ARRAY[{", ".join(f"CASE WHEN {test} THEN '{name}' END" for name, test in _DIFFERS.items())}], NULL)
               AS differing
    FROM json_populate_recordset(NULL::control.execution, $1::json) AS e LEFT JOIN control.execution AS x USING (action_id)
) AS held WHERE is_missing OR differing <> '{{}}'
"""
# The outbox holds an outcome until its event is stored; what was concluded since the ledger's last row may not be projected yet.
_UNTOLD = """
SELECT x.action_id, x.state, a.last_seq FROM control.execution AS x LEFT JOIN audit.actions_all AS a USING (action_id)
WHERE x.state IN ('succeeded', 'failed', 'unknown') AND a.executed_at IS NULL
  AND x.finished_at < (SELECT max(recorded_at) FROM audit.audit_event WHERE stream = 'ACTIONS') - $1::interval
  AND NOT EXISTS (
      SELECT FROM control.outbox AS o WHERE o.service = 'executor' AND o.subject_id = x.action_id AND o.done_at IS NULL)
ORDER BY x.finished_at
"""
_MAY_READ = """
SELECT bool_and(coalesce(has_table_privilege(to_regclass(name), 'SELECT'), false))
FROM unnest(ARRAY['control.execution', 'control.outbox']) AS tables (name)
"""


async def may_read_effects(connection: Connection) -> bool:
    """Return whether this login may look at claims and outbox."""
    return bool(await connection.fetchval(_MAY_READ))


async def compare_effects(connection: Connection, verifier: Verifier, settled: Sequence[ExpectedAction]) -> None:
    """Hold the outcomes of settled actions against the claims they speak of."""
    effects = [each.effect for each in settled if each.effect is not None]
    seqs = {each.row["action_id"]: each.seq for each in settled}
    verifier.effects_held(len(effects))
    for row in await connection.fetch(_EFFECTS, to_json(effects)):
        of_action, seq = f"action {row['action_id']}", seqs[row["action_id"]]
        if row["is_missing"]:
            verifier.note(seq, CODE, f"{of_action}: it has an outcome and no claim")
        for column in row["differing"] if not row["is_missing"] else ():
            verifier.note(seq, CODE, f"{of_action}: the claim's column {column} is not what its events say")


async def find_untold(connection: Connection, verifier: Verifier, *, settling: timedelta) -> None:
    """Find claims that ended with an effect of which the ledger knows no outcome and the outbox owes none."""
    for row in await connection.fetch(_UNTOLD, settling):
        told = f"action {row['action_id']}: its claim ended as {row['state']}, the ledger holds no outcome"
        verifier.note(row["last_seq"] or 0, CODE, told)
