"""While claims are held nothing becomes certain: no claim, no refusal, no revocation of a call that may have happened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from remit.errors import TransientError
from services.executor.claims import CLAIMED, EVIDENCE_STALE
from services.executor.rows import Refusal
from tests.support import factories as f
from tests.support.fence import Fence, fenced, order_under
from tests.support.postgres import postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HOLD = "INSERT INTO control.heartbeat (service, at, position) VALUES ('hold', clock_timestamp(), 0)"
RELEASE = "DELETE FROM control.heartbeat WHERE service = 'hold'"
BEAT = "UPDATE control.heartbeat SET at = clock_timestamp() WHERE service = 'audit'"
ROWS = "SELECT count(*) FROM control.execution WHERE remit_id = $1"


@pytest.fixture
async def held(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fence]:
    """A fence whose claims are held, although audit's heartbeat is fresh."""
    async with postgres(tmp_path_factory.mktemp("postgres")) as url, fenced(url) as found:
        await found.admit("rem_held")
        await found.pool.execute(HOLD)
        await found.pool.execute(BEAT)
        yield found


async def test_nothing_becomes_certain_while_claims_are_held(held: Fence) -> None:
    order = order_under("rem_held", "one")
    refusal = Refusal(action_id=order.action_id, remit_id="rem_held", attempt=1, claim_id="clm", reason="token_expired")
    revoked = f.REVOKED.model_copy(update={"txn": order.action_id, "remit_id": "rem_held"})
    assert await held.store.claim(order, "clm") == EVIDENCE_STALE
    with pytest.raises(TransientError):
        await held.store.refuse(refusal)
    with pytest.raises(TransientError):
        await held.actions.forestall(revoked, "1")
    assert await held.pool.fetchval(ROWS, "rem_held") == 0

    await held.pool.execute(RELEASE)
    await held.pool.execute(BEAT)
    assert await held.store.claim(order, "clm") == CLAIMED
