"""The relay's reading of the NATS protocol: frames however they are cut, and whose delivery an acknowledgement is."""

from __future__ import annotations

import pytest

from tests.faults.rigs.redelivery import Frames, delivery_of

WIRE = (
    b"PING\r\n"
    b"PUB $JS.ACK.ACTIONS.policy.2.17.9.1700000000000000000.0 _IBX.policy.a.b 0\r\n\r\n"
    b"HPUB action.x.evaluated _IBX.policy.a.c 12 17\r\nNATS/1.0\r\n\r\nhello\r\n"
    b"+OK\r\n"
)


@pytest.mark.parametrize("size", [1, 2, 7, 1_000])
def test_frames_are_whole_however_the_stream_is_cut(size: int) -> None:
    frames = Frames()
    found = [frame for at in range(0, len(WIRE), size) for frame in frames.feed(WIRE[at : at + size])]
    assert b"".join(frame.raw for frame in found) == WIRE
    assert [frame.payload for frame in found] == [b"", b"", b"NATS/1.0\r\n\r\nhello", b""]


@pytest.mark.parametrize(
    ("subject", "delivery"),
    [
        (b"$JS.ACK.ACTIONS.policy.2.17.9.1700000000000000000.0", ("ACTIONS/policy", 17, 2)),
        (b"$JS.ACK._.hash.ACTIONS.policy.3.18.9.1700000000000000000.0.token", ("ACTIONS/policy", 18, 3)),
        (b"action.x.evaluated", None),
    ],
)
def test_an_acknowledgement_names_its_delivery(subject: bytes, delivery: tuple[str, int, int] | None) -> None:
    assert delivery_of(subject) == delivery
