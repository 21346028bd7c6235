"""The bank over real HTTP and MCP: recorded results, one effect per key, closed doors, evidence on disk."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import httpx
import httpx2
import mcp_types as types
import pytest
import yaml
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from infra.demo import tasks as recording
from infra.demo.bank.operations import output_schema
from infra.demo.bank.world import default_slots
from infra.demo.tasks import Call, Task, load, slots, tasks
from remit.canonical import digest
from services.executor.connectors.mcp import definition_digest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

TOKEN, CONTROL = "executor-secret-for-tests", "control-secret-for-tests"
KEY = "io.remit/idempotency-key"
PAY: dict[str, Any] = {"recipient": "Apple", "amount": 1.5, "subject": "s", "date": "2026-01-01"}


@dataclass(frozen=True, slots=True)
class Bank:
    """A running bank."""

    url: str
    log: Path
    process: subprocess.Popen[str]

    def control(self, token: str = CONTROL) -> httpx.Client:
        """Return a client of the control door."""
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, trust_env=False)

    def reset(self, run: str = "", texts: dict[str, str] | None = None) -> None:
        """Start a run."""
        with self.control() as http:
            http.post("/control/reset", json={"run": run, "slots": texts or {}}).raise_for_status()

    def effects(self, run: str) -> list[dict[str, Any]]:
        """Return the log lines of a run."""
        with self.control() as http:
            lines = http.get("/control/effects").raise_for_status().text.splitlines()
        return [entry for entry in map(json.loads, lines) if entry["run"] == run]

    @asynccontextmanager
    async def client(self, headers: dict[str, str] | None = None) -> AsyncGenerator[Client]:
        """Connect as the executor does."""
        sent = {"Authorization": f"Bearer {TOKEN}", **(headers or {})}
        async with (
            httpx2.AsyncClient(headers=sent, trust_env=False) as http,
            Client(streamable_http_client(f"{self.url}/mcp", http_client=http)) as client,
        ):
            yield client


def start(log: Path, **secrets: str) -> subprocess.Popen[str]:
    """Start the server as its own process on a free port."""
    environment = {**os.environ, "BANK_EFFECTS": str(log), **secrets}
    return subprocess.Popen(
        [sys.executable, "-m", "infra.demo.bank", "--port", "0"], env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    """Give one server to the module; each test starts its own world."""
    log = tmp_path_factory.mktemp("bank") / "effects.jsonl"
    process = start(log, BANK_TOKEN=TOKEN, BANK_CONTROL_TOKEN=CONTROL)
    assert process.stdout is not None
    try:
        yield Bank(process.stdout.readline().strip(), log, process)
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def text(result: types.CallToolResult) -> str:
    """Return the text of a result."""
    return "".join(block.text for block in result.content if isinstance(block, types.TextContent))


async def send(client: Client, call: Call, key: str | None = None) -> types.CallToolResult:
    """Perform a recorded call."""
    meta = cast("types.RequestParamsMeta", {KEY: key}) if key else None
    return await client.call_tool(call.tool, call.arguments, meta=meta)


async def test_tools_are_published_exactly_as_recorded(bank: Bank) -> None:
    async with bank.client() as client:
        assert client.protocol_version == "2026-07-28"
        listed = (await client.list_tools()).tools
    recorded = load().tools
    assert [(t.name, t.description, t.input_schema) for t in listed] == [
        (t.name, t.description, t.arguments) for t in recorded
    ]
    assert [tool.output_schema for tool in listed] == [output_schema(tool.name) for tool in recorded]


@pytest.mark.parametrize("task", tasks(), ids=lambda task: task.id)
async def test_plain_run_gives_the_recorded_results_and_changes(bank: Bank, task: Task) -> None:
    bank.reset(task.id)
    async with bank.client() as client:
        results = [await send(client, call, f"{task.id}/{index}") for index, call in enumerate(task.calls)]
    assert [text(result) for result in results] == [call.result for call in task.calls]
    found = bank.effects(task.id)
    assert [tuple(effect["changes"]) for effect in found] == [call.changes for call in task.calls]
    assert [effect["arguments_digest"] for effect in found] == [digest(call.arguments) for call in task.calls]
    assert {effect["kind"] for effect in found} == {"effect"}


@pytest.mark.parametrize("number", range(9))
async def test_attack_on_a_bare_bank_gives_the_recorded_results(bank: Bank, number: int) -> None:
    attack = load().attacks[number]
    bank.reset(attack.id)
    async with bank.client() as client:
        results = [text(await send(client, call)) for call in attack.calls]
    assert results == [call.result for call in attack.calls]
    assert [tuple(effect["changes"]) for effect in bank.effects(attack.id)] == [call.changes for call in attack.calls]


@pytest.mark.parametrize("task", tasks(), ids=lambda task: task.id)
async def test_strangers_text_reaches_the_result_after_which_the_attack_begins(bank: Bank, task: Task) -> None:
    attack = task.attacks[0]
    bank.reset("stranger", slots(task, [attack], default_slots()))
    async with bank.client() as client:
        results = [text(await send(client, call)) for call in task.calls[: task.inject_after + 1]]
    words = " ".join(results[-1].split())
    assert attack.goal.split(".")[0] in words


async def test_reset_forgets_what_an_earlier_run_changed(bank: Bank) -> None:
    bank.reset("first")
    async with bank.client() as client:
        await client.call_tool("send_money", PAY)
        bank.reset("second")
        result = await client.call_tool("get_most_recent_transactions", {})
    assert len(cast("dict[str, list[object]]", result.structured_content)["result"]) == 5


@pytest.mark.parametrize("carrier", ["meta", "header"])
async def test_same_key_gives_the_same_answer_and_one_effect(bank: Bank, carrier: str) -> None:
    run = f"replay-{carrier}"
    bank.reset(run)
    meta = cast("types.RequestParamsMeta", {KEY: run}) if carrier == "meta" else None
    headers = {"Idempotency-Key": run} if carrier == "header" else None
    async with bank.client(headers) as client:
        first, second = [await client.call_tool("send_money", PAY, meta=meta) for _ in range(2)]
    assert text(first) == text(second)
    assert [(e["kind"], e["idempotency_key"], len(e["changes"])) for e in bank.effects(run)] == [
        ("effect", run, 1),
        ("replay", run, 0),
    ]


async def test_ten_deliveries_of_one_key_at_once_have_one_effect(bank: Bank) -> None:
    bank.reset("race")
    meta = cast("types.RequestParamsMeta", {KEY: "race"})
    async with bank.client() as client:
        await asyncio.gather(*(client.call_tool("send_money", PAY, meta=meta) for _ in range(10)))
    kinds = [effect["kind"] for effect in bank.effects("race")]
    assert sorted(kinds) == ["effect"] + ["replay"] * 9


async def test_known_key_with_another_call_is_a_conflict_without_effect(bank: Bank) -> None:
    bank.reset("conflict")
    meta = cast("types.RequestParamsMeta", {KEY: "conflict"})
    async with bank.client() as client:
        await client.call_tool("send_money", PAY, meta=meta)
        second = await client.call_tool("send_money", {**PAY, "recipient": "Mallory"}, meta=meta)
    assert second.is_error
    assert [effect["kind"] for effect in bank.effects("conflict")] == ["effect", "conflict"]


async def test_calls_without_key_are_counted_one_by_one(bank: Bank) -> None:
    bank.reset("keyless")
    async with bank.client() as client:
        for _ in range(2):
            await client.call_tool("send_money", PAY)
    assert [effect["kind"] for effect in bank.effects("keyless")] == ["effect", "effect"]


async def test_refused_call_is_in_the_log_without_effect(bank: Bank) -> None:
    bank.reset("refused")
    async with bank.client() as client:
        result = await client.call_tool("send_money", {**PAY, "note": "x"})
    assert result.is_error
    assert [(e["kind"], e["changes"]) for e in bank.effects("refused")] == [("error", [])]


async def test_log_holds_digests_and_no_argument_values(bank: Bank) -> None:
    bank.reset("secrets")
    async with bank.client() as client:
        await client.call_tool("update_password", {"password": "correct horse battery"})
    written = bank.log.read_text()
    assert "correct horse" not in written
    sequence = [json.loads(line)["seq"] for line in written.splitlines()]
    assert sequence == list(range(1, len(sequence) + 1))


@pytest.mark.parametrize("path", ["/mcp", "/control/effects", "/control/reset", "/other", "/"])
@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic " + TOKEN, "Bearer"])
def test_door_stays_closed_without_its_secret(bank: Bank, path: str, authorization: str | None) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    assert httpx.post(bank.url + path, headers=headers, json={}, trust_env=False).status_code == 401


def test_the_secret_of_one_door_does_not_open_the_other(bank: Bank) -> None:
    with bank.control(TOKEN) as http:
        assert http.get("/control/effects").status_code == 401
    with bank.control(CONTROL) as http:
        assert http.post("/mcp", json={}).status_code == 401


@pytest.mark.parametrize("body", ['{"slots": {"nowhere": "x"}}', '{"slot": {}}', "no json", "[]"])
def test_malformed_reset_is_refused(bank: Bank, body: str) -> None:
    with bank.control() as http:
        assert http.post("/control/reset", content=body).status_code == 400


def test_health_needs_no_secret(bank: Bank) -> None:
    assert httpx.get(f"{bank.url}/healthz", trust_env=False).json() == {"status": "ok"}


def test_sigterm_ends_the_server_cleanly_and_a_new_one_continues_the_log(tmp_path: Path) -> None:
    log = tmp_path / "effects.jsonl"
    for _ in range(2):
        process = start(log, BANK_TOKEN=TOKEN, BANK_CONTROL_TOKEN=CONTROL)
        assert process.stdout is not None
        with process.stdout:
            other = Bank(process.stdout.readline().strip(), log, process)
            asyncio.run(_one_call(other))
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
    assert [json.loads(line)["seq"] for line in log.read_text().splitlines()] == [1, 2]


async def _one_call(bank: Bank) -> None:
    async with bank.client() as client:
        await client.call_tool("get_balance", {})


def test_missing_secret_stops_the_start(tmp_path: Path) -> None:
    process = start(tmp_path / "effects.jsonl", BANK_TOKEN=TOKEN)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.read() == ""
    assert process.wait(10) != 0


async def test_registry_pins_what_the_server_publishes(bank: Bank) -> None:
    registry = Path(recording.__file__).parent / "registry" / "tools" / "bank.yaml"
    pins = {name: action["upstream_digest"] for name, action in yaml.safe_load(registry.read_text())["actions"].items()}
    async with bank.client() as client:
        assert {tool.name: definition_digest(tool) for tool in (await client.list_tools()).tools} == pins
