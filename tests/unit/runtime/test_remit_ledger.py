"""Remits over a stream in memory: nothing that may be a revocation is passed over, and an append settles what happened to it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from remit.envelope import Recorded, Signer
from remit.events import RemitAmendedEvent, RemitExhaustedEvent, RemitGrantedEvent, RemitRevokedEvent
from remit.fold import RemitState
from remit.runtime import remit_ledger
from remit.runtime.bus import Appended, NotUnderstoodError, Stored
from remit.runtime.remit_ledger import RemitLedger
from remit.runtime.sealing import Draft, Place, Sealer, SupersededRemit
from remit.runtime.telemetry import Telemetry
from tests.support.factories import EXAMPLES, REMIT, SIGNERS, TRUST
from tests.unit.runtime.memory_bus import MemoryBus

ROTATED = Signer(
    kid="approval-new", service="approval", key=SIGNERS["policy"].key, message_id_secret=b"another secret of this key"
)
GRANT = Draft(event=RemitGrantedEvent, data=EXAMPLES["remit.granted"])
REVOKE = Draft(event=RemitRevokedEvent, data=EXAMPLES["remit.revoked"])
AMEND = Draft(event=RemitAmendedEvent, data=EXAMPLES["remit.amended"])
EXHAUST = Draft(event=RemitExhaustedEvent, data=EXAMPLES["remit.exhausted"])


def sealed(draft: Draft, state: RemitState, signer: Signer = SIGNERS["approval"]) -> Recorded:
    place = Place(subject_id=state.remit_id, n=state.n + 1, prev=state.head, cause=(None, None))
    return Sealer(signer=signer, tenant="default").seal(draft, place)


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus()


@pytest.fixture
def trust() -> dict[str, Any]:
    return dict(TRUST)


@pytest.fixture
def ledger(bus: MemoryBus, trust: dict[str, Any]) -> RemitLedger:
    sealer = Sealer(signer=SIGNERS["approval"], tenant="default")
    return RemitLedger(bus=bus, sealer=sealer, trust=trust, telemetry=Telemetry("t"))


@pytest.fixture
async def granted(ledger: RemitLedger) -> RemitState:
    return await ledger.append(RemitState(remit_id=REMIT.remit_id), GRANT)


async def test_revocation_by_an_unknown_kid_is_waited_for_and_never_passed_over(
    bus: MemoryBus, ledger: RemitLedger, granted: RemitState, trust: dict[str, Any]
) -> None:
    await ledger.read(REMIT.remit_id)
    bus.put(sealed(REVOKE, granted, ROTATED))
    for _ in range(2):
        with pytest.raises(NotUnderstoodError):
            await ledger.read(REMIT.remit_id)
    trust[ROTATED.kid] = replace(TRUST["approval-2026-11"], kid=ROTATED.kid, key=ROTATED.key.verify_key)
    assert (await ledger.read(REMIT.remit_id)).status == "revoked"


async def test_newer_version_of_a_remit_event_is_waited_for(
    bus: MemoryBus, ledger: RemitLedger, granted: RemitState
) -> None:
    newer = sealed(REVOKE, granted)
    body = newer.signed.body.replace(b"io.remit.remit.revoked.v1", b"io.remit.remit.revoked.v2")
    assert body != newer.signed.body
    signature = SIGNERS["approval"].key.sign(newer.signed.subject.encode() + b"\x00" + body).signature
    bus.put(replace(newer, signed=replace(newer.signed, body=body, signature=signature)))
    with pytest.raises(NotUnderstoodError):
        await ledger.read(REMIT.remit_id)


async def test_plain_junk_is_passed_over(bus: MemoryBus, ledger: RemitLedger, granted: RemitState) -> None:
    bus.junk(f"remit.{granted.remit_id}.revoked")
    state = await ledger.read(granted.remit_id)
    assert (state.status, state.last_seq) == ("active", 2)


async def test_remit_that_rests_on_a_distrusted_kid_is_forgotten(
    ledger: RemitLedger, granted: RemitState, trust: dict[str, Any]
) -> None:
    assert (await ledger.read(granted.remit_id)).status == "active"
    del trust["approval-2026-11"]
    with pytest.raises(NotUnderstoodError):
        await ledger.read(granted.remit_id, max_age_s=60)


async def test_own_retry_is_ours_although_others_wrote_after_it(
    bus: MemoryBus, ledger: RemitLedger, granted: RemitState
) -> None:
    bus.lose_acks = 1
    theirs = asyncio.Event()
    append = bus.append

    async def interrupted(subject: str, body: bytes, headers: dict[str, str]) -> Appended:
        try:
            return await append(subject, body, headers)
        finally:
            if not theirs.is_set():
                theirs.set()
                state = await ledger.read(granted.remit_id)
                bus.put(sealed(REVOKE, state))

    bus.append = interrupted
    state = await ledger.append(granted, AMEND)
    assert (state.n, state.status) == (3, "revoked")


async def test_poisoned_message_id_is_noticed_and_survived(
    bus: MemoryBus, ledger: RemitLedger, granted: RemitState
) -> None:
    bus.ids[SIGNERS["approval"].message_id(sealed(REVOKE, granted).event.id)] = 99
    assert (await ledger.append(granted, REVOKE)).status == "revoked"
    assert bus.stored[-1].headers.get("Nats-Msg-Id") is None
    alarms = ledger._telemetry.registry.get_sample_value("remit_alarms_total", {"kind": "message_id_poisoned"})
    assert alarms == 1


async def test_exhausted_is_a_fact_and_outlives_a_lost_race(
    bus: MemoryBus, ledger: RemitLedger, granted: RemitState
) -> None:
    bus.put(sealed(AMEND, granted))
    assert (await ledger.append(granted, EXHAUST)).status == "exhausted"
    assert [s.subject.rsplit(".", 1)[1] for s in bus.stored] == ["granted", "amended", "exhausted"]


async def test_fact_that_may_not_follow_is_not_sent(bus: MemoryBus, ledger: RemitLedger, granted: RemitState) -> None:
    bus.put(sealed(REVOKE, granted))
    with pytest.raises(SupersededRemit) as lost:
        await ledger.append(granted, EXHAUST)
    assert lost.value.state.status == "revoked"
    assert len(bus.stored) == 2


async def test_slow_read_never_replaces_what_a_faster_one_saw(
    bus: MemoryBus, ledger: RemitLedger, granted: RemitState
) -> None:
    slow, read = asyncio.Event(), bus.leader_read

    async def held(stream: str, query: dict[str, Any]) -> Stored | None:
        found = await read(stream, query)
        if found is None and not slow.is_set():
            slow.set()
            bus.put(sealed(REVOKE, granted))
            assert (await ledger.read(granted.remit_id)).status == "revoked"
        return found

    bus.leader_read = held
    assert (await ledger.read(granted.remit_id)).status == "active"
    assert (await ledger.read(granted.remit_id, max_age_s=60)).status == "revoked"


async def test_recent_copy_is_used_only_within_its_age(
    bus: MemoryBus, ledger: RemitLedger, granted: RemitState, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(remit_ledger, "monotonic", lambda: clock[0])
    await ledger.read(granted.remit_id)
    before = bus.reads
    await ledger.read(granted.remit_id, max_age_s=1.0)
    assert bus.reads == before
    clock[0] += 1.1
    await ledger.read(granted.remit_id, max_age_s=1.0)
    assert bus.reads == before + 1
