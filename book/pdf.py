"""The whole book as one PDF, _build/book.pdf, printed from the site that `make book` wrote; each page has a bookmark.

    python book/pdf.py      # needs Chromium, as the tests of the site do

Everything folded is printed open: code, hints, answers and solutions. Links to other pages become plain text, since
they would lead to a server that is gone.
"""

import argparse
import functools
import io
import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pages
import yaml
from playwright.sync_api import sync_playwright
from pypdf import PdfWriter

SITE, PDF = pages.ROOT / "_build/html", pages.ROOT / "_build/book.pdf"
MARGIN: Any = dict.fromkeys(("top", "bottom", "left", "right"), "18mm")
OPEN = """async () => {
    document.querySelectorAll("details").forEach(folded => { folded.open = true; });
    document.querySelectorAll("img").forEach(image => { image.loading = "eager"; });
    const elsewhere = link => link.origin === location.origin && link.pathname !== location.pathname;
    document.querySelectorAll("a[href]").forEach(link => { if (elsewhere(link)) link.removeAttribute("href"); });
    await window.MathJax?.startup?.promise;
}"""


def contents() -> list[str]:
    """The files of the book in the order of its table of contents."""
    toc = yaml.safe_load((pages.ROOT / "_toc.yml").read_text(encoding="utf8"))
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", help="for instance book/timings; the whole book if none is named")
    parser.add_argument("--to", type=pages.Path, default=PDF)
    options = parser.parse_args()
    browser = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not browser or not (SITE / "index.html").is_file():
        raise SystemExit("Run `make book` first." if browser else "Chromium was not found: install it or set CHROMIUM.")
    book = PdfWriter()
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE)) as server,
        sync_playwright() as p,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = p.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        for name in options.pages or contents():
            page.goto(f"http://127.0.0.1:{server.server_port}/{name}.html", wait_until="networkidle")
            page.evaluate(OPEN)
            page.wait_for_load_state("networkidle")
            printed = page.pdf(format="A4", margin=MARGIN)
            book.append(io.BytesIO(printed), outline_item=page.title().split(" — ")[0])
        server.shutdown()
    book.write(options.to)
    print(f"Open {options.to} ({len(book.pages)} pages)")


if __name__ == "__main__":
    main()
