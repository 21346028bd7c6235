"""Every principal of the design's table against every subject, by raw bytes on the real broker: allowed exactly where listed.

One connection a principal writes everything at once; the broker's -ERR lines name what it refused. The subjects are every
pattern of the table made concrete, its near misses, whatever the running configuration allows beyond the table, and what
nobody may ever have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from infra.local import key_ring
from infra.nats.permissions import PRINCIPALS
from infra.nats.permissions import agent as configured_agent
from tests.security.design_table import NOBODY, REMIT, TABLE, agent
from tests.security.raw_client import raw_client
from tests.security.scene import running_scene

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from tests.security.scene import Scene

pytestmark = pytest.mark.timeout(60)

CONFIGURED = {**PRINCIPALS, "agents/a1": configured_agent("a1"), "agents/a2": configured_agent("a2")}
QUEUE = "q1"
MIN_PAIRS = 10_000


def covers(pattern: str, subject: str) -> bool:
    """Return whether a pattern admits a subject, token by token: what the design's table means by a pattern.

    A wildcard in `subject` must be within the pattern's own. One difference to the broker is measured and shown harmless below:
    it takes the final `>` of a subscription for an ordinary token, so that `human.*` admits `human.>`.
    """
    wanted, given = pattern.split("."), subject.split(".")
    for position, token in enumerate(wanted):
        if token == ">":
            return len(given) > position
        if position == len(given) or (token not in {"*", given[position]}):
            return False
    return len(wanted) == len(given)


def concrete(pattern: str) -> str:
    """Return one subject within a pattern."""
    return ".".join({"*": "x1", ">": "x1.y1"}.get(token, token) for token in pattern.split("."))


def near_misses(pattern: str) -> Iterable[str]:
    """Return subjects just beside a pattern: shorter, longer, another case, each literal token replaced by another one."""
    tokens = concrete(pattern).split(".")
    yield ".".join([*tokens, "z9"])
    yield ".".join(tokens).swapcase()
    if len(tokens) > 1:
        yield ".".join(tokens[:-1])
    for position in range(len(tokens)):
        yield ".".join([*tokens[:position], "z9", *tokens[position + 1 :]])


def wider(pattern: str) -> Iterable[str]:
    """Return subscriptions around a pattern: itself, each token a wildcard, everything below each token."""
    tokens = pattern.split(".")
    yield pattern
    for position in range(len(tokens)):
        if tokens[position] != ">":
            yield ".".join([*tokens[:position], "*", *tokens[position + 1 :]])
        yield ".".join([*tokens[:position], ">"])


PATTERNS = sorted(
    {p for row in TABLE.values() for p in (*row.publish, *row.subscribe)}
    | {p for row in CONFIGURED.values() for p in (*row.publish, *row.subscribe)}
)
CONCRETE = sorted({concrete(p) for p in PATTERNS} | {miss for p in PATTERNS for miss in near_misses(p)} | set(NOBODY))
SUBSCRIBED = sorted({*CONCRETE, *(w for p in PATTERNS for w in wider(p))})
PAIRS = len(TABLE) * (len(CONCRETE) + 2 * len(SUBSCRIBED))


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """One broker for the module."""
    async with running_scene(tmp_path_factory.mktemp("permissions")) as made:
        yield made


def allowed(patterns: list[str], subject: str) -> bool:
    return any(covers(pattern, subject) for pattern in patterns)


def test_configuration_and_design_agree_row_by_row() -> None:
    configured = {n: (set(r.publish), set(r.subscribe), r.allow_responses) for n, r in CONFIGURED.items()}
    assert configured == {n: (set(r.publish), set(r.subscribe), r.allow_responses) for n, r in TABLE.items()}
    assert {name: row.account for name, row in CONFIGURED.items()} == {
        name: "REMIT" if name in REMIT else "AGENTS" for name in TABLE
    }


def test_every_subject_is_refused_to_somebody_and_the_product_is_large() -> None:
    assert PAIRS > MIN_PAIRS
    assert [s for s in CONCRETE if all(allowed(row.publish, s) for row in TABLE.values())] == []


@pytest.mark.parametrize("subject", NOBODY)
def test_what_nobody_may_have_is_in_no_row(subject: str) -> None:
    if not {"*", ">"} & set(subject.split(".")):  # in a publish they are ordinary tokens
        assert [name for name, row in TABLE.items() if allowed(row.publish, subject)] == []
    assert [name for name, row in TABLE.items() if allowed(row.subscribe, subject)] == []


@pytest.mark.parametrize("principal", TABLE)
async def test_publishing_is_refused_exactly_where_the_table_says_nothing(scene: Scene, principal: str) -> None:
    async with scene.attacker(principal) as client:
        for subject in CONCRETE:
            client.publish(subject, b"{}")
        await client.flush()
        refused = client.refused("Publish")
    assert refused == {(s, "") for s in CONCRETE if not allowed(TABLE[principal].publish, s)}
    assert len(client.errors) == len(refused)


@pytest.mark.parametrize("queue", ["", QUEUE], ids=["alone", "in a queue"])
@pytest.mark.parametrize("principal", TABLE)
async def test_subscribing_is_refused_exactly_where_the_table_says_nothing(
    scene: Scene, principal: str, queue: str
) -> None:
    async with scene.attacker(principal) as client:
        for subject in SUBSCRIBED:
            client.subscribe(subject, queue)
        await client.flush()
        refused = client.refused("Subscription")
    assert refused == {(s, queue) for s in SUBSCRIBED if not allowed(TABLE[principal].subscribe, s)}
    assert len(client.errors) == len(refused)


def deeper(pattern: str) -> str | None:
    """Return the subscription below a pattern that the broker admits by taking `>` for a token, where there is one."""
    return pattern.removesuffix("*") + ">" if pattern.endswith(".*") else None


def test_what_the_broker_admits_beyond_a_list_is_a_subject_that_nobody_publishes() -> None:
    admitted = {p: deeper(p) for row in TABLE.values() for p in row.subscribe if deeper(p)}
    published = {concrete(p) for row in TABLE.values() for p in row.publish}
    extra = {
        (pattern, subject)
        for pattern, lax in admitted.items()
        for subject in published
        if lax and covers(lax, subject) and not covers(pattern, subject)
    }
    assert admitted == {"status.*.*": "status.*.>", "human.*": "human.>"}
    assert extra == set()


async def test_user_of_the_system_account_reaches_no_stream(scene: Scene) -> None:
    before = await scene.marks()
    async with raw_client(scene.server.url, key_ring.load_nats_seed(scene.keys, "sys"), "sys") as client:
        for subject in ("action.x1.approved", "in.propose.a1", "$KV.REGISTRY.bundle", "$JS.API.STREAM.PURGE.ACTIONS"):
            client.publish(subject, b"{}")
        client.subscribe("action.>")
        await client.flush()
    assert await scene.marks() == before


async def test_new_agent_gets_its_own_row_and_nothing_of_the_others(scene: Scene) -> None:
    assert {name for name in ("a1", "a2") if agent(name).publish == agent("new").publish} == set()
    for other in ("a1", "a2"):
        assert not any(allowed(agent("new").publish, concrete(p)) for p in agent(other).publish)
        assert not any(allowed(agent("new").subscribe, p) for p in agent(other).subscribe)
    assert scene.server.running
