"""Write chapters/NN-name.ipynb from chapters/NN-name.md: no outputs, and nothing that only the book can show.

    python book/sync_notebooks.py            # write what is out of date
    python book/sync_notebooks.py --check    # exit 1 if anything is out of date

Jupyter and Colab do not know MyST. Admonitions and exercises become quotes with a bold title, what is to be opened
stays folded, figures become plain images, roles plain text, citations author and year, links to chapters links to
notebooks.
Paragraphs that quote the run become folded cells that say them once it is there. An unknown directive or role is an
error, so that no raw markup reaches a reader.
"""

import argparse
import hashlib
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jupytext
import nbformat
from pybtex.database import Entry, parse_file

from dtl.book import PLACE

ROOT = Path(__file__).resolve().parent.parent
OPENING = re.compile(r"^(?P<fence>:{3,}|`{3,})\{(?P<name>[\w:-]+)\}[ \t]*(?P<title>.*)$")
OPTION = re.compile(r"^:([\w-]+):[ \t]*(.*)$")
ROLE = re.compile(r"\{(?P<name>[\w:]+)\}`(?P<text>[^`]+)`")
TARGET = re.compile(r"^(?P<text>.+?)\s*<(?P<target>[^>]+)>$")

QUOTES = {"note", "tip", "hint", "important", "warning", "caution", "danger", "attention", "seealso", "admonition"}
TITLED = QUOTES | {"margin", "topic", "sidebar", "card", "grid-item-card", "tab-item"}
TRANSPARENT = {"grid", "tab-set", "div", "container", "glossary", "explorer"}
SAYS = {"jupyter": {"source_hidden": True}, "cellView": "form"}  # folded in JupyterLab and in Colab
DROPPED = {"bibliography", "page-timings", "tableofcontents", "contents", "solution-end", "exercise-end"}
CODE_ROLES = {"func", "class", "meth", "mod", "attr", "data", "exc", "py:func", "py:class", "py:mod", "py:meth", "code"}
TEXT_ROLES = {"term", "abbr", "ref", "sub", "sup", "download"}


def sync(check: bool = False) -> list[Path]:
    """Write every notebook that is out of date (with `check`: only name them). Returns their paths."""
    changed = []
    for chapter in sorted((ROOT / "chapters").glob("*.md")):
        notebook, text = chapter.with_suffix(".ipynb"), as_notebook(chapter)
        if not notebook.is_file() or notebook.read_text(encoding="utf8") != text:
            changed.append(notebook)
            if not check:
                notebook.write_text(text, encoding="utf8")
    return changed


def as_notebook(chapter: Path) -> str:
    """The notebook of one chapter as JSON text."""
    source = jupytext.read(chapter, fmt="md:myst")
    figures = figure_names(source.cells)
    cells = [install_cell()]
    in_solution = False
    for cell in source.cells:
        if cell.cell_type == "code":
            tags = cell.metadata.get("tags", [])
            hidden = in_solution or any(tag.startswith(("hide-", "remove-")) for tag in tags)
            cells.append(nbformat.v4.new_code_cell(cell.source))
            cells[-1].metadata = {"tags": tags} if tags else {}
            if hidden:
                cells[-1].metadata["jupyter"] = {"source_hidden": True}
            figure = cell.metadata.get("mystnb", {}).get("figure", {})
            if "caption" in figure:
                number = f"Figure {figures.index(figure['name']) + 1}" if "name" in figure else "Figure"
                cells += prose(f"*{number}: {plain(figure['caption'], figures)}*")
        else:
            markers = re.findall(r"\{solution-(start|end)\}", cell.source)
            shown, end, rest = cell.source.partition(":::{solution-end}") if in_solution else ("", "", cell.source)
            in_solution = markers[-1] == "start" if markers else in_solution
            try:
                lines = [*convert((end + rest).splitlines(), figures)]
                if shown.strip():
                    lines = [*details("What the solution shows", convert([*shown.splitlines()], figures)), *lines]
                text = "\n".join(lines).strip()
            except ValueError as error:
                raise ValueError(f"{chapter.name}: {error}") from None
            cells += prose(text)
    seen: dict[str, int] = {}
    for cell in cells:
        # An id from the content stays when cells are added elsewhere.
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    nbformat.validate(notebook)
    return nbformat.writes(notebook, indent=1) + "\n"


def prose(text: str) -> list[nbformat.NotebookNode]:
    """Markdown as cells: paragraphs that quote the run (dtl.book) as code that says them, the rest as it is."""
    cells: list[nbformat.NotebookNode] = []
    for block in blocks(text):
        if PLACE.search(block):
            cells.append(nbformat.v4.new_code_cell(f'dtl.book.say(r"""\n{block}\n""")', metadata=SAYS))
        elif cells and cells[-1].cell_type == "markdown":
            cells[-1].source += f"\n\n{block}"
        else:
            cells.append(nbformat.v4.new_markdown_cell(block))
    return cells


def blocks(text: str) -> Iterator[str]:
    """Paragraphs, tables, quotes; a fenced block and what is folded stay in one piece."""
    block: list[str] = []
    for part in re.split(r"\n\s*\n", text.strip()):
        block.append(part)
        joined = "\n\n".join(block)
        folded = joined.count("<details>") > joined.count("</details>")
        if not folded and len(re.findall(r"^(?:> ?)*```", joined, re.MULTILINE)) % 2 == 0:
            if joined:
                yield joined
            block = []


def figure_names(cells: list[nbformat.NotebookNode]) -> list[str]:
    """Names of a chapter's figures in order, so that a reference can say which one it means."""
    names = []
    for cell in cells:
        if cell.cell_type == "code":
            names.append(cell.metadata.get("mystnb", {}).get("figure", {}).get("name"))
        else:
            names += re.findall(r"\{figure\}[^\n]*\n(?::(?!name)[^\n]*\n)*:name:[ \t]*(\S+)", cell.source)
    return [name for name in names if name]


def install_cell() -> nbformat.NotebookNode:
    """The first cell: how to get `dtl` where it is missing, for instance on Colab."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
    url = project.get("urls", {}).get("Repository")
    where = f'"dtl @ git+{url}"' if url else "-e .."
    comment = "# Where dtl is missing (Colab, a new environment): remove the # of the next line, run it once, restart."
    return nbformat.v4.new_code_cell(f"{comment}\n# %pip install {where}")


def convert(lines: list[str], figures: list[str]) -> Iterator[str]:
    """Markdown without MyST's directives, roles, labels and comments."""
    position = 0
    while position < len(lines):
        line = lines[position]
        position += 1
        if opening := OPENING.match(line):
            end = closing(lines, position, opening["fence"])
            yield from directive(opening["name"], opening["title"].strip(), lines[position:end], figures)
            position = end + 1
        elif line.startswith("```"):  # plain code: copied as it is
            end = closing(lines, position, re.match("`+", line)[0])  # type: ignore[index]
            yield from lines[position - 1 : end + 1]
            position = end + 1
        elif re.match(r"^\([\w:-]+\)=$", line) or line.startswith("% "):
            continue
        else:
            yield plain(line, figures)


def closing(lines: list[str], start: int, fence: str) -> int:
    """Index of the line that closes a fence opened before `start`."""
    for index in range(start, len(lines)):
        if re.match(rf"^{fence[0]}{{{len(fence)},}}\s*$", lines[index]):
            return index
    raise ValueError(f"a {fence} fence is never closed.")


def directive(name: str, title: str, body: list[str], figures: list[str]) -> Iterator[str]:
    """Markdown for one directive."""
    options: dict[str, str] = {}
    while body and (option := OPTION.match(body[0])):
        options[option[1]] = option[2]
        body = body[1:]
    if name in DROPPED:
        return
    if name in {"figure", "image"}:
        yield f"![{options.get('alt', '')}]({title})"
        yield ""
        yield from convert(body, figures)
    elif name in {"code-block", "code"}:
        yield from [f"```{title}", *body, "```"]
    elif name == "math":
        yield from ["$$", *body, "$$"]
    elif name in TRANSPARENT:
        yield from convert(body, figures)
    elif name == "dropdown":
        yield from details(plain(title, figures), convert(body, figures))
    elif name in TITLED:
        yield from quoted(
            plain(title, figures) or ("" if name == "margin" else name.capitalize()), convert(body, figures)
        )
    elif name in {"exercise", "exercise-start"} or name.startswith("prf:"):
        kind = name.removeprefix("prf:").removesuffix("-start").capitalize()
        yield from quoted(f"{kind}: {plain(title, figures)}" if title else kind, convert(body, figures))
    elif name in {"solution", "solution-start"}:
        yield from quoted("Solution (try the exercise first)", convert(body, figures))
    else:
        raise ValueError(f"directive {{{name}}} has no plain form; add one to book/sync_notebooks.py.")


def quoted(title: str, body: Iterator[str]) -> Iterator[str]:
    lines = "\n".join(body).strip().splitlines()
    heading = [f"**{title}**"] if title else []
    for line in [*heading, *([""] if heading and lines else []), *lines]:
        yield f"> {line}".rstrip()
    yield ""


def details(title: str, body: Iterator[str]) -> Iterator[str]:
    """What a reader opens: Jupyter and Colab read Markdown between these tags where empty lines surround it."""
    title = re.sub(r"`([^`]+)`", r"<code>\1</code>", title)
    yield from ["<details>", f"<summary>{title}</summary>", ""]
    yield from "\n".join(body).strip().splitlines()
    yield from ["", "</details>", ""]


def plain(line: str, figures: list[str]) -> str:
    """One line with roles as text, links to chapters as links to notebooks, and equation labels removed."""
    line = ROLE.sub(lambda match: role(match, figures), line)
    line = re.sub(r"^\$\$\s*\([\w:-]+\)\s*$", "$$", line)
    return re.sub(r"(\]\((?:\.\./chapters/)?\d\d-[\w-]+)\.md(?=[)#])", r"\1.ipynb", line)


def role(match: re.Match[str], figures: list[str]) -> str:
    """The text that stands for one role in a notebook."""
    name, text = match["name"], match["text"]
    titled = TARGET.match(text)
    label, target = (titled["text"], titled["target"]) if titled else (text, text)
    if name.startswith("cite"):
        return citation(name, text)
    if name in CODE_ROLES:
        return f"`{label.removeprefix('~')}`"
    if name == "doc":
        label = label if titled else Path(target).name
        suffix = ".ipynb" if re.search(r"(^|/)\d\d-[\w-]+$", target) else ".md"
        return f"[{label}]({target}{suffix})"
    if name == "numref":
        return f"Figure {figures.index(text) + 1}" if text in figures else "the figure"
    if name == "eq":
        return f"({text})"
    if name == "math":
        return f"${text}$"
    if name in TEXT_ROLES:
        return label
    raise ValueError(f"role {{{name}}} has no plain form; add one to book/sync_notebooks.py.")


@cache
def bibliography() -> dict[str, Entry]:
    return dict(parse_file(ROOT / "book/references.bib").entries)


def citation(name: str, keys: str) -> str:
    """Author and year, in parentheses for `cite` and `cite:p`, in the sentence for `cite:t`."""
    texts = []
    for key in (key.strip() for key in keys.split(",")):
        if key not in bibliography():
            raise ValueError(f"book/references.bib has no entry {key}.")
        entry = bibliography()[key]
        names = [" ".join(person.last_names) for person in (entry.persons or {})["author"]]
        who = names[0] + (" et al." if len(names) > 2 else f" and {names[1]}" if len(names) == 2 else "")
        year = (entry.fields or {})["year"]
        texts.append(f"{who} ({year})" if name == "cite:t" else f"{who}, {year}")
    return "; ".join(texts) if name == "cite:t" else f"({'; '.join(texts)})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the chapters' notebooks from their Markdown sources.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a notebook is out of date")
    arguments = parser.parse_args()
    names = ", ".join(path.name for path in sync(arguments.check))
    if arguments.check and names:
        sys.exit(f"Out of date: {names}. Run make notebooks.")
    print(f"Wrote {names}." if names else "Every notebook agrees with its chapter.")
