"""The built site and a browser, for tests marked `book`: required where CI is set, skipped with a reason elsewhere."""

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Literal, Self

import pytest
from built import SITE, missing
from playwright.sync_api import Page, Request, sync_playwright

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


class Window:
    """A window that goes from page to page, and what has gone wrong on the last one.

    `settled` once all that a page has asked for has come. As in a reader's window, what has been compiled of a script
    stays compiled.
    """

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.problems: list[str] = []
        self.awaited: set[Request] = set()
        self.session = page.context.new_cdp_session(page)
        page.on("request", self.asked)
        page.on("requestfinished", lambda request: self.awaited.discard(request))
        page.on("requestfailed", self.failed)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("console", lambda m: self.problems.append(f"console: {m.text}") if m.type == "error" else None)

    def visit(self, name: str, theme: Theme = "light", scripts: bool = True) -> Self:
        self.page.emulate_media(color_scheme=theme)
        self.page.set_viewport_size({"width": 1280, "height": 900})
        self.session.send("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        self.page.goto(self.address + name)
        if scripts:
            self.page.wait_for_function(ARRIVED)
            self.page.evaluate(READY)
        return self

    def leave(self) -> None:
        self.page.goto("about:blank")
        self.awaited.clear()
        self.problems.clear()

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
def window(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Window]:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        missing("Chromium was not found: install it or set CHROMIUM to its path.")
    profile = tmp_path_factory.mktemp("profile")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(profile, executable_path=chromium, args=ARGUMENTS)
        yield Window(browser.pages[0], address)
        browser.close()


@pytest.fixture
def visit(window: Window) -> Iterator[Callable[..., Window]]:
    yield window.visit
    window.leave()


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
