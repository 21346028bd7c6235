"""What tokens seals, the executor opens; the issuer's keys are fetched for a new kid, not for each token."""

from __future__ import annotations

from datetime import timedelta
from typing import cast

from nacl.public import PrivateKey

from remit.events import Tokenized
from remit.verify import RemoteKeys, VerifiedToken
from services.executor.decide import Refuse
from services.executor.sealed import SealedTokens
from tests.support.factories import NOW
from tests.unit.evaluation.chains import by_people, by_policy
from tests.unit.tokens.test_minting import EXPECTED, ISSUER, OPENER, RING, handlers


class Issuer:
    """The published keys of tokens, and how often they were asked for."""

    def __init__(self) -> None:
        self.calls, self.at = 0, 0.0

    async def fetch(self) -> object:
        self.calls += 1
        return RING.jwks()

    def opener(self) -> SealedTokens:
        keys = RemoteKeys(self.fetch, max_age_s=3_600, refetch_interval_s=10, clock=lambda: self.at)
        return SealedTokens(key=PrivateKey(bytes(OPENER)), thumbprint="jkt", issuer=ISSUER, keys=keys)


async def test_tokens_of_a_known_key_cost_one_fetch_however_many_they_are() -> None:
    issuer = Issuer()
    opener = issuer.opener()
    for state in (by_policy(), by_people("dana"), by_policy()):
        draft = await handlers(state).on_action_approved(state)
        assert draft is not None
        opened = await opener.open(cast(Tokenized, draft.data), EXPECTED.audience, now=NOW + timedelta(seconds=1))
        assert isinstance(opened, VerifiedToken)
        issuer.at += 60
    assert issuer.calls == 1


async def test_token_for_another_audience_is_refused() -> None:
    state = by_policy()
    draft = await handlers(state).on_action_approved(state)
    assert draft is not None
    opened = await Issuer().opener().open(cast(Tokenized, draft.data), "https://remit.example/tools/other", now=NOW)
    assert isinstance(opened, Refuse)
