"""Widgets that work on the built page: light, stable from build to build, and readable without JavaScript.

myst-nb writes the state of a page's widgets, figures included, as one JSON script into the page's head. On every page
with widgets this extension

* turns the figures in that state into files below `_images`, which a browser fetches when they are shown;
* replaces the random ids of the widgets by numbers, so that two builds of the same book are identical;
* moves the script to the end of the body, so that text appears first;
* writes the figure that is shown first before each widget, for readers without JavaScript.
"""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

STATE_TYPE = "application/vnd.jupyter.widget-state+json"
VIEW_TYPE = "application/vnd.jupyter.widget-view+json"
VIEW_SCRIPT = re.compile(rf'<script type="{re.escape(VIEW_TYPE)}">(.*?)</script>', re.DOTALL)
DATA_URI = re.compile(r"data:image/(png|webp|jpeg|svg\+xml);base64,([A-Za-z0-9+/=]+)")
REFERENCE = re.compile(r"IPY_MODEL_([0-9A-Za-z_-]+)")

State = dict[str, dict[str, Any]]  # widget id -> {"model_name": ..., "state": {...}}


def references(widget: Any) -> list[str]:
    """Ids of the widgets that a widget's state names, in order."""
    return REFERENCE.findall(json.dumps(widget, sort_keys=True))


def numbered(state: State, views: list[str]) -> dict[str, str]:
    """A new id for every widget: the shown ones in page order, then the rest (links, layouts) by content."""
    new: dict[str, str] = {}

    def visit(widget: str) -> None:
        if widget in new or widget not in state:
            return
        new[widget] = f"widget-{len(new) + 1}"
        for child in references(state[widget]):
            visit(child)

    for view in views:
        visit(view)
    rest = [widget for widget in state if widget not in new]
    for widget in sorted(rest, key=lambda w: REFERENCE.sub(lambda m: new.get(m[1], ""), json.dumps(state[w]))):
        visit(widget)
    return new


def first_figure(state: State, view: str) -> str | None:
    """The HTML that a widget shows first: the selected child of the first Stack below `view`."""
    widget = state[view]
    if widget["model_name"] == "StackModel":
        children = references(widget["state"]["children"])
        view = children[widget["state"].get("selected_index") or 0]
    if state[view]["model_name"] == "HTMLModel":
        return state[view]["state"]["value"]
    shown = (first_figure(state, child) for child in references(state[view]["state"].get("children", [])))
    return next((html for html in shown if html), None)


def write_figures(text: str, folder: Path, url: str) -> str:
    """Write every data URI in `text` to `folder` and put the file's address below `url` in its place."""

    def write(match: re.Match[str]) -> str:
        data = base64.b64decode(match[2])
        name = f"widget-{hashlib.sha256(data).hexdigest()[:16]}.{match[1].removesuffix('+xml')}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        return f"{url}/{name}"

    return DATA_URI.sub(write, text)


def static_page(body: str, state_json: str, folder: Path, url: str) -> str:
    """The page's body with fallbacks and, at its end, the state script."""
    document = json.loads(write_figures(state_json, folder, url))
    views = [json.loads(script)["model_id"] for script in VIEW_SCRIPT.findall(body)]
    new = numbered(document["state"], views)
    text = REFERENCE.sub(lambda m: f"IPY_MODEL_{new[m[1]]}", json.dumps(document, sort_keys=True))
    document = json.loads(text)
    document["state"] = {new[widget]: content for widget, content in document["state"].items()}

    def with_fallback(match: re.Match[str]) -> str:
        view = json.loads(match[1])
        view["model_id"] = new[view["model_id"]]
        html = first_figure(document["state"], view["model_id"])
        fallback = f'<div class="widget-fallback">{html}</div>' if html else ""
        return f'{fallback}<script type="{VIEW_TYPE}">{json.dumps(view, sort_keys=True)}</script>'

    # "<" would let a figure's HTML end the script early.
    state = json.dumps(document, sort_keys=True).replace("<", r"\u003c")
    return VIEW_SCRIPT.sub(with_fallback, body) + f'\n<script type="{STATE_TYPE}">{state}</script>\n'


def on_page(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    scripts = context.get("script_files", [])
    states = [script for script in scripts if getattr(script, "attributes", {}).get("type") == STATE_TYPE]
    if not states:
        return
    context["script_files"] = [script for script in scripts if script not in states]
    images = Path(app.outdir) / "_images"
    url = context["pathto"]("_images", 1)
    context["body"] = static_page(context["body"], states[0].attributes["body"], images, url)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", on_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
