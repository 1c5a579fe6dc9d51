"""What a function takes that is of another kind altogether is refused in one sentence."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest

import dtl
from dtl._checks import InputError

ROOMS = "baselines bias bound data influence leakage plots projection removal scores testbed widgets".split()
# not checked yet: small parts that other functions, and pages, are made of
SPARED = """baselines.class_sums bound.cost data.reopen leakage.pool plots.masks projection.wrong removal.newcombe
    scores.agreement scores.cross_fitted scores.pretrained testbed.score testbed.score_examples widgets.flag_slider
    widgets.influence_alt widgets.picker""".split()


def functions() -> dict[str, Callable[..., Any]]:
    """Public functions that need an argument, by name."""
    found = {f"dtl.{name}": getattr(dtl, name) for name in vars(dtl)["__all__"]}
    for room in ROOMS:
        module = importlib.import_module(f"dtl.{room}")
        found |= {
            f"{room}.{name}": f for name, f in vars(module).items() if getattr(f, "__module__", "") == f"dtl.{room}"
        }
    public = {name: f for name, f in found.items() if inspect.isfunction(f) and name.split(".")[1][0] != "_"}
    return {name: f for name, f in public.items() if needed(f) and name not in SPARED}


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
