"""What the repository promises besides code: versions, licences, environments, and pages that use names that exist."""

import ast
import importlib
import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jupytext
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "chapters").glob("*.md"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAX_CELL_LINES = 20
MAX_CELL_COLUMNS = 84  # wider lines scroll on the page


def locked() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().split("\n")
    requirements = [Requirement(line) for line in lines if line.strip()]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def code_cells(chapter: Path) -> list[Any]:
    return [cell for cell in jupytext.read(chapter, fmt="md:myst").cells if cell.cell_type == "code"]


# Versions


def test_constraints_hold_exact_versions_and_nothing_else() -> None:
    for requirement in locked().values():
        (specifier,) = requirement.specifier
        assert specifier.operator == "==" and requirement.url is None and not requirement.extras, str(requirement)
        assert Version(specifier.version).local is None, f"{requirement} names a local build."


def test_constraints_fit_pyproject() -> None:
    versions = locked()
    for text in [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]:
        requirement = Requirement(text)
        (specifier,) = versions[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(specifier.version), (
            f"{text} does not allow the locked {specifier.version}."
        )


def test_constraints_cover_every_dependency_of_every_extra() -> None:
    versions, missing, seen = locked(), set(), set()
    todo = [Requirement(text) for text in PROJECT["dependencies"]]
    todo += [Requirement(text) for extra in EXTRAS.values() for text in extra]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name not in versions:
            missing.add(name)
        if (name, *sorted(requirement.extras)) in seen:
            continue
        seen.add((name, *sorted(requirement.extras)))
        try:
            dependencies = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:
            continue  # an extra that is not installed here; its own name is checked all the same
        for dependency in dependencies:
            extras = ["", *requirement.extras]
            if not dependency.marker or any(dependency.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(dependency)
    assert not missing, f"constraints.txt lacks {sorted(missing)}: run make lock."


def test_the_book_stays_on_jupyter_book_1() -> None:
    (specifier,) = locked()["jupyter-book"].specifier
    assert Version(specifier.version) < Version("2"), "Jupyter Book 2 is another program; it cannot build this book."
    assert any(Requirement(text).name == "jupyter-book" and "<2" in text for text in EXTRAS["book"])


def test_conda_environment_is_in_step_with_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [dependency for dependency in environment["dependencies"] if isinstance(dependency, str)]
    (pip,) = [dependency["pip"] for dependency in environment["dependencies"] if isinstance(dependency, dict)]
    assert environment["channels"][0] == "conda-forge"
    (python,) = [dependency.split("=")[1] for dependency in conda if dependency.startswith("python=")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.0")
    assert {"compilers", "pkg-config", "libjpeg-turbo", "opencv"} <= set(conda), "FFCV is compiled on installation."
    (install,) = [line for line in pip if line.startswith(("-e", "--editable"))]
    extras = re.search(r"\.\[(.*)\]", install)
    assert extras and set(extras[1].split(",")) <= set(EXTRAS)
    assert {"book", "ffcv", "cluster"} <= set(extras[1].split(","))
    assert any(line.split()[0] in {"-c", "--constraint"} and line.split()[1] == "constraints.txt" for line in pip)


# Papers, licence


def test_citation_names_the_three_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"] == "MIT"
    papers = {identifier["value"] for paper in citation["references"] for identifier in paper["identifiers"]}
    assert papers == {"arXiv:2207.05739", "arXiv:2207.02842", "arXiv:2307.00823"}
    assert all(author["family-names"] for paper in citation["references"] for author in paper["authors"])
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


# Committed files


def committed_texts() -> dict[str, str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("Not a git checkout.")
    texts = {}
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in path.read_bytes()[:4096]:
            texts[name] = path.read_text(encoding="utf8")
    return texts


def test_no_committed_file_knows_a_machine_or_a_registry() -> None:
    directories = "|".join(["home", "root", "work", "tmp", "Users", "mnt", "scratch"])
    path = re.compile(rf"(?<![\w./~$}}-])/({directories})/\w")
    registry = re.compile(r"https?://[\w.]*(py" + r"pi|pythonho" + r"sted|npm" + r"js|deb" + r"ian)[\w.]*")
    found = [
        f"{name}: {match[0]}"
        for name, text in committed_texts().items()
        for match in [*path.finditer(text), *registry.finditer(text)]
    ]
    assert not found


# Pages


def test_table_of_contents_holds_every_chapter() -> None:
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [chapter["file"].removesuffix(".md") for part in contents["parts"] for chapter in part["chapters"]]
    assert {f"chapters/{chapter.stem}" for chapter in CHAPTERS} == {
        file for file in files if file.startswith("chapters/")
    }


def test_reference_page_holds_every_module() -> None:
    page = (ROOT / "book/dtl.md").read_text()
    documented = re.findall(r"automodule:: dtl\.([\w.]+)", page)
    files = (path.relative_to(ROOT / "dtl").with_suffix("") for path in (ROOT / "dtl").rglob("*.py"))
    modules = {".".join(file.parts) for file in files if not file.name.startswith("_")}
    assert set(documented) == modules and len(documented) == len(modules)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_a_chapter_asks_three_questions_and_explains_every_answer(chapter: Path) -> None:
    text = chapter.read_text(encoding="utf8").partition("## Quick questions")[2].partition("## Check yourself")[0]
    questions = re.split(r"^\*\*\d\. ", text, flags=re.MULTILINE)[1:]
    assert len(questions) == 3
    for question in questions:
        answers = re.findall(r"^:::\{dropdown\} ([A-Z])\. .+\n(.+)", question, flags=re.MULTILINE)
        assert "".join(letter for letter, _ in answers) in ("ABC", "ABCD")
        assert sum(why.startswith("**Right.**") for _, why in answers) == 1
        assert all(why.startswith(("**Right.**", "Not quite", "No:")) for _, why in answers)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_names_used_by_chapters_exist(chapter: Path) -> None:
    for cell in code_cells(chapter):
        source = "\n".join(line for line in cell.source.split("\n") if not line.startswith(("%", "!")))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dtl":
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    known = hasattr(module, alias.name) or find_spec(f"{module.__name__}.{alias.name}")
                    assert known, f"{node.module} has no {alias.name}."
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "dtl":
                        importlib.import_module(alias.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, (ast.Name, ast.Attribute)):
                dotted = ast.unparse(node)
                if re.fullmatch(r"dtl\.\w+(\.\w+)?", dotted):
                    resolve(dotted)


def resolve(dotted: str) -> None:
    """Check that `dtl.name` or `dtl.name.attribute` exists."""
    found: Any = importlib.import_module("dtl")
    for name in dotted.split(".")[1:]:
        assert hasattr(found, name), f"{dotted} does not exist."
        found = getattr(found, name)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_chapters_leave_scale_to_the_package(chapter: Path) -> None:
    if chapter.stem == "14-scaling":
        pytest.skip("what epochs cost is the subject of this page")
    for cell in code_cells(chapter):
        assert not re.search(r"DTL_SCALE|\bepochs\s*=|\bif\b.*\bscale\b|tqdm", cell.source), cell.source


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_cells_are_short(chapter: Path) -> None:
    for cell in code_cells(chapter):
        if not {"hide-input", "remove-input", "hide-cell"} & set(cell.metadata.get("tags", [])):
            assert cell.source.count("\n") < MAX_CELL_LINES, f"Move this into dtl or hide it:\n{cell.source}"
            wide = [line for line in cell.source.split("\n") if len(line) > MAX_CELL_COLUMNS]
            assert not wide, f"Longer than {MAX_CELL_COLUMNS} columns: {wide}"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_figures_have_captions_and_alt_texts(chapter: Path) -> None:
    for cell in code_cells(chapter):
        options = cell.metadata.get("mystnb", {})
        if options.keys() - {"markdown_format"}:
            assert options.get("figure", {}).get("caption"), f"No caption:\n{cell.source}"
            assert len(options.get("image", {}).get("alt", "")) >= 10, f"No alt text:\n{cell.source}"
