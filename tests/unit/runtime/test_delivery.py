"""The answer to the broker: what comes again and when, what ends, and what remains as evidence."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from remit.canonical import digest_bytes
from remit.errors import EnvelopeError, PermanentError, TransientError
from remit.runtime.bus import Appended, Bus
from remit.runtime.delivery import (
    LAST_DELIVERY,
    MAX_DELAY_S,
    NEWER_VERSION_DELAY_S,
    UNKNOWN_KID_DELIVERIES,
    Engine,
    retry_delay,
)
from remit.runtime.inbound import Inbound
from remit.runtime.letters import MAX_BODY, letter
from remit.runtime.telemetry import Telemetry
from remit.runtime.watchdog import Vitals

if TYPE_CHECKING:
    from nats.aio.msg import Msg


class DeadLetters(Bus):
    """A dead-letter stream that can be full."""

    def __init__(self) -> None:
        self.refusal: Exception | None = None
        self.kept: list[dict[str, Any]] = []

    async def append(self, subject: str, body: bytes, headers: dict[str, str]) -> Appended:
        assert (subject, headers) == ("dlq.policy", {"Content-Type": "application/json"})
        if self.refusal is not None:
            raise self.refusal
        self.kept.append(json.loads(body))
        return Appended(seq=len(self.kept), duplicate=False)


@dataclass
class Delivered:
    """A message of ACTIONS as a client hands it over, and what it was answered."""

    delivered: int = 1
    answers: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    subject: str = "action.x.proposed"
    data: bytes = b"{}"
    headers: dict[str, str] | None = None

    @property
    def reply(self) -> str:
        return f"$JS.ACK.ACTIONS.policy.{self.delivered}.7.7.1700000000000000000.0"

    @property
    def metadata(self) -> Any:
        from nats.aio.msg import Msg  # noqa: PLC0415  (the real parser of that reply)

        return Msg.Metadata._from_reply(self.reply)

    async def ack_sync(self, timeout: float) -> None:  # noqa: ASYNC109  (nats-py's own parameter)
        self.answers.append(("ack", timeout))

    async def nak(self, delay: float) -> None:
        self.answers.append(("nak", delay))

    async def term(self) -> None:
        self.answers.append(("term", 0.0))


class Desk:
    def __init__(self) -> None:
        self.dlq, self.telemetry, self.vitals = DeadLetters(), Telemetry("policy"), Vitals()
        self.engine = Engine(service="policy", bus=self.dlq, telemetry=self.telemetry, vitals=self.vitals)

    async def answer(self, error: Exception | None, delivered: int = 1) -> tuple[str, float]:
        async def work(_: Inbound) -> None:
            assert self.vitals.flow("ACTIONS/policy").in_flight == 1
            if error is not None:
                raise error

        msg = Delivered(delivered=delivered)
        await self.engine.on_message(cast("Msg", msg), "ACTIONS/policy", work)
        assert self.vitals.flow("ACTIONS/policy").in_flight == 0
        [answer] = msg.answers
        return answer

    def alarms(self, kind: str) -> float:
        return self.telemetry.registry.get_sample_value("remit_alarms_total", {"kind": kind}) or 0


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_delay_doubles_up_to_a_minute_and_jitter_halves_it_at_most() -> None:
    assert [retry_delay(n, 1.0) for n in (1, 2, 3, 4)] == [1.0, 2.0, 4.0, 8.0]
    assert retry_delay(500, 1.0) == MAX_DELAY_S
    assert retry_delay(3, 0.0) == retry_delay(3, 1.0) / 2


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, "ack"),
        (TransientError("down"), "nak"),
        (ZeroDivisionError(), "nak"),
        (PermanentError("never"), "term"),
        (EnvelopeError("signature", "junk"), "term"),
    ],
)
async def test_answer_follows_from_what_the_work_says(desk: Desk, error: Exception | None, expected: str) -> None:
    assert (await desk.answer(error))[0] == expected
    assert len(desk.dlq.kept) == (expected == "term")


async def test_least_delay_of_an_error_is_kept(desk: Desk) -> None:
    assert await desk.answer(TransientError("down", retry_after_s=33.0)) == ("nak", 33.0)


async def test_newer_version_waits_for_an_upgrade_and_never_ends(desk: Desk) -> None:
    assert await desk.answer(EnvelopeError("version", "v2"), delivered=500) == ("nak", NEWER_VERSION_DELAY_S)


async def test_unknown_kid_waits_for_the_key_file_and_then_is_junk(desk: Desk) -> None:
    unknown = EnvelopeError("kid", "no such kid")
    answers = [(await desk.answer(unknown, n))[0] for n in range(1, UNKNOWN_KID_DELIVERIES + 1)]
    assert answers == ["nak"] * (UNKNOWN_KID_DELIVERIES - 1) + ["term"]
    assert [kept["code"] for kept in desk.dlq.kept] == ["kid"]


async def test_full_dead_letter_stream_is_waited_for_and_not_for_ever(desk: Desk) -> None:
    desk.dlq.refusal = TransientError("maximum bytes exceeded")
    assert (await desk.answer(PermanentError("never"), LAST_DELIVERY - 1))[0] == "nak"
    assert (await desk.answer(PermanentError("never"), LAST_DELIVERY))[0] == "term"
    assert desk.alarms("dead_letter_lost") == 1


async def test_letter_that_the_broker_refuses_for_ever_ends_the_message(desk: Desk) -> None:
    desk.dlq.refusal = PermanentError("400")
    assert (await desk.answer(PermanentError("never")))[0] == "term"
    assert desk.alarms("dead_letter_lost") == 1


async def test_progress_is_stamped_on_the_durable_alone(desk: Desk) -> None:
    desk.vitals.progress_at = 0.0
    desk.vitals.flow("ACTIONS/policy").progress_at = 0.0
    await desk.answer(None)
    assert desk.vitals.flow("ACTIONS/policy").progress_at > 0.0
    assert desk.vitals.progress_at == 0.0


def test_letter_is_small_whatever_strangers_wrote() -> None:
    headers = {"Remit-Sig": "s" * 50_000, "Remit-Other": "o" * 50_000, "Remit-Chain": "c" * 50_000}
    message = Inbound(subject="action.x.proposed", body=b"b" * 65_000, headers=headers, seq=7, stream="ACTIONS")
    raw = letter("policy", message, code="schema", detail="d" * 50_000)
    said = json.loads(raw)
    assert len(raw) < 64_000
    assert said["headers"].keys() == {"Remit-Sig"}
    assert (said["body_bytes"], said["body_digest"]) == (65_000, digest_bytes(message.body))
    assert len(said["body"]) <= MAX_BODY * 4 / 3 + 4


def test_letter_keeps_as_much_of_the_body_as_asked() -> None:
    message = Inbound(subject="in.propose.a1", body=b"b" * 24_000, headers={})
    said = json.loads(letter("intake", message, code="malformed", detail="not valid JSON", keep=3))
    assert (said["body"], said["body_bytes"]) == ("YmJi", 24_000)
