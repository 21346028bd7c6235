"""`remit audit`: is the record whole, what exactly happened in one action, where does the ledger stand."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from remit.cli.audit_proof import checkpoint_lines, prove
from remit.cli.audit_rows import database, heads, plain, story, stream_reader
from remit.cli.audit_story import print_story
from remit.cli.output import REFUSED, Json, console, print_json, reports_errors, table
from remit.cli.settings import CliSettings
from remit.ledger_chain import spelled
from remit.runtime.keys import load_trust

if TYPE_CHECKING:
    from remit.ledger_proof import Proof

audit_app = typer.Typer(
    no_args_is_help=True, help="Verify and show the evidence (reads DATABASE_URL; nothing is changed)."
)
Keys = Annotated[
    Path,
    typer.Option(
        "--keys", envvar="REMIT_KEYS_DIR", help="Key directory: trust.json, trust.sig, trust.root.", show_default=False
    ),
]
Checkpoints = Annotated[
    list[Path] | None,
    typer.Option("--checkpoints", help="Checkpoint file or directory kept outside the database; may be repeated."),
]
WithStream = Annotated[
    bool, typer.Option("--nats", help="Compare every row with the stream too (NATS_URL, login of audit in --keys).")
]
SHOWN_FINDINGS = 20
NOT_ANCHORED = 3
"""Exit code of `verify` when the record is whole as far as it reaches, and nothing says how far it should reach."""


@audit_app.command()
@reports_errors
def verify(
    *, keys: Keys, checkpoints: Checkpoints = None, with_stream: WithStream = False, as_json: Json = False
) -> None:
    """Recompute everything: signatures, both chains, life cycle, receipts, checkpoints, read models; name what breaks first.

    Exit code 0: the record is whole. 1: it is not. 3: what is there is whole, but it is not anchored: without --checkpoints and
    without --nats a cut tail cannot be seen.
    """
    proofs = asyncio.run(_verify(keys, checkpoints or [], with_stream=with_stream))
    is_whole, is_anchored = all(p.is_whole for p in proofs), all(p.anchored_to is not None for p in proofs)
    if as_json:
        facts = {"whole": is_whole, "anchored": is_anchored}
        print_json(facts | {"streams": [_proof_json(p) for p in proofs]})
    else:
        for proof in proofs:
            _print_proof(proof)
    if not is_whole:
        raise typer.Exit(REFUSED)
    if not is_anchored:
        raise typer.Exit(NOT_ANCHORED)


async def _verify(keys: Path, files: list[Path], *, with_stream: bool) -> list[Proof]:
    settings, trust = CliSettings(), load_trust(keys)
    paths = [p for given in files for p in (sorted(given.glob("*.jsonl")) if given.is_dir() else [given])]
    # Before the snapshot is taken, so that the database knows every checkpoint that a file holds by then.
    checkpoints = [checkpoint for path in paths for checkpoint in checkpoint_lines(path)]
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(database(settings))
        bus = await stack.enter_async_context(stream_reader(settings, keys)) if with_stream else None
        return await prove(connection, trust, checkpoints=checkpoints, bus=bus)


def _proof_json(proof: Proof) -> dict[str, Any]:
    first = proof.first
    return plain(
        {
            "stream": proof.stream,
            "whole": proof.is_whole,
            "rows": proof.rows,
            "last_seq": proof.last_seq,
            "head": proof.head,
            "statuses": dict(proof.statuses),
            "actions": proof.actions,
            "receipts": proof.receipts,
            "open": proof.open_actions,
            "awaiting_receipt": proof.awaiting_receipt,
            "checkpoints": proof.checkpoints,
            "anchored_to": proof.anchored_to,
            "effects": proof.effects,
            "findings": proof.finding_count,
            "first": {"seq": first.seq, "code": first.code, "detail": first.detail} if first else None,
        }
    )


def _print_proof(proof: Proof) -> None:
    out = console()
    verdict = ("whole", "bold green") if proof.is_whole else ("BROKEN", "bold red")
    out.print(Text.assemble((proof.stream, "bold"), "  ", verdict, f"  {proof.rows} rows to sequence {proof.last_seq}"))
    kept = {status: number for status, number in proof.statuses.items() if status != "valid"}
    facts = {
        "head": proof.head,
        "actions": f"{proof.actions}, receipts {proof.receipts}, open {proof.open_actions}, "
        f"awaiting a receipt {proof.awaiting_receipt}"
        if proof.stream == "ACTIONS"
        else None,
        "effects": _effects(proof),
        "checkpoints": f"{proof.checkpoints} hold",
        "anchored": "not anchored: a cut tail cannot be seen; give --checkpoints or --nats"
        if proof.anchored_to is None
        else f"to sequence {proof.anchored_to}",
        "kept as evidence": ", ".join(f"{number} {status}" for status, number in sorted(kept.items())) or None,
    }
    for name, value in facts.items():
        if value is not None:
            out.print(Text.assemble((f"  {name:<18}", "dim"), value))
    if proof.first is not None:
        first = proof.first
        out.print(Text.assemble(("  first bad row", "bold red"), f"  {first.seq}: {first.code}: {first.detail}"))
        rows = [[str(f.seq), f.code, f.detail] for f in sorted(proof.findings, key=lambda f: f.rank)[:SHOWN_FINDINGS]]
        table(["row", "finding", "what"], rows)
        if proof.finding_count > SHOWN_FINDINGS:
            out.print(f"  and {proof.finding_count - SHOWN_FINDINGS} more")


def _effects(proof: Proof) -> str | None:
    if proof.stream != "ACTIONS":
        return None
    if proof.effects is None:
        return "not compared: this login may not read the executor's claims; use the role remit_auditor"
    return f"{proof.effects} outcomes held against the executor's claims"


@audit_app.command()
@reports_errors
def show(
    action: Annotated[str, typer.Argument(help="Action id.", show_default=False)], *, as_json: Json = False
) -> None:
    """Tell the whole story of one action: who asked whom for what, who decided, what was done, where it is chained."""
    found = asyncio.run(_story(action))
    if as_json:
        print_json(plain(found))
    else:
        print_story(found)


async def _story(action: str) -> dict[str, Any]:
    async with database(CliSettings()) as connection:
        return await story(connection, action)


@audit_app.command()
@reports_errors
def head(*, as_json: Json = False) -> None:
    """Show how far the ledger reaches, its chain heads, and when it was last verified."""
    found = asyncio.run(_heads())
    if as_json:
        rows = [{**row, "chain_head": spelled(row["chain_head"])} for row in found]
        print_json({"streams": plain(rows)})
        return
    columns = ["stream", "sequence", "chain head", "verified to", "verified at", "alive"]
    table(columns, [_head_row(row) for row in found])


async def _heads() -> list[dict[str, Any]]:
    async with database(CliSettings()) as connection:
        return await heads(connection)


def _head_row(row: dict[str, Any]) -> list[str]:
    verified = row["verified_at"]
    return [
        row["stream"],
        str(row["last_seq"]),
        spelled(row["chain_head"]),
        str(row["verified_seq"]),
        verified.strftime("%Y-%m-%d %H:%M:%S") if verified else "never",
        f"{row['touched_s']:.0f} s ago",
    ]
