"""The command line says what is wrong, with which exit code, and never prints a token."""

from __future__ import annotations

import json
import stat
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from remit.canonical import b64url
from remit.cli import bus, read_model, session
from remit.cli.output import CliError
from remit.cli.program import app
from remit.cli.settings import CliSettings
from remit.clock import now
from remit.commands import Command, GrantCommand, Reply
from tests.support.factories import EMMA, REMIT, REMIT_DIGEST

if TYPE_CHECKING:
    from pathlib import Path

ACTION = "0" * 32
DIGEST = "sha-256:" + "A" * 43
TERMS = {
    "agent_id": "spiffe://acme.example/agent/bookkeeper",
    "task": "Pay the bill [bold]now[/bold]",
    "environment": "demo",
    "max_calls": 5,
    "grants": [{"type": "tool_call", "tool": "bank", "action": "read_file", "max_calls": 1}],
    "valid_for": "2h",
}


def id_token(**more: Any) -> str:
    claims = {"iss": EMMA.iss, "sub": "emma", "roles": ["delegator"], "exp": int(now().timestamp()) + 600, **more}
    return ".".join((b64url(b'{"alg":"RS256"}'), b64url(json.dumps(claims).encode()), b64url(b"signature")))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty environment with a private configuration directory."""
    for name in (
        "REMIT_ID_TOKEN_FILE",
        "REMIT_CLI_SEED_FILE",
        "DATABASE_URL",
        "REMIT_DATABASE_URL",
        "REMIT_OIDC_ISSUER",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def token_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = home / "token"
    path.write_text(id_token())
    monkeypatch.setenv("REMIT_ID_TOKEN_FILE", str(path))
    return path


class Approval:
    """Answers commands as told, and remembers them."""

    def __init__(self, *replies: Reply) -> None:
        self.replies, self.asked = list(replies), list[Command]()

    def send(self, _: CliSettings, command: Command) -> Reply:
        self.asked.append(command)
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


def answering(monkeypatch: pytest.MonkeyPatch, *replies: Reply) -> Approval:
    approval = Approval(*replies)
    monkeypatch.setattr(bus, "send", approval.send)
    return approval


def run(*arguments: str, typed: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), input=typed)
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["whoami"], 3, "remit login"),
        (["deny", ACTION], 3, "remit login"),
        (["login"], 2, "REMIT_OIDC_ISSUER"),
        (["pending"], 2, "DATABASE_URL"),
        (["approve", ACTION], 2, "DATABASE_URL"),
        (["approve", ACTION, "--json"], 2, "--args-digest"),
        (["revoke", "everything", "*", "--reason", "x"], 2, "everything"),
        (["lift", "remit", "rem_1", "--reason", "x"], 2, "remit"),
        (["revoke", "global", "*"], 2, "--reason"),
        (["resolve", ACTION, "maybe", "--finding", "x"], 2, "maybe"),
        (["apply", "/does/not/exist"], 2, "no directory"),
        (["grant", "/does/not/exist.yaml"], 2, "cannot be read"),
        (["rob"], 2, "rob"),
    ],
)
@pytest.mark.usefixtures("home")
def test_wrong_use_is_one_sentence_that_says_what_to_do(arguments: list[str], code: int, said: str) -> None:
    found, output = run(*arguments)
    assert (found, said in output) == (code, True), output
    assert "Traceback" not in output


@pytest.mark.usefixtures("token_file")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["deny", "not-an-id"], "action_id"),
        (["approve", ACTION, "--args-digest", "md5:1"], "args_digest"),
        (["deny", ACTION, "--key", "short"], "idempotency_key"),
        (["revoke", "global", "everything", "--reason", "x"], "target"),
        (["deny", ACTION], "REMIT_CLI_SEED_FILE"),
    ],
)
def test_a_field_that_does_not_fit_is_named_before_anything_is_sent(arguments: list[str], said: str) -> None:
    code, output = run(*arguments)
    assert (code, said in output) == (2, True), output


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("ok", 0),
        ("decided", 1),
        ("stale", 1),
        ("forbidden", 1),
        ("invalid", 1),
        ("revoke_too_late", 1),
        ("login_needed", 3),
        ("unavailable", 4),
        ("too_early", 4),
    ],
)
@pytest.mark.usefixtures("token_file")
def test_every_answer_has_its_exit_code(status: Any, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, Reply(status=status, detail="because [red]so[/red]"))
    found, output = run("deny", ACTION, "--reason", "no")
    assert (found, "because [red]so[/red]" in output) == (code, True)
    assert id_token()[:20] not in output


@pytest.mark.usefixtures("token_file")
def test_json_is_one_object_with_the_key_to_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    approval = answering(monkeypatch, Reply(status="unavailable", detail="later"))
    code, output = run("approve", ACTION, "--args-digest", DIGEST, "--json")
    found = json.loads(output)
    assert (code, found["status"], found["idempotency_key"]) == (4, "unavailable", approval.asked[0].idempotency_key)


@pytest.mark.usefixtures("token_file")
def test_a_key_is_repeated_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    approval = answering(monkeypatch, Reply(status="ok"))
    run("deny", ACTION, "--key", "key-00001")
    assert approval.asked[0].idempotency_key == "key-00001"


@pytest.mark.usefixtures("token_file")
def test_an_approval_names_the_card_that_was_seen_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    approval = answering(monkeypatch, Reply(status="ok"))
    card = ["--args-digest", DIGEST, "--shown-digest", DIGEST, "--round", "2"]
    assert run("approve", ACTION, *card)[0] == 0
    sent = approval.asked[0].model_dump()
    assert (sent["args_digest"], sent["shown_digest"], sent["version"]) == (DIGEST, DIGEST, 2)


@pytest.mark.usefixtures("token_file")
def test_no_approval_without_having_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    approval = answering(monkeypatch, Reply(status="ok"))
    row = {"action_id": ACTION, "args_digest": DIGEST, "shown_digest": DIGEST, "round": 1}
    monkeypatch.setattr(read_model, "one", lambda *_: row)
    assert run("approve", ACTION, typed="n\n")[0] == 1
    assert approval.asked == []
    assert run("approve", ACTION, typed="y\n")[0] == 0
    sent = approval.asked[0].model_dump()
    assert (sent["args_digest"], sent["shown_digest"], sent["version"]) == (DIGEST, DIGEST, 1)


def terms_file(home: Path, **more: Any) -> str:
    path = home / "terms.yaml"
    path.write_text(json.dumps({name: v for name, v in {**TERMS, **more}.items() if v is not None}))
    return str(path)


@pytest.mark.usefixtures("token_file")
def test_a_grant_is_shown_before_it_is_granted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Reply(status="ok", remit=REMIT, remit_id=REMIT.remit_id, remit_digest=REMIT_DIGEST)
    approval = answering(monkeypatch, shown)
    assert run("grant", terms_file(home), typed="n\n")[0] == 1
    assert [c.phase for c in approval.asked if isinstance(c, GrantCommand)] == ["preview"]
    code, output = run("grant", terms_file(home), "--yes")
    first, second = (c for c in approval.asked[1:] if isinstance(c, GrantCommand))
    assert (code, first.idempotency_key) == (0, second.idempotency_key)
    assert (second.phase, second.remit_digest, first.terms) == (None, REMIT_DIGEST, second.terms)
    assert REMIT.remit_id in output
    assert second.terms.expires_at - second.terms.not_before == timedelta(hours=2)


@pytest.mark.usefixtures("token_file")
def test_a_preview_has_no_effect(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    approval = answering(monkeypatch, Reply(status="ok", remit=REMIT))
    assert run("grant", terms_file(home), "--preview", "--json")[0] == 0
    assert [c.phase for c in approval.asked if isinstance(c, GrantCommand)] == ["preview"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"valid_for": "soon"}, "valid_for"),
        ({"valid_for": "0h"}, "valid_for"),
        ({"expires_at": "2030-01-01T00:00:00Z"}, "one or the other"),
        ({"valid_for": None}, "not_before"),
        ({"agent": "x"}, "agent"),
        ({"grants": []}, "grants"),
        ({"max_calls": "5"}, "max_calls"),
    ],
)
@pytest.mark.usefixtures("token_file")
def test_terms_that_do_not_fit_name_file_and_field(home: Path, more: dict[str, Any], said: str) -> None:
    code, output = run("grant", terms_file(home, **more))
    assert (code, said in output, "terms.yaml" in output) == (2, True, True), output


@pytest.mark.usefixtures("home")
def test_whoami_shows_claims_and_never_the_token(token_file: Path) -> None:
    code, output = run("whoami", "--json")
    assert (code, json.loads(output)["sub"], json.loads(output)["roles"]) == (0, "emma", ["delegator"])
    assert token_file.read_text()[:20] not in output


@pytest.mark.parametrize("text", ["junk", "a.b.c", id_token(exp=1)], ids=["junk", "no JSON", "expired"])
def test_a_token_that_proves_nobody_means_log_in(token_file: Path, text: str) -> None:
    token_file.write_text(text)
    code, output = run("whoami")
    assert (code, "remit login" in output, text in output) == (3, True, False)


@pytest.mark.usefixtures("home")
def test_a_login_is_kept_for_its_owner_alone(token_file: Path) -> None:
    assert run("login", "--token-file", str(token_file))[0] == 0
    kept = session.token_path()
    assert stat.S_IMODE(kept.stat().st_mode) == stat.S_IRUSR | stat.S_IWUSR
    assert stat.S_IMODE(kept.parent.stat().st_mode) & 0o077 == 0
    assert run("login", "--token-file", str(token_file))[0] == 0


def test_a_missing_seed_names_its_variable(home: Path) -> None:
    with pytest.raises(Exception, match="REMIT_CLI_SEED_FILE"):
        CliSettings().seed()
    with pytest.raises(Exception, match="REMIT_CLI_SEED_FILE"):
        CliSettings(cli_seed_file=home / "none").seed()


def test_an_unreachable_bus_is_not_known(token_file: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = home / "seed"
    seed.write_text("SUAIBDPBAUTWCWBKIO6XHQNINK5FWJW4OHLXC3HQ2KFE4PEJUA44CNHTC4")
    monkeypatch.setenv("REMIT_CLI_SEED_FILE", str(seed))
    monkeypatch.setenv("NATS_URL", "nats://127.0.0.1:1")
    monkeypatch.delenv("REMIT_NATS_URL", raising=False)
    code, output = run("deny", ACTION)
    assert (code, token_file.read_text()[:20] in output) == (4, False), output


def test_cli_errors_carry_their_exit_code() -> None:
    assert CliError("x", 3).code == 3
