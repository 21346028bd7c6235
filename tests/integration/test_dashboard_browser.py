"""The dashboard in a real browser on real servers: sign in, see an ask arrive, decide it, and forge nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from remit.canonical import digest
from remit.clock import monotonic
from remit.commands import ApproveCommand, DenyCommand
from tests.support import dashboard_rows as rows
from tests.support.dashboard_browser import PATIENCE_MS, chromium, signed_in
from tests.support.dashboard_stage import Stage, stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import Browser

PAGES = ("approvals", "today", "delegate", "investigate", "stop")
APPROVED, DENIED = re.compile("^Approved by"), re.compile("^Denied by")
"""How a decided card begins; the words alone also stand in its history."""
FORGED = ":green-badge[VERIFIED] ![p](http://evil.example/p.png) <img src=x onerror=alert(1)> www.evil.example"
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with stage(tmp_path_factory.mktemp("dashboard")) as found:
        emma, dana = f"{found.issuer}|emma", f"{found.issuer}|dana"
        await found.insert("remits", [rows.remit(emma)])
        await found.insert("grants", [rows.grant(1, emma, "read_file", used=1), rows.grant(2, emma, "send_money")])
        await found.insert("tools", [rows.tool("send_money", "Send {amount} to {recipient}")])
        await found.insert("agents", [rows.agent()])
        await found.insert(
            "actions_all", [rows.executed(90, emma, dana), rows.by_rule(91, emma), rows.blocked(92, emma)]
        )
        yield found


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as found:
        yield found


async def test_every_page_of_a_fresh_server_meets_the_sign_in_gate(running: Stage, browser: Browser) -> None:
    context = await browser.new_context()
    page = await context.new_page()
    for name in PAGES:
        await page.goto(f"{running.url}/{name}")
        await expect(page.get_by_role("button", name="Sign in")).to_be_visible(timeout=PATIENCE_MS)
        await expect(page.get_by_text("bank.")).to_have_count(0)
    await context.close()


async def test_an_ask_arrives_by_itself_and_is_approved_exactly_as_shown(
    running: Stage, browser: Browser, tmp_path: Path
) -> None:
    row = rows.action(1, f"{running.issuer}|emma")
    async with signed_in(browser, running.url, running.issuer, "dana") as watched:
        await expect(watched.page.get_by_text("live", exact=True)).to_be_visible(timeout=PATIENCE_MS)
        begun = monotonic()
        await running.insert("actions_all", [row])
        approve = watched.page.get_by_role("button", name="Approve once")
        await expect(approve).to_be_enabled(timeout=PATIENCE_MS)
        assert monotonic() - begun < 5  # the fallback alone could be slower
        await expect(watched.page.get_by_text("UK12345678901234567890").first).to_be_visible()
        await watched.shot(tmp_path, "approvals")
        await approve.click()
        await expect(watched.page.get_by_text(APPROVED)).to_be_visible(timeout=PATIENCE_MS)
        await expect(approve).to_have_count(0)
        assert watched.console == []
        assert watched.foreign == []
    command, person = running.approval.commands[-1]
    assert isinstance(command, ApproveCommand)
    assert (command.action_id, command.args_digest, command.shown_digest, command.version) == (
        row["action_id"],
        row["args_digest"],
        row["shown_digest"],
        1,
    )
    assert person.human.sub == "dana"


async def test_a_triple_click_decides_once(running: Stage, browser: Browser) -> None:
    row = rows.action(2, f"{running.issuer}|emma")
    await running.insert("actions_all", [row])
    async with signed_in(browser, running.url, running.issuer, "dana") as watched:
        button = watched.page.get_by_role("button", name="Approve once")
        await expect(button).to_be_enabled(timeout=PATIENCE_MS)
        await button.click(click_count=3, delay=5)
        await expect(watched.page.get_by_text(APPROVED)).to_be_visible(timeout=PATIENCE_MS)
    sent = [
        command for command, _ in running.approval.commands if getattr(command, "action_id", "") == row["action_id"]
    ]
    assert running.approval.decided[row["action_id"]] == 1
    assert len({command.idempotency_key for command in sent}) == 1


async def test_a_riskier_arrival_never_takes_the_place_of_the_open_card(running: Stage, browser: Browser) -> None:
    emma = f"{running.issuer}|emma"
    await running.insert("actions_all", [rows.action(3, emma)])
    async with signed_in(browser, running.url, running.issuer, "dana") as watched:
        await expect(watched.page.get_by_role("button", name="Deny")).to_be_enabled(timeout=PATIENCE_MS)
        await running.insert("actions_all", [rows.action(4, emma, tier=4, action="close_account")])
        await expect(watched.page.get_by_text("bank.close_account")).to_be_visible(timeout=PATIENCE_MS)
        await watched.page.get_by_role("button", name="Deny").click()
        await expect(watched.page.get_by_text(DENIED)).to_be_visible(timeout=PATIENCE_MS)
    command, _ = running.approval.commands[-1]
    assert isinstance(command, DenyCommand)
    assert command.action_id == f"{3:032x}"
    await running.expire(4)


async def test_forged_text_stays_text_and_fetches_nothing(running: Stage, browser: Browser, tmp_path: Path) -> None:
    emma = f"{running.issuer}|emma"
    args = {"recipient": FORGED, "amount": 1, "note\u202e": "a\u200bb"}
    row = rows.action(
        5,
        emma,
        args=args,
        args_digest=digest(args),
        resource_id=FORGED,
        rationale=FORGED,
        environment=FORGED,
        matched_policies=[FORGED],
        approver_group=["payments", FORGED],
    )
    await running.insert("actions_all", [row])
    async with signed_in(browser, running.url, running.issuer, "dana") as watched:
        await expect(watched.page.get_by_role("button", name="Approve once")).to_be_enabled(timeout=PATIENCE_MS)
        await expect(watched.page.get_by_text(re.compile("U\\+202E")).first).to_be_visible()
        await watched.settled()
        await watched.shot(tmp_path, "forged")
        content = watched.page.get_by_test_id("stMain")
        assert await content.locator("img").count() == 0
        assert await content.locator("a").count() == 0
        assert watched.foreign == []
        assert watched.console == []
    await running.expire(5)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_page_draws_without_errors(running: Stage, browser: Browser, tmp_path: Path, scheme: str) -> None:
    async with signed_in(browser, running.url, running.issuer, "otto", color_scheme=scheme) as watched:
        for name in PAGES:
            await watched.go(name.capitalize())
            await expect(watched.page.get_by_text("This page failed")).to_have_count(0)
            await watched.shot(tmp_path, f"{name}-{scheme}")
        assert watched.console == []
        assert watched.foreign == []


async def test_no_token_is_ever_logged(running: Stage) -> None:
    assert "eyJ" not in running.log_path.read_text()
