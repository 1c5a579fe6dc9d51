"""The built site and a browser, for tests marked `book`: required where CI is set, skipped with a reason elsewhere."""

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

import pytest
from built import SITE, missing
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

ARGUMENTS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync""".split()
ARGUMENTS += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]  # and so no page reaches anybody else

ARRIVED = "document.readyState === 'complete' && !document.querySelector('meta[http-equiv=refresh]')"
# What a page does once it is loaded: formulas, fonts that are asked for late, pickers in the place of their fallbacks.
READY = """async () => {
    await window.MathJax?.startup?.promise;
    await document.fonts.ready;
    const pickers = document.querySelectorAll("script[type='application/vnd.jupyter.widget-view+json']").length;
    while (document.querySelectorAll(".widget-subarea > *").length < pickers) {
        await new Promise(resolve => setTimeout(resolve, 20));
    }
}"""

Theme = Literal["light", "dark"]


class Visit:
    """A page that is open, and what has gone wrong since; `settled` once all that it asked for has come."""

    def __init__(self, context: BrowserContext, address: str, name: str) -> None:
        self.page: Page = context.new_page()
        self.problems: list[str] = []
        self.address = address
        self.awaited: set[Request] = set()
        self.page.on("request", self.asked)
        self.page.on("requestfinished", lambda request: self.awaited.discard(request))
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("console", lambda m: self.problems.append(f"console: {m.text}") if m.type == "error" else None)
        self.page.on("requestfailed", self.failed)
        self.page.goto(address + name)

    def asked(self, request: Request) -> None:
        self.awaited.add(request)
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.problems.append(f"third party: {request.url}")

    def failed(self, request: Request) -> None:
        self.awaited.discard(request)
        self.problems.append(f"failed: {request.url}")

    def settled(self) -> list[str]:
        while self.awaited:
            self.page.wait_for_timeout(20)
        return self.problems


@pytest.fixture(scope="module")
def contexts(browser: Browser) -> Iterator[Callable[..., BrowserContext]]:
    """A window for each kind of visitor, whose pages share what they have loaded."""

    @functools.cache
    def opened(theme: Theme, **options: Any) -> BrowserContext:
        return browser.new_context(color_scheme=theme, viewport={"width": 1280, "height": 900}, **options)

    yield opened


@pytest.fixture
def visit(contexts: Callable[..., BrowserContext], address: str) -> Iterator[Callable[..., Visit]]:
    visits: list[Visit] = []

    def open_page(name: str, theme: Theme = "light", **options: Any) -> Visit:
        visits.append(Visit(contexts(theme, **options), address, name))
        if options.get("java_script_enabled", True):
            visits[-1].page.wait_for_function(ARRIVED)
            visits[-1].page.evaluate(READY)
        return visits[-1]

    yield open_page
    for opened in visits:
        opened.page.close()


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

        def do_GET(self) -> None:
            if self.path == "/favicon.ico":  # of the host, which a browser looks for by itself
                self.send_response(HTTPStatus.NO_CONTENT)
                self.end_headers()
            else:
                super().do_GET()

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
