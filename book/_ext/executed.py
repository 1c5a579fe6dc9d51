"""Pages as they ran: the site shows a page's source with the outputs and values of its last run (book/pages.py)."""

import sys
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import pages  # noqa: E402


def put_in_outputs(app: Sphinx, docname: str, source: list[str]) -> None:
    """Sphinx has read a page that runs: hand it the notebook instead."""
    if "{code-cell}" in source[0]:
        source[0] = nbformat.writes(pages.assemble(Path(app.srcdir) / f"{docname}.md"))


def notebook(text: str) -> nbformat.NotebookNode:
    """What MyST-NB parses: such a notebook, or a page without code as one cell of Markdown."""
    if text.startswith("{"):
        return nbformat.reads(text, as_version=4)
    cell = nbformat.v4.new_markdown_cell(text)
    return nbformat.v4.new_notebook(cells=[cell], metadata={"source_map": [0]})


class Timings(SphinxDirective):
    """A table of what every page took when it ran."""

    def run(self) -> list[nodes.Node]:
        ran: Any = {page: nbformat.read(pages.kept(page), 4) for page in pages.pages() if pages.kept(page).is_file()}
        lines = ["| page | seconds | processor seconds |", "|---|--:|--:|"]
        total = [0.0, 0.0]
        for page, facts in ((page, notebook.metadata["dtl"]) for page, notebook in ran.items()):
            took = [facts["seconds"], facts["processor_seconds"]]
            total = [a + b for a, b in zip(total, took, strict=True)]
            name = page.relative_to(pages.ROOT).with_suffix("").as_posix()
            lines.append(f"| {{doc}}`/{name}` | {took[0]:.0f} | {took[1]:.0f} |")
        lines.append(f"| all | {total[0]:.0f} | {total[1]:.0f} |")
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", put_in_outputs)
    app.add_directive("page-timings", Timings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
