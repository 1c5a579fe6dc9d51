"""Pieces of HTML that are read in notebooks, on pages and in reports: figures, tables and paragraphs."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

_DPI = 192  # two device pixels for each CSS pixel
_TEXT = "color: inherit; line-height: 1.5"  # the page or the notebook knows its own background, light or dark
# JupyterLab takes arrow keys and letters even from a list or slider that has the focus, unless it says so.
_KEYS = (
    "this.closest('.widget-vbox')?.addEventListener('focusin', "
    "event => event.target.dataset.lmSuppressShortcuts = 'true')"
)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A small table under its caption; the text of the cells is escaped."""
    cell = 'style="padding: 0 0.6em 0 0; text-align: left; vertical-align: top; border: 0"'
    head = "".join(f'<th scope="col" {cell}>{html.escape(text)}</th>' for text in heads)
    lines = ("".join(f"<td {cell}>{html.escape(text)}</td>" for text in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<table style="border-collapse: collapse; font-size: 0.9em; margin: 0.3em 0; {_TEXT}">'
        f'<caption style="caption-side: top; text-align: left; {_TEXT}">{html.escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def paragraph(text: str) -> str:
    """Text, escaped, in the size of a caption."""
    return f'<p style="font-size: 0.9em; margin: 0.3em 0; {_TEXT}">{html.escape(text)}</p>'


def image(figure: Figure | np.ndarray, alt: str) -> str:
    """An `<img>` with its data inside, of a figure, or of pixels, uint8 (height, width, 3), shown three times as large.

    The figure is closed, or the notebook would show it once more.
    """
    buffer, quality = io.BytesIO(), {"quality": 80, "method": 6}
    if isinstance(figure, Figure):
        figure.savefig(buffer, format="webp", dpi=_DPI, facecolor="white", pil_kwargs=quality)
        plt.close(figure)
        width, height = (figure.get_size_inches() * 96).round().astype(int)
    else:
        Image.fromarray(figure).save(buffer, "webp", **quality)
        height, width = 3 * figure.shape[0], 3 * figure.shape[1]
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img alt="{html.escape(alt)}" width="{width}" height="{height}" style="max-width: 100%; height: auto" '
        f'onload="{_KEYS}" src="data:image/webp;base64,{data}">'
    )
