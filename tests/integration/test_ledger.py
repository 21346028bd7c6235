"""Append and read against a real broker: one winner, retries settled, junk passed over, facts always stored."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from remit.envelope import pack_chain
from remit.events import (
    ActionApproved,
    ActionAudited,
    ActionEvaluated,
    ActionExecuted,
    ActionProposed,
    RemitGrantedEvent,
    RemitRevokedEvent,
)
from remit.fold import ActionState, RemitState
from remit.runtime.bus import Bus
from remit.runtime.keys import load_service_keys
from remit.runtime.ledger import Draft, Ledger, Superseded, SupersededRemit
from remit.runtime.telemetry import Telemetry
from tests.support import factories
from tests.support.factories import ACTION_ID
from tests.support.servers import connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PROPOSED = Draft(event=ActionProposed, data=factories.PROPOSED)
EVALUATED = Draft(event=ActionEvaluated, data=factories.EVALUATED)


class Ledgers:
    """One ledger a service, each on its own connection with its own permissions."""

    def __init__(self, url: str, keys: Path, stack: AsyncExitStack) -> None:
        self.url, self.keys, self.stack = url, keys, stack

    async def of(self, service: str) -> Ledger:
        client = await self.stack.enter_async_context(connected(self.url, self.keys, service))
        mine = load_service_keys(self.keys, service)
        return Ledger(
            bus=Bus(client),  # type: ignore[arg-type]  # a nats-py client, whose own annotations are wider
            signer=mine.signer,
            trust=mine.trust,
            tenant="default",
            telemetry=Telemetry(service),
        )


@pytest.fixture
async def ledgers(nats_url: str, keys: Path) -> AsyncIterator[Ledgers]:
    async with AsyncExitStack() as stack:
        yield Ledgers(nats_url, keys, stack)


def _empty() -> ActionState:
    return ActionState(action_id=ACTION_ID)


async def test_append_and_read_agree(ledgers: Ledgers) -> None:
    intake, policy = await ledgers.of("intake"), await ledgers.of("policy")
    proposed = await intake.append(_empty(), PROPOSED)
    evaluated = await policy.append(proposed, EVALUATED)
    read = await policy.read(ACTION_ID)
    assert [r.signed for r in read.chain] == [r.signed for r in evaluated.chain]
    assert read.last_seq == evaluated.last_seq == 2


async def test_repeated_append_is_ours_and_stored_once(ledgers: Ledgers) -> None:
    intake = await ledgers.of("intake")
    first = await intake.append(_empty(), PROPOSED)
    again = await intake.append(_empty(), PROPOSED)
    assert [r.event.id for r in again.chain] == [r.event.id for r in first.chain]
    assert await intake.append(first, PROPOSED) == first, "what the state already holds is no lost race"
    assert (await intake.read(ACTION_ID)).last_seq == 1


async def test_twenty_deciders_have_one_winner(ledgers: Ledgers) -> None:
    intake = await ledgers.of("intake")
    evaluated = await (await ledgers.of("policy")).append(await intake.append(_empty(), PROPOSED), EVALUATED)
    approval = await ledgers.of("approval")
    requested = await approval.append(
        evaluated, Draft(event=factories.KINDS["action.approval_requested"], data=factories.REQUESTED)
    )
    drafts = [Draft(event=ActionApproved, data=factories.APPROVED, discriminator=f"person-{i}") for i in range(20)]
    outcomes = await asyncio.gather(*(approval.append(requested, d) for d in drafts), return_exceptions=True)
    assert sum(isinstance(o, ActionState) for o in outcomes) == 1
    assert all(isinstance(o, ActionState | Superseded) for o in outcomes)
    assert len((await approval.read(ACTION_ID)).chain) == 4


async def test_service_may_not_write_a_foreign_type(ledgers: Ledgers) -> None:
    policy = await ledgers.of("policy")
    with pytest.raises(Exception, match="may not write"):
        await policy.append(_empty(), PROPOSED)


async def test_illegal_successor_is_never_sent(ledgers: Ledgers) -> None:
    intake, approval = await ledgers.of("intake"), await ledgers.of("approval")
    proposed = await intake.append(_empty(), PROPOSED)
    with pytest.raises(Superseded):
        await approval.append(proposed, Draft(event=ActionApproved, data=factories.APPROVED))


async def test_junk_on_the_subject_does_not_block_the_action(ledgers: Ledgers, keys: Path) -> None:
    intake, policy = await ledgers.of("intake"), await ledgers.of("policy")
    proposed = await intake.append(_empty(), PROPOSED)
    async with connected(ledgers.url, keys, "policy") as compromised:
        await compromised.jetstream().publish(f"action.{ACTION_ID}.evaluated", b"{}", timeout=5)
    with pytest.raises(Superseded) as lost:
        await policy.append(proposed, EVALUATED)
    assert (len(lost.value.state.chain), lost.value.state.last_seq) == (1, 2)
    assert (await policy.append(lost.value.state, EVALUATED)).last_seq == 3


async def test_message_id_poisoning_is_noticed_and_survived(ledgers: Ledgers, keys: Path) -> None:
    intake, policy = await ledgers.of("intake"), await ledgers.of("policy")
    proposed = await intake.append(_empty(), PROPOSED)
    signer = load_service_keys(keys, "policy").signer
    message_id = signer.message_id(factories.event_id(ACTION_ID, "action.evaluated"))
    async with connected(ledgers.url, keys, "policy") as compromised:
        other = f"action.{'e' * 32}.evaluated"
        await compromised.jetstream().publish(other, b"{}", headers={"Nats-Msg-Id": message_id}, timeout=5)
    evaluated = await policy.append(proposed, EVALUATED)
    assert isinstance((await policy.read(ACTION_ID)).last, ActionEvaluated)
    assert evaluated.head == (await policy.read(ACTION_ID)).head


async def test_fact_is_stored_although_somebody_wrote_in_between(ledgers: Ledgers, keys: Path) -> None:
    state = await _until(ledgers, "started")
    async with connected(ledgers.url, keys, "policy") as compromised:
        await compromised.jetstream().publish(f"action.{ACTION_ID}.evaluated", b"{}", timeout=5)
    executor = await ledgers.of("executor")
    executed = await executor.append(state, Draft(event=ActionExecuted, data=factories.EXECUTED))
    assert (len(executed.chain), executed.last_seq) == (7, 8)


async def test_receipt_is_no_fact_and_never_follows_what_it_does_not_say(ledgers: Ledgers) -> None:
    audit, executor = await ledgers.of("audit"), await ledgers.of("executor")
    unknown = factories.EXECUTED.model_copy(update={"outcome": factories.Outcome.UNKNOWN})
    doubt = await executor.append(await _until(ledgers, "started"), Draft(event=ActionExecuted, data=unknown))
    known = Draft(event=ActionExecuted, data=factories.EXECUTED, discriminator="resolved")
    resolved = await executor.append(doubt, known)
    with pytest.raises(Superseded) as lost:
        await audit.append(doubt, Draft(event=ActionAudited, data=factories.AUDITED))
    assert lost.value.state.head == resolved.head


async def _until(ledgers: Ledgers, last: str) -> ActionState:
    """Append the example events of an action up to one type, each by its writer."""
    state = _empty()
    path = factories.EXECUTED_PATH
    for kind in path[: path.index(last) + 1]:
        event = factories.KINDS[f"action.{kind}"]
        writer = await ledgers.of(event.writers[0])
        state = await writer.append(state, Draft(event=event, data=factories.EXAMPLES[f"action.{kind}"]))
    return state


async def test_state_from_one_message_equals_the_read(ledgers: Ledgers) -> None:
    intake, policy = await ledgers.of("intake"), await ledgers.of("policy")
    state = await policy.append(await intake.append(_empty(), PROPOSED), EVALUATED)
    current, header = state.chain[-1], pack_chain(state.chain[:-1])
    for chain_header in (header, None, f"{header},{header}"):
        for verify_chain in (True, False):
            built = await policy.state_at(current.signed, seq=2, chain_header=chain_header, verify_chain=verify_chain)
            assert built is not None
            assert built.head == state.head


async def test_replayed_event_on_another_sequence_is_not_a_member(ledgers: Ledgers, keys: Path) -> None:
    intake, policy = await ledgers.of("intake"), await ledgers.of("policy")
    await intake.append(_empty(), PROPOSED)
    stray = factories.record("action.evaluated").signed
    signer = load_service_keys(keys, "policy").signer
    forged = factories.seal(
        factories.record("action.evaluated").event.model_copy(update={"kid": signer.kid}),
        subject=stray.subject,
        signer=signer,
    )
    assert await policy.state_at(forged.signed, seq=9, chain_header=None, verify_chain=True) is None


async def test_remit_is_granted_read_and_revoked_once(ledgers: Ledgers) -> None:
    approval, tokens = await ledgers.of("approval"), await ledgers.of("tokens")
    remit_id = factories.REMIT.remit_id
    assert (await tokens.read_remit(remit_id)).status == "none"
    granted = await approval.append_remit(
        RemitState(remit_id=remit_id), Draft(event=RemitGrantedEvent, data=factories.EXAMPLES["remit.granted"])
    )
    assert (await tokens.read_remit(remit_id)).document == granted.document == factories.REMIT
    revoke = Draft(event=RemitRevokedEvent, data=factories.EXAMPLES["remit.revoked"])
    await approval.append_remit(granted, revoke)
    assert (await tokens.read_remit(remit_id)).status == "revoked"
    with pytest.raises(SupersededRemit) as lost:
        await approval.append_remit(granted, Draft(event=RemitRevokedEvent, data=revoke.data, discriminator="2"))
    assert lost.value.state.status == "revoked"
