"""Problems by name: which there are, how each is loaded, and how a problem that travels is made again."""

import copyreg
import inspect
import json
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch

from dtl._checks import InputError, check_mapping, hinted
from dtl.data import TransferProblem

LOADERS = {  # name of a problem: the function that loads it, imported when it is asked for
    "testbed": "dtl.testbed:make",
    "testbed-examples": "dtl.testbed:make_examples",
    "folders": "dtl.datasets.folders:make",
    "file": "dtl.datasets.saved:make",
    "imagenet200-cifar10": "dtl.datasets.imagenet200:make",
    "imagenet-<target>": "dtl.datasets.targets:make",
}


def options_of(name: str) -> Callable[..., TransferProblem]:
    """The function that loads the problem of a name: its arguments are the problem's options.

    >>> list(inspect.signature(options_of("file")).parameters)
    ['path']
    """
    family = "imagenet-<target>" if str(name).startswith("imagenet-") else name
    if family not in LOADERS:
        raise InputError(
            f"unknown problem {name!r}: known are {', '.join(LOADERS)}; for your own images use "
            "dtl.from_folders(source_dir, target_dir)"
        )
    return pkgutil.resolve_name(LOADERS[family])


def load(name: str, root: str | Path | None = None, **options: object) -> TransferProblem:
    """A transfer problem by name.

    Parameters
    ----------
    name : "testbed" or "testbed-examples" (procedural images with planted truth, option `seed`), "folders" (your own
        images, see `dtl.datasets.folders.make`), "file" (a problem in a file, see `dtl.datasets.saved`),
        "imagenet200-cifar10" (see `dtl.datasets.imagenet200`) or "imagenet-<target>" (see `dtl.datasets.targets`)
    root : folder of the data, for problems that are read from disk; default is $DTL_DATA
    options : passed to the problem's own loader; folders may begin with `~`

    Raises
    ------
    InputError : an unknown name, or an option that the problem does not take

    >>> dtl.load("testbed", seed=0).truth.role[:3].tolist()
    ['helpful', 'helpful', 'helpful']
    """
    function = options_of(name)
    signature, given = inspect.signature(function), options if root is None else {"root": root, **options}
    if "target" in signature.parameters:
        given = {"target": name.removeprefix("imagenet-"), **given}
    try:
        signature.bind(**given)
    except TypeError as error:
        known = ", ".join(key for key in signature.parameters if key != "target")
        raise InputError(f"problem {name!r}: {error}; its options are {known}") from None
    hints = get_type_hints(function)
    given = {key: hinted(value, hints[key], key) for key, value in given.items()}
    problem = function(**given)
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in given.items() if k != "target"}
    try:
        json.dumps(plain)
    except TypeError:  # such as a source that was handed over
        return problem
    object.__setattr__(problem, "origin", {"load": name, "options": plain})
    return problem


def reopen(
    origin: dict[str, Any],
    fingerprints: dict[str, str] | None = None,
    views: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
) -> TransferProblem:
    """The problem that an `origin` describes, and the same data if `fingerprints` of its parts are given, or an error.

    >>> reopen(dtl.load("testbed", seed=1).origin).name
    'testbed-1'
    """
    check_mapping(fingerprints or {}, "fingerprints")
    if "from_folders" in check_mapping(origin, "origin"):  # as stores of version 0.1 say it
        origin = {"load": "folders", "options": origin["from_folders"]}
    problem = load(origin["load"], **origin.get("options", {}))
    other = [part for part, digest in problem.fingerprints.items() if fingerprints and digest != fingerprints[part]]
    if other:
        raise InputError(f"the data of {problem.name} have changed: {origin} now gives another {', '.join(other)}")
    return problem.with_views(views) if views else problem


def _reduced(problem: TransferProblem) -> tuple[Callable[..., TransferProblem], tuple[Any, ...]]:
    if problem.origin is None:
        return problem.__reduce__()
    return reopen, (problem.origin, problem.fingerprints, dict(problem.views))


copyreg.pickle(TransferProblem, _reduced)  # a problem with an origin travels as that
