"""Commands and replies on the wire: strict, unambiguous, and silent about the token."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from remit.bundle import BundleContent
from remit.commands import (
    COMMANDS,
    MAX_COMMAND_BYTES,
    ApplyCommand,
    ApproveCommand,
    Command,
    CommandError,
    DenyCommand,
    Reply,
    parse_command,
    parse_reply,
)

ACTION = "0" * 32
DIGEST = "sha-256:" + "A" * 43
WHO: dict[str, Any] = {"id_token": SecretStr("eyJ.secret.token"), "idempotency_key": "key-00001"}
DENY = DenyCommand(**WHO, action_id=ACTION, reason="no")


def body(**more: Any) -> bytes:
    found = {"id_token": "eyJ.secret.token", "idempotency_key": "key-00001", "action_id": ACTION, **more}
    return json.dumps({name: value for name, value in found.items() if value is not None}).encode()


def test_a_command_survives_the_wire() -> None:
    assert parse_command("deny", DENY.to_wire()) == DENY
    assert DENY.subject() == "human.deny"


def test_a_token_is_on_the_wire_and_in_no_repr() -> None:
    assert b"eyJ.secret.token" in DENY.to_wire()
    assert "secret" not in repr(DENY) + str(DENY) + str(DENY.model_dump())


@pytest.mark.parametrize(
    ("name", "raw", "field"),
    [
        ("rob", b"{}", ""),
        ("deny", b"[]", ""),
        ("deny", b'{"action_id":"%s","action_id":"x"}' % ACTION.encode(), ""),
        ("deny", body(action_id="../x"), "action_id"),
        ("deny", body(action_id=None), "action_id"),
        ("deny", body(reason="x" * 501), "reason"),
        ("deny", body(force=True), "force"),
        ("deny", body(idempotency_key="short"), "idempotency_key"),
        ("deny", body(idempotency_key="with a space"), "idempotency_key"),
        ("deny", body(id_token=""), "id_token"),
        ("deny", body(id_token="x" * 8193), "id_token"),
        ("approve", body(args_digest="md5:x"), "args_digest"),
        ("approve", body(args_digest=DIGEST, version="1"), "version"),
        ("narrow", body(args_digest=DIGEST), ""),
        ("revoke", body(action_id=None, kind="action", target=ACTION, reason="x", lift=True), ""),
        ("revoke", body(action_id=None, kind="remit", target="rem_1", reason="x", lift=True), ""),
        ("revoke", body(action_id=None, kind="global", target="all", reason="x"), ""),
        ("resolve", body(outcome="unknown", finding="x"), "outcome"),
        ("deny", body(reason="no\0"), ""),
        ("deny", body(reason="no").replace(b"no", b"n\0o"), ""),
        ("revoke", body(action_id=None, kind="remit", target="rem_\0", reason="x"), ""),
        ("approve", body(args_digest=DIGEST, narrowing={"const": "\0"}), ""),
        ("approve", body(args_digest=DIGEST, narrowing={"\0": 1}), ""),
    ],
)
def test_what_does_not_fit_is_refused_by_field_and_never_quoted(name: str, raw: bytes, field: str) -> None:
    with pytest.raises(CommandError) as refusal:
        parse_command(name, raw)
    assert refusal.value.field == field
    assert "secret" not in str(refusal.value)


def test_a_command_larger_than_the_bus_takes_says_so() -> None:
    content = BundleContent(tools={}, agents={}, policies={"a.cedar": "x" * MAX_COMMAND_BYTES})
    with pytest.raises(CommandError, match="bytes"):
        ApplyCommand(**WHO, content=content, base_version=0).to_wire()


def test_names_are_the_closed_list_of_the_bus() -> None:
    assert set(COMMANDS) == {"grant", "approve", "narrow", "deny", "revoke", "apply", "resolve"}
    assert all(issubclass(command, Command) for command in COMMANDS.values())


def test_commands_are_immutable() -> None:
    with pytest.raises(ValidationError):
        DENY.reason = "yes"  # type: ignore[misc]  # the point


def test_a_reply_survives_the_wire() -> None:
    reply = Reply(status="ok", detail="done", votes=1, quorum=2)
    assert parse_reply(reply.to_wire()) == reply


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"status":"sure"}', b'{"status":"ok","more":1}'])
def test_an_unreadable_reply_is_not_a_yes(raw: bytes) -> None:
    assert parse_reply(raw).status == "unavailable"


def test_null_constraints_are_kept() -> None:
    command = ApproveCommand(**WHO, action_id=ACTION, args_digest=DIGEST, narrowing={"const": None})
    parsed = parse_command("approve", command.to_wire())
    assert isinstance(parsed, ApproveCommand)
    assert parsed.narrowing == {"const": None}
