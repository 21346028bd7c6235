"""Write what pins the contract: a JSON Schema and a recorded sample per event version, and the AsyncAPI document.

Run by `make contract` after a deliberate change; `test_contract.py` fails on any other.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from remit.asyncapi import document
from remit.canonical import b64url
from remit.pipeline import PIPELINE
from remit.proposal import Notice, Proposal
from tests.support import factories

if TYPE_CHECKING:
    from remit.events import Event

HERE = Path(__file__).parent
SERVICES = HERE.parents[1] / "services" / "README.md"
SCHEMAS, SAMPLES, ASYNCAPI = HERE / "schemas", HERE / "samples", HERE / "asyncapi.json"


def _text(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def schemas() -> dict[str, str]:
    """Return file name to content of every schema snapshot."""
    found = {f"{kind}.v1.json": _text(event.model_json_schema()) for kind, event in factories.KINDS.items()}
    return found | {f"{m.__name__.lower()}.v1.json": _text(m.model_json_schema()) for m in (Proposal, Notice)}


def sample(kind: str) -> str:
    """Return the recorded sample of an event version: subject, headers and body as they stand on the wire."""
    signed = factories.record(kind).signed
    return _text(
        {
            "subject": signed.subject,
            "kid": signed.kid,
            "signature": b64url(signed.signature),
            "body": signed.body.decode(),
        }
    )


def event_of(kind: str) -> type[Event]:
    """Return the event class of a kind such as `action.approved`."""
    return factories.KINDS[kind]


def services_readme() -> str:
    """Return `services/README.md`, computed from the pipeline table."""
    lines = [
        "# The six services",
        "",
        "Generated from `shared/remit/pipeline.py` by `make contract`; a test compares it. Start: `python -m services.<name>`.",
        "Each folder has the same files: `app.py` composes, `handlers.py` loads and answers, `decide.py` decides (pure).",
        "",
        "| service | consumes | answers | publishes | owns | holds | when it is down |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in PIPELINE:
        consumes = "<br>".join(
            f"{c.stream}/{c.durable}: {' '.join(f'`{s}`' for s in c.subjects)}" for c in row.consumes
        )
        answers, publishes = (" ".join(f"`{s}`" for s in subjects) for subjects in (row.answers, row.publishes))
        cells = (row.name, consumes, answers or "-", publishes, row.owns, row.holds, row.when_down)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write everything; a sample that exists is never overwritten, because released bytes stay readable."""
    SCHEMAS.mkdir(exist_ok=True)
    SAMPLES.mkdir(exist_ok=True)
    for name, text in schemas().items():
        (SCHEMAS / name).write_text(text)
    for kind in factories.KINDS:
        path = SAMPLES / f"{kind}.v1.json"
        if not path.exists():
            path.write_text(sample(kind))
    ASYNCAPI.write_text(_text(document()))
    SERVICES.write_text(services_readme())
    sys.stdout.write(f"{len(factories.KINDS)} events written under {HERE.name}/\n")


if __name__ == "__main__":
    main()
