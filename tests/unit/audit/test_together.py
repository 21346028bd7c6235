"""Work side by side ends as a whole, also when a part does not hear that it is over."""

from __future__ import annotations

import asyncio

import pytest

from remit.errors import PermanentError, TransientError
from services.audit import together as module
from services.audit.together import together

pytestmark = pytest.mark.timeout(10)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.02)


async def forever() -> None:
    await asyncio.Event().wait()


async def fails(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


class Deaf:
    """Loses its first cancellations, as `asyncio.wait_for` may on Python 3.11."""

    def __init__(self, lost: int) -> None:
        self.lost, self.ended = lost, False

    async def run(self) -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.lost -= 1
                if self.lost < 0:
                    self.ended = True
                    raise


async def test_a_failure_ends_the_others_and_is_raised() -> None:
    with pytest.raises(TransientError, match="gone"):
        await together(forever(), fails(TransientError("gone")), forever())


async def test_what_is_worse_than_a_lost_connection_is_raised_before_it() -> None:
    with pytest.raises(PermanentError, match="hole"):
        await together(fails(TransientError("gone")), fails(PermanentError("hole")))


async def test_a_part_that_lost_its_cancellation_is_cancelled_again() -> None:
    deaf = Deaf(3)
    with pytest.raises(TransientError):
        await together(deaf.run(), fails(TransientError("gone")))
    assert deaf.ended


async def test_the_whole_ends_when_it_is_cancelled_however_often() -> None:
    deaf = Deaf(2)
    task = asyncio.create_task(together(deaf.run(), together(forever(), Deaf(1).run())))
    await asyncio.sleep(0.01)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert deaf.ended
