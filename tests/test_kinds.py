"""What a function takes that is of another kind altogether is refused in one sentence, argument by argument."""

import doctest
import importlib
import inspect
from functools import wraps
from typing import Any, cast

import pytest

import dtl
from dtl._checks import InputError

ROOMS = """baselines bias bound data design influence leakage models plots projection removal results scores testbed
    training transfer widgets""".split()
# switches take whatever is true or false, texts whatever can be written
LOADERS = "testbed.make", "testbed.make_examples"  # called by `dtl.load`
TAKE_ALL = {"progress", "slider", "shrunk", "spherical", "aligned", "title", "influence_alt target"}

# said in the words of the documentation instead of the argument's name
SAID = {
    "source_labels": "label", "labels": "label", "agrees": "attribute", "name": "problem", "arms": "arm",
    "groups": "unit", "most": "side", "results": "folder", "out": "file", "weights": "folder", "without": "class",
    "chosen": "count", "x": "features", "influence": "values", "regime": "transfer", "where": "folder",
}  # fmt: skip


class Odd:
    def __repr__(self) -> str:
        return "<odd>"


class Called(Exception):
    """Ends an example at the call that is looked for."""


def functions() -> dict[str, tuple[Any, str]]:
    """Where each public function is, and its name there."""
    places: dict[str, Any] = {"dtl": dtl} | {room: importlib.import_module(f"dtl.{room}") for room in ROOMS}
    found, seen = {}, set()
    for room, place in places.items():
        for name in vars(dtl)["__all__"] if place is dtl else vars(place):
            function, home = getattr(place, name), getattr(getattr(place, name), "__module__", "")
            offered = place is dtl or home == f"dtl.{room}" or name in vars(place).get("__all__", ())
            if inspect.isfunction(function) and name[0] != "_" and offered:
                if function in seen:  # under its name in `dtl`, by which its example calls it
                    continue
                seen.add(function)
                found[f"{room}.{name}"] = place, name
    return found


def arguments(function: Any) -> list[inspect.Parameter]:
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [p for p in inspect.signature(function).parameters.values() if p.kind not in kinds]


def call_in_example(place: Any, name: str, names: dict[str, Any], patch: pytest.MonkeyPatch) -> Any:
    """The arguments with which the example in its docstring calls a function; None without an example."""
    function, calls = getattr(place, name), []

    @wraps(function)
    def record(*args: Any, **options: Any) -> None:
        calls.append(inspect.signature(function).bind(*args, **options))
        raise Called

    module = importlib.import_module(function.__module__)
    for where in (place, module):  # an example may call it by either
        patch.setattr(where, name, record)
    own = {**vars(module), name: record, **names}
    try:
        for example in doctest.DocTestParser().get_examples(function.__doc__ or ""):
            if doctest.SKIP not in example.options:
                exec(compile(example.source, name, "single"), own)
    except Called:
        pass
    return calls[0] if calls else None


@pytest.mark.parametrize("name", functions())
def test_another_kind_of_thing_is_refused(name, names_in_examples, tmp_path, monkeypatch):
    place, short = functions()[name]
    function = getattr(place, short)
    needed = [p.name for p in arguments(function) if p.default is p.empty]
    if not needed:
        return
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        function(*[Odd() for _ in needed])
    assert "\n" not in str(refused.value) and not any(tmp_path.iterdir())


@pytest.mark.parametrize("loader", ["testbed", "testbed-examples", "imagenet200-cifar10", "imagenet-pets"])
def test_each_option_of_a_problem_is_checked(loader):
    for option in arguments(dtl.datasets.registry.options_of(loader)):
        with pytest.raises(InputError, match=option.name):
            dtl.load(loader, **{option.name: cast(Any, Odd())})


@pytest.mark.parametrize("name", sorted({*functions()} - {*LOADERS}))
def test_each_argument_of_another_kind_is_refused(name, names_in_examples, tmp_path, monkeypatch):
    place, short = functions()[name]
    function = getattr(place, short)
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        call = call_in_example(place, short, names_in_examples, patch)
    assert call or not doctest.DocTestParser().get_examples(function.__doc__ or ""), "its example does not call it"
    accepted = []
    for argument in arguments(function) if call else ():
        if argument.name in TAKE_ALL or f"{short} {argument.name}" in TAKE_ALL:
            continue
        given = inspect.signature(function).bind(*call.args, **call.kwargs)
        given.arguments[argument.name] = Odd()
        try:
            function(*given.args, **given.kwargs)
            accepted.append(argument.name)
        except InputError as error:
            said = str(error)
            if "\n" in said or argument.name not in said and SAID.get(argument.name, argument.name) not in said:
                accepted.append(f"{argument.name} is not named in one line: {error}")
        except Exception as error:
            accepted.append(f"{argument.name} ({type(error).__name__}: {error})")
    assert not accepted
