"""Columns of the ledger take what Postgres can store, whatever a signed event says about itself."""

from __future__ import annotations

from dataclasses import replace

from remit.projection.event_columns import event_columns
from remit.projection.fields import MAX_TEXT
from tests.support import factories as f


def test_an_event_id_with_characters_postgres_refuses_does_not_stop_the_projector() -> None:
    said = f.record("action.approved")
    odd = replace(said, event=said.event.model_copy(update={"id": "\x00" * (MAX_TEXT + 1)}))
    row = event_columns("ACTIONS", said.signed.subject, odd)
    assert row["event_id"] == "\ufffd" * MAX_TEXT
