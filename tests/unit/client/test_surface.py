"""What an agent developer sees: drafts, handles, settings, keys, and a small public surface."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from nacl.signing import SigningKey

import remit
from infra.nats import identity as nkeys
from remit import Agent, AgentKeyError, HandleError, Identity, Outcome, Pending, Reason, Refusal, Result
from remit.client.drafting import draft
from remit.client.outcomes import Handle, conclude
from remit.client.settings import read_environment
from remit.errors import ConfigurationError
from remit.nkey import signing_key, verify_key
from remit.proposal import MAX_PROPOSAL_BYTES, Notice, Proposal
from remit.reasons import Stage

if TYPE_CHECKING:
    from pathlib import Path

IDENTITY = Identity(runtime="r", model_family="f", model_version="1", config_digest="sha-256:c", session="s")
SEED = nkeys.new_seed()
ACCOUNT = "AACQKBIFAUCQKBIFAUCQKBIFAUCQKBIFAUCQKBIFAUCQKBIFAUCQKQYI"
"""Public nkey of an account: right checksum, wrong kind."""
ACTION = "0123456789abcdef" * 2
FIELDS: dict[str, Any] = {
    "idempotency_key": "k",
    "remit_id": "rem_" + "0" * 32,
    "tool": "bank",
    "action": "send_money",
    "arguments": {"amount": 98.0, "recipient": None},
    "rationale": None,
}


def agent(name: str = "bookkeeper") -> Agent:
    return Agent(name=name, nkey_seed=SEED, identity=IDENTITY)


def drafted(**changes: Any) -> bytes:
    body = draft(IDENTITY, FIELDS | changes)
    assert isinstance(body, bytes), body
    return body


def refused(**changes: Any) -> Refusal:
    refusal = draft(IDENTITY, FIELDS | changes)
    assert isinstance(refusal, Refusal)
    return refusal


def test_draft_is_the_same_bytes_in_every_process() -> None:
    reordered = dict(reversed(FIELDS.items()))
    assert draft(IDENTITY, reordered) == drafted()


def test_draft_keeps_null_arguments_and_leaves_out_an_absent_rationale() -> None:
    proposal = Proposal.model_validate_json(drafted())
    assert proposal.arguments == {"amount": 98, "recipient": None}
    assert b"rationale" not in drafted()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**60, object(), {1: 2}, "\ud800"])
def test_arguments_without_a_json_form_are_refused_before_sending(value: object) -> None:
    refusal = refused(arguments={"amount": value})
    assert (refusal.reason, refusal.stage, refusal.idempotency_key) == (Reason.MALFORMED, Stage.INTAKE, "k")


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"arguments": [1]}, "arguments"), ({"idempotency_key": "a b"}, "idempotency_key"), ({"remit_id": 7}, "remit_id")],
)
def test_malformed_field_is_refused_before_sending(changes: dict[str, Any], field: str) -> None:
    assert (refused(**changes).detail or "").startswith(field)


def test_oversize_proposal_is_refused_before_sending() -> None:
    assert refused(arguments={"text": "x" * MAX_PROPOSAL_BYTES}).reason is Reason.OVERSIZE


async def test_refusal_of_a_draft_needs_no_connection() -> None:
    refusal = await agent().propose("bank.send_money", {"amount": float("nan")}, remit=FIELDS["remit_id"])
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.MALFORMED


@pytest.mark.parametrize("key", ["k", "a/b//c", "~!@#", None])
@pytest.mark.parametrize("digest", [None, "sha-256:abc_-"])
def test_handle_survives_the_round_trip(key: str | None, digest: str | None) -> None:
    handle = Handle(agent="bookkeeper", action_id=ACTION, idempotency_key=key, proposal_digest=digest)
    assert Handle.parse(str(handle), agent="bookkeeper") == handle


def test_bare_action_id_is_a_handle() -> None:
    pending = Pending.resume(agent(), ACTION)
    assert (pending.action_id, pending.idempotency_key, pending.awaits_approval) == (ACTION, None, False)


@pytest.mark.parametrize("text", ["", "x", f"other/{ACTION}/bound/k", f"bookkeeper/{ACTION}", "bookkeeper/no/bound/k"])
def test_foreign_or_broken_handle_is_refused(text: str) -> None:
    with pytest.raises(HandleError):
        agent().pending(text)


def test_outcomes_become_results_and_the_rest_refusals() -> None:
    failed = Notice(status="failed", event_id="e", action_id=ACTION, outcome=Outcome.FAILED, detail="tool_error")
    result = conclude(failed, action_id=ACTION, idempotency_key="k")
    assert isinstance(result, Result)
    assert (result.outcome, result.succeeded, result.detail) == (Outcome.FAILED, False, "tool_error")
    denied = Notice(status="refused", event_id="e", action_id=ACTION, stage=Stage.POLICY, reason=Reason.NO_GRANT)
    refusal = conclude(denied, action_id=ACTION, idempotency_key="k")
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.stage, refusal.action_id) == (Reason.NO_GRANT, Stage.POLICY, ACTION)


def test_seed_never_shows() -> None:
    held = agent()
    assert SEED not in repr(held)
    assert SEED not in repr(held._settings)


@pytest.mark.parametrize(
    "seed",
    ["", "SUnonsense", SEED[:20] + ("A" if SEED[20] != "A" else "B") + SEED[21:], SEED.lower()],
    ids=["empty", "short", "damaged", "lower case"],
)
def test_broken_seed_is_refused_when_the_agent_is_made_and_never_quoted(seed: str) -> None:
    with pytest.raises(AgentKeyError) as caught:
        Agent(name="bookkeeper", nkey_seed=seed, identity=IDENTITY)
    assert not seed or seed not in str(caught.value)


@pytest.mark.parametrize("name", ["", "Upper", "a.b", "*", "a b", "a\n"])
def test_name_that_is_no_subject_token_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="agent name"):
        agent(name)


def test_nkeys_are_read_as_the_broker_tooling_writes_them() -> None:
    key = signing_key(SEED)
    assert isinstance(key, SigningKey)
    assert verify_key(nkeys.public_key(SEED)) == key.verify_key


@pytest.mark.parametrize(
    "text",
    ["", "U", SEED, "U" + "A" * 55, "U" + "a" * 55, ACCOUNT],
    ids=["empty", "short", "seed", "checksum", "lower case", "account"],
)
def test_public_nkey_with_a_wrong_shape_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="nkey"):
        verify_key(text)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "nats.nk").write_text(SEED + "\n")
    return {
        "REMIT_AGENT": "bookkeeper",
        "REMIT_AGENT_SEED_FILE": str(tmp_path / "nats.nk"),
        "REMIT_AGENT_RUNTIME": "r",
        "REMIT_AGENT_MODEL_FAMILY": "f",
        "REMIT_AGENT_MODEL_VERSION": "1",
        "REMIT_AGENT_CONFIG_DIGEST": "sha-256:c",
    }


def test_environment_describes_an_agent(environment: dict[str, str]) -> None:
    found = read_environment(environment | {"NATS_URL": "nats://one:4222, nats://two:4222", "REMIT_TENANT": "acme"})
    assert found.servers == ("nats://one:4222", "nats://two:4222")
    assert (found.name, found.tenant, found.identity.model_family) == ("bookkeeper", "acme", "f")
    assert found.identity.session


def test_session_may_be_given(environment: dict[str, str]) -> None:
    assert read_environment(environment | {"REMIT_AGENT_SESSION": "run-9"}).identity.session == "run-9"


def test_agent_comes_from_the_environment(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Agent.from_env().name == "bookkeeper"


@pytest.mark.parametrize("name", ["REMIT_AGENT", "REMIT_AGENT_SEED_FILE", "REMIT_AGENT_MODEL_VERSION"])
def test_missing_variable_is_named(environment: dict[str, str], name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        read_environment({**environment, name: " "})


def test_unreadable_files_are_named(environment: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="REMIT_AGENT_SEED_FILE"):
        read_environment({**environment, "REMIT_AGENT_SEED_FILE": str(tmp_path / "absent")})
    with pytest.raises(ConfigurationError, match="REMIT_TLS_CA_FILE"):
        read_environment({**environment, "REMIT_TLS_CA_FILE": str(tmp_path / "absent")})


def test_public_surface_is_small_and_importable() -> None:
    assert len(remit.__all__) <= 15
    assert all(hasattr(remit, name) for name in remit.__all__)


def test_importing_the_sdk_loads_no_service_library() -> None:
    heavy = "faststream sqlalchemy streamlit jwt cedarpy jsonschema_rs structlog httpx pydantic_settings mcp"
    program = f"import sys, remit; print([m for m in {heavy.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
