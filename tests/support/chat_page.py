"""Drives the chat page in headless Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from tests.support.stack_under_test import DEADLINE_S, ROOT, Stack

SCREENSHOTS: Final = ROOT / "docs" / "screenshots" if os.environ.get("SCREENSHOTS") else None
"""The folder for screenshots; None where none are taken."""
DESKTOP: Final = {"viewport": {"width": 860, "height": 600}}
PHONE: Final = {"viewport": {"width": 390, "height": 700}, "is_mobile": True, "has_touch": True}
_DEADLINE_MS: Final = DEADLINE_S * 1000
expect.set_options(timeout=_DEADLINE_MS)
_ARGUMENTS: Final = (
    "--no-sandbox",  # it needs a namespace or a root that tests need not have; they open no page but ours
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--no-first-run",
)


@asynccontextmanager
async def running_browser() -> AsyncIterator[Browser]:
    """A Chromium: the system's, or the one that ./check got."""
    own = ROOT / ".protostar" / "browser" / "chromium"
    program = shutil.which("chromium") or (str(own) if own.exists() else None)
    assert program, "no Chromium is there; ./check gets one"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=list(_ARGUMENTS), timeout=_DEADLINE_MS)
        try:
            yield browser
        finally:
            await browser.close()


class ChatPage:
    """One tab. What a script on it throws, or what it is refused, fails the test at `check`."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.turns = page.locator("#turns > li")
        self.followed: list[str] = []
        """The requests for events, their paths with what stands behind `?`."""
        self._problems: list[str] = []
        page.set_default_timeout(_DEADLINE_MS)
        page.on("pageerror", lambda error: self._problems.append(str(error)))
        page.on("request", lambda request: self._note(request.url))

    @classmethod
    async def open(cls, context: BrowserContext, url: str) -> ChatPage:
        """A new tab at an address."""
        chat = cls(await context.new_page())
        await chat.page.goto(url)
        await expect(chat.question).to_be_visible()
        return chat

    @property
    def question(self) -> Any:
        """The box to write in."""
        return self.page.get_by_role("textbox")

    def turn(self, number: int = -1) -> Any:
        """A turn's element, the newest without a number."""
        return self.turns.nth(number)

    def text(self, number: int = -1) -> Any:
        """An answer's element."""
        return self.turn(number).locator(".text")

    async def ask(self, question: str) -> str:
        """Write a question as with a keyboard and send it; the job's id."""
        count = await self.turns.count()
        await self.question.fill(question)
        await self.question.press("Enter")
        await expect(self.turns).to_have_count(count + 1)
        return await self.job_id()

    async def job_id(self, number: int = -1) -> str:
        """The id of a turn's job."""
        return str(await self.turn(number).get_attribute("data-job"))

    async def until(self, status: str, number: int = -1) -> None:
        """Wait until a turn has a status."""
        await expect(self.turn(number)).to_have_attribute("data-status", status)

    async def until_shown(self, text: str, number: int = -1) -> None:
        """Wait until an answer's text is exactly this."""
        await expect(self.text(number)).to_have_text(text, use_inner_text=True)

    async def check_stored(self, stack: Stack, number: int = -1, *, status: str = "completed") -> str:
        """The page shows question and answer as PostgreSQL has them; gives the answer."""
        asked, answered = await stack.messages(await self.job_id(number))
        assert await self.turn(number).locator(".question p").inner_text() == asked["content"]
        assert answered["status"] == status
        content: str = answered["content"]
        await self.until_shown(content, number)
        return content

    async def picture(self, name: str) -> None:
        """Keep what the page looks like, where pictures are wanted."""
        if SCREENSHOTS is not None:
            SCREENSHOTS.mkdir(exist_ok=True)
            await self.page.screenshot(path=SCREENSHOTS / f"{name}.png", animations="disabled")

    def check(self) -> None:
        """Nothing went wrong unseen."""
        assert self._problems == []

    def _note(self, url: str) -> None:
        address = urlsplit(url)
        if address.path.endswith("/events"):
            self.followed.append((parse_qs(address.query).get("after") or [""])[0])
