"""Counterfactuals: retrain the source without some classes, transfer again, and see whether the target gains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from dtl._checks import InputError, check_number
from dtl.data import TransferProblem
from dtl.influence import Influence
from dtl.study import Study

if TYPE_CHECKING:
    from distributed import Client

ORDERS = ("negative", "positive", "random")
Accuracy = Callable[[ArrayLike, ArrayLike], np.ndarray]  # correct (models, n), labels (n,) -> (models,)


def removal_curve(
    study: Study,
    influence: Influence,
    counts: Sequence[int],
    orders: Sequence[str] = ORDERS,
    seeds: int = 10,
    *,
    given: Mapping[str, Sequence[int]] | None = None,
    store: str | Path | None = None,
    seed: int | None = None,
    device: str = "auto",
    client: "Client | None" = None,
    progress: bool = True,
) -> xr.Dataset:
    """Target accuracy after retraining without the first `count` source classes of an order (Jain et al. 2022, Fig. 2).

    Parameters
    ----------
    study : gives problem, recipe and transfer (its first); its models are not used
    influence : classes are ordered by its mean over targets
    counts : numbers of classes to remove; 0, the full source, is always included
    orders : "negative" (most negative first), "positive", "random" (a new order for each seed, followed through all
        counts), and names in `given`
    seeds : retrainings for each order and count
    given : your own orders, name -> source class indices, first to be removed first
    store : folder that keeps the retrained models' outputs, so that a killed call resumes
    seed : of the retrainings and the random orders; the default is one more than the study's, whose models gave the
        influence and must not judge it
    device, client, progress : as in `Study.run`

    Returns
    -------
    Dataset with `validation` and `test` accuracy, in 0..1, each (order, count, seed): the share of examples, or the
    mean over classes for a problem "imagenet-<target>" whose target the paper reports so

    >>> curve = dtl.removal_curve(study, study.influence(), counts=[2, 4, 6])
    >>> curve.test.mean("seed")
    """
    given, orders, n_source = dict(given or {}), [orders] if isinstance(orders, str) else list(orders), study.n_units
    unknown = [order for order in orders if order not in ORDERS and order not in given]
    if unknown or not orders or len(set(orders)) < len(orders) or set(given) & set(ORDERS):
        raise InputError(
            f"orders must be different, out of {', '.join(ORDERS)} and names of your own in `given`, not {orders} with "
            f"{list(given)} given"
        )
    if not np.isfinite(influence.values).all():
        raise InputError("the influence is not finite, so it orders nothing: estimate it from finished models")
    if influence.values.shape[0] != n_source:
        raise InputError(f"influence is of {influence.values.shape[0]} classes but the source has {n_source}")
    if not set(counts) - {0}:
        raise InputError(f"counts must lie in 1..{n_source - 2} (a source model needs two classes), not {list(counts)}")
    for count in counts:
        check_number(count, 0, n_source - 2, "each of counts (a source model needs two classes)")
    check_number(seeds, 2, 10**6, "seeds, two or more for a standard error,")
    counts = sorted({0, *map(int, counts)})
    for name, classes in given.items():
        short = len(classes) < counts[-1] and name in orders
        whole = all(isinstance(c, Integral) for c in classes)
        if short or len(set(classes)) < len(classes) or not whole or not set(classes) <= set(range(n_source)):
            raise InputError(
                f"order {name!r} must list at least {counts[-1]} different class indices in 0..{n_source - 1}"
            )

    seed = study.seed + 1 if seed is None else seed
    rank = np.argsort(influence.values.mean(1), kind="stable")
    rng = np.random.default_rng([seed, 3])
    fixed = {"negative": rank, "positive": rank[::-1]} | given
    cells = [("full", 0, s) for s in range(seeds)]
    cells += [(order, count, s) for count in counts[1:] for order in orders for s in range(seeds)]
    shuffled = [rng.permutation(n_source) for _ in range(seeds)]
    masks = np.ones((len(cells), n_source), dtype=bool)
    for mask, (order, count, s) in zip(masks, cells, strict=True):
        mask[np.asarray(fixed.get(order, shuffled[s]))[:count]] = False

    retrained = Study(study.problem, study.recipe, masks, study.transfer[:1], store, seed, unit=study.unit).run(
        device=device, client=client, progress=progress
    )
    accuracy, curve = accuracy_of(study.problem), {}
    for split in ("validation", "test"):
        labels = study.problem.parts[f"target_{split}"].labels.numpy()
        found = dict(zip(cells, accuracy(retrained.outputs("correct", split=split), labels), strict=True))
        curve[split] = (
            ("order", "count", "seed"),
            [[[found["full" if c == 0 else o, c, s] for s in range(seeds)] for c in counts] for o in orders],
        )
    return xr.Dataset(
        curve,
        coords={"order": list(orders), "count": counts, "seed": np.arange(seeds)},
        attrs={"problem": study.problem.name, "transfer": study.transfer[0], "n_source": n_source},
    )


def accuracy_of(problem: TransferProblem) -> Accuracy:
    """How accuracy is reported for a problem: `TransferProblem.accuracy`."""
    return problem.accuracy


@dataclass(frozen=True)
class Selection:
    """How many classes to remove, chosen on validation, and what that gains on test.

    For each seed the count is chosen by the other seeds, because a model that happens to train well does so on both
    splits.

    Attributes
    ----------
    count : classes removed; 0 when removing none is best on validation
    gain, stderr : test accuracy minus that of the full source, mean and standard error over seeds
    """

    order: str
    count: int
    gain: float
    stderr: float
    n_seeds: int


def select(curve: xr.Dataset, order: str = "negative") -> Selection:
    """Choose the count with the best mean validation accuracy and estimate what choosing so gains on test.

    >>> dtl.removal.select(curve).gain
    """
    if order not in curve.order.values:
        raise InputError(f"the curve has no order {order!r}: it has {', '.join(curve.order.values)}")
    arm = curve.sel(order=order)
    count = int(arm.validation.mean("seed").idxmax("count"))
    n = curve.sizes["seed"]
    others = (arm.validation.sum("seed") - arm.validation).argmax("count")  # of each seed
    gains = (arm.test.isel(count=others) - arm.test.sel(count=0)).values
    return Selection(str(order), count, float(gains.mean()), float(gains.std(ddof=1) / n**0.5), n)
