"""Which notices a waiting call believes: only those of the action that intake bound to its own bytes."""

from __future__ import annotations

from typing import Any

import pytest

from remit.client.tracking import Desk, Tracked
from remit.proposal import Notice
from remit.reasons import Outcome, Reason

GUESS, OTHER = "a" * 32, "b" * 32
MINE, FOREIGN = "sha-256:mine", "sha-256:foreign"
COUNT = iter(range(1_000_000))


def notice(status: str, **changes: Any) -> Notice:
    return Notice.model_validate({"status": status, "event_id": f"e{next(COUNT)}", "action_id": GUESS, **changes})


def tracked(*, digest: str | None = MINE) -> Tracked:
    return Tracked(action_id=GUESS, idempotency_key="k", digest=digest, body=None if digest is None else b"{}")


def seen(*notices: Notice, call: Tracked | None = None) -> Tracked:
    call = call or tracked()
    for each in notices:
        call.see(each)
    return call


SUCCEEDED = {"outcome": Outcome.SUCCEEDED, "result": 1}


def test_bound_action_brings_its_result() -> None:
    call = seen(notice("proposed", proposal_digest=MINE), notice("succeeded", **SUCCEEDED))
    assert call.final is not None
    assert call.final.result == 1


def test_result_that_overtakes_the_binding_is_kept_until_then() -> None:
    call = seen(notice("succeeded", **SUCCEEDED))
    assert call.final is None
    assert seen(notice("proposed", proposal_digest=MINE), call=call).final is not None


def test_reused_key_never_brings_another_calls_result() -> None:
    call = seen(
        notice("succeeded", **SUCCEEDED),
        notice("succeeded", proposal_digest=FOREIGN, **SUCCEEDED),
        notice("rejected", action_id=None, proposal_digest=MINE, reason=Reason.IDEMPOTENCY_CONFLICT),
    )
    assert call.final is not None
    assert call.final.reason is Reason.IDEMPOTENCY_CONFLICT


def test_binding_corrects_a_wrong_guess_and_forgets_what_the_guess_brought() -> None:
    call = seen(notice("succeeded", **SUCCEEDED), notice("proposed", action_id=OTHER, proposal_digest=MINE))
    assert (call.action_id, call.final) == (OTHER, None)
    assert seen(notice("failed", action_id=OTHER, outcome=Outcome.FAILED), call=call).final is not None


def test_late_and_repeated_notices_never_take_a_result_back() -> None:
    pending = notice("pending")
    call = seen(notice("proposed", proposal_digest=MINE), pending, notice("succeeded", **SUCCEEDED), pending)
    seen(notice("proposed", proposal_digest=MINE), notice("pending"), call=call)
    assert call.final is not None
    assert call.final.status == "succeeded"


def test_unknown_outcome_ends_the_wait_and_may_still_be_resolved() -> None:
    call = seen(notice("unknown", proposal_digest=MINE, outcome=Outcome.UNKNOWN))
    assert call.final is not None
    seen(notice("succeeded", **SUCCEEDED), call=call)
    assert call.final.status == "succeeded"


@pytest.mark.parametrize("digest", [None, FOREIGN])
def test_rejection_of_other_bytes_is_not_ours(digest: str | None) -> None:
    assert seen(notice("rejected", action_id=None, proposal_digest=digest, reason=Reason.MALFORMED)).final is None


def test_rejection_of_a_repetition_does_not_end_an_action() -> None:
    call = seen(
        notice("proposed", proposal_digest=MINE),
        notice("rejected", action_id=None, proposal_digest=MINE, reason=Reason.UNKNOWN_TOOL),
    )
    assert call.final is None


def test_quota_refusal_asks_for_patience_and_a_binding_ends_it() -> None:
    call = seen(notice("rejected", action_id=None, proposal_digest=MINE, reason=Reason.QUOTA_EXCEEDED))
    assert (call.final, call.throttled is not None, call.answered) == (None, True, True)
    assert seen(notice("proposed", proposal_digest=MINE), call=call).throttled is None


def test_handle_of_a_known_action_believes_notices_of_that_action_only() -> None:
    call = tracked(digest=None)
    assert seen(notice("succeeded", action_id=OTHER, **SUCCEEDED), call=call).final is None
    assert seen(notice("succeeded", **SUCCEEDED), call=call).final is not None


def test_desk_hands_notices_to_every_waiting_call_and_forgets_it_afterwards() -> None:
    desk, first, second = Desk(), tracked(), tracked(digest=None)
    with desk.watching(first), desk.watching(second):
        desk.deliver(notice("proposed", action_id=OTHER, proposal_digest=MINE))
        desk.deliver(notice("succeeded", action_id=OTHER, **SUCCEEDED))
        desk.deliver(notice("pending"))
    assert first.final is not None
    assert second.latest is not None
    assert desk._by_action == desk._by_digest == {}


async def test_moved_tells_news_once() -> None:
    call = seen(notice("proposed", proposal_digest=MINE))
    assert await call.moved(1.0)
    assert not await call.moved(0.01)
