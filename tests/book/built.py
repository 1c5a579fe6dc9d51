"""Where the built site is, and what its tests do when it is not."""

import os
from pathlib import Path
from typing import NoReturn

import pytest

SITE = Path(__file__).parents[2] / "_build/html"


def missing(what: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def built_pages() -> list[str]:
    """Addresses of all pages below the site's root, for parametrization; one stand-in where nothing is built."""
    pages = (page.relative_to(SITE).as_posix() for page in SITE.rglob("*.html"))
    return sorted(page for page in pages if not page.startswith("_static/")) or ["index.html"]
