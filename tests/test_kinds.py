"""What a function takes that is of another kind altogether is refused in one sentence."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest

import dtl
from dtl._checks import InputError

ROOMS = ("baselines", "bias", "bound", "data", "influence", "leakage", "plots", "projection", "removal", "scores")
ROOMS = (*ROOMS, "testbed", "widgets")
SPARED = {  # small parts that other functions, and pages, are made of
    "class_sums", "cross_fitted", "agreement", "influence_alt", "masks", "newcombe", "picker", "pool", "pretrained",
    "reopen", "wrong", "flag_slider", "cost", "score", "score_examples",
}  # fmt: skip


def functions() -> dict[str, Callable[..., Any]]:
    """Public functions that need an argument, by name."""
    found = {f"dtl.{name}": getattr(dtl, name) for name in vars(dtl)["__all__"]}
    for room in ROOMS:
        module = importlib.import_module(f"dtl.{room}")
        found |= {
            f"{room}.{name}": f for name, f in vars(module).items() if getattr(f, "__module__", "") == f"dtl.{room}"
        }
    public = {name: f for name, f in found.items() if inspect.isfunction(f) and name.split(".")[1][0] != "_"}
    return {name: f for name, f in public.items() if needed(f) and name.split(".")[1] not in SPARED}


def needed(function) -> list[inspect.Parameter]:
    return [
        p for p in inspect.signature(function).parameters.values() if p.default is p.empty and p.kind < p.VAR_POSITIONAL
    ]


class Odd:
    def __repr__(self) -> str:
        return "<odd>"


@pytest.mark.parametrize("name", functions())
def test_another_kind_of_thing_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = functions()[name]
    with pytest.raises(InputError) as refused:
        function(*[Odd() for _ in needed(function)])
    assert "\n" not in str(refused.value) and not any(tmp_path.iterdir())
