"""The layout of the package: rooms in the order of the book, imports that point one way, and sizes."""

import ast
import statistics
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ROOT / "dtl"
ROOMS = (  # flat, in the order in which the book teaches them
    "data testbed models training transfer design study results influence removal projection leakage baselines "
    "bias scores bound plots widgets book doctor __main__"
).split()
ENGINE_USERS = {"study", "results", "datasets", "doctor", "__main__", "engine"}  # who may open the engine room
# What was aimed at: 8,000 lines, 350 a room (450 for plots), a median of 200, ten floors. Nothing may grow until then.
LINES, ROOM, MEDIAN, FLOORS = 11669, 350, 273, 10
LARGE = {"plots": 381}


def files() -> dict[str, Path]:
    """Module name without `dtl.` -> file."""
    found = {}
    for path in sorted(HOUSE.rglob("*.py")):
        name = ".".join(path.relative_to(HOUSE).with_suffix("").parts)
        found[name.removesuffix(".__init__") if name != "__init__" else "__init__"] = path
    return found


def imports_of(path: Path) -> set[str]:
    """Modules of dtl that a file imports when it is loaded: not for types alone, and not inside a function."""
    found, todo = set(), [*ast.parse(path.read_text()).body]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dtl":
            base = str(node.module).removeprefix("dtl").removeprefix(".")
            for alias in node.names:
                deeper = f"{base}.{alias.name}".strip(".")
                found.add(deeper if deeper in files() else base or "__init__")
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("dtl.") for alias in node.names if alias.name.startswith("dtl.")}
        todo += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found


GRAPH = {name: imports_of(path) for name, path in files().items()}
FLAT = sorted(name for name in files() if "." not in name and not name.startswith("_") or name == "__main__")
FLAT = [name for name in FLAT if name not in ("engine", "datasets")]


@cache
def floor(name: str, above: tuple[str, ...] = ()) -> int:
    assert name not in above, f"imports go in a circle: {' -> '.join([*above, name])}"
    below = [floor(other, (*above, name)) for other in GRAPH.get(name, ())]
    return 1 + max(below, default=0)


def test_every_flat_module_is_a_room_of_the_book() -> None:
    assert set(FLAT) <= set(ROOMS), f"no chapter opens {sorted(set(FLAT) - set(ROOMS))}: engine/ or datasets/?"
    pages = [*(ROOT / "chapters").glob("*.md"), *(ROOT / "book").glob("*.md")]
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = {part["file"] for chapter in contents["parts"] for part in chapter["chapters"]} | {contents["root"]}
    text = "\n".join(page.read_text() for page in pages if page.relative_to(ROOT).with_suffix("").as_posix() in listed)
    unread = [name for name in FLAT if f"dtl.{name}" not in text and name != "__main__"]
    assert not unread, f"no page names {unread}"


def test_imports_point_down() -> None:
    floors = {name: floor(name) for name in GRAPH}
    assert max(floors.values()) <= FLOORS, {n: f for n, f in floors.items() if f > FLOORS}


@pytest.mark.parametrize("name", FLAT)
def test_a_room_opens_only_rooms_and_the_engine_stays_shut(name: str) -> None:
    opened = {other for other in GRAPH[name] if other.startswith("engine.")} - {"engine.progress"}
    assert not opened or name in ENGINE_USERS, f"dtl.{name} opens {sorted(opened)}"


def test_the_package_stays_small() -> None:
    sizes = {name: len(path.read_text().splitlines()) for name, path in files().items()}
    grown = "take some away, or raise {} in the same commit"
    lines, median = sum(sizes.values()), statistics.median(sizes[name] for name in FLAT)
    assert lines <= LINES, f"dtl has {lines} lines, {LINES} allowed: {grown.format('LINES')}"
    for name in FLAT:
        most = LARGE.get(name, ROOM)
        assert sizes[name] <= most, f"dtl.{name} has {sizes[name]} lines, {most} allowed: {grown.format('LARGE')}"
    assert median <= MEDIAN, f"rooms have a median of {median} lines, {MEDIAN} allowed: {grown.format('MEDIAN')}"
    lines = (line.split("  # ")[0] for path in files().values() for line in path.read_text().splitlines())
    assert max(map(len, lines)) <= 120, "denser code is no smaller code"
