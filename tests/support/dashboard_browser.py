"""Chromium for tests of the dashboard: signed-in pages that remember every console error and every foreign request.

Needs Debian's `chromium` (or its path in CHROMIUM_BIN). `playwright install` is never used.
"""

from __future__ import annotations

import os
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from playwright.async_api import Page, async_playwright, expect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from playwright.async_api import Browser

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


class Watched:
    """A page of one origin, and what went wrong on it."""

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

    async def go(self, title: str) -> None:
        """Open a page by the navigation and wait until it stands."""
        await self.page.get_by_role("link", name=title, exact=True).click()
        await expect(self.page.get_by_role("heading", name=title, exact=True)).to_be_visible(timeout=PATIENCE_MS)
        await self.settled()

    async def settled(self) -> None:
        """Wait until the script has run and nothing is a placeholder any more."""
        app = self.page.locator("[data-testid=stApp][data-test-script-state=notRunning]")
        await expect(app).to_be_visible(timeout=PATIENCE_MS)
        await expect(self.page.get_by_test_id("stSkeleton")).to_have_count(0, timeout=PATIENCE_MS)

    async def shot(self, directory: Path, name: str) -> None:
        """Keep a picture, in REMIT_SCREENSHOTS when that is set."""
        target = os.environ.get("REMIT_SCREENSHOTS") or str(directory)
        await self.page.screenshot(path=f"{target}/{name}.png", full_page=True)


@asynccontextmanager
async def chromium() -> AsyncGenerator[Browser]:
    """Start the browser."""
    path = os.environ.get("CHROMIUM_BIN") or shutil.which("chromium")
    assert path, "chromium is missing: apt-get install --no-install-recommends chromium, or set CHROMIUM_BIN"
    async with async_playwright() as playwright:
        found = await playwright.chromium.launch(executable_path=path, args=SWITCHES)
        yield found
        await found.close()


@asynccontextmanager
async def signed_in(browser: Browser, url: str, issuer: str, who: str, **context: Any) -> AsyncGenerator[Watched]:
    """Sign a person in through the local provider and stand on Approvals."""
    found = await browser.new_context(viewport={"width": 1400, "height": 900}, **context)
    page = await found.new_page()
    page.set_default_timeout(PATIENCE_MS)
    watched = Watched(page, url)
    await page.goto(url)
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_url(f"{issuer}/**")
    await page.locator(f"button:has-text('{who}')").first.click()
    await page.wait_for_url(f"{url}/**")
    watched.forget()
    await expect(page.get_by_role("heading", name="Approvals", exact=True)).to_be_visible(timeout=PATIENCE_MS)
    yield watched
    await found.close()
