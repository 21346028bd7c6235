"""Races that people and replicas can run on a whole system: one call a token, one decision an approval, nothing after a revoke.

`REMIT_RACE_RUNS` makes them longer; the release runs 1,000. Source: design, bus section 10, rows 27 to 29.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import pytest

from remit import Refusal, Result
from remit.clock import now
from remit.commands import ApproveCommand, DenyCommand
from remit.ids import action_id, fresh_key, jti
from remit.proposal import Notice
from remit.reasons import Reason
from services.executor.claims import CLAIMED, EXISTS
from tests.security.arena import CALL, FORGET, Arena, arena, tell
from tests.support.live_stage import live_stage
from tests.support.servers import connected
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from remit.commands import Reply
    from services.executor.decide import Order
    from tests.support.live_stage import Live

RUNS = int(os.environ.get("REMIT_RACE_RUNS", "8"))
TOGETHER = 16
"""Approvals that are raced for at the same time."""
ASK_FOR_S = 2.5 if RUNS < 100 else 8.0
"""The long form shares its machine with the rest of a release."""
pytestmark = pytest.mark.timeout(1800)
SETTINGS = {
    "approval": {"REMIT_APPROVAL_TIMEOUT_S": str(ASK_FOR_S), "REMIT_SWEEP_S": "0.05", "REMIT_STOP_POLL_S": "0.2"}
}
STOP = "SELECT engaged_at FROM control.stop WHERE kind = $1 AND target = $2"
BLOCK = "SELECT created_at FROM control.block WHERE remit_id = $1"
EVENTS = "SELECT type FROM audit.audit_event WHERE action_id = $1 AND verify_status = 'valid' ORDER BY n"
FATE = "SELECT state, reason FROM control.execution WHERE action_id = $1"
SWITCHES = ("global", "human", "agent", "tool", "whole tool")


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    scale = {"executor": 2, "approval": 2}
    async with live_stage(tmp_path_factory.mktemp("races"), scale=scale, settings=SETTINGS) as found:
        yield found


@pytest.fixture(scope="module")
async def on(live: Live) -> AsyncIterator[Arena]:
    async with arena(live) as found:
        yield found


async def test_fifty_executors_race_for_one_token(on: Arena) -> None:
    """Every other time the token is stolen: fifty actions come with the `jti` of one."""
    remit_id = await on.remit()
    for run in range(RUNS):
        orders = [on.order(remit_id, "r") for _ in on.stores]
        token = jti(orders[0].action_id, 1)
        if run % 2:
            orders = [on.order(remit_id, "r", action_id=order.action_id, jti=token) for order in orders]
        else:
            orders = [on.order(remit_id, "r", action_id=orders[0].action_id, jti=token) for _ in orders]
        claims = (store.claim(order, "clm") for store, order in zip(on.stores, orders, strict=True))
        answers = Counter(await asyncio.gather(*claims))
        assert answers == {CLAIMED: 1, Reason.TOKEN_REPLAYED if run % 2 else EXISTS: len(orders) - 1}
    assert await on.live.admin.fetchval("SELECT used FROM control.budget WHERE remit_id = $1", remit_id) == RUNS
    await on.live.admin.execute(FORGET, remit_id)


async def test_executors_that_are_pushed_make_each_call_once(on: Arena) -> None:
    """Real replicas are told again and again to look at the same tokens while their calls are under way."""
    live = on.live
    remit_id, keys = await live.grant("lab.ok"), [f"push-{number}" for number in range(min(RUNS, 80))]
    actions = [action_id("default", live.agent.name, key) for key in keys]
    environment = live.stage.environment
    async with connected(environment.nats_url, environment.keys_dir, "audit", inbox="audit.races") as pusher:

        async def push() -> None:
            for _ in range(40):
                for action in actions:
                    await pusher.publish("redrive.executor", action.encode())
                await pusher.flush()
                await asyncio.sleep(0.01)

        calls = (live.agent.propose("lab.ok", {}, remit=remit_id, idempotency_key=key) for key in keys)
        answers, _ = await asyncio.gather(asyncio.gather(*calls), push())
    assert {type(answer) for answer in answers} == {Result}
    assert live.lab.arrivals["ok"] == len(keys)
    for action in actions:
        assert await settled(live, action) == "executed"


async def settled(live: Live, action: str) -> str:
    """Wait for an action's receipt, hold its chain to one decision and one end, and return the end."""
    await live.receipt(action)
    kinds = [row["type"].rpartition(".")[2] for row in await live.admin.fetch(EVENTS, action)]
    decisions = [kind for kind in kinds if kind in {"approved", "refused"}]
    ends = [kind for kind in kinds if kind in {"refused", "revoked", "executed"}]
    assert len(ends) == 1, kinds
    assert len(decisions) == 1 or (ends, decisions) == (["revoked"], []) or decisions == ["approved", "refused"], kinds
    assert kinds[-2:] == [ends[0], "audited"], kinds
    return ends[0]


async def revoked_beside_claims(on: Arena, kind: str, remit_id: str) -> tuple[int, Counter[str]]:
    """Let one revocation race with claims; return how many came too late for it, and what late claims were told."""
    recipient = fresh_key()[:12]
    denied = await on.ask(remit_id, recipient) if kind == "denial" else None
    storm = await on.storm(remit_id, recipient)
    live, row = on.live, (kind.removeprefix("whole "), target(on, kind, remit_id))
    if denied is not None:
        reply = await live.command("dana", DenyCommand, action_id=denied["action_id"], reason="no")
    else:
        reply = await live.revoke("emma" if kind == "remit" else "otto", *row)
    late = await on.calm(storm, remit_id)
    assert reply.status == "ok", reply
    if denied is not None:
        late += await on.begun_after(remit_id, BLOCK, remit_id)
    else:
        late += await on.begun_after(remit_id, STOP, *row)
    if kind in SWITCHES:
        assert (await live.revoke("otto", *row, lift=True)).status == "ok"
    return late, storm.after


def target(on: Arena, kind: str, remit_id: str) -> str:
    human, agent = on.human, on.order(remit_id, "").agent
    return {"global": "*", "human": human, "agent": agent, "tool": CALL, "whole tool": "bank.*"}.get(kind, remit_id)


TOLD = {"remit": Reason.REMIT_REVOKED, "denial": Reason.BLOCKED} | dict.fromkeys(SWITCHES, Reason.STOPPED)


async def test_no_claim_commits_after_a_revoke_of_any_kind_returned(on: Arena) -> None:
    found: Counter[str] = Counter()
    for kind in islice(cycle(TOLD), RUNS):
        remit_id = await on.remit()
        late, told = await revoked_beside_claims(on, kind, remit_id)
        assert (late, set(told)) == (0, {TOLD[kind]}), kind
        found[kind] += told.total()
        await on.live.admin.execute(FORGET, remit_id)
    tell("revoke_returned", {"runs": RUNS, "late": 0, "claims begun afterwards": dict(found)})
    assert len(found) == min(RUNS, len(TOLD))


async def test_a_revoke_of_one_action_and_its_claims_have_one_winner(on: Arena) -> None:
    """Three executors claim the action that is being revoked; the reply says who was first, and it is true."""
    remit_id, winners = await on.remit(), Counter[str]()
    dice = random.Random(29)  # noqa: S311  (seeded)
    for _ in range(RUNS):
        pending = await on.ask(remit_id, fresh_key()[:12])
        order = on.order(remit_id, "r", action_id=pending["action_id"], jti=fresh_key())

        async def claim(number: int, order: Order = order, after_s: float = dice.uniform(0.0, 0.012)) -> str:
            await asyncio.sleep(after_s)
            return await on.stores[number].claim(order, f"clm_{number}")

        reply, answers = await asyncio.gather(
            on.live.revoke("emma", "action", pending["action_id"]), asyncio.gather(*(claim(n) for n in range(3)))
        )
        row = await on.live.admin.fetchrow(FATE, pending["action_id"])
        assert row is not None
        if reply.status == "ok":
            assert (Counter(answers), *row) == ({EXISTS: 3}, "refused", "revoked")
        else:
            assert (Counter(answers), row["state"]) == ({CLAIMED: 1, EXISTS: 2}, "in_flight"), reply
        winners[reply.status] += 1
    await on.live.admin.execute(f"{FORGET} AND state = 'in_flight'", remit_id)
    tell("revoke_against_claim", dict(winners))
    assert set(winners) <= {"ok", "revoke_too_late", "decided"}


async def decided_at_once(on: Arena, remit_id: str, dice: random.Random) -> tuple[str, tuple[Reply, Reply, Reply]]:
    """Let approve, deny, expiry and revoke meet; return the action and what each person was told."""
    live, row = on.live, await on.ask(remit_id, fresh_key()[:12])
    action = row["action_id"]
    shown = {"args_digest": row["args_digest"], "shown_digest": row["shown_digest"], "version": row["round"]}
    starts_in_s = (row["expires_at"] - now()).total_seconds() - dice.uniform(0.0, 0.6)

    async def at_once(command: Callable[[], Awaitable[Reply]]) -> Reply:
        await asyncio.sleep(max(0.0, starts_in_s + dice.uniform(0.0, 0.01)))
        return await command()

    replies = await asyncio.gather(
        at_once(lambda: live.command("dana", ApproveCommand, action_id=action, **shown)),
        at_once(lambda: live.command("sam", DenyCommand, action_id=action, reason="no")),
        at_once(lambda: live.revoke("emma", "action", action)),
    )
    return action, replies


async def test_approve_deny_expire_and_revoke_at_one_instant_are_one_decision(on: Arena) -> None:
    live, remit_id, dice = on.live, await on.remit(), random.Random(28)  # noqa: S311  (seeded)
    heard: dict[str, set[str]] = {}
    told: set[str] = set()
    ends: Counter[str] = Counter()
    environment = live.stage.environment
    async with connected(environment.nats_url, environment.keys_dir, f"agents/{live.agent.name}") as ear:

        async def hear(message: Any) -> None:
            notice = Notice.model_validate_json(message.data)
            if notice.action_id and notice.status not in {"proposed", "pending"}:
                heard.setdefault(notice.action_id, set()).add(notice.event_id)

        await ear.subscribe(f"results.{live.agent.name}.>", cb=hear)
        await ear.flush()
        for begin in range(0, RUNS, TOGETHER):
            count = min(TOGETHER, RUNS - begin)
            found = await asyncio.gather(*(decided_at_once(on, remit_id, dice) for _ in range(count)))
            for action, (approved, denied, revoked) in found:
                ends[await one_fate(live, action, approved, denied, revoked)] += 1
                await eventually(lambda action=action: len(heard.get(action, ())) >= 1, True)
                answer = await live.agent.pending(action).wait(10.0)
                assert isinstance(answer, Refusal | Result), answer
                told.add(action)
    tell("decisions_at_once", dict(ends))
    assert (ends.total(), len(told)) == (RUNS, RUNS)
    assert {len(heard[action]) for action in told} == {1}


async def one_fate(live: Live, action: str, approved: Reply, denied: Reply, revoked: Reply) -> str:
    """Hold what people were told against the one end in the ledger, and name it."""
    end = await settled(live, action)
    assert {approved.status, denied.status} <= {"ok", "decided"}
    # An approved call may be under way already when the revocation comes to look; then it is told so, and the call stands.
    assert revoked.status in ({"ok", "decided", "revoke_too_late"} if approved.status == "ok" else {"ok", "decided"})
    if revoked.status == "ok":
        assert (end, denied.status) == ("revoked", "decided")
        return "revoked, approved before" if approved.status == "ok" else "revoked"
    if denied.status == "ok":
        assert (end, approved.status) == ("refused", "decided")
        return "denied"
    if (approved.status, end) == ("ok", "refused"):
        # Stored when its time was over by the broker's clock: no token rests on it (ARCHITECTURE decision 45).
        row = await live.receipt(action)
        assert (row["refused_stage"], row["refused_reason"]) == ("tokens", "approval_expired")
        return "approved too late"
    assert end == ("executed" if approved.status == "ok" else "refused")
    return "approved" if approved.status == "ok" else "expired"
