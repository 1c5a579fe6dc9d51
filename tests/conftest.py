"""Small problems and quick recipes that the tests share."""

import os
import shutil
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: many tiny nets, and other tests at the same time

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dtl
from dtl.data import ImageDataset, TransferProblem
from dtl.engine import workers


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_figure_stays() -> Iterator[None]:
    """A figure that one test leaves open must not be counted by another of the same process."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A store with what `make book` has trained of a study by the very code that is tested, else with nothing."""

    def copy(name: str) -> Path:
        import pages

        built, folder = pages.ROOT / "_build/studies", tmp_path_factory.mktemp("kept") / name
        key = built / "key"
        if (built / name).is_dir() and key.is_file() and key.read_text() == pages.studies_key():
            shutil.copytree(built / name, folder)
        return folder

    return copy


@pytest.fixture(scope="session")
def problem() -> TransferProblem:
    """The testbed at its smallest: 24 x 20 source, 40 + 40 + 40 target pictures."""
    return dtl.load("testbed", per_class=20, train=5, validation=5, test=5)


@pytest.fixture(scope="session")
def uneven(problem: TransferProblem) -> TransferProblem:
    """Six source classes of 6 to 16 pictures, so that subsets of one size differ in pictures."""
    labels = problem.source.labels.numpy()
    kept = np.concatenate([np.flatnonzero(labels == k)[: 6 + 2 * k] for k in range(6)])
    few = problem.source.subset(kept)
    source = ImageDataset(few.images, few.labels, few.classes[:6])
    return TransferProblem("uneven", source, problem.target_train, problem.target_validation, problem.target_test)


@pytest.fixture(scope="session")
def recipe() -> dtl.Recipe:
    return dtl.Recipe(epochs=1, widths=(8, 16), models_at_once=4, finetune_epochs=2)


class Training:
    """The one seam between a study and training: what is put here trains the batches, `sizes` are those trained.

    A test that counts, blocks, breaks or replaces training does it by `replace`; `original` is the real one.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.original, self._patch = workers.train_batch, patch
        self.replace(self.original)

    def replace(self, train_batch: Callable[..., dict[str, np.ndarray]]) -> None:
        def counted(*args: Any) -> dict[str, np.ndarray]:
            self.sizes.append(len(args[1]))
            return train_batch(*args)

        self._patch.setattr(workers, "train_batch", counted)

    def forbid(self) -> None:
        def refused(*args: Any) -> dict[str, np.ndarray]:
            raise AssertionError("training started")

        self.replace(refused)


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Training:
    """Counts, replaces or forbids the training of batches in this process."""
    return Training(monkeypatch)
