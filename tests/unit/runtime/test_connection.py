"""What the connection reports: only what any agent may cause is survived, every other refusal ends the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from remit.errors import ConfigurationError
from remit.events import ActionProposed
from remit.runtime import service as under_test
from remit.runtime.service import Service
from remit.runtime.settings import ServiceSettings
from remit.runtime.wire_guard import MESSAGE, MESSAGE_WITH_HEADERS
from tests.support.services import build_service

if TYPE_CHECKING:
    from pathlib import Path

    from remit.fold import ActionState
    from remit.runtime.ledger import Draft


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    monkeypatch.setattr(under_test, "die", lambda code, _: found.append(int(code)))
    return found


@pytest.mark.parametrize(
    ("text", "started", "codes"),
    [
        ('nats: permissions violation for publish to "_r_.abc.def"', True, []),
        ('nats: permissions violation for publish to "_ibx.bookkeeper.flood.7"', True, []),
        ('nats: permissions violation for publish to "_r_.abc.def"', False, [74]),
        ('nats: permissions violation for publish to "action.x.proposed"', True, [74]),
        ('nats: permissions violation for publish to "x._r_.y"', True, [74]),
        ('nats: permissions violation for subscription to "_ibx.intake.x"', True, [74]),
        ("nats: unexpected EOF", True, []),
    ],
)
async def test_only_a_refused_answer_is_survived(
    keys: Path, ended: list[int], text: str, *, started: bool, codes: list[int]
) -> None:
    service = build_service("intake", keys)
    service.probes.started = started
    await service._on_error(RuntimeError(text))
    assert ended == codes
    alarms = service.telemetry.registry.get_sample_value("remit_alarms_total", {"kind": "answer_refused"}) or 0
    assert alarms == (0 if codes or "EOF" in text else 1)


def test_service_that_may_not_refuse_must_say_how_it_ends_an_action(keys: Path) -> None:
    async def handler(_: ActionState) -> Draft | None:
        return None

    with pytest.raises(ConfigurationError, match="unprocessable"):
        Service("policy", ServiceSettings(keys_dir=keys)).on_action(ActionProposed, handler, emits=())


@pytest.mark.parametrize(
    ("line", "groups"),
    [
        (b"MSG a.b 7 3\r\n", (b"a.b", b"7", None, None, b"3")),
        (b"MSG a.b 7 _R_.x 3\r\n", (b"a.b", b"7", b"_R_.x ", b"_R_.x", b"3")),
        (b"MSG status.a.\x0b3 7 3\r\n", (b"status.a.\x0b3", b"7", None, None, b"3")),
        (b"MSG status.a.\xff 7 3\r\n", (b"status.a.\xff", b"7", None, None, b"3")),
    ],
)
def test_message_line_is_read_by_the_protocols_grammar(line: bytes, groups: tuple[bytes | None, ...]) -> None:
    plain = MESSAGE.match(line)
    assert plain is not None
    assert plain.groups() == groups
    headed = MESSAGE_WITH_HEADERS.match(b"H" + line.replace(b" 3\r\n", b" 12 15\r\n"))
    assert headed is not None
    assert headed.groups() == (*groups[:4], b"12", b"15")
