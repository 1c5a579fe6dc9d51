"""The book's own tools: notebooks from chapters, static widgets, vendored files, execution cache."""

import asyncio
import base64
import json
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from pathlib import Path

import build
import kernels
import nbformat
import pages
import psutil
import pytest
import static_widgets
import sync_notebooks
import vendor

HEADER = """---
kernelspec:
  name: python3
  display_name: Python 3
---
"""


def notebook(tmp_path: Path, text: str) -> nbformat.NotebookNode:
    chapter = tmp_path / "01-page.md"
    chapter.write_text(HEADER + text)
    return nbformat.reads(sync_notebooks.as_notebook(chapter), as_version=4)


def test_notebooks_agree_with_their_chapters() -> None:
    assert sync_notebooks.sync(check=True) == [], "Run make notebooks."


def test_directives_and_roles_become_plain_markdown(tmp_path: Path) -> None:
    page = notebook(
        tmp_path,
        """
# Page

:::{warning}
Mind the {term}`gap <gaps>`, says {cite:t}`jain2023` in {doc}`04-influence` and [here](02-transfer.md).
:::

(label)=
% a comment
$$
a = b
$$ (sum)
""",
    )
    text = page.cells[1].source
    assert "> **Warning**\n>\n> Mind the gap, says Jain et al. (2023) in [04-influence](04-influence.ipynb)" in text
    assert "(02-transfer.ipynb)" in text
    assert "(label)" not in text and "comment" not in text and "(sum)" not in text and "{" not in text


def test_code_keeps_its_tags_and_solutions_are_folded(tmp_path: Path) -> None:
    page = notebook(
        tmp_path,
        """
```{code-cell}
---
tags: [hide-input]
mystnb:
  figure: {name: fig-one, caption: One bar.}
---
a = 1
```

See {numref}`fig-one`.

:::{solution-start} ex
:::
```{code-cell}
b = 2
```
:::{solution-end}
:::
""",
    )
    assert page.cells[1].metadata == {"tags": ["hide-input"], "jupyter": {"source_hidden": True}}
    assert page.cells[2].source == "*Figure 1: One bar.*"
    assert "See Figure 1." in page.cells[3].source
    assert page.cells[4].metadata == {"jupyter": {"source_hidden": True}}
    assert all(not cell.get("outputs") for cell in page.cells)


@pytest.mark.parametrize(
    "markup", ["{mystery}`text`", ":::{mystery}\ntext\n:::", ":::{note}\nnever closed", "{cite:p}`nobody1900`"]
)
def test_markup_without_a_plain_form_is_refused_by_page(tmp_path: Path, markup: str) -> None:
    with pytest.raises(ValueError, match="01-page.md"):
        notebook(tmp_path, markup)


def test_cell_ids_do_not_change_when_a_cell_is_added(tmp_path: Path) -> None:
    short = notebook(tmp_path, "```{code-cell}\na = 1\n```\n")
    long = notebook(tmp_path, "New.\n\n```{code-cell}\na = 1\n```\n")
    assert short.cells[1].id == long.cells[2].id
    twice = notebook(tmp_path, "```{code-cell}\na = 1\n```\n" * 2)
    assert len({cell.id for cell in twice.cells}) == len(twice.cells)


def picker(ids: list[str]) -> tuple[str, str]:
    """Body and state of a page with one picker, for given random widget ids."""
    box, choice, stack, first, second, link, layout = ids
    uri = "data:image/webp;base64," + base64.b64encode(b"figure").decode()
    html = f'<img alt="A </script> bar chart" src="{uri}">'
    models = {
        box: (
            "VBoxModel",
            {"children": [f"IPY_MODEL_{choice}", f"IPY_MODEL_{stack}"], "layout": f"IPY_MODEL_{layout}"},
        ),
        choice: ("DropdownModel", {"index": 0}),
        stack: ("StackModel", {"children": [f"IPY_MODEL_{first}", f"IPY_MODEL_{second}"], "selected_index": 1}),
        first: ("HTMLModel", {"value": html}),
        second: ("HTMLModel", {"value": html.replace("bar", "second")}),
        link: (
            "DirectionalLinkModel",
            {"source": [f"IPY_MODEL_{choice}", "index"], "target": [f"IPY_MODEL_{stack}", "x"]},
        ),
        layout: ("LayoutModel", {}),
    }
    state = {widget: {"model_name": name, "state": content} for widget, (name, content) in sorted(models.items())}
    body = f'<p>text</p><script type="{static_widgets.VIEW_TYPE}">{{"model_id": "{box}"}}</script>'
    return body, json.dumps({"state": state, "version_major": 2, "version_minor": 0})


def test_pages_do_not_depend_on_random_widget_ids(tmp_path: Path) -> None:
    one = static_widgets.static_page(*picker(["a1", "b2", "c3", "d4", "e5", "f6", "07"]), tmp_path, "../_images")
    two = static_widgets.static_page(*picker(["z9", "y8", "x7", "w6", "v5", "u4", "t3"]), tmp_path, "../_images")
    assert one == two


def test_figures_become_files_and_the_selected_one_is_the_fallback(tmp_path: Path) -> None:
    page = static_widgets.static_page(*picker(list("abcdefg")), tmp_path, "../_images")
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == b"figure"
    assert "data:image" not in page
    assert '<div class="widget-fallback"><img alt="A </script> second chart"' in page
    assert f"../_images/{file.name}" in page
    state = page[page.index(static_widgets.STATE_TYPE) :]
    assert state.count("</script>") == 1, "HTML in the state must not end the script."


def test_a_changed_download_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "mathjax-3.2.2.tgz"
    with tarfile.open(archive, "w:gz"):
        pass
    with pytest.raises(SystemExit, match="does not match its checksum"):
        vendor.unpack("mathjax@3.2.2", archive)


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two pages and two modules; returns its folder."""
    (tmp_path / "dtl/engine").mkdir(parents=True)
    (tmp_path / "dtl/data.py").write_text("from dtl.engine import store\n")
    (tmp_path / "dtl/engine/store.py").write_text("")
    (tmp_path / "dtl/plots.py").write_text("")
    (tmp_path / "constraints.txt").write_text("numpy==2.0\n")
    (tmp_path / "chapters").mkdir()
    (tmp_path / "chapters/01-first.md").write_text(
        HEADER
        + """
Before: {{1 + 1}}.

```{code-cell}
---
mystnb: {figure: {caption: "{{words(n)}} bars", name: fig-bars}}
---
import dtl
n = 7
print(n)
```

It is {{n:.1f}}{{? n > 5}}, **boldly**.
"""
    )
    (tmp_path / "chapters/02-second.md").write_text(
        HEADER + "```{code-cell}\nimport dtl\nn = 3\n```\nLarge{{? n > 5}}.\n"
    )
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "KEPT", tmp_path / "_build/pages")
    pages.imported.cache_clear()
    pages.data_files.cache_clear()
    return tmp_path


def test_a_key_holds_what_a_page_needs_and_no_more(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = book / "chapters/01-first.md"
    before = pages.page_key(page, ["dtl.data"]), pages.page_key(page, ["dtl.plots"])
    (book / "dtl/engine/store.py").write_text("a = 1")
    changed = pages.page_key(page, ["dtl.data"])
    assert changed != before[0] and pages.page_key(page, ["dtl.plots"]) == before[1]
    page.write_text(page.read_text().replace("boldly", "badly"))
    assert pages.page_key(page, ["dtl.data"]) == changed, "Prose is no reason to run a page."
    page.write_text(page.read_text().replace("{{n:.1f}}", "{{n:.2f}}"))
    assert pages.page_key(page, ["dtl.data"]) != changed
    changed = pages.page_key(page, ["dtl.data"])
    monkeypatch.setenv("DTL_SCALE", "gpu")
    assert pages.page_key(page, ["dtl.data"]) != changed


def test_a_page_that_is_edited_while_it_runs_is_not_finished(book: Path) -> None:
    page = book / "chapters/02-second.md"
    edit = f"import dtl\nfrom pathlib import Path\npage = Path({str(page)!r})\n"
    edit += "page.write_text(page.read_text().replace('= 3', '= 7'))"
    page.write_text(HEADER + f"```{{code-cell}}\n{edit}\nn = 3\n```\nIt is {{{{n}}}}{{{{? n > 2}}}}.\n")
    assert pages.run(page) == "" and not pages.finished(page)
    assert pages.run(page) == "" and pages.finished(page)


def test_pages_run_again_when_pictures_are_left_out(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, sheet = book / "chapters/01-first.md", book / "book/results/a/pictures.avif"
    sheet.parent.mkdir(parents=True)
    sheet.write_bytes(b"tiles")
    shown = pages.page_key(page, [])
    monkeypatch.setenv("DTL_PICTURES", "0")
    assert pages.page_key(page, []) != shown
    monkeypatch.delenv("DTL_PICTURES")
    assert pages.page_key(page, []) == shown
    sheet.unlink()
    pages.data_files.cache_clear()
    assert pages.page_key(page, []) != shown


def test_values_and_outputs_are_put_into_the_page(book: Path) -> None:
    page = book / "chapters/01-first.md"
    page.write_text(page.read_text().replace("Before: {{1 + 1}}.", ""))
    assert pages.run(page) == "" and pages.finished(page)
    page.write_text(page.read_text().replace("boldly", "badly"))
    shown = pages.assemble(page)
    code, text = shown.cells[-2:]
    assert code.outputs[0].text == "7\n" and code.metadata["mystnb"]["figure"]["caption"] == "seven bars"
    assert text.source == "It is 7.0, **badly**." and pages.finished(page)


def test_outputs_of_unchanged_cells_are_still_shown_when_another_has_changed(book: Path) -> None:
    page = book / "chapters/01-first.md"
    page.write_text(page.read_text().replace("Before: {{1 + 1}}.", "```{code-cell}\na = 1\n```"))
    assert pages.run(page, ("a = 1", "a = 2")) == ""
    page.write_text(page.read_text().replace("a = 1", "a = 3"))
    shown = pages.assemble(page)
    assert "earlier version" in shown.cells[0].source + shown.cells[1].source
    assert shown.cells[-2].outputs[0].text == "7\n" and shown.cells[-1].source == "It is 7.0, **boldly**."


FAILING = {  # what is changed in the second page, what the build says of it, and what the page shows
    "02-second": (("n = 3", "n = 3 / 0"), "ZeroDivisionError", "ZeroDivisionError"),
    "03-place": (("n > 5", "m > 5"), "{{? m > 5}}", "NameError"),
    "04-claim": (
        ("n > 5", "n > 5"),
        "claims that are not so in this run: 1\nLarge [not so].",
        "Large **[not so in this run]**.",
    ),
    "05-death": (("n = 3", "import os; os._exit(1)"), "the kernel died in the cell", "os._exit(1)"),
}


def test_pages_that_fail_keep_no_other_from_running(
    book: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    second, good = (book / "chapters/02-second.md").read_text(), book / "chapters/06-good.md"
    for name, (change, *_) in FAILING.items():
        (book / f"chapters/{name}.md").write_text(second.replace(*change))
    good.write_text(HEADER + "```{code-cell}\nimport dtl\n```\n")
    monkeypatch.setattr(build, "STUDIES", book / "_build/studies")
    problems = build.execute([*FAILING, "06-good"])
    said = capsys.readouterr().err
    assert problems["06-good"] == "" and pages.finished(good)
    for name, (_, error, shows) in FAILING.items():
        assert error in problems[name] and error in said
        shown = pages.assemble(book / f"chapters/{name}.md")
        assert any("did not run well" in cell.source for cell in shown.cells) and shows in str(shown.cells)
        assert not pages.finished(book / f"chapters/{name}.md")
    assert list(build.execute(["02-second", "06-good"])) == ["02-second"], "What is finished is not run again."


def test_false_claims_are_told_by_their_sentences(book: Path) -> None:
    page = book / "chapters/02-second.md"
    long = "It is " + "so " * 80
    page.write_text(
        page.read_text().replace("Large", f"It is{{{{? n == 3}}}} 3.5. {long}{{{{? n > 4}}}}, is it?\n\nNot")
    )
    count, first, second = pages.run(page).split("\n")
    assert count.endswith(": 2") and first.startswith("It is so so") and len(first) <= 150 and first.endswith(" ...")
    assert second == "Not [not so]."


def test_a_page_that_cannot_even_be_run_keeps_no_other_from_running(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(page: Path) -> str:
        if page.stem == "02-second":
            raise OSError("No space left on device")
        return "it ran"

    (book / "chapters/03-third.md").write_text(HEADER + "```{code-cell}\nimport dtl\n```\n")
    monkeypatch.setattr(build, "STUDIES", book / "_build/studies")
    monkeypatch.setattr(pages, "execute", full)
    problems = build.execute(["02-second", "03-third"])
    assert problems == {"02-second": "OSError: No space left on device", "03-third": "it ran"}


def test_facts_of_a_run_may_come_in_several_messages(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = pages.FACTS.splitlines()
    flush = "sys.stdout.flush(); import time; time.sleep(0.5)"
    monkeypatch.setattr(pages, "FACTS", "\n".join([first, rest[0], flush, *rest[1:]]))
    page = book / "chapters/02-second.md"
    page.write_text(page.read_text().replace("n = 3", "n = 9"))
    assert pages.run(page) == "" and pages.finished(page)
    assert len(nbformat.read(pages.kept(page), as_version=4).cells[-1].outputs) == 2


def test_a_kernel_that_hangs_is_ended(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "IDLE", 2)
    page = book / "chapters/02-second.md"
    page.write_text(page.read_text().replace("n = 3", "import time; time.sleep(1000)"))
    assert "has done nothing" in pages.run(page)
    monkeypatch.setattr(pages, "WORK", 2)
    page.write_text(page.read_text().replace("time.sleep(1000)", "\nwhile True: pass"))
    assert "of processor time" in pages.run(page)


async def no_kernel(page: Path) -> str:
    """In place of `pages.execute`, where it does not matter what a page does."""
    return ""


def test_studies_are_kept_while_what_trains_them_is_unchanged(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "STUDIES", book / "_build/studies")
    monkeypatch.setattr(pages, "STUDIES_NEED", ["dtl.data"])
    monkeypatch.setattr(pages, "execute", no_kernel)
    build.execute(["02-second"])
    study = book / "_build/studies/some"
    study.mkdir()
    (book / "dtl/plots.py").write_text("a = 1")
    build.execute(["02-second"])
    assert study.is_dir()
    (book / "dtl/engine/store.py").write_text("a = 1")
    build.execute(["02-second"])
    assert not study.exists()


def test_a_notebook_says_what_quotes_the_run(tmp_path: Path) -> None:
    page = notebook(tmp_path, "# Head\n\nPlain.\n\n:::{tip}\nIt is {{n}},\n\nand $2^{{n}}$.\n:::\n\nMore.\n")
    kinds = [(cell.cell_type, cell.source) for cell in page.cells[1:]]
    assert kinds[0] == ("markdown", "# Head\n\nPlain.") and kinds[2] == ("markdown", "More.")
    assert kinds[1][0] == "code" and kinds[1][1].startswith('dtl.book.say(r"""\n> **Tip**\n>\n> It is {{n}},')
    assert page.cells[2].metadata["jupyter"]["source_hidden"]


def test_a_page_waits_for_the_earlier_one_that_trains_its_study(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened = []

    async def execute(page: Path) -> str:
        happened.append(f"{page.stem} starts")
        await asyncio.sleep(0.05)
        happened.append(f"{page.stem} ends")
        return ""

    some = '# scale.store("some")'
    for name, code in (("02-second", some), ("03-third", some), ("04-fourth", "")):
        (book / f"chapters/{name}.md").write_text(f"{HEADER}```{{code-cell}}\n{code}\n```\n")
    monkeypatch.setattr(build, "STUDIES", book / "_build/studies")
    monkeypatch.setattr(pages, "execute", execute)
    assert list(build.execute(["03-third", "02-second", "04-fourth"]).values()) == ["", "", ""]
    assert happened[:2] == ["02-second starts", "04-fourth starts"], "others do not wait"
    assert happened.index("02-second ends") < happened.index("03-third starts")


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux alone")
def test_a_forked_kernel_is_a_new_one(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAID", "for this one")
    page = book / "chapters/02-second.md"
    say = "import os, sys\nfrom pathlib import Path\ndtl = 'dtl' in sys.modules\n"
    say += "print(os.environ['SAID'], Path.cwd().name, sys.argv[0], __name__, dtl)"
    for _ in range(2):
        page.write_text(HEADER + f"```{{code-cell}}\n{say}\n```\n")
        assert pages.run(page) == ""
        said = nbformat.read(pages.kept(page), as_version=4).cells[0].outputs[0]["text"]
        assert said == "for this one chapters ipykernel_launcher __main__ False\n"


def test_a_signal_may_come_too_late() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    fork = kernels.Fork(ended.pid)
    ended.wait()
    assert fork.poll() == 0
    fork.send_signal(signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux alone")
def test_kernels_end_when_the_build_is_killed(book: Path) -> None:
    page, said = book / "chapters/02-second.md", book / "pid"
    cell = f"import os, time\nwith open({str(said)!r}, 'w') as file: print(os.getpid(), file=file)\ntime.sleep(1000)"
    page.write_text(HEADER + f"```{{code-cell}}\n{cell}\n```\n")
    script = f"import pages, pathlib\npages.KEPT = pathlib.Path({str(pages.KEPT)!r})\n"
    script += f"pages.ROOT = pathlib.Path({str(book)!r})\npages.run(pathlib.Path({str(page)!r}))"
    with subprocess.Popen([sys.executable, "-c", script], cwd=Path(build.__file__).parent) as run:
        while not (said.is_file() and said.read_text().endswith("\n")):
            assert run.poll() is None
            time.sleep(0.1)
        run.kill()
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(said.read_text())).wait(600)
