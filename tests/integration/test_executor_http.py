"""HTTP tools on loopback: what each kind of answer, or its absence, comes to mean."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from remit.clock import monotonic
from remit.errors import TransientError
from remit.reasons import Outcome, Reason
from services.executor.calls import Held
from services.executor.connectors.credentials import EnvironmentCredentials
from services.executor.connectors.egress import Egress
from services.executor.connectors.http import admit
from services.executor.connectors.protocol import Address, Ready
from services.executor.decide import Refuse
from services.executor.results import Answer
from tests.support import execution as x
from tests.support.calling import SECRET, caller_in, run
from tests.support.http_server import raw_server, serving
from tests.support.tls import certificate_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from starlette.requests import Request

    from remit.bundle import ToolEntry
    from services.executor.calls import Caller
    from services.executor.decide import Order


class Recorder:
    """An HTTP API that remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []

    async def answer(self, request: Request) -> Response:
        self.requests.append((request.method, str(request.url), dict(request.headers), await request.body()))
        raw = request.scope["raw_path"].decode()
        if "slow" in raw:
            await asyncio.sleep(3.0)
        if "redirect" in raw:
            return RedirectResponse("/elsewhere", 303)
        if "large" in raw:
            return PlainTextResponse("x" * 2_000_000)
        if "status" in raw:
            return JSONResponse({"why": "because"}, int(raw.rsplit("-", 1)[1]))
        if "flaky" in raw and len(self.requests) < 3:
            return JSONResponse({"error": "busy"}, 503)
        return JSONResponse({"ok": True, "path": raw})


class Elsewhere(Egress):
    """An egress that resolves every tool to one given address."""

    def __init__(self) -> None:
        super().__init__(ssl.create_default_context())
        self.address = Address(scheme="https", host="bank.example", port=443, ip="203.0.113.7")

    async def admit(self, tool: ToolEntry) -> Address | Refuse:
        assert tool
        return self.address


class Gate:
    """A fence that lets a number of calls pass, or does not answer."""

    def __init__(self, *answers: bool | TransientError) -> None:
        self.answers, self.asked = list(answers), list[str]()

    async def __call__(self, order: Order, claim_id: str) -> bool:
        self.asked.append(f"{order.action_id} {claim_id}")
        answer = self.answers.pop(0)
        if isinstance(answer, TransientError):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("answers", "calls"), [((True, True), 3), ((True, False), 2), ((False,), 1), ((TransientError("down"),), 1)]
)
async def test_every_repetition_passes_the_fence_anew(
    tmp_path: Path, answers: tuple[bool | TransientError, ...], calls: int
) -> None:
    recorder, gate = Recorder(), Gate(*answers)
    caller = caller_in(tmp_path, fence=gate)
    async with serving(Starlette(routes=[Route("/{path:path}", recorder.answer, methods=["POST"])])) as port:
        order = http_order(port, "/status-503", idempotency="key")
        answer = await run(caller, order)
        await caller.close()
    assert answer == Answer(outcome=Outcome.UNKNOWN, error="http_503")
    assert len(recorder.requests) == calls
    assert gate.asked == [f"{order.action_id} clm"] * len(answers)


@pytest.mark.parametrize("allowed", [True, False])
async def test_a_call_that_comes_after_its_claim_s_deadline_passes_the_fence_first(
    tmp_path: Path, allowed: bool
) -> None:
    gate = Gate()
    caller, order = caller_in(tmp_path, fence=gate), x.order_of()
    for held in (
        Held("clm", monotonic() - 1.0, datetime.now(UTC) + timedelta(hours=1)),
        Held("clm", monotonic() + 3600.0, datetime.now(UTC) - timedelta(seconds=1)),
    ):
        gate.answers.append(allowed)
        answer, _ = await caller.perform(order, Ready(), held)
        expected = (Outcome.SUCCEEDED, None) if allowed else (Outcome.FAILED, "not_sent")
        assert (answer.outcome, answer.error) == expected
    assert len(gate.asked) == 2


@pytest.fixture
async def caller(tmp_path: Path) -> AsyncIterator[Caller]:
    found = caller_in(tmp_path)
    yield found
    await found.close()


def http_order(port: int, path: str = "/say", *, arguments: dict[str, Any] | None = None, **more: Any) -> Order:
    template = {"method": more.pop("method", "POST"), "path": path}
    tool = {"egress": x.LOCAL, "connector": "http", "endpoint": f"http://127.0.0.1:{port}/v1"} | more.pop("tool", {})
    entry = x.action_entry(http=template, **more)
    required = [name[1:-1] for name in path.split("/") if name.startswith("{")]
    entry["arguments"] = x.ECHO | {"required": required}
    return x.order_of(
        x.tool_entry({"say": entry}, **tool), arguments={"text": "hello"} if arguments is None else arguments
    )


async def test_an_http_call_carries_key_credential_and_arguments(caller: Caller) -> None:
    recorder = Recorder()
    async with serving(Starlette(routes=[Route("/{path:path}", recorder.answer, methods=["POST"])])) as port:
        order = http_order(
            port, "/payees/{id}/pay", arguments={"id": "a/b ü", "amount": 98.7}, tool={"credential": "from-file"}
        )
        answer = await run(caller, order)
    assert answer == Answer(outcome=Outcome.SUCCEEDED, value={"ok": True, "path": "/v1/payees/a%2Fb%20%C3%BC/pay"})
    [(method, _, headers, body)] = recorder.requests
    assert (method, body) == ("POST", b'{"amount":98.7}')
    assert headers["idempotency-key"] == order.action_id
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert headers["host"] == f"127.0.0.1:{port}"


async def test_a_read_sends_arguments_as_query(caller: Caller) -> None:
    recorder = Recorder()
    async with serving(Starlette(routes=[Route("/{path:path}", recorder.answer)])) as port:
        await run(caller, http_order(port, method="GET", arguments={"text": "a&b=c", "amount": 2}))
    assert recorder.requests[0][1].endswith("/v1/say?text=a%26b%3Dc&amount=2")
    assert recorder.requests[0][3] == b""


STATUS: list[tuple[int, str, Outcome]] = [
    (201, "none", Outcome.SUCCEEDED),
    (400, "none", Outcome.FAILED),
    (404, "none", Outcome.FAILED),
    (409, "none", Outcome.UNKNOWN),
    (409, "key", Outcome.UNKNOWN),
    (408, "none", Outcome.UNKNOWN),
    (429, "none", Outcome.UNKNOWN),
    (500, "none", Outcome.UNKNOWN),
    (503, "none", Outcome.UNKNOWN),
]


@pytest.mark.parametrize(("status", "idempotency", "expected"), STATUS)
async def test_a_status_says_what_is_known(caller: Caller, status: int, idempotency: str, expected: Outcome) -> None:
    async with serving(Starlette(routes=[Route("/{path:path}", Recorder().answer, methods=["POST"])])) as port:
        answer = await run(caller, http_order(port, f"/status-{status}", idempotency=idempotency))
    assert isinstance(answer, Answer)
    assert answer.outcome is expected
    if expected is Outcome.FAILED:
        assert answer.value == {"why": "because"}


@pytest.mark.parametrize(("declared", "calls"), [({}, 3), ({"errors_are_final": True}, 1), ({"effect": "read"}, 1)])
async def test_an_undocumented_refusal_of_a_write_is_asked_again_with_its_key(
    caller: Caller, declared: dict[str, Any], calls: int
) -> None:
    recorder = Recorder()
    async with serving(Starlette(routes=[Route("/{path:path}", recorder.answer, methods=["POST"])])) as port:
        answer = await run(caller, http_order(port, "/status-429", idempotency="key", **declared))
    assert isinstance(answer, Answer)
    assert answer.outcome is (Outcome.UNKNOWN if calls > 1 else Outcome.FAILED)
    assert len(recorder.requests) == calls
    assert len({headers["idempotency-key"] for _, _, headers, _ in recorder.requests}) == 1


async def test_a_redirect_is_not_followed(caller: Caller) -> None:
    recorder = Recorder()
    async with serving(Starlette(routes=[Route("/{path:path}", recorder.answer, methods=["GET", "POST"])])) as port:
        answer = await run(caller, http_order(port, "/redirect"))
    assert answer == Answer(outcome=Outcome.UNKNOWN, error="http_303")
    assert len(recorder.requests) == 1


async def test_an_endless_result_is_left_unread(caller: Caller) -> None:
    async with serving(Starlette(routes=[Route("/{path:path}", Recorder().answer, methods=["POST"])])) as port:
        answer = await run(caller, http_order(port, "/large"))
    assert answer == Answer(outcome=Outcome.SUCCEEDED, is_oversize=True)


async def test_a_slow_tool_leaves_doubt(caller: Caller) -> None:
    async with serving(Starlette(routes=[Route("/{path:path}", Recorder().answer, methods=["POST"])])) as port:
        answer = await run(caller, http_order(port, "/slow", timeout_s=0.2))
    assert answer == Answer(outcome=Outcome.UNKNOWN, error="timeout")


async def test_a_dropped_connection_leaves_doubt(caller: Caller) -> None:
    async with raw_server(None) as port:
        assert await run(caller, http_order(port)) == Answer(outcome=Outcome.UNKNOWN, error="connection")


async def test_a_body_cut_short_leaves_doubt(caller: Caller) -> None:
    async with raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort") as port:
        assert await run(caller, http_order(port)) == Answer(outcome=Outcome.UNKNOWN, error="connection")


async def test_a_keyed_action_is_repeated_with_the_same_key(caller: Caller) -> None:
    recorder = Recorder()
    async with serving(Starlette(routes=[Route("/{path:path}", recorder.answer, methods=["POST"])])) as port:
        answer = await run(caller, http_order(port, "/flaky", idempotency="key"))
    assert isinstance(answer, Answer)
    assert answer.outcome is Outcome.SUCCEEDED
    assert len({headers["idempotency-key"] for _, _, headers, _ in recorder.requests}) == 1
    assert len(recorder.requests) == 3


async def test_an_action_without_idempotency_is_never_repeated(caller: Caller) -> None:
    recorder = Recorder()
    async with serving(Starlette(routes=[Route("/{path:path}", recorder.answer, methods=["POST"])])) as port:
        answer = await run(caller, http_order(port, "/flaky"))
    assert answer == Answer(outcome=Outcome.UNKNOWN, error="http_503")
    assert len(recorder.requests) == 1


async def test_a_refused_connection_is_a_definite_failure_without_repetition(caller: Caller) -> None:
    async with raw_server(None) as port:
        order = http_order(port)
        ready = await caller.prepare(order)
    assert isinstance(ready, Ready)
    assert await caller.connectors["http"].call(order, ready) == Answer(outcome=Outcome.FAILED, error="connection")


async def test_an_unreachable_tool_is_refused_before_the_claim(caller: Caller) -> None:
    async with raw_server(None) as port:
        order = http_order(port)
    refusal = await run(caller, order)
    assert isinstance(refusal, Refuse)
    assert refusal.reason is Reason.TOOL_UNREACHABLE


@pytest.mark.parametrize("value", [".", "..", ""])
async def test_a_path_argument_cannot_leave_its_segment(caller: Caller, value: str) -> None:
    refusal = await run(caller, http_order(1, "/files/{id}", arguments={"id": value}))
    assert isinstance(refusal, Refuse)
    assert refusal.reason is Reason.SCHEMA_VIOLATION


@pytest.mark.parametrize("name", ["absent", "from-env"])
async def test_a_missing_credential_refuses(caller: Caller, name: str) -> None:
    async with raw_server(b"HTTP/1.1 204 No Content\r\n\r\n") as port:
        found = await run(caller, http_order(port, tool={"credential": name}))
    if name == "absent":
        assert isinstance(found, Refuse)
        assert found.reason is Reason.CREDENTIAL_MISSING
        assert SECRET not in found.detail
    else:
        assert found == Answer(outcome=Outcome.SUCCEEDED)


async def test_a_credential_is_sent_over_tls_or_to_this_host_only() -> None:
    egress = Elsewhere()
    credentials = EnvironmentCredentials({"REMIT_CREDENTIAL_FROM_ENV": SECRET})
    for scheme, ip, allowed in (
        ("http", "203.0.113.7", False),
        ("http", "10.0.0.5", False),
        ("https", "203.0.113.7", True),
        ("http", "127.0.0.1", True),
        ("http", "::1", True),
        ("http", "::ffff:127.0.0.1", True),
    ):
        egress.address = Address(scheme=scheme, host="bank.example", port=443, ip=ip)
        found = await admit(http_order(1, tool={"credential": "from-env"}), egress=egress, credentials=credentials)
        assert isinstance(found, Ready) is allowed, (scheme, ip)
        if isinstance(found, Refuse):
            assert found.reason is Reason.EGRESS_DENIED
        assert isinstance(await admit(http_order(1), egress=egress, credentials=credentials), Ready)


async def test_an_unlisted_host_is_not_contacted(caller: Caller) -> None:
    recorder = Recorder()
    async with serving(Starlette(routes=[Route("/{path:path}", recorder.answer, methods=["POST"])])) as port:
        refusal = await run(caller, http_order(port, tool={"egress": ["example.com"]}))
    assert isinstance(refusal, Refuse)
    assert refusal.reason is Reason.EGRESS_DENIED
    assert recorder.requests == []


async def test_the_credential_does_not_show_in_what_is_logged(caller: Caller) -> None:
    async with raw_server(None) as port:
        ready = await caller.prepare(http_order(port, tool={"credential": "from-file"}))
    assert isinstance(ready, Ready)
    assert ready.credential == SECRET
    assert SECRET not in repr(ready)


async def test_the_noop_tool_touches_nobody(caller: Caller) -> None:
    assert await run(caller, x.order_of()) == Answer(outcome=Outcome.SUCCEEDED, value={"ok": True})


async def test_arguments_that_changed_after_the_claim_are_not_sent(caller: Caller) -> None:
    order = x.order_of(args_digest="sha-256:" + "A" * 43)
    answer, call = await caller.perform(order, Ready(), Held.now(order, "clm"))
    assert answer == Answer(outcome=Outcome.FAILED, error="args_mismatch")
    assert call.executed_digest != order.args_digest


async def test_calls_of_one_tool_wait_for_a_place(caller: Caller) -> None:
    inside, most = 0, 0

    async def occupy() -> None:
        nonlocal inside, most
        async with caller.place(x.order_of()):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.01)
            inside -= 1

    await asyncio.gather(*(occupy() for _ in range(12)))
    assert most == 4


async def test_the_certificate_is_checked_against_the_name_while_the_checked_address_is_called(tmp_path: Path) -> None:
    tls = certificate_for("localhost", tmp_path)
    app = Starlette(routes=[Route("/{path:path}", Recorder().answer, methods=["POST"])])
    tool = {"egress": ["localhost"]}
    trusting, strict = caller_in(tmp_path, ca_file=tls[0]), caller_in(tmp_path)
    async with serving(app, tls=tls) as port:
        good = await run(trusting, http_order(port, tool=tool | {"endpoint": f"https://localhost:{port}"}))
        wrong_name = await run(
            trusting, http_order(port, tool={"egress": x.LOCAL, "endpoint": f"https://127.0.0.1:{port}"})
        )
        unknown_authority = await run(strict, http_order(port, tool=tool | {"endpoint": f"https://localhost:{port}"}))
    assert isinstance(good, Answer)
    assert good.outcome is Outcome.SUCCEEDED
    for refusal in (wrong_name, unknown_authority):
        assert isinstance(refusal, Refuse)
        assert refusal.reason is Reason.TOOL_UNREACHABLE
    await trusting.close()
    await strict.close()
