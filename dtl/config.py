"""Studies as plain data: the settings of a study from a YAML file, from flags, or from its store."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from dtl._checks import InputError
from dtl.data import TransferProblem, load, options_of
from dtl.design import DESIGNS
from dtl.engine.store import array_of, local_folder, open_store
from dtl.study import Study
from dtl.training import Recipe

FOLDERS = ("store", "weights", "root", "source_dir", "target_dir", "cache")  # settings that name one


@dataclass(frozen=True)
class Config:
    """A study and how far to run it: what a YAML file may hold.

    Parameters
    ----------
    problem : {"load": name, "options": {...}} or {"from_folders": {"source_dir": ..., "target_dir": ..., ...}}
    recipe : what differs from `Recipe()`
    design, transfer, store, seed, fraction, unit, weights : as in `Study`
    models, device : as in `Study.run`

    >>> Config({"load": "testbed"}, recipe={"epochs": 4}).study()
    Study(testbed-0: 0 models done, balanced subsets, fixed)
    """

    problem: dict[str, str | dict[str, Any]] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    design: str = "balanced"
    transfer: str | tuple[str, ...] = "fixed"
    store: str | None = None
    seed: int = 0
    fraction: float = 0.5
    unit: str = "class"
    weights: str | None = None
    models: int | None = None
    device: str = "auto"

    def study(self) -> Study:
        """The study, its data loaded; ValueError or FileNotFoundError where a setting is wrong."""
        recipe = Recipe(**checked(self.recipe, Recipe, "recipe setting"))  # before the data, which can take long
        options = {name: getattr(self, name) for name in inspect.signature(Study).parameters}
        return Study(**options | {"problem": load_problem(self.problem), "recipe": recipe})


def read_file(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, checked; folders in it are relative to the file.

    >>> read_file(Path("study.yaml"))
    {'problem': {'load': 'testbed'}, 'seed': 1}
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        return absolute(checked(found, Config, "setting"), path.resolve().parent)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def read_store(location: str | Path) -> dict[str, Any]:
    """The settings of the study in a store, its models being those that it has room for."""
    root = open_store(location)
    settings: Any = root.attrs["settings"]
    if settings["design"] not in DESIGNS:
        raise InputError(f"{location} holds models on subsets that were given one by one: continue it where it began")
    found = {name: settings[name] for name in ("recipe", "design", "transfer", "seed", "fraction", "unit")}
    models = array_of(root, "done").shape[0] if "done" in root else None
    origin: Any = root.attrs["origin"]  # none for a problem that was made by hand
    return found | {"problem": origin or {}, "store": str(local_folder(location).absolute()), "models": models}


def absolute(settings: dict[str, Any], base: Path) -> dict[str, Any]:
    """The same settings with absolute folders, so that a study can be resumed from anywhere."""
    found = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found[key] = absolute(value, base)
        elif key in FOLDERS and isinstance(value, str | Path):
            found[key] = str(base / local_folder(value))
        else:
            found[key] = value
    return found


def checked(given: object, of: Callable[..., object], what: str) -> dict[str, Any]:
    """`given` as arguments of `of`; an unknown name, or a value that is not of the argument's type, is a ValueError.

    YAML reads 1e-3 as a string, and has lists where tuples are meant: what converts without loss, is converted.
    """
    if not isinstance(given, dict):
        raise InputError(f"{what}s must be names with values, such as 'seed: 0', not {given!r}")
    hints, known = get_type_hints(of), list(inspect.signature(of).parameters)
    values = {}
    for name, value in given.items():
        if name not in known:
            near = get_close_matches(str(name), known, 1)
            raise InputError(
                f"unknown {what} {name!r}: " + (f"did you mean {near[0]!r}?" if near else f"use {', '.join(known)}")
            )
        try:
            values[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            raise InputError(f"{what} {name} cannot be {value!r}: {error.errors()[0]['msg']}") from error
    return values


def load_problem(spec: Mapping[str, Any]) -> TransferProblem:
    """What {"load": name, "options": {...}} or {"from_folders": {...}} describes.

    >>> load_problem({"load": "testbed", "options": {"seed": 1}}).name
    'testbed-1'
    """
    if set(spec) == {"from_folders"}:
        spec = {"load": "folders", "options": spec["from_folders"]}
    if "load" not in spec or set(spec) - {"load", "options"}:
        raise InputError(
            "give a problem, 'load' with a name and perhaps 'options', or 'from_folders' with source_dir and "
            f"target_dir, not {dict(spec) or 'nothing'}"
        )
    return load(spec["load"], **checked(spec.get("options", {}), options_of(spec["load"]), "option of the problem"))
