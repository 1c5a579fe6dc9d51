"""Influences of source classes on target outputs: three estimators, their standard errors, and how good they are.

The estimand is that of Algorithm 1 (Jain et al. 2022): the mean output of models whose subset holds the class, minus
the mean over models whose subset does not. With subsets of one size an additive output ``sum_{c in S} beta_c`` gives
``tau_c = K/(K-1) (beta_c - mean(beta))``, whatever the size: influences are relative and sum to zero over classes.
The regressions are put on the same scale; where subset sizes differ they also remove the effect of the size.

- ``difference``: difference in means, Algorithm 1 itself.
- ``ols``: least squares of the outputs on the masks (a linear datamodel; Ilyas et al. 2022), on the differences between
  a subset and its complement where the design has them.
- ``ridge``: the same with a penalty chosen for each target by generalised cross-validation (Golub et al. 1979).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import scipy  # which loads its parts when they are first used
from numpy.typing import ArrayLike

from dtl._checks import InputError, check_between, check_kind, choice
from dtl._estimators import SOLVERS, checked, from_first, plain, precision, refuse_twins, reliability_of, resolve_errors
from dtl._images import _TILE, PARTS, contrasts, group_means, image_variances
from dtl.design import block_length, checked_design

if TYPE_CHECKING:
    import pandas as pd

    from dtl.data import TransferProblem


@dataclass(frozen=True, eq=False)
class Influence:
    """Estimated influences of K source classes on n targets.

    Attributes
    ----------
    values : (K, n), output with the class minus without, in units of the output. Positive: the class helps.
    stderr : (K, n), standard errors; infinite where there are too few models to tell. Those of means over target images
        count the drawing of the images too, unless ``target="these"`` was asked for.
    reliability : (n,), in [0, 1]: estimated squared correlation over classes of the values and the true influences.
    dof : degrees of freedom of the standard errors, for the Student distribution of `z`.
    image_stderr : the part of the standard errors that comes from the drawing of images; 0 where none is counted.
    own_stderr : the part of what the models bring to them that is each image's own, so that more images lower it, too.
    sources, targets : names of the K rows and the n columns; empty for influences estimated from arrays.
    by, part, split, output, transfer, unit : what a column is ("image", "class", "all" or "group"), which part of it,
        of which split, output and transfer; what a row is.
    problem, data : name of the problem, and the fingerprint of each of its parts.

    Examples
    --------
    >>> influence.values.shape, influence.targets
    ((24, 4), ('sky', 'chess', 'cards', 'travel'))
    """

    values: np.ndarray
    stderr: np.ndarray
    reliability: np.ndarray
    method: str
    design: str
    n_models: int
    dof: float | np.ndarray = math.inf
    image_stderr: float | np.ndarray = 0.0
    own_stderr: float | np.ndarray = 0.0
    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    by: str = ""
    part: str = "whole"
    split: str = ""
    output: str = ""
    transfer: str = ""
    unit: str = "class"
    problem: str = ""
    data: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Of the rows and of the columns: numbers where they have no names."""
        k, n = self.values.shape
        return self.sources or tuple(map(str, range(k))), self.targets or tuple(map(str, range(n)))

    @property
    def z(self) -> np.ndarray:
        """Values in standard errors, (K, n); zero for a target that never varies."""
        return np.divide(self.values, self.stderr, out=np.zeros_like(self.values), where=self.stderr > 0)

    def p_values(self, alternative: str = "two-sided") -> np.ndarray:
        """Probability of such a z, or one further away, if there were no influence, (K, n).

        alternative : "two-sided", "greater" (does it help?) or "less" (does it hurt?)

        >>> harmful = influence.p_values("less") < 0.05
        >>> harmful.shape
        (24, 4)
        """
        far = {"two-sided": np.abs(self.z), "greater": self.z, "less": -self.z}
        choice(alternative, far, "alternative")
        return scipy.stats.t.sf(far[alternative], self.dof) * (2 if alternative == "two-sided" else 1)

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends of Student's intervals, (K, n) each.

        >>> low, high = influence.interval()
        >>> bool((low < influence.values).all())
        True
        """
        check_between(level, "level")
        half = scipy.stats.t.isf((1 - level) / 2, self.dof) * self.stderr
        return self.values - half, self.values + half

    @property
    def advice(self) -> str:
        """Which error is the larger, that of few models or that of few target images, and what would lower it.

        More images also average out what the luck of training does to each image alone (`own_stderr`).

        >>> print(influence.advice)
        Of the variance of these errors, ...% come from the models, ...% from the images drawn: twice ...
        """
        total = np.square(self.stderr)
        images, own = (np.broadcast_to(np.square(part), total.shape) for part in (self.image_stderr, self.own_stderr))
        known = np.isfinite(total)
        if not total[known].any():
            return "Nothing can be said of the errors: train more models."
        own = np.minimum(own, total - images)  # an estimate, which can exceed the whole that it is a part of
        share, alone = (float(part[known].sum() / total[known].sum()) for part in (images, own))
        twice = f"twice the models would lower them by {1 - math.sqrt((1 + share) / 2):.0%}"
        if not images.any():
            return f"These errors hold for these target images: {twice}."
        return (
            f"Of the variance of these errors, {1 - share:.0%} come from the models, {share:.0%} from the images "
            f"drawn: {twice}, twice the images by {1 - math.sqrt(1 - (share + alone) / 2):.0%}."
        )

    def to_frame(self) -> "pd.DataFrame":
        """A row for each target and source: target, source, influence, stderr, reliability.

        >>> influence.to_frame().query("target == 'sky'").nlargest(3, "influence").shape
        (3, 5)
        """
        import pandas as pd

        rows = pd.MultiIndex.from_product(self.names[::-1], names=["target", "source"])
        columns = {
            "influence": self.values.T.ravel(),
            "stderr": self.stderr.T.ravel(),
            "reliability": np.repeat(self.reliability, len(self.values)),
        }
        return pd.DataFrame(columns, rows).reset_index()

    def check(self, problem: "TransferProblem", by: str | None = None) -> None:
        """InputError unless these are influences of the source of `problem` on its target.

        Influences of a study are known by the fingerprints of its data, those of arrays by their shape only.

        by : "image" or "class", if a column for each image of their split, or for each target class, is needed

        >>> influence.check(problem, by="class")
        """
        check_kind(problem, "dtl.TransferProblem", "problem")
        name, has = self.problem or "arrays", self.by or "other"
        theirs = problem.fingerprints if self.data else {}
        differ = [part for part, digest in theirs.items() if self.data.get(part) != digest]
        if differ:
            raise InputError(
                f"the influences are of problem {name}, whose {', '.join(differ)} differ from those of {problem.name}: "
                "estimate them from a study of this problem"
            )
        source = problem.source
        units, kind = (len(source), "images") if self.unit == "example" else (source.n_classes, "classes")
        if len(self.values) != units and self.unit != "group":
            raise InputError(f"influence is of {len(self.values)} {kind} but the source of {problem.name} has {units}")
        images = problem.parts[f"target_{self.split or 'validation'}"]
        n = {"image": len(images), "class": images.n_classes}.get(by or "", self.values.shape[1])
        if self.values.shape[1] != n or (by and self.by and self.by != by):
            call = "study.influence()" if by == "image" else f'study.influence(by="{by}")'
            raise InputError(f"a column for each target {by} is needed, {n} in all, as {call} gives: these are {has}")


def estimate_influence(
    masks: ArrayLike,
    outputs: ArrayLike,
    method: str = "difference",
    design: str | None = None,
    groups: ArrayLike | None = None,
    part: str = "whole",
    target: str = "new",
) -> Influence:
    """Influence of every class on every target, with standard errors that are right for the design.

    Parameters
    ----------
    masks : bool or 0/1, (m, K): the classes that each model was trained on.
    outputs : (m, n), output of each model on each target.
    method : "difference", "ols" or "ridge".
    design : "balanced", "random" or "paired", how the masks were drawn; by default what they show (`checked_design`).
    groups : integers (n,), 0 to G - 1, such as labels: influences are then on the mean output over each group.
    part : "whole", "common" or "specific", of groups: the influence on each; the one on all images together (one
        column); or that on each beyond the one on all, which is free of the luck that moves all targets alike.
    target : "new" or "these": whether the errors of groups are about new images, or about these only.

    Raises
    ------
    InputError : the arrays do not fit, an output is not finite or masked, every model is there twice, a class is in all
        or none of the subsets, or the models are too few for the method.

    Notes
    -----
    Standard errors. random: Welch for the difference, classical least squares for OLS. paired: from the differences D
    between the outputs of a subset and of its complement. balanced: from the residuals of the regression of D on the
    signs; where that leaves fewer than 10 degrees of freedom (one block), from the sums over each pair, which hold the
    training noise and the even interactions: conservative unless the odd interactions exceed the even ones. For the
    difference, a balanced design cut inside a block gets the errors of pairs, which are conservative. ridge: posterior
    standard deviation (Wahba 1983; Nychka 1988) at the smallest penalty whose ``rows * log(GCV)`` is within 2 of the
    minimum; at the minimum itself a weak signal is often shrunk to nothing, and its stated error with it.

    Examples
    --------
    >>> masks = np.array([[1, 0], [0, 1], [1, 0], [0, 1]])
    >>> estimate_influence(masks, [[3.0], [1.0], [5.0], [1.0]]).values.ravel().tolist()
    [3.0, -3.0]
    """
    choice(method, SOLVERS, "method")
    included, y = checked(plain(masks, "masks"), plain(outputs, "outputs"))
    refuse_twins(included, y)
    design = checked_design(included, design)
    choice(part, PARTS, "part")
    choice(target, ("new", "these"), "target")
    grouping, images, means, weights = None if groups is None else np.asarray(groups), y, y, np.empty((0, 0))
    if grouping is not None:
        means = group_means(images, grouping)
        weights = contrasts(grouping, part)
        if part == "common" and np.bincount(grouping).min() < 2:
            grouping, means, weights = np.zeros_like(grouping), images.mean(axis=1, keepdims=True), np.ones((1, 1))
        y = means @ weights
    elif part != "whole":
        raise InputError(f'the {part} part is that of groups of images: give groups, or by="class"')
    dtype = precision(y) if method == "difference" else np.dtype(np.float64)
    errors = resolve_errors(included, design) if method == "difference" and len(included) > 3 else design
    solve = SOLVERS[method](included.astype(dtype), errors)
    values, variances = np.empty((2, included.shape[1], y.shape[1]), dtype)
    width = max(1, _TILE // len(included))
    for first in range(0, y.shape[1], width):
        tile = np.s_[:, first : first + width]
        values[tile], variances[tile] = solve(from_first(y[tile], dtype))
    noise, spread = variances.mean(axis=0, dtype=np.float64), values.var(axis=0, dtype=np.float64)
    if method == "ridge":  # whose values are posterior means: their spread is the signal alone
        spread += noise
    dof, by_images, own = float(solve.dof), 0.0, 0.0
    if grouping is not None and target == "new":
        drawn = image_variances(included, images, means, grouping, weights, method, errors)
        shrunk = np.ones_like(noise)
        if method == "ridge":  # as the values are, and what the images do to them
            shrunk = np.square(1 - np.divide(noise, spread, out=shrunk, where=spread > 0))
        noise = noise + shrunk * np.where(np.isfinite(drawn.variance).all(axis=0), drawn.across, np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):  # of infinite errors, and of none
            more, own = shrunk * drawn.variance, np.sqrt(shrunk * drawn.own)
            dof = (variances + more) ** 2 / (variances**2 / solve.dof + shrunk**2 * drawn.uncertainty)
        dof = np.where(np.isfinite(dof), dof, solve.dof)
        variances, by_images = variances + more, np.sqrt(more)
    reliability = reliability_of(noise, spread, len(values) - 1)
    facts = method, design, len(included), dof, by_images, own
    return Influence(values, np.sqrt(variances), reliability, *facts, part=part)


def models_needed(influence: Influence, reliability: float = 0.8) -> int:
    """Models at which the influences would reach a reliability, pooled over targets.

    The noise falls as 1/m (OLS: as 1/(m - K), on pairs 1/(m - 2K)), so with noise-to-signal ratio q now and
    ``reliability = 1/(1 + q)``, the number follows. Whole blocks for the balanced design, whole pairs for the paired.
    InputError if the reliability is out of reach, or the spread of the influences does not exceed their errors.

    Examples
    --------
    >>> masks = dtl.subset_masks(20, 76)
    >>> noise = np.random.default_rng(0).normal(size=(76, 1))
    >>> models_needed(estimate_influence(masks, masks @ np.arange(20.0)[:, None] / 10 + noise), 0.9)
    114
    """
    check_between(reliability, "reliability")
    n_classes = len(check_kind(influence, "dtl.Influence", "influence").values)
    drawn = np.broadcast_to(np.square(influence.image_stderr), influence.stderr.shape)
    noises, spreads = (influence.stderr**2 - drawn).mean(axis=0), influence.values.var(axis=0)
    spreads = spreads + noises if influence.method == "ridge" else spreads  # a shrunk estimate's spread holds no noise
    noise, spread = noises.sum(), spreads.sum()
    if not (math.isfinite(noise + drawn.sum()) and spread > noise):
        raise InputError(
            f"No measurable signal with {influence.n_models} models: the influences spread no more than their errors; "
            "train more models first."
        )
    alone = reliability_of(noises, spreads, n_classes - 1)  # with the images that there are
    most = float(influence.reliability @ spreads / max(alone @ spreads, np.finfo(float).tiny))
    if reliability >= most:
        raise InputError(
            f"no number of models reaches reliability {reliability} with these target images, at most "
            f'{max(most, 0):.2f}: take more target images, or ask about these alone with target="these"'
        )
    reliability /= most
    lost = 0
    if influence.method == "ols" and influence.design != "balanced":
        lost = n_classes if influence.design == "random" else 2 * n_classes
    now = float(reliability_of(noise, spread, spreads.size * (n_classes - 1)))
    ratio = (1 - now) / now * reliability / (1 - reliability)
    step = {"random": 1, "paired": 2, "balanced": block_length(n_classes)}[influence.design]
    return step * max(math.ceil((lost + (influence.n_models - lost) * ratio) / step - 1e-9), math.ceil(2 / step))
