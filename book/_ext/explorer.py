"""A picker that computes in the page, without a kernel: influences of a shipped study, from its subsets and outputs.

The arrays are written beside the site's scripts and read when a reader comes to the picker. `book/_static/explorer.js`
estimates as `dtl.estimate_influence` does; tests/book/test_pickers.py compares the two.
"""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import dtl

SHIPPED, PART = "imagenet20-cifar10", "balanced"
HEAD = "window.dtlExplorerData = "
IMAGES = 100  # of each target class, the first of all: more would make the page slow


def study() -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Subsets (models, K), margins (models, images) on some validation images, their labels, and names."""
    results = dtl.results.open(SHIPPED)[PART]
    chosen = results.sel(transfer="fixed").isel(target=(results.split == "validation").values)
    labels = chosen.label.values
    few = np.sort(np.concatenate([np.flatnonzero(labels == g)[:IMAGES] for g in np.unique(labels)]))
    names = {"sources": chosen.source.values.tolist(), "targets": [str(name) for name in results.target_classes]}
    return chosen["mask"].values, chosen.margin.values[:, few], labels[few], names


def encoded() -> str:
    """The script that holds the study. Shipped margins have 7 bits, so the upper half of a float32 is all of it."""
    masks, margins, labels, names = study()
    bits = margins.astype("<f4").view("<u4")
    if (bits & 0xFFFF).any():
        raise ValueError(f"margins of {SHIPPED} have more bits than the picker reads")
    data = names | {
        "models": len(masks),
        "images": IMAGES,
        "block": dtl.design.block_length(masks.shape[1]),
        "labels": labels.tolist(),
        "masks": base64.b64encode(masks.astype(np.uint8).tobytes()).decode(),
        "margins": base64.b64encode((bits >> 16).astype("<u2").tobytes()).decode(),
    }
    return HEAD + json.dumps(data) + ";\n"


class Explorer(SphinxDirective):
    """The place of the picker; its content is what is there without scripts, and in notebooks."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        up = "../" * self.env.docname.count("/")
        scripts = f'data-scripts="{up}_static/explorer-data.js {up}_static/vendor/jstat/jstat.min.js"'
        start = f'<div class="explorer" role="group" aria-label="Influences, computed in the page" {scripts}>'
        end = f'</div><script defer src="{up}_static/explorer.js"></script>'
        return [nodes.raw("", start, format="html"), *self.parse_content_to_nodes(), nodes.raw("", end, format="html")]


def write_data(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        (Path(app.outdir) / "_static/explorer-data.js").write_text(encoded(), encoding="utf8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("explorer", Explorer)
    app.connect("build-finished", write_data)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
