"""Counterfactuals: retrain without some source classes, and see what becomes of the target.

Of its accuracy, along an order of classes (Jain et al. 2022, Fig. 2), and of single predictions (their section 4.2).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from dtl._checks import InputError, check_kind, check_mapping, check_number, floats, several
from dtl._retrain import Arm, retrain
from dtl.influence import Influence
from dtl.study import Study

ORDERS = ("negative", "positive", "random")


def removal_curve(
    study: Study,
    influence: Influence,
    counts: Sequence[int],
    orders: Sequence[str] | Mapping[str, Sequence[int] | None] = ORDERS,
    seeds: int = 10,
    *,
    given: Mapping[str, Sequence[int]] | None = None,
    accuracy: Callable[[np.ndarray, np.ndarray], ArrayLike] | None = None,
    steps: int | str | None = None,
    seed: int | None = None,
    **options: Any,
) -> xr.Dataset:
    """Target accuracy after retraining without the first `count` source classes of an order (Jain et al. 2022, Fig. 2).

    Parameters
    ----------
    study : gives problem, recipe and transfer (its first); its models are not used
    influence : classes are ordered by its mean over targets
    counts : numbers of classes to remove; 0, the full source, is always included
    orders : "negative" (most negative first), "positive" and "random" (a new order for each seed, followed through all
        counts), and names of `given`; or a mapping of all names to source class indices, None for those three
    given : source class indices, first to be removed first, of orders of your own
    accuracy : of each model, (models,), from `correct` (models, n) and labels (n,); default that of the problem
    steps : as in `dtl.Arm`; "full" keeps a smaller source from being a shorter training, too
    seeds, seed, options : as in `dtl.retrain`; the seed gives the random orders, too

    Returns
    -------
    Dataset with `validation` and `test` accuracy, in 0..1, each (order, count, seed)

    Raises
    ------
    InputError : an order, a count or an influence that does not fit the source; before any training

    >>> curve = dtl.removal_curve(study, influence, counts=[2, 4], orders=["negative"], seeds=2, progress=False)
    >>> curve.test.sizes["count"]
    3
    """
    check_mapping(given or {}, "given")
    own = orders if isinstance(orders, Mapping) else {}
    given = dict(given or {}) | {name: classes for name, classes in own.items() if classes is not None}
    orders = list(several(orders, "orders"))
    check_kind(study, "dtl.Study", "study")
    check_number(seeds, 2, 10**6, "seeds, two or more for a standard error,")
    check_number(0 if seed is None else seed, 0, 2**32, "seed")
    if accuracy is not None and not callable(accuracy):
        raise InputError(f"accuracy must be a function of correct and labels, not {accuracy!r}")
    labels = study.problem.target_validation.labels.numpy()
    if accuracy is not None and np.shape(accuracy(np.ones((2, len(labels)), dtype=bool), labels)) != (2,):
        raise InputError("accuracy must give one number for each row of correct, (models,)")
    counts, n_source = np.atleast_1d(np.array(counts, dtype=object)).tolist(), study.n_units
    _check(study, influence, counts, orders, given)
    counts = sorted({0, *counts})
    seed = study.seed + 1 if seed is None else seed
    rank = np.argsort(influence.values.mean(1), kind="stable")
    rng = np.random.default_rng([seed, 3])
    first = {name: [classes] * seeds for name, classes in ({"negative": rank, "positive": rank[::-1]} | given).items()}
    first["random"] = [rng.permutation(n_source) for _ in range(seeds)]
    arms = {"full": Arm(steps=steps)}
    for count in counts[1:]:
        for order in orders:
            masks = np.ones((seeds, n_source), dtype=bool)
            for mask, classes in zip(masks, first[order], strict=True):
                mask[np.asarray(classes)[:count]] = False
            arms[f"{order} {count}"] = Arm(masks=masks, steps=steps)
    again = retrain(study, arms, seeds, seed=seed, **options)
    accuracy, curve = accuracy or study.problem.accuracy, {}
    arm = np.zeros((len(orders), len(counts)), dtype=int)  # all orders begin with the full source
    arm[:, 1:] = np.arange(1, len(arms)).reshape(-1, len(orders)).T
    for split in ("validation", "test"):
        judged = again.correct.isel(target=again.split == split)
        found = np.asarray(accuracy(judged.values.reshape(-1, judged.sizes["target"]), judged.label.values))
        curve[split] = ("order", "count", "seed"), found.reshape(-1, seeds)[arm]
    return xr.Dataset(
        curve,
        coords={"order": orders, "count": counts, "seed": np.arange(seeds)},
        attrs={"problem": study.problem.name, "transfer": study.transfer[0], "n_source": n_source},
    )


def _check(study: Study, influence: Influence, counts: Any, orders: list[str], given: Mapping) -> None:
    """InputError for what would order nothing, or leave a source of fewer than two classes."""
    check_kind(influence, "dtl.Influence", "influence")
    influence.check(study.problem)
    n_source, most = study.n_units, study.n_units - 2
    if set(orders) - {*ORDERS, *given} or not orders or len(set(orders)) < len(orders) or set(given) & set(ORDERS):
        known = f"{', '.join(ORDERS)} and names of your own with classes"
        raise InputError(f"orders must be different, out of {known}, not {orders} with classes for {list(given)}")
    if not np.isfinite(influence.values).all():
        raise InputError("the influence is not finite, so it orders nothing: estimate it from finished models")
    if len(influence.values) != n_source:
        raise InputError(f"influence is of {len(influence.values)} classes but the source has {n_source}")
    if set(counts) <= {0}:
        raise InputError(f"counts must lie in 1..{most} (a source model needs two classes), not {counts}")
    for count in counts:
        check_number(count, 0, most, "each of counts (a source model needs two classes)")
    for name in set(given) & set(orders):
        fine = {int(c) for c in given[name] if isinstance(c, Integral) and 0 <= int(c) < n_source}
        if len(fine) < len(given[name]) or len(fine) < max(counts):
            raise InputError(
                f"order {name!r} must list at least {max(counts)} different class indices in 0..{n_source - 1}"
            )


@dataclass(frozen=True)
class Selection:
    """How many classes to remove, chosen on validation, and what that gains on test.

    For each seed the count is chosen by the other seeds, because a model that happens to train well does so on both
    splits.

    Attributes
    ----------
    count : classes removed; 0 when removing none is best on validation
    gain, stderr : test accuracy minus that of the full source, mean and standard error over seeds, each at the count
        that the other seeds choose, which need not be `count`
    """

    order: str
    count: int
    gain: float
    stderr: float
    n_seeds: int


def select(curve: xr.Dataset, order: str = "negative") -> Selection:
    """Choose the count with the best mean validation accuracy and estimate what choosing so gains on test.

    >>> curve = dtl.removal_curve(study, influence, counts=[4], seeds=2, progress=False)
    >>> dtl.removal.select(curve).n_seeds
    2
    """
    if "order" not in check_kind(curve, "xarray.Dataset", "curve").dims:
        raise InputError("curve must be what dtl.removal_curve returns")
    if order not in curve.order.values:
        raise InputError(f"the curve has no order {order!r}: it has {', '.join(curve.order.values)}")
    arm = curve.sel(order=order)
    count = int(arm.validation.mean("seed").idxmax("count"))
    n = curve.sizes["seed"]
    others = (arm.validation.sum("seed") - arm.validation).argmax("count")  # of each seed
    gains = (arm.test.isel(count=others) - arm.test.sel(count=0)).values
    return Selection(str(order), count, float(gains.mean()), float(gains.std(ddof=1) / n**0.5), n)


def flip_rate(
    study: Study,
    example: int | Sequence[int],
    without: int | Sequence[int],
    seeds: int = 20,
    *,
    split: str = "validation",
    **options: Any,
) -> xr.Dataset:
    """How often retrained models predict each label, with the whole source and without one class of it.

    The models of one arm are judged on all examples, so many examples cost no more training than one.

    Parameters
    ----------
    study : gives problem, recipe and transfer (its first), and says which predictions are wrong
    example : one or more examples of the split that most models of the study predict wrong (`dtl.projection.wrong`)
    without : one or more source classes, or groups of a study of groups, each left out in an arm of its own; a class
        that nobody suspects is the control that tells a flip from luck
    seeds, options : as in `dtl.retrain`

    Returns
    -------
    Dataset with dimensions example, arm ("full", then names of classes left out) and label: `count` of retrained models
    that predict the label, `share` of them, and `low` and `high` of its 95% interval (Wilson 1927); `change`, the share
    minus that of the full source, with `change_low` and `change_high` (Newcombe 1998, method 10); coordinate `true`

    Raises
    ------
    InputError : an example that is not wrong; before any training

    >>> wrong = int(dtl.projection.wrong(study)[0])
    >>> flips = dtl.flip_rate(study, wrong, without=8, seeds=2, progress=False)
    >>> flips["count"].sum("label").values.tolist()
    [[2, 2]]
    """
    if check_kind(study, "dtl.Study", "study").unit != "class":
        raise InputError("flip_rate leaves out source classes, or groups of them: give a study of unit 'class'")
    examples, classes = (np.atleast_1d(np.asarray(index)).tolist() for index in (example, without))
    names = sorted(set(study.groups)) if study.groups else study.problem.source.classes
    right = study.outputs("correct", split=split).mean(0)
    for what, index, n in (("example", examples, len(right)), ("source class", classes, len(names))):
        if not index or len(set(index)) < len(index):
            raise InputError(f"give one or more different {what} numbers in 0..{n - 1}, not {index}")
        for number in index:
            check_number(number, 0, n - 1, f"each {what}")
    fine = [index for index in examples if right[index] >= 0.5]
    if fine:
        said = f"example {fine[0]} is not wrong: {right[fine[0]]:.0%} of the study's models predict it right"
        raise InputError(f"{said}; choose from dtl.projection.wrong(study)")
    arms: dict[str, Any] = {"full": Arm()} | {names[c]: np.arange(len(names)) != c for c in classes}
    again = retrain(study, arms, seeds, **options)
    predicted = again.prediction.isel(target=again.split == split).isel(target=examples)
    labels = list(study.problem.target_train.classes)
    said = predicted.rename(target="example").reset_coords(drop=True)
    hits = said == xr.DataArray(np.arange(len(labels)), dims="label")
    count = hits.sum("seed").transpose("example", "arm", "label").compute()
    interval = np.array([binomtest(int(c), seeds).proportion_ci(method="wilson") for c in count.values.flat])
    low, high = (count.copy(data=ends) for ends in interval.T.reshape(2, *count.shape))
    share = count / seeds
    shares = np.stack([share, low, high])
    change_low, change_high = (count.copy(data=ends) for ends in newcombe(shares, shares[:, :, :1]))
    found = xr.Dataset({"count": count, "share": share, "low": low, "high": high})
    found = found.assign(change=share - share.isel(arm=0, drop=True), change_low=change_low, change_high=change_high)
    true = ("example", np.array(labels)[predicted.label.values])
    attrs = {"problem": study.problem.name, "split": split, "seeds": seeds, "transfer": study.transfer[0]}
    return found.assign_coords(example=examples, arm=list(arms), label=labels, true=true).assign_attrs(attrs)


def newcombe(shares: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Interval of a difference of two independent proportions, from the Wilson interval of each (Newcombe 1998).

    shares, reference : proportion, its low and its high, along the first dimension

    >>> low, high = newcombe(np.array([0.8, 0.69, 0.88]), np.array([0.6, 0.49, 0.7]))
    >>> round(float(low), 3), round(float(high), 3)
    (0.051, 0.336)
    """
    ends = {"shares": floats(shares, "shares"), "reference": floats(reference, "reference")}
    for what, of in ends.items():
        if of.shape[:1] != (3,):
            raise InputError(f"{what} must be proportion, low and high along the first dimension, not {of.shape}")
    (p, low, high), (p0, low0, high0) = ends.values()
    return p - p0 - np.hypot(p - low, high0 - p0), p - p0 + np.hypot(high - p, p0 - low0)
