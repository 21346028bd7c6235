"""`pipeline.py`, the real subscriptions of every service, the cards and the README say the same."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from faststream.middlewares import AckPolicy
from faststream.nats.subscriber.usecases import PullStreamSubscriber
from faststream.specification.asyncapi import AsyncAPI

from remit.pipeline import PIPELINE, ServiceRow
from tests.support.services import build_service

ROOT = Path(__file__).resolve().parents[2]
OWN_LOOP = {"audit"}
"""The projector fetches by its own loop, because FastStream's batches stall (design, bus section 3, F12)."""
FILES = {"__init__.py", "__main__.py", "app.py", "handlers.py", "settings.py"}


def _subjects(spec: dict[str, Any], action: str) -> set[str]:
    refs = [op["channel"]["$ref"] for op in spec["operations"].values() if op["action"] == action]
    return {spec["channels"][unquote(ref).removeprefix("#/channels/")]["address"] for ref in refs}


@pytest.mark.parametrize("row", [r for r in PIPELINE if r.name not in OWN_LOOP], ids=lambda row: row.name)
def test_subscriptions_equal_the_table(row: ServiceRow, keys: Path) -> None:
    service = build_service(row.name, keys)
    spec = AsyncAPI(service.broker).to_specification().to_jsonable()
    assert _subjects(spec, "receive") == {c.subjects[0] for c in row.consumes}
    assert _subjects(spec, "send") == set(row.publishes)
    assert {answer.subject for answer in service.answered} == set(row.answers)


@pytest.mark.parametrize("row", PIPELINE, ids=lambda row: row.name)
def test_every_subscriber_has_the_one_safe_shape(row: ServiceRow, keys: Path) -> None:
    service = build_service(row.name, keys)
    bound: dict[tuple[str, str], int] = {}
    for subscriber in service.broker.subscribers:
        assert isinstance(subscriber, PullStreamSubscriber)
        assert subscriber._no_reply, "a handler's return value would be published to the asker's reply subject"
        assert subscriber.ack_policy is AckPolicy.MANUAL
        assert subscriber.pull_sub.batch_size == 1
        assert not subscriber.stream.declare
        assert subscriber.extra_options["inbox_prefix"] == f"_IBX.{row.name}.".encode()
        durable = (subscriber.stream.name, subscriber.extra_options["durable"])
        bound[durable] = bound.get(durable, 0) + 1
    consumed = () if row.name in OWN_LOOP else row.consumes
    assert bound == {(c.stream, c.durable): service.settings.workers for c in consumed}


@pytest.mark.parametrize("row", PIPELINE, ids=lambda row: row.name)
def test_every_service_has_the_same_files_and_a_card(row: ServiceRow) -> None:
    folder = ROOT / "services" / row.name
    assert {p.name for p in folder.glob("*.py")} >= FILES | ({"project.py"} if row.name == "audit" else {"decide.py"})
    card = importlib.import_module(f"services.{row.name}").__doc__ or ""
    for word in ("consumes", "publishes", "state", "secrets", "down"):
        assert word in card.lower(), f"the card of {row.name} does not say: {word}"


def test_readme_shows_the_pipeline() -> None:
    text = (ROOT / "README.md").read_text()
    for row in PIPELINE:
        assert f"| {row.name} |" in text
