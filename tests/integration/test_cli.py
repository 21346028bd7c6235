"""The command line end to end: log in at a real provider, apply, grant, decide and revoke over a real bus."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from pydantic import SecretStr

from remit.cli.login import login
from remit.cli.output import CliError
from remit.cli.session import claims_of
from remit.cli.settings import CliSettings
from remit.clock import now
from remit.identity import IdTokenVerifier
from remit.identity_claims import TrustedIssuer
from remit.reasons import Verdict
from tests.support import factories as f
from tests.support.approval_stage import CLIENT, REGISTRY, Stage, provider, stage
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
async def on(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with stage(tmp_path_factory.mktemp("cli")) as found:
        yield found


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    with provider() as found:
        yield found


class Terminal:
    """Runs `remit` as a person does, in a process of its own."""

    def __init__(self, on: Stage, directory: Path) -> None:
        self.on, self.directory = on, directory

    async def run(self, person: str, *arguments: str, **more: str) -> tuple[int, dict[str, Any], str]:
        token = self.directory / person
        token.write_text(await self.on.token(person))
        seed = self.on.environment.keys_dir / "cli" / "nats.nk"
        environment = {
            **os.environ,
            **{f"REMIT_REGISTRY_{name}": value for name, value in self.on.placeholders().items()},
            "NATS_URL": self.on.environment.nats_url,
            "REMIT_CLI_SEED_FILE": str(seed),
            "REMIT_ID_TOKEN_FILE": str(token),
            **more,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "remit.cli", *arguments, "--json",
            env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert token.read_text()[:20] not in out.decode() + err.decode()
        return process.returncode or 0, json.loads(out) if out else {}, err.decode()


async def test_a_day_at_the_terminal(on: Stage, tmp_path: Path) -> None:
    terminal = Terminal(on, tmp_path)
    code, reply, _ = await terminal.run("emma", "apply", str(REGISTRY))
    assert (code, reply["status"]) == (1, "forbidden")
    code, reply, _ = await terminal.run("otto", "apply", str(REGISTRY))
    assert (code, reply["bundle_version"]) == (0, 1)

    terms = tmp_path / "terms.json"
    terms.write_text(json.dumps({**_terms(on), "valid_for": "1h"}))
    code, preview, _ = await terminal.run("emma", "grant", str(terms), "--preview")
    assert (code, preview["status"]) == (0, "ok")
    code, granted, _ = await terminal.run("emma", "grant", str(terms), "--yes")
    assert code == 0, granted
    action = await on.evaluate(granted["remit_id"], Verdict.ASK)
    await eventually(lambda: on.last(action), "approval_requested")

    await _approvals(terminal, action)
    code, reply, _ = await terminal.run("emma", "revoke", "remit", granted["remit_id"], "--reason", "done")
    assert (code, reply["status"]) == (0, "ok")


async def _approvals(terminal: Terminal, action: str) -> None:
    digest, shown = f.COMMON["action"].args_digest, (await terminal.on.card(action))["shown_digest"]
    card = ("approve", action, "--args-digest", digest, "--shown-digest", shown, "--round", "1")
    code, reply, _ = await terminal.run("emma", *card)
    assert (code, reply["status"]) == (1, "forbidden")
    code, reply, _ = await terminal.run("dana", "approve", action, "--args-digest", digest)
    assert (code, reply["status"], reply["field"]) == (1, "invalid", "shown_digest")
    code, reply, _ = await terminal.run("dana", *card, "--key", "key-00001")
    assert (code, reply["votes"]) == (0, 1)
    code, reply, _ = await terminal.run("dana", "deny", action, "--reason", "too late")
    assert (code, reply["status"], reply["decided_by"]["sub"]) == (1, "decided", "dana")


def _terms(on: Stage) -> dict[str, Any]:
    found = on.terms().model_dump(mode="json", exclude_none=True)
    return {name: value for name, value in found.items() if name not in {"not_before", "expires_at"}}


async def test_a_seed_the_broker_does_not_know_gets_nowhere(on: Stage, tmp_path: Path) -> None:
    stranger = tmp_path / "seed"
    stranger.write_text("SUAIBDPBAUTWCWBKIO6XHQNINK5FWJW4OHLXC3HQ2KFE4PEJUA44CNHTC4")
    code, _, said = await Terminal(on, tmp_path).run("dana", "deny", "0" * 32, REMIT_CLI_SEED_FILE=str(stranger))
    assert (code, "cannot be used" in said) == (4, True), said


def _browser(subject: str, issuer: str, *, tamper: str = "") -> Callable[[str], None]:
    """Log in as a person would: post the provider's form, follow its redirect to the loopback address."""

    def visit(text: str) -> None:
        url = text.splitlines()[-1]
        assert url.startswith(issuer)
        assert parse_qs(urlsplit(url).query)["code_challenge_method"] == ["S256"]
        with httpx.Client(trust_env=False) as browser:
            redirect = browser.post(url, data={"sub": subject}).headers["location"]
            threading.Thread(target=_follow, args=(redirect, tamper)).start()

    return visit


def _follow(redirect: str, tamper: str) -> None:
    with httpx.Client(trust_env=False) as browser:
        if tamper:
            assert browser.get(redirect.replace("state=", f"state={tamper}")).status_code == 404
            assert browser.get(redirect.replace("/callback", "/other")).status_code == 404
        assert browser.get(redirect).status_code == 200


def _settings(issuer: str, **more: Any) -> CliSettings:
    fields: dict[str, Any] = {"oidc_issuer": issuer, "oidc_client_secret": SecretStr("local"), **more}
    return CliSettings(**fields)


@pytest.mark.parametrize("tamper", ["", "x"], ids=["plain", "after strangers knocked"])
async def test_a_login_gives_a_token_that_approval_believes(issuer: str, tamper: str) -> None:
    token = login(_settings(issuer), browser=False, say=_browser("dana", issuer, tamper=tamper))
    assert claims_of(token)["sub"] == "dana"
    async with httpx.AsyncClient(trust_env=False) as http:
        verifier = IdTokenVerifier([TrustedIssuer(issuer=issuer, client_ids=[CLIENT])], http=http)
        person = await verifier.verify(token, now=now())
    assert person.has("payments")


def test_a_login_at_the_wrong_address_says_so(issuer: str) -> None:
    with pytest.raises(CliError, match="discovery document"):
        login(_settings(issuer + "/"), browser=False, say=print)
    with pytest.raises(CliError, match="failed"):
        login(_settings("http://127.0.0.1:1"), browser=False, say=print)


def test_a_refused_code_is_no_login(issuer: str) -> None:
    def refuse(text: str) -> None:
        query = parse_qs(urlsplit(text.splitlines()[-1]).query)
        answer = f"{query['redirect_uri'][0]}?error=access_denied&state={query['state'][0]}"
        threading.Thread(target=_follow, args=(answer, "")).start()

    with pytest.raises(CliError, match="access_denied"):
        login(_settings(issuer), browser=False, say=refuse)
