"""Every human act from a browser, against all six services: grant, approve, investigate, stop, lift, revoke.

Nothing is played here: a real agent proposes, the real approval decides, the real projector feeds what people see.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from infra.demo.stage import Stage
from remit import Pending, Refusal, Result
from remit.clock import now
from tests.support.dashboard_browser import PATIENCE_MS, Watched, chromium, signed_in

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Browser

    from remit import Agent

pytestmark = pytest.mark.timeout(400)
PAYMENT = {"recipient": "UK12345678901234567890", "amount": 98.7, "subject": "Bill", "date": "2022-01-01"}
TERMS = """\
agent_id: spiffe://acme.example/agent/bookkeeper
task: "Pay the bill in bill-december-2023.txt"
environment: demo
not_before: "{start}"
expires_at: "{start_year}-12-31T23:00:00Z"
max_calls: 5
grants:
  - type: tool_call
    tool: bank
    action: send_money
    arguments: {{properties: {{amount: {{maximum: 100}}}}}}
    max_calls: 5
"""


def terms() -> str:
    return TERMS.format(start=f"{now():%Y-%m-%dT%H:%M:%SZ}", start_year=now().year + 1)


async def grant(watched: Watched, directory: Path) -> str:
    """Delegate by the form, and return the remit's id."""
    await watched.go("Delegate")
    area = watched.page.get_by_label("Terms (YAML or JSON)")
    await area.fill(terms())
    await area.blur()
    await watched.settled()
    await watched.page.get_by_role("button", name="Preview").click()
    await expect(watched.page.get_by_text("amount at most 100")).to_be_visible(timeout=PATIENCE_MS)
    await watched.shot(directory, "full-preview")
    await watched.page.get_by_role("button", name="Grant remit").click()
    shown = watched.page.get_by_text(re.compile("^Remit rem_"))
    await expect(shown).to_be_visible(timeout=PATIENCE_MS)
    return (await shown.inner_text()).removeprefix("Remit ").strip()


async def pending(agent: Agent, remit_id: str, key: str) -> Pending:
    """Propose the payment and return the handle of the ask."""
    answer = await agent.propose("bank.send_money", PAYMENT, remit=remit_id, idempotency_key=key, wait=3)
    assert isinstance(answer, Pending), answer
    return answer


async def approve(browser: Browser, stage: Stage, directory: Path) -> None:
    async with signed_in(browser, stage.dashboard_url, stage.issuer, "dana") as watched:
        button = watched.page.get_by_role("button", name="Approve once")
        await expect(button).to_be_enabled(timeout=PATIENCE_MS)
        await watched.settled()
        await watched.shot(directory, "full-card")
        await button.click()
        await expect(watched.page.get_by_text(re.compile("^(Approved|Executing|Succeeded) by"))).to_be_visible(
            timeout=PATIENCE_MS
        )
        assert watched.console == []
        assert watched.foreign == []


async def investigate(browser: Browser, stage: Stage, directory: Path, remit_id: str) -> None:
    async with signed_in(browser, stage.dashboard_url, stage.issuer, "otto") as watched:
        await watched.go("Investigate")
        box = watched.page.get_by_label("Action, remit, agent, person, tool, digest or token id")
        await box.fill(remit_id)
        await box.press("Enter")
        await watched.settled()
        await watched.page.get_by_role("button", name="Open").first.click()
        await expect(watched.page.get_by_text("Executed digest = approved digest")).to_be_visible(timeout=PATIENCE_MS)
        await watched.settled()
        await watched.shot(directory, "full-custody")
        answers = (
            await watched.page.locator("strong").filter(has_text=re.compile("^(yes|NO|not checked)$")).all_inner_texts()
        )
        assert answers == ["yes", "yes", "yes", "not checked"]  # nothing declares bounds of the effect yet


async def stop_and_lift(browser: Browser, stage: Stage, agent: Agent, remit_id: str, directory: Path) -> None:
    async with signed_in(browser, stage.dashboard_url, stage.issuer, "otto") as watched:
        await watched.go("Stop")
        await (
            watched.page.get_by_role("radio", name="Tool")
            .or_(watched.page.get_by_text("Tool", exact=True))
            .first.click()
        )
        await watched.settled()
        target = watched.page.get_by_label("Which one")
        await target.fill("bank.send_money")
        await target.press("Enter")
        await watched.settled()
        await watched.page.get_by_role("button", name="Stop tool").click()
        await expect(watched.page.get_by_text("stopped tool")).to_be_visible(timeout=PATIENCE_MS)
        await watched.shot(directory, "full-stop")
        refused = await agent.propose(
            "bank.send_money", PAYMENT, remit=remit_id, idempotency_key="while-stopped", wait=20
        )
        assert isinstance(refused, Refusal)
        assert refused.reason == "stopped"
        await watched.page.get_by_role("button", name="Lift").click()
        await expect(watched.page.get_by_text("Nothing is stopped.")).to_be_visible(timeout=PATIENCE_MS)


async def revoke(watched: Watched) -> None:
    await watched.go("Delegate")
    await watched.page.get_by_role("button", name="Revoke").first.click()
    await expect(watched.page.get_by_text("You have no active remit.")).to_be_visible(timeout=PATIENCE_MS)


async def test_people_grant_approve_investigate_stop_and_revoke_from_a_browser(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "stage", scale={}, dashboard=True, say=lambda _: None)
    async with stage, chromium() as browser:
        await stage.apply_registry(await stage.people())
        await asyncio.sleep(3)  # every service reads the new bundle within its poll of two seconds
        agent = await stage.agent()
        async with signed_in(browser, stage.dashboard_url, stage.issuer, "emma") as emma:
            remit_id = await grant(emma, tmp_path)
            handle = await pending(agent, remit_id, "pay-the-bill")
            await approve(browser, stage, tmp_path)
            result = await handle.wait(30)
            assert isinstance(result, Result)
            assert result.succeeded
            await investigate(browser, stage, tmp_path, remit_id)
            await stop_and_lift(browser, stage, agent, remit_id, tmp_path)
            await revoke(emma)
        refused = await agent.propose(
            "bank.send_money", PAYMENT, remit=remit_id, idempotency_key="after-revoke", wait=20
        )
        assert isinstance(refused, Refusal)
        assert refused.reason == "remit_revoked"
    assert "eyJ" not in (tmp_path / "stage" / "logs" / "dashboard.log").read_text()
