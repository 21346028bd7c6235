"""The dashboard in a real browser on real servers: sign in, see an ask arrive, decide it, and forge nothing.

Needs Debian's `chromium` (or its path in CHROMIUM_BIN); the pages load nothing from elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page, async_playwright, expect

from remit.canonical import digest
from remit.clock import monotonic
from remit.commands import ApproveCommand, DenyCommand
from tests.support import dashboard_rows as rows
from tests.support.dashboard_stage import Stage, stage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

    from playwright.async_api import Browser

PAGES = ("approvals", "today", "delegate", "investigate", "stop")
SWITCHES = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 60_000
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
    path = os.environ.get("CHROMIUM_BIN") or shutil.which("chromium")
    assert path, "chromium is missing: apt-get install --no-install-recommends chromium, or set CHROMIUM_BIN"
    async with async_playwright() as playwright:
        found = await playwright.chromium.launch(executable_path=path, args=SWITCHES)
        yield found
        await found.close()


class Watched:
    """A page that remembers what went wrong and where it went."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page, self.origin = page, origin
        self.console: list[str] = []
        self.foreign: list[str] = []
        page.on("console", lambda message: self.console.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: self._note(request.url))

    def _note(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in {"http", "https", "ws", "wss"} and parts.netloc != urlsplit(self.origin).netloc:
            self.foreign.append(url)

    def forget(self) -> None:
        """Start over: the provider's own page is not ours."""
        self.console.clear()
        self.foreign.clear()


@asynccontextmanager
async def signed_in(browser: Browser, running: Stage, who: str, **context: Any) -> AsyncGenerator[Watched]:
    """Sign a person in through the provider and stand on Approvals."""
    found = await browser.new_context(viewport={"width": 1400, "height": 900}, **context)
    page = await found.new_page()
    page.set_default_timeout(PATIENCE_MS)
    watched = Watched(page, running.url)
    await page.goto(running.url)
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_url(f"{running.issuer}/**")
    await page.locator("input[name=sub]").first.wait_for(state="attached")
    await page.locator(f"button:has-text('{who}')").first.click()
    await page.wait_for_url(f"{running.url}/**")
    watched.forget()
    await expect(page.get_by_role("heading", name="Approvals", exact=True)).to_be_visible(timeout=PATIENCE_MS)
    yield watched
    await found.close()


async def settled(watched: Watched) -> None:
    """Wait until the script has run and nothing is a placeholder any more."""
    app = watched.page.locator("[data-testid=stApp][data-test-script-state=notRunning]")
    await expect(app).to_be_visible(timeout=PATIENCE_MS)
    await expect(watched.page.get_by_test_id("stSkeleton")).to_have_count(0, timeout=PATIENCE_MS)


async def shot(watched: Watched, directory: Path, name: str) -> None:
    target = os.environ.get("REMIT_SCREENSHOTS") or str(directory)
    await watched.page.screenshot(path=f"{target}/{name}.png", full_page=True)


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
    async with signed_in(browser, running, "dana") as watched:
        await expect(watched.page.get_by_text("live", exact=True)).to_be_visible(timeout=PATIENCE_MS)
        begun = monotonic()
        await running.insert("actions_all", [row])
        approve = watched.page.get_by_role("button", name="Approve once")
        await expect(approve).to_be_enabled(timeout=PATIENCE_MS)
        assert monotonic() - begun < 5  # the fallback alone could be slower
        await expect(watched.page.get_by_text("UK12345678901234567890").first).to_be_visible()
        await shot(watched, tmp_path, "approvals")
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
    async with signed_in(browser, running, "dana") as watched:
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
    async with signed_in(browser, running, "dana") as watched:
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
    async with signed_in(browser, running, "dana") as watched:
        await expect(watched.page.get_by_role("button", name="Approve once")).to_be_enabled(timeout=PATIENCE_MS)
        await expect(watched.page.get_by_text(re.compile("U\\+202E")).first).to_be_visible()
        await settled(watched)
        await shot(watched, tmp_path, "forged")
        content = watched.page.get_by_test_id("stMain")
        assert await content.locator("img").count() == 0
        assert await content.locator("a").count() == 0
        assert watched.foreign == []
        assert watched.console == []
    await running.expire(5)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_page_draws_without_errors(running: Stage, browser: Browser, tmp_path: Path, scheme: str) -> None:
    async with signed_in(browser, running, "otto", color_scheme=scheme) as watched:
        for name in PAGES:
            title = name.capitalize()
            await watched.page.get_by_role("link", name=title).click()
            await expect(watched.page.get_by_role("heading", name=title, exact=True)).to_be_visible(timeout=PATIENCE_MS)
            await settled(watched)
            await expect(watched.page.get_by_text("This page failed")).to_have_count(0)
            await shot(watched, tmp_path, f"{name}-{scheme}")
        assert watched.console == []
        assert watched.foreign == []


async def test_no_token_is_ever_logged(running: Stage) -> None:
    assert "eyJ" not in running.log_path.read_text()
