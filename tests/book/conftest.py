"""The built site and a browser, for tests marked `book`: required where CI is set, skipped with a reason elsewhere."""

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from built import SITE, missing
from playwright.sync_api import Browser, Page, Request, Route, sync_playwright

ARGUMENTS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync""".split()


Theme = Literal["light", "dark"]


class Visit:
    """A page that is open, and what went wrong while it loaded."""

    def __init__(self, browser: Browser, address: str, name: str, theme: Theme = "light", **options: Any) -> None:
        self.context = browser.new_context(color_scheme=theme, viewport={"width": 1280, "height": 900}, **options)
        self.page: Page = self.context.new_page()
        self.problems: list[str] = []
        self.address = address
        self.context.route("**/*", self.only_this_site)
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("console", lambda m: self.problems.append(f"console: {m.text}") if m.type == "error" else None)
        self.page.on("requestfailed", self.failed)
        self.page.goto(address + name)
        self.page.wait_for_load_state("networkidle")

    def only_this_site(self, route: Route) -> None:
        if route.request.url.startswith((self.address, "data:", "blob:")):
            route.continue_()
        else:
            self.problems.append(f"third party: {route.request.url}")
            route.abort()

    def failed(self, request: Request) -> None:
        self.problems.append(f"failed: {request.url}")


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator:
    visits: list[Visit] = []

    def open_page(name: str, theme: Theme = "light", **options: Any) -> Visit:
        visits.append(Visit(browser, address, name, theme, **options))
        return visits[-1]

    yield open_page
    for opened in visits:
        opened.context.close()


@pytest.fixture(scope="session")
def site() -> Path:
    if not (SITE / "index.html").is_file():
        missing("_build/html does not exist: run `make book` first.")
    return SITE


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Address of the site, served below a prefix as GitHub Pages does."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Handler, directory=site.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{site.name}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(site: Path) -> Iterator[Browser]:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        missing("Chromium was not found: install it or set CHROMIUM to its path.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()
