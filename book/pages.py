"""A page between its source and the site: what a kernel runs of it, whether that is still good, and both together.

A page is a MyST notebook. `to_run` makes of it what a kernel executes: its code and, where the prose quotes the run in
double braces (dtl.book), a cell that says those values. `run` executes that and keeps it below _build/pages, `finished`
says whether what is kept still fits, and `assemble` puts outputs and values into the page as its source stands now, so
that prose can be edited without running anything again.
"""

import ast
import asyncio
import hashlib
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Set
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any

import jupytext
import kernels
import nbformat
import numpy as np
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat.v4 import new_code_cell, new_markdown_cell

from dtl.book import NOT_SO, PLACE, SIZES, scale

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "_build/pages"
SEPARATOR = "\x1f"
FACTS = """import resource, sys
print(*sorted(m for m in sys.modules if m.split(".")[0] == "dtl"))
print(sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
print("wheel" in getattr(sys.modules.get("dtl"), "__file__", "").split("/"))"""
STUDIES_NEED = ["dtl.study", "dtl.testbed", "dtl.engine.workers", "dtl.engine.store"]
STUDIES_SPARE = {"dtl.influence", "dtl.results", "dtl.engine.progress"}  # only look at what is trained
IDLE = 600  # seconds in which a kernel does nothing at all, before it is taken for hung
WORK = (
    1800  # seconds of processor time for a page at scale ci on the processor of `slowness`, many times what one takes
)

Notebook = nbformat.NotebookNode


def pages() -> list[Path]:
    """The pages that run, in the order of the book's chapters, the front pages last: they open chapters' studies."""
    found = [*sorted(ROOT.glob("chapters/*.md")), *sorted(ROOT.glob("book/*.md"))]
    return [page for page in found if "{code-cell}" in page.read_text("utf8")]


def read(page: Path) -> Notebook:
    return jupytext.read(page, fmt="md:myst")


def kept(page: Path) -> Path:
    return KEPT / page.relative_to(ROOT).with_suffix(".ipynb")


# What a kernel runs


def texts(cell: Notebook) -> list[str]:
    """The texts of a cell that may quote the run: prose, or the caption and the alt text of a figure."""
    if cell.cell_type == "markdown":
        return [cell.source]
    options = cell.metadata.get("mystnb", {})
    return [options.get("figure", {}).get("caption", ""), options.get("image", {}).get("alt", "")]


def places(cell: Notebook) -> list[str]:
    return [match[0] for text in texts(cell) for match in PLACE.finditer(text)]


def to_run(page: Notebook) -> list[str]:
    """The code that a kernel runs for a page, cell by cell."""
    cells = []
    for cell in page.cells:
        if cell.cell_type == "code":
            cells.append(cell.source)
        if found := places(cell):
            cells.append(f"dtl.book.say({SEPARATOR.join(found)!r})")
    return [*cells, FACTS]


def run(page: Path, replace: tuple[str, str] = ("", "")) -> str:
    """`execute`, and wait for it."""
    return asyncio.run(execute(page, replace))


async def execute(page: Path, replace: tuple[str, str] = ("", "")) -> str:
    """Execute a page and keep the outputs; returns what went wrong, or "".

    replace : text in its cells and other text to put there, for a run under other conditions
    """
    written = read(page)
    sources = to_run(written)
    cells = [new_code_cell(source.replace(*replace) if replace[0] else source) for source in sources]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    where = {"metadata": {"path": str(page.parent)}}
    kernels.begin()
    client = NotebookClient(notebook, timeout=None, startup_timeout=WORK, kernel_name="python3", resources=where)
    kept(page).parent.mkdir(parents=True, exist_ok=True)
    start, package_before = time.perf_counter(), package_files()
    with open(KEPT.parent / "kernels.log", "a") as log:  # each kernel warns about its transport on the console
        problem, modules, spent, wheel = await watched(client, stderr=log), [], 0.0, ""
    if not problem:
        *modules, used, wheel = "".join(str(part["text"]) for part in notebook.cells[-1].outputs).split()
        spent = float(used)
        problem = untrue(written, notebook)
    same = package_files() == package_before and to_run(read(page)) == sources
    notebook.metadata["dtl"] = {
        "key": page_key(page, modules) if same else "edited while it ran",
        "modules": modules,
        "problem": problem,
        "seconds": time.perf_counter() - start,
        "processor_seconds": spent,
        "from_wheel": wheel == "True",
    }
    partial = kept(page).with_suffix(".partial")
    nbformat.write(notebook, partial)
    partial.replace(kept(page))  # a kill leaves the last run or this one
    return problem


async def watched(client: NotebookClient, **options: Any) -> str:
    """Run a notebook for as long as its kernel works, however slow the machine; returns what went wrong, or ""."""
    task = asyncio.create_task(client.async_execute(**options))
    mark, since, why = 0.0, time.monotonic(), ""
    limit = WORK * slowness() * scale().models / SIZES["ci"][0]
    while not task.done():
        await asyncio.wait([task], timeout=1)
        used = tree_time(client)
        if used > mark + IDLE / 100:  # one hundredth of a core: more than a kernel that waits
            mark, since = used, time.monotonic()
        if time.monotonic() - since > IDLE:
            why = f"the kernel has done nothing for {IDLE / 60:.0f} minutes"
        if used > limit:
            why = f"the page has used {used / 60:.0f} minutes of processor time"
        if why and not task.done():
            for process in tree(client):
                process.kill()
    try:
        await task
    except CellExecutionError as error:
        return re.sub(r"\x1b\[[\d;]*m", "", str(error))  # no colours
    except DeadKernelError:
        cell = next((cell for cell in client.nb.cells if cell.get("execution_count") is None), client.nb.cells[-1])
        return f"{why or 'the kernel died'} in the cell\n\n{cell.source}"
    return ""


def tree(client: NotebookClient) -> list[psutil.Process]:
    """The kernel and what it has started, children first."""
    try:
        kernel = psutil.Process(client.km.provisioner.pid)  # type: ignore[union-attr]
        return [*reversed(kernel.children(recursive=True)), kernel]
    except (psutil.Error, AttributeError, TypeError):
        return []


def tree_time(client: NotebookClient) -> float:
    """Processor seconds of the kernel and of what it has started, that which ended included."""
    total = 0.0
    for process in tree(client):
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.Error:
            pass
    return total


@cache
def slowness() -> float:
    """How many times longer than on a processor of 2026 a piece of work takes here, in processor time; at least 1."""
    matrix, start = np.ones((400, 400)), time.process_time()
    for _ in range(40):
        matrix = (matrix @ matrix).clip(0, 1)
    return max(1.0, (time.process_time() - start) / 0.25)


# Whether what is kept still fits


def digest(*parts: str | bytes) -> str:
    key = hashlib.sha256()
    for part in parts:
        key.update(hashlib.sha256(part if isinstance(part, bytes) else part.encode()).digest())
    return key.hexdigest()


def finished(page: Path) -> bool:
    """Whether a page has run to its end, without a problem, with these cells, modules, versions and this scale."""
    if not kept(page).is_file():
        return False
    facts = nbformat.read(kept(page), as_version=4).metadata["dtl"]
    return not facts["problem"] and facts["key"] == page_key(page, facts["modules"])


def page_key(page: Path, modules: list[str]) -> str:
    """Hash of all that decides a page's outputs; of `dtl` the modules that its kernel has loaded."""
    pictures = os.environ.get("DTL_PICTURES", "")  # a page that is kept with photographs is not one without
    return digest(conditions(), pictures, *to_run(read(page)), *package(modules), *data_files())


@cache
def data_files() -> list[bytes]:
    kinds = ("book/results/**/*.nc", "book/results/**/*.json", "book/results/**/pictures.*", "dtl/*.json")
    found = {file for kind in kinds for file in ROOT.glob(kind)}
    return [file.read_bytes() for file in sorted(found)]


def package_files() -> list[bytes]:
    return [file.read_bytes() for file in sorted(ROOT.glob("dtl/**/*.py"))]


def studies_key() -> str:
    """Hash of all that decides the numbers in a study, besides the settings that it knows itself."""
    return digest(conditions(), *package(STUDIES_NEED, STUDIES_SPARE))


def conditions() -> str:
    constraints = ROOT / "constraints.txt"
    return f"{sys.version} {os.environ.get('DTL_SCALE', 'ci')} {constraints.read_text()}"


def package(modules: Iterable[str], spare: Set[str] = frozenset()) -> list[bytes]:
    """The sources of modules of `dtl` and of all that they import, wherever in their text, except those to `spare`."""
    seen, todo = set(), list(modules)
    while todo:
        module = todo.pop()
        if module not in seen | spare and file_of(module):
            seen.add(module)
            todo += imported(module)
    return [file.read_bytes() for module in sorted(seen) if (file := file_of(module))]


def file_of(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


@cache
def imported(module: str) -> list[str]:
    found, file = [], file_of(module)
    for node in ast.walk(ast.parse(file.read_bytes() if file else "")):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in found if name.split(".")[0] == "dtl"]


# Source and run together


def values(cell: Notebook) -> list[str]:
    """What a cell of a run has said in place of each place, [] for any other cell."""
    if not cell.source.startswith("dtl.book.say("):
        return []
    said = [output["data"]["text/markdown"] for output in cell.get("outputs", []) if "data" in output]
    return said[0].split(SEPARATOR) if said else []


def untrue(page: Notebook, ran: Notebook) -> str:
    """How many claims of a page are not so in a run, and the sentences that make them; "" if there are none."""
    wrong, done = [], iter(ran.cells)
    for cell in page.cells:
        if cell.cell_type == "code":
            next(done)
        if places(cell):
            put(cell, iter(values(next(done))))
            sentences = re.split(r"(?<=[.!?])\s+|\n\s*\n", "\n\n".join(texts(cell)))
            wrong += [sentence for sentence in sentences if NOT_SO in sentence]
    count = sum(sentence.count(NOT_SO) for sentence in wrong)
    short = [shorten(sentence.replace(NOT_SO, " [not so]"), 150, placeholder=" ...") for sentence in wrong]
    return "\n".join([f"claims that are not so in this run: {count}", *short]) if wrong else ""


def assemble(page: Path) -> Notebook:
    """The page as it stands now, with the outputs and values of its last run; "…" where there are none."""
    notebook = read(page)
    ran = nbformat.read(kept(page), as_version=4) if kept(page).is_file() else None
    done = matched(to_run(notebook), ran)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            one = next(done)
            cell.outputs, cell.execution_count = (one.outputs, one.execution_count) if one else ([], None)
        if found := places(cell):
            one = next(done)
            put(cell, iter((values(one) if one else []) or ["…"] * len(found)))
    if note := stands(page, ran):
        at = next((i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"), 0)
        notebook.cells.insert(at, new_markdown_cell(note))
    notebook.metadata.pop("jupytext", None)
    if ran and "widgets" in ran.metadata:
        notebook.metadata["widgets"] = ran.metadata["widgets"]
    return notebook


def matched(sources: list[str], ran: Notebook | None) -> Iterator[Notebook | None]:
    """For each of `sources` the cell that ran it, None where the last run had another one there."""
    found, cells = {}, ran.cells if ran else []
    same = SequenceMatcher(None, [cell.source for cell in cells], sources, autojunk=False)
    for a, b, n in same.get_matching_blocks():
        found |= {b + i: cells[a + i] for i in range(n)}
    return (found.get(i) for i in range(len(sources)))


def put(cell: Notebook, values: Any) -> None:
    """Put values into the texts of a cell, in the order of its places."""

    def filled(text: str) -> str:
        text = PLACE.sub(lambda _: next(values), text)
        return text.replace(" ± ", "\u00a0±\u00a0")  # no line ends between a value and its error

    if cell.cell_type == "markdown":
        cell.source = filled(cell.source)
        return
    options = cell.metadata["mystnb"]
    for part, name in (("figure", "caption"), ("image", "alt")):
        if name in options.get(part, {}):
            options[part][name] = filled(options[part][name])


def stands(page: Path, ran: Notebook | None) -> str:
    """What a reader must know of a page that has no complete run of what it is now."""
    if ran is None:
        return ":::{warning}\nThis page has not been executed yet.\n:::"
    if problem := ran.metadata["dtl"]["problem"]:
        return f"::::{{error}}\nThis page did not run well.\n`````text\n{problem}\n`````\n::::"
    return "" if finished(page) else ":::{warning}\nThese outputs are of an earlier version of the page.\n:::"
