"""Each of the six services turns on a live action, against the running system: its junk is kept, counted and never folded.

The attacker has the service's own broker login and its own signing key. What its login may not publish goes in through the
login that may, as if the broker had failed too: the signature has to be enough. Source: design, bus section 10, rows 31 to 33.
"""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from infra.demo.stage import AGENT
from infra.local import key_ring
from remit.canonical import b64url
from remit.envelope import message
from remit.events import ACTION_EVENTS, ActionRefused
from remit.ids import action_id, event_id, fresh_key
from remit.runtime.bus import Bus
from remit.runtime.keys import load_service_keys
from remit.runtime.ledger import Ledger
from remit.runtime.telemetry import Telemetry
from tests.security.design_table import SERVICES
from tests.security.raw_client import raw_client
from tests.security.traitor import Traitor
from tests.support.live_stage import concluded, live_stage, waiting
from tests.support.servers import connected
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from remit.envelope import Signed
    from remit.fold import ActionState
    from tests.security.raw_client import RawClient
    from tests.support.live_stage import Live

pytestmark = pytest.mark.timeout(120)

ALLOWED = ("proposed", "evaluated", "approved", "tokenized", "started", "executed", "audited")
WHOLE = (*ALLOWED[:2], "approval_requested", "approval_requested", *ALLOWED[2:])
"""Of an action that two people have to approve."""
EVIDENCE = """
select stream_seq, subject, verify_status from audit.audit_event where stream = 'ACTIONS' and stream_seq = any($1)
"""
FOLDED = """
select split_part(subject, '.', 3) as short, kid from audit.audit_event
where stream = 'ACTIONS' and subject like 'action.' || $1 || '.%' and verify_status = 'valid' order by stream_seq
"""
CURSOR = "select last_seq from audit.cursor where stream = 'ACTIONS'"


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    """One stage for the module; its audit must still verify when everybody has had a turn."""
    async with live_stage(tmp_path_factory.mktemp("compromised")) as running:
        yield running


@pytest.fixture(scope="module")
async def remit(live: Live) -> str:
    """What Emma delegated before anything was compromised."""
    return await live.grant("lab.ok", "lab.joint")


def traitor(live: Live, service: str) -> Traitor:
    keys = live.stage.environment.keys_dir
    signers = {name: load_service_keys(keys, name).signer for name in SERVICES}
    return Traitor(signers[service], {name: signer.kid for name, signer in signers.items()})


def login(live: Live, principal: str) -> Any:
    """Return a context with a raw connection under a principal's own key."""
    environment = live.stage.environment
    seed = key_ring.load_nats_seed(environment.keys_dir, principal)
    return raw_client(environment.nats_url, seed, principal.removeprefix("agents/"))


@asynccontextmanager
async def ledger(live: Live) -> AsyncGenerator[Ledger]:
    """Read as the services read."""
    environment = live.stage.environment
    mine = load_service_keys(environment.keys_dir, "policy")
    async with connected(environment.nats_url, environment.keys_dir, "policy", inbox="policy") as client:
        bus = Bus(client)  # type: ignore[arg-type]  # a nats-py client, whose own annotations are wider
        yield Ledger(bus=bus, signer=mine.signer, trust=mine.trust, tenant="default", telemetry=Telemetry("t"))


async def state_of(live: Live, action: str) -> ActionState:
    async with ledger(live) as reading:
        return await reading.read(action)


async def asked(live: Live, remit: str) -> ActionState:
    """Return a live action that waits for two people."""
    pending = waiting(await live.agent.propose("lab.joint", {}, remit=remit, wait=0.2))
    assert pending.action_id is not None
    await live.asked(pending.action_id)
    return await state_of(live, pending.action_id)


async def put(client: RawClient, signed: Signed, **headers: str) -> int:
    """Store an event and return its sequence."""
    answer = await client.ask(signed.subject, signed.body, headers={**signed.headers(), **headers})
    assert not answer.get("duplicate")
    return answer["seq"]


async def completes(live: Live, state: ActionState, service: str) -> None:
    """Assert that two people's yes still leads to one call and one receipt, by nobody's events but their own writers'."""
    before = live.lab.arrivals["joint"]
    replies = [await live.approve("dana", state.action_id), await live.approve("otto", state.action_id, version=2)]
    assert [reply.status for reply in replies] == ["ok", "ok"], (service, replies)
    row = await live.receipt(state.action_id)
    assert (row["outcome"], live.lab.arrivals["joint"]) == ("succeeded", before + 1)
    rows = await live.admin.fetch(FOLDED, state.action_id)
    writers = {event.short: event.writers for event in ACTION_EVENTS}
    assert tuple(row["short"] for row in rows) == WHOLE
    assert all(row["kid"].startswith(writers[row["short"]]) for row in rows)


async def kept(live: Live, expected: dict[int, str]) -> None:
    """Assert that the ledger holds each piece of junk with the reason why it was not folded."""

    async def projected() -> bool:
        return await live.admin.fetchval(CURSOR) >= max(expected)

    await eventually(projected)
    found = {row["stream_seq"]: row["verify_status"] for row in await live.admin.fetch(EVIDENCE, list(expected))}
    assert found == expected


@pytest.mark.parametrize("service", SERVICES)
async def test_junk_of_a_compromised_service_is_kept_counted_and_never_folded(
    live: Live, remit: str, service: str
) -> None:
    state, evil, expected = await asked(live, remit), traitor(live, service), dict[int, str]()
    counted = await invalid_events(live)
    async with login(live, service) as own:
        for forgery in evil.forgeries(state):
            own.errors.clear()
            if service in forgery.event.writers:
                expected[await put(own, forgery.signed)] = forgery.code
                continue
            own.publish(forgery.signed.subject, forgery.signed.body, headers=forgery.signed.headers())
            await own.flush()
            assert own.refused("Publish") == {(forgery.signed.subject, "")}
            async with login(live, forgery.event.writers[0]) as open_door:
                expected[await put(open_door, forgery.signed)] = forgery.code
    assert len(expected) >= 2 * len(ACTION_EVENTS)
    assert (await state_of(live, state.action_id)).chain == state.chain
    await completes(live, state, service)
    await kept(live, expected)
    assert await invalid_events(live) - counted == Counter(expected.values())


async def metrics(live: Live, service: str) -> list[str]:
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(f"http://127.0.0.1:{live.stage.supervisor.port(service)}/metrics")).text.splitlines()


async def invalid_events(live: Live) -> Counter[str]:
    """Return how many events audit has not believed, by code."""
    found = Counter[str]()
    for line in await metrics(live, "audit"):
        if line.startswith("remit_invalid_events_total{"):
            found[line.split('"')[1]] += int(float(line.rsplit(" ", 1)[1]))
    return found


async def test_a_services_own_type_in_its_own_place_is_what_a_compromise_can_reach(live: Live, remit: str) -> None:
    # The control of the test above: the very same forger's event folds where its service may write it.
    state, evil = await asked(live, remit), traitor(live, "approval")
    async with login(live, "approval") as own:
        await put(own, evil.sign(ActionRefused, state))
    assert isinstance((await state_of(live, state.action_id)).find(ActionRefused), ActionRefused)
    assert (await live.receipt(state.action_id))["outcome"] is None


@pytest.mark.parametrize("service", ["policy", "tokens", "executor", "audit"])
async def test_unsigned_and_unreadable_bytes_on_its_own_subjects_block_nothing(
    live: Live, remit: str, service: str
) -> None:
    state = await asked(live, remit)
    (event, *_) = [e for e in ACTION_EVENTS if service in e.writers]
    subject = f"action.{state.action_id}.{event.short}"
    signer = traitor(live, service).signer
    junk = {"signature": {}, "schema": signed_headers(signer, subject, b"{}")}
    async with login(live, service) as own:
        seqs = {(await own.ask(subject, b"{}", headers=headers))["seq"]: code for code, headers in junk.items()}
        for body in (b"\xff" * 50, b"[" * 20_000, b'{"n": NaN}', b""):
            seqs[(await own.ask(subject, body, headers=signed_headers(signer, subject, body)))["seq"]] = "schema"
    await completes(live, state, service)
    await kept(live, seqs)


def signed_headers(signer: Any, subject: str, body: bytes) -> dict[str, str]:
    """Return the headers of bytes that are truly signed and are no event."""
    return {"Remit-Kid": signer.kid, "Remit-Sig": b64url(signer.key.sign(message(subject, body)).signature)}


async def test_poisoned_message_ids_are_noticed_and_the_action_completes(live: Live, remit: str) -> None:
    key = fresh_key()
    identity, other = action_id("default", AGENT, key), action_id("default", AGENT, fresh_key())
    writers = {event.short: event.writers[0] for event in ACTION_EVENTS}
    async with login(live, "policy") as thief:
        for short in ALLOWED:
            stolen = traitor(live, writers[short]).signer.message_id(event_id(identity, f"action.{short}"))
            answer = await thief.ask(f"action.{other}.evaluated", b"other bytes", headers={"Nats-Msg-Id": stolen})
            assert "duplicate" not in answer
    answer = concluded(await live.agent.propose("lab.ok", {}, remit=remit, idempotency_key=key, wait=30))
    assert answer.succeeded
    await live.receipt(identity)
    rows = await live.admin.fetch(FOLDED, identity)
    assert tuple(row["short"] for row in rows) == ALLOWED
    for service in SERVICES:
        said = [line for line in await metrics(live, service) if 'kind="message_id_poisoned"' in line]
        assert said, service
        assert float(said[0].rsplit(" ", 1)[1]) >= 1


async def test_hijacked_proposals_in_the_event_stream_do_not_stop_the_evidence(live: Live, remit: str) -> None:
    state = await asked(live, remit)
    before = await live.admin.fetchval(CURSOR)
    async with login(live, "intake") as evil, login(live, "agents/clerk") as clerk:
        for _ in range(10):
            evil.publish(
                "$JS.API.CONSUMER.MSG.NEXT.INTAKE.intake",
                b'{"batch": 10, "expires": 500000000}',
                reply=f"action.{state.action_id}.approved",
            )
        await evil.flush()
        for number in range(30):
            clerk.publish("propose.clerk", b"%d" % number)
        await clerk.flush()

        async def hijacked() -> int:
            query = "select count(*) from audit.audit_event where stream_seq > $1 and subject = 'in.propose.clerk'"
            return await live.admin.fetchval(query, before)

        await eventually(lambda: hijacked_some(hijacked))
    await completes(live, state, "intake")


async def hijacked_some(ask: Any) -> bool:
    return await ask() > 0


async def test_evidence_of_all_this_still_verifies(live: Live) -> None:
    assert await live.stage.verify_audit(), (live.stage.directory / "logs" / "audit-verify.log").read_text()
    assert {service: live.stage.supervisor.restarts(service) for service in SERVICES} == dict.fromkeys(SERVICES, 0)
