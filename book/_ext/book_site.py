"""What this site does differently from its theme: downloads, launch buttons, scripts, names of `dtl`, labels."""

import importlib
import os
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

from docutils import nodes
from numpy.typing import ArrayLike
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util.typing import stringify_annotation

# The head of a data frame: an empty corner and names of columns, then a row with nothing but the name of the index.
CELLS = r"(?:\s*<th>[^<]*</th>)*\s*</tr>"
NAME = r"\s*<tr>\s*<th>([^<]+)</th>(?:\s*<th></th>)+\s*</tr>"
LONE_NAME = re.compile(rf"(<thead>\s*<tr[^>]*>\s*)<th></th>({CELLS}){NAME}")


def repository_url(root: Path) -> str:
    """The repository on GitHub: `[project.urls]` of pyproject.toml, else the workflow's own; "" where unknown."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf8"))["project"]
    if url := project.get("urls", {}).get("Repository"):
        return url
    name = os.environ.get("GITHUB_REPOSITORY")
    return f"https://github.com/{name}" if name else ""


def add_launch_buttons(app: Sphinx, config: Config) -> None:
    """Colab links need the repository's address; the theme points them at the .ipynb beside each chapter."""
    if url := repository_url(Path(app.srcdir)):
        config.html_theme_options["repository_url"] = url
        config.html_theme_options["use_repository_button"] = True
        config.html_theme_options["launch_buttons"] = {"colab_url": "https://colab.research.google.com"}


def offer_notebook(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """The download button gives the generated notebook: no outputs, no directives that Jupyter cannot show."""
    if (Path(app.srcdir) / f"{pagename}.ipynb").is_file():
        context["ipynb_source"] = f"{pagename}.ipynb"


def copy_notebooks(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        for notebook in Path(app.srcdir).glob("chapters/*.ipynb"):
            target = Path(app.outdir) / "_sources/chapters" / notebook.name
            if target.with_suffix(".md").is_file():
                shutil.copy2(notebook, target)


HEAD_SCRIPT = re.compile(r'<script ([^>]*src="(?![^"]*(?:documentation_options|widgets/setup))[^"]+"[^>]*)></script>')
ICONS = re.compile(r'<script defer src="[^"]*/fontawesome\.js[^"]*"></script>')


# MathJax adds style sheets, on which browsers think again of fonts that came too late, and the text would move.
FONTS = """<script>new PerformanceObserver((_, observer) => { observer.disconnect(); setTimeout(() => {
  for (const [name, font] of [["sans-late", "Source Sans 3"], ["serif-late", "Source Serif 4"]])
    document.documentElement.classList.toggle(name, !document.fonts.check(`1em "${font}"`));
}, 40); }).observe({type: "paint", buffered: true});</script>
"""


def scripts_wait(app: Sphinx, exception: Exception | None) -> None:
    """No script holds up what a page shows: all run after it, in their order; the two large ones when they are there.

    Icons come from a font that the style sheet loads anyway; the half megabyte that would draw them again is left out.
    """

    def later(match: re.Match[str]) -> str:
        attributes = match[1].replace('defer="defer" ', "").replace("defer ", "")
        large = "mathjax/" in attributes or "widgets/embed" in attributes
        return f"<script {'async' if large else 'defer'} {attributes}></script>"

    for page in Path(app.outdir).rglob("*.html") if exception is None and app.builder.format == "html" else ():
        head, end, body = page.read_text(encoding="utf8").partition("</head>")
        page.write_text(HEAD_SCRIPT.sub(later, ICONS.sub("", head)) + FONTS + end + body, encoding="utf8")


def disconnect_thebe(app: Sphinx) -> None:
    """Jupyter Book always loads sphinx-thebe, which writes a third-party address into every page."""
    for listeners in list(app.events.listeners.values()):
        for listener in list(listeners):
            if listener.handler.__module__ == "sphinx_thebe":
                app.disconnect(listener.id)
    app.registry.css_files = [css for css in app.registry.css_files if css[0] != "sphinx-thebe.css"]


def empty_corners(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """The empty corner of a data frame is no header: screen readers would announce a column without a name.

    The name of its index, if it has one, stands there, and not in a row of its own.
    """
    body = LONE_NAME.sub(r"\1<th>\3</th>\2", context.get("body", ""))
    context["body"] = body.replace("<th></th>", "<td></td>")


def signatures_in_lines(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """A parameter a line, without the list of definitions that Sphinx makes of them, which defines nothing."""

    def lines(match: re.Match[str]) -> str:
        return match[1].replace("dd>", "span>").join(('<span class="sig-lines">', "</span>"))

    listed = re.compile(r"<dl>\s*((?:<dd>.*?</dd>\s*)+)</dl>", re.DOTALL)
    context["body"] = listed.sub(lines, context.get("body", ""))


def resolve_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.Element | None:
    """`dtl.name` leads to where `name` is documented: the module that defines it."""
    package, _, name = node.get("reftarget", "").partition(".")
    if node.get("refdomain") != "py" or package != "dtl" or not name:
        return None
    public = getattr(importlib.import_module("dtl"), name, None)
    module = getattr(public, "__module__", None)
    if not module:
        return None
    domain = env.get_domain("py")
    docname = node.get("refdoc", env.docname)
    return domain.resolve_xref(env, docname, app.builder, node["reftype"], f"{module}.{name}", node, contnode)


def give_examples_a_heading(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """An example at the end of a docstring needs no heading in the source; here it must not look like a parameter."""
    start = next((i for i, line in enumerate(lines) if line.startswith(">>>") and not lines[i - 1].strip()), None)
    if start and "Examples" not in lines and any(line and set(line) == {"-"} for line in lines[:start]):
        lines[start:start] = ["Examples", "--------"]


TERM = re.compile(r"^([a-z_]+(?:, [a-z_]+)*) : ", re.MULTILINE)
SECTIONS = ("Parameters", "Attributes", "Returns", "Raises")


def describe_below(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Sections say `name : description`, over several lines if it is long; napoleon would take that for a type.

    A paragraph that follows a section is no parameter either: it gets a heading.
    """
    if what in ("attribute", "property", "data") and lines:
        lines[0] = lines[0].replace(": ", " – ")  # what is left of a colon would be its type
    done, section = [], ""
    for i, line in enumerate(lines):
        underlined = i + 1 < len(lines) and lines[i + 1].strip() and set(lines[i + 1]) == {"-"}
        if underlined:
            section = line if line in SECTIONS else ""
        if section == "Returns":  # text all of it; two empty lines end the section before
            rule = bool(line) and set(line) == {"-"}
            done += [] if rule else ["", ":returns:"] if underlined else [f"   {line}" if line else ""]
            continue
        entry, colon, text = line.partition(" : ")
        if section and not underlined and line and set(line) != {"-"} and not line.startswith(" "):
            if colon:
                done += [entry, f"    {text}"]
                continue
            if not lines[i - 1].strip():
                done += ["Notes", "-----"]
                section = ""
        if not section and TERM.match(line):  # a list of terms in the text, sometimes several in a line
            line = re.sub(r";  (?=[a-z_]+ : )", "\n", line)
            line = TERM.sub(r"- **\1**: ", line)
        elif done and done[-1].startswith("- **") and line.strip():
            line = f"  {line.strip()}"
        done += line.split("\n")
    lines[:] = done


def read_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """`ArrayLike` by its name, not as the dozen types that it stands for; a default made by a factory as Python."""
    whole = stringify_annotation(ArrayLike, "smart")
    signature, returns = (text and text.replace(whole, "ArrayLike") for text in (signature, returns))
    return signature and signature.replace("<factory>", "{}"), returns


def setup(app: Sphinx) -> dict[str, bool]:
    disconnect_thebe(app)
    app.connect("config-inited", add_launch_buttons)
    app.connect("autodoc-process-docstring", give_examples_a_heading, priority=400)  # before napoleon, at 500
    app.connect("autodoc-process-docstring", describe_below, priority=401)
    app.connect("autodoc-process-signature", read_signature)
    app.connect("missing-reference", resolve_public_name)
    # The theme adds its launch buttons, then its download buttons, at 501 in the order of connection.
    app.connect("html-page-context", offer_notebook, priority=500)
    app.connect("html-page-context", empty_corners, priority=900)
    app.connect("html-page-context", signatures_in_lines, priority=900)
    app.connect("build-finished", copy_notebooks)
    app.connect("build-finished", scripts_wait)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
