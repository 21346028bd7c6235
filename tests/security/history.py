"""What a superuser can do to the history of the finished run, and which row the verifier must name for it.

Rows 1 to 8 and 9 to 16 are two executed actions with their receipts, 17 and 18 an open action, 19 junk with a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.tampering import ACTIONS, EVENTS

Where = tuple[int, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """Statements, and the first bad row as the verifier sees it.

    `alone` knows nothing but the database, `files` the checkpoints outside too, `stream` ACTIONS itself. `rechained` attacks
    rewrite every link and drop the checkpoints inside (unless the attack `keeps` them), so that the chain fits again.
    """

    sql: tuple[str, ...]
    rechained: bool = False
    keeps_checkpoints: bool = False
    alone: Where
    files: Where
    stream: Where


def _move(*pairs: tuple[int, int]) -> tuple[str, ...]:
    """Return the statements that give rows other sequences, by way of numbers nobody uses."""
    away = [f"UPDATE {EVENTS} SET stream_seq = {old + 500} WHERE {ACTIONS} = {old}" for old, _ in pairs]
    back = [f"UPDATE {EVENTS} SET stream_seq = {new} WHERE {ACTIONS} = {old + 500}" for old, new in pairs]
    return (*away, *back)


def _cursor(last: int, verified: int = 0) -> str:
    return (
        f"UPDATE audit.progress SET last_seq = {last}, verified_seq = {verified}, chain_head ="
        f" (SELECT chain_hash FROM {EVENTS} WHERE {ACTIONS} = {last}) WHERE stream = 'ACTIONS'"
    )


def _copied(source: int, target: int, subject: str = "subject") -> str:
    return (
        f"INSERT INTO {EVENTS} (stream, stream_seq, subject, body, body_sha256, kid, sig, verify_status, chain_hash, recorded_at)"
        f" SELECT stream, {target}, {subject}, body, body_sha256, NULL, NULL, 'signature', chain_hash, recorded_at"
        f" FROM {EVENTS} WHERE {ACTIONS} = {source}"
    )


def _without(last: int) -> tuple[str, ...]:
    """Return the statements that take the open action and the junk out of the tables that people read."""
    return (
        f"DELETE FROM {EVENTS} WHERE {ACTIONS} > {last}",
        f"DELETE FROM audit.checkpoint WHERE stream = 'ACTIONS' AND seq > {last}",
        f"DELETE FROM audit.actions_all WHERE first_seq > {last}",
        "UPDATE audit.actions_all SET flags = '{}'",
        "UPDATE audit.remits SET last_action_at = (SELECT max(proposed_at) FROM audit.actions_all)",
    )


_RECEIPT = (
    f"UPDATE {EVENTS} SET (subject, body, kid, sig) = (SELECT subject, body, kid, sig FROM {EVENTS} WHERE {ACTIONS} = 8)"
    f" WHERE {ACTIONS} = 16"
)
"""One action's receipt in place of the other's."""
_NOWHERE = "'action.nobody.proposed'"
_BEGINNING = (
    "UPDATE audit.progress SET last_seq = 0, verified_seq = 0, verified_at = NULL,"
    " chain_head = sha256(convert_to('remit.ledger.v1:' || stream, 'UTF8'))"
)
_SHIFTED = tuple((old, old + 1) for old in range(5, 20))
_CLOSED_UP = tuple((old, old - 1) for old in range(6, 20))

ATTACKS: dict[str, Attack] = {
    "delete the first": Attack(
        sql=(f"DELETE FROM {EVENTS} WHERE {ACTIONS} = 1",), alone=(1, "gap"), files=(1, "gap"), stream=(1, "gap")
    ),
    "delete one": Attack(
        sql=(f"DELETE FROM {EVENTS} WHERE {ACTIONS} = 6",), alone=(6, "gap"), files=(6, "gap"), stream=(6, "gap")
    ),
    "delete the last": Attack(
        sql=(f"DELETE FROM {EVENTS} WHERE {ACTIONS} = 19",),
        alone=(19, "truncated"),
        files=(19, "truncated"),
        stream=(19, "truncated"),
    ),
    "delete a range": Attack(
        sql=(f"DELETE FROM {EVENTS} WHERE {ACTIONS} BETWEEN 9 AND 12",),
        alone=(9, "gap"),
        files=(9, "gap"),
        stream=(9, "gap"),
    ),
    "delete all": Attack(
        sql=(f"TRUNCATE {EVENTS}",), alone=(1, "truncated"), files=(1, "truncated"), stream=(1, "truncated")
    ),
    "delete and close up": Attack(
        sql=(f"DELETE FROM {EVENTS} WHERE {ACTIONS} = 5", *_move(*_CLOSED_UP)),
        alone=(5, "chain_hash"),
        files=(5, "chain_hash"),
        stream=(5, "chain_hash"),
    ),
    "delete, close up, rechain": Attack(
        sql=(f"DELETE FROM {EVENTS} WHERE {ACTIONS} = 5", *_move(*_CLOSED_UP)),
        rechained=True,
        alone=(5, "verdict"),
        files=(5, "verdict"),
        stream=(5, "verdict"),
    ),
    "delete an action and close up, rechained": Attack(
        sql=(
            f"DELETE FROM {EVENTS} WHERE {ACTIONS} BETWEEN 1 AND 8",
            *_move(*((old, old - 8) for old in range(9, 20))),
        ),
        rechained=True,
        alone=(8, "receipt"),
        files=(8, "receipt"),
        stream=(1, "foreign"),
    ),
    "insert behind": Attack(
        sql=(_copied(1, 20),), alone=(20, "chain_hash"), files=(20, "chain_hash"), stream=(20, "chain_hash")
    ),
    "insert behind, rechained": Attack(
        sql=(_copied(1, 20, _NOWHERE),), rechained=True, alone=None, files=(19, "checkpoint"), stream=(20, "foreign")
    ),
    "insert behind the newest checkpoint, rechained": Attack(
        sql=(_copied(1, 20, _NOWHERE),),
        rechained=True,
        keeps_checkpoints=True,
        alone=None,
        files=None,
        stream=(20, "foreign"),
    ),
    "insert between": Attack(
        sql=(*_move(*_SHIFTED), _copied(1, 5, _NOWHERE)),
        alone=(5, "chain_hash"),
        files=(5, "chain_hash"),
        stream=(5, "chain_hash"),
    ),
    "insert between, rechained": Attack(
        sql=(*_move(*_SHIFTED), _copied(1, 5, _NOWHERE)),
        rechained=True,
        alone=(9, "receipt"),
        files=(9, "receipt"),
        stream=(5, "foreign"),
    ),
    "swap": Attack(
        sql=_move((7, 8), (8, 7)), alone=(7, "chain_hash"), files=(7, "chain_hash"), stream=(7, "chain_hash")
    ),
    "swap, rechained": Attack(
        sql=_move((7, 8), (8, 7)), rechained=True, alone=(7, "verdict"), files=(7, "verdict"), stream=(7, "verdict")
    ),
    "swap what nothing orders, rechained": Attack(
        sql=(*_move((18, 19), (19, 18)), "UPDATE audit.actions_all SET last_seq = 19 WHERE first_seq = 17"),
        rechained=True,
        alone=None,
        files=(19, "checkpoint"),
        stream=(18, "foreign"),
    ),
    "cut the tail": Attack(
        sql=(f"DELETE FROM {EVENTS} WHERE {ACTIONS} > 16",),
        alone=(17, "truncated"),
        files=(17, "truncated"),
        stream=(17, "truncated"),
    ),
    "cut the tail with its checkpoint": Attack(
        sql=(*_without(16), _cursor(16)), alone=None, files=(17, "truncated"), stream=(17, "truncated")
    ),
    "another time, rechained": Attack(
        sql=(
            f"UPDATE {EVENTS} SET recorded_at = recorded_at + interval '1 ms' WHERE {ACTIONS} IN (17, 18, 19)",
            "UPDATE audit.actions_all SET last_event_at = last_event_at + interval '1 ms' WHERE first_seq = 17",
        ),
        rechained=True,
        alone=None,
        files=(19, "checkpoint"),
        stream=(17, "foreign"),
    ),
    "another receipt": Attack(
        sql=(_RECEIPT,),
        alone=(16, "chain_hash"),
        files=(16, "chain_hash"),
        stream=(16, "chain_hash"),
    ),
    "another receipt, rechained": Attack(
        sql=(_RECEIPT,),
        rechained=True,
        alone=(16, "verdict"),
        files=(16, "verdict"),
        stream=(16, "verdict"),
    ),
    "an edited receipt, rechained": Attack(
        sql=(
            f"UPDATE {EVENTS} SET body = overlay(body PLACING '\\x20'::bytea FROM octet_length(body)) WHERE {ACTIONS} = 8",
        ),
        rechained=True,
        alone=(8, "verdict"),
        files=(8, "verdict"),
        stream=(8, "verdict"),
    ),
    "junk taken for a receipt": Attack(
        sql=(f"UPDATE {EVENTS} SET verify_status = 'valid' WHERE {ACTIONS} = 19",),
        alone=(19, "verdict"),
        files=(19, "verdict"),
        stream=(19, "verdict"),
    ),
    "no cursor": Attack(
        sql=("DELETE FROM audit.progress",), alone=(0, "truncated"), files=(0, "truncated"), stream=(0, "truncated")
    ),
    "no cursor and no rows": Attack(
        sql=(f"TRUNCATE {EVENTS}", "DELETE FROM audit.progress"),
        alone=(1, "truncated"),
        files=(1, "truncated"),
        stream=(1, "truncated"),
    ),
    "nothing ever happened": Attack(
        sql=(
            f"TRUNCATE {EVENTS}, audit.actions_all, audit.checkpoint, audit.remits, audit.grants, control.execution",
            _BEGINNING,
        ),
        alone=None,
        files=(1, "truncated"),
        stream=(1, "truncated"),
    ),
}
