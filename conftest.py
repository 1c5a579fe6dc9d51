"""The names that examples in docstrings may use: a small problem, a study of it and its influence."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

collect_ignore = ["tests/conftest.py"]  # no module of examples


@cache
def example_names() -> dict[str, Any]:
    import numpy as np
    import torch

    import dtl

    problem = dtl.load("testbed", seed=0, per_class=20, train=5, validation=5, test=5)
    recipe = dtl.Recipe(epochs=2, widths=(8, 16), models_at_once=8, finetune_epochs=2)
    study = dtl.Study(problem, recipe, design="paired").run(8, "cpu", progress=False)
    found = dict(dtl=dtl, np=np, torch=torch, tempfile=tempfile, problem=problem, recipe=recipe, study=study)
    leaks = dtl.load("testbed-examples", per_class=6, leaks=6, flawed=8)
    found["examples"] = dtl.Study(leaks, recipe, design="random", unit="example").run(16, "cpu", progress=False)
    return found | {"influence": study.influence(by="class")}


def write_images(folder: Path) -> None:
    """Five small pictures, no two of them equal."""
    from PIL import Image

    folder.mkdir(parents=True)
    for i in range(5):
        Image.new("RGB", (16, 16), (len(folder.name) * 20, 40 * i, sum(map(ord, str(folder))) % 256)).save(
            folder / f"{i}.png"
        )


@pytest.fixture
def names_in_examples() -> dict[str, Any]:
    return {**example_names()}


@pytest.fixture(autouse=True)
def names_of_examples(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    """Examples run in an empty folder, those of folders beside two trees of images; `study` has eight models on
    classes, `examples` sixteen on single images."""
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
        doctest_namespace.update(example_names())
        if request.node.name.startswith("dtl.datasets.folders."):
            for tree in ("animals", "pets"):
                write_images(Path(tree, "ant"))
                write_images(Path(tree, "bee"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none, those marked `slow` where CI is not set and nobody asks."""
    if not os.environ.get("CI") and "slow" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: runs where CI is set, or with -m slow"))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        for item in () if torch.cuda.is_available() else marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
