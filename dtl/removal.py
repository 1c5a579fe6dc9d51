"""Counterfactuals: retrain the source without some classes, transfer again, and see whether the target gains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from dtl.influence import Influence
from dtl.study import Study

ORDERS = ("negative", "positive", "random")


def removal_curve(
    study: Study,
    influence: Influence,
    counts: Sequence[int],
    orders: Sequence[str] = ORDERS,
    seeds: int = 10,
    *,
    given: Mapping[str, Sequence[int]] | None = None,
    store: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> xr.Dataset:
    """Target accuracy after retraining without the first `count` source classes of an order (Jain et al. 2022, Fig. 2).

    Parameters
    ----------
    study : gives problem, recipe and transfer (its first); its models are not used
    influence : classes are ordered by its mean over targets
    counts : numbers of classes to remove; 0, the full source, is always included
    orders : "negative" (most negative first), "positive", "random" (a new order every time), and names in `given`
    seeds : retrainings for each order and count
    given : your own orders, name -> source class indices, first to be removed first
    store : folder that keeps the retrained models' outputs, so that a killed call resumes

    Returns
    -------
    Dataset with `validation` and `test` accuracy, each (order, count, seed)

    >>> curve = dtl.removal_curve(study, study.influence(), counts=[2, 4, 6])
    >>> curve.test.mean("seed")
    """
    given = dict(given or {})
    n_source = study.n_units
    counts = sorted({0, *(int(count) for count in counts)})
    unknown = [order for order in orders if order not in ORDERS and order not in given]
    if unknown or not orders:
        raise ValueError(f"unknown orders {unknown}: use {', '.join(ORDERS)}, or name them in `given`")
    if influence.values.shape[0] != n_source:
        raise ValueError(f"influence is of {influence.values.shape[0]} classes but the source has {n_source}")
    if counts[0] < 0 or counts[-1] > n_source - 2 or len(counts) == 1:
        raise ValueError(
            f"counts must lie in 1..{n_source - 2} (a source model needs two classes), not {counts[1:] or counts}"
        )
    if seeds < 2:
        raise ValueError(f"seeds must be at least 2 for a standard error, not {seeds}")
    for name, classes in given.items():
        short = len(classes) < counts[-1] and name in orders
        if short or len(set(classes)) < len(classes) or not set(classes) <= set(range(n_source)):
            raise ValueError(
                f"order {name!r} must list at least {counts[-1]} different class indices in 0..{n_source - 1}"
            )

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
        device=device, progress=progress
    )
    accuracy = {}
    for split in ("validation", "test"):
        found = dict(zip(cells, retrained.outputs("correct", split=split).mean(1), strict=True))
        accuracy[split] = (
            ("order", "count", "seed"),
            [[[found["full" if c == 0 else o, c, s] for s in range(seeds)] for c in counts] for o in orders],
        )
    return xr.Dataset(
        accuracy,
        coords={"order": list(orders), "count": counts, "seed": np.arange(seeds)},
        attrs={"problem": study.problem.name, "transfer": study.transfer[0], "n_source": n_source},
    )


@dataclass(frozen=True)
class Selection:
    """How many classes to remove, chosen on validation, and what that gains on test.

    count : classes removed; 0 when removing none is best on validation
    gain, stderr : test accuracy minus that of the full source, mean and standard error over retrainings
    """

    order: str
    count: int
    gain: float
    stderr: float
    n_seeds: int


def select(curve: xr.Dataset, order: str = "negative") -> Selection:
    """Choose the count with the best mean validation accuracy and report its gain on test.

    >>> dtl.removal.select(curve).gain
    """
    if order not in curve.order.values:
        raise ValueError(f"the curve has no order {order!r}: it has {', '.join(curve.order.values)}")
    arm = curve.sel(order=order)
    count = int(arm.validation.mean("seed").idxmax("count"))
    removed, full = arm.test.sel(count=count), arm.test.sel(count=0)
    n = curve.sizes["seed"]
    variance = removed.var("seed", ddof=1) + full.var("seed", ddof=1) if count else 0.0
    return Selection(order, count, float(removed.mean() - full.mean()), float((variance / n) ** 0.5), n)
