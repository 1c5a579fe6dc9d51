"""How fast do the pages of the built site show on a slow line? First paint, DOM ready, layout shift, kB over the line.

    python tests/benchmarks/page_load.py [SITE] [part of a page's name ...]

A phone of 390 px, 1.6 Mbit/s, 150 ms to the server, which compresses text as a static host does, and an empty cache.
Bars: first paint 1.5 s, DOM ready 5 s, shift 0.05.
"""

import gzip
import mimetypes
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from playwright.sync_api import sync_playwright

LINE = {"offline": False, "latency": 150, "downloadThroughput": 1.6e6 / 8, "uploadThroughput": 750e3 / 8}
SHIFTS = """window.shift = 0; new PerformanceObserver(list => list.getEntries().forEach(entry => {
    if (!entry.hadRecentInput) window.shift += entry.value;
})).observe({type: "layout-shift", buffered: true});"""
MEASURED = """() => {
    const page = performance.getEntriesByType("navigation")[0];
    const loaded = performance.getEntriesByType("resource").reduce((sum, entry) => sum + entry.transferSize, 0);
    const paint = performance.getEntriesByName("first-contentful-paint")[0].startTime;
    return [paint / 1000, page.domContentLoadedEventEnd / 1000, window.shift, (loaded + page.transferSize) / 1000];
}"""


def main(site: Path, parts: list[str]) -> None:
    class Compressing(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            file = site / unquote(self.path.split("?")[0]).lstrip("/")
            if not file.is_file():
                return self.send_error(404)
            kind, content = mimetypes.guess_type(file.name)[0] or "", file.read_bytes()
            text = kind.startswith("text/") or kind.endswith(("javascript", "json", "svg+xml"))
            content = gzip.compress(content) if text else content
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if text:
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(content)

    names = sorted(page.relative_to(site).as_posix() for page in site.glob("*/*.html") if page.parts[-2][0] != "_")
    print("| page | first paint, s | DOM ready, s | layout shift | kB |\n|---|---|---|---|---|")
    with ThreadingHTTPServer(("127.0.0.1", 0), Compressing) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in (name for name in names if not parts or any(part in name for part in parts)):
            page = browser.new_context(viewport={"width": 390, "height": 800}).new_page()
            line = page.context.new_cdp_session(page)
            line.send("Network.enable")
            line.send("Network.emulateNetworkConditions", LINE)
            page.add_init_script(SHIFTS)
            page.goto(f"http://127.0.0.1:{server.server_port}/{name}", wait_until="load", timeout=120_000)
            page.wait_for_timeout(1500)
            paint, ready, shift, kilobytes = page.evaluate(MEASURED)
            print(f"| {name} | {paint:.2f} | {ready:.2f} | {shift:.3f} | {kilobytes:.0f} |", flush=True)
            page.context.close()
        browser.close()
        server.shutdown()


if __name__ == "__main__":
    built = Path(__file__).parents[2] / "_build/html"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else built, sys.argv[2:])
