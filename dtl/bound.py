"""A certified bound on the target loss of a linear head, from the source loss: task transfer analysis.

Mehra, Zhang and Hamm (2024) turn the source task into the target task in three steps and bound what each costs: the
class prior, the label set, the features. Here all distributions are those of the images at hand, so that the bound is a
statement about numbers that can be checked, and the target is pulled back into the source's logits by an affine map,
so that no inverse is needed and encoders may differ.
"""

from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import ot
import torch
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment, minimize
from scipy.special import log_softmax, logsumexp, xlogy
from sklearn.linear_model import Ridge
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import cross_entropy

from dtl._checks import InputError, choice, floats, several, whole
from dtl._released import Released, released_objective, released_terms
from dtl._scores import checked

__all__ = ["Bound", "Released", "Side", "released_objective", "released_terms", "task_transfer_bound"]

LEARN = ("none", "map", "joint")


class Side(NamedTuple):
    """Logits (n, J) of the kept source classes, and labels (n,): of source classes, or of target classes."""

    logits: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Bound:
    """Three terms that bound the loss of a classifier on target images, in nats; their sum is `rhs`.

    Attributes
    ----------
    source_loss : loss of the source head on source images, classes re-weighted to the prior that the target needs
    label_mismatch : entropy of target classes given the source classes that they are made from; 0 if one-to-one
    feature_mismatch : optimal transport of source logits to target logits within classes, times temperature; not a
        distance, as the temperature is chosen to make the sum small
    measured : loss of the bounded classifier itself, which never exceeds rhs
    entropy : loss of the classifier that knows class frequencies only; rhs above it says nothing
    joint : (K_T, K_S) joint distribution of target and source classes: the assignment
    temperature, offsets : of the source logits, (J,), chosen exactly
    weight, bias : the affine map of target features to source logits, (d, J) and (J,)
    """

    source_loss: float
    label_mismatch: float
    feature_mismatch: float
    measured: float
    entropy: float
    joint: np.ndarray
    temperature: float
    offsets: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    source: Side

    @property
    def rhs(self) -> float:
        """The bound: never below `measured`."""
        return self.source_loss + self.label_mismatch + self.feature_mismatch

    @property
    def certified(self) -> float:
        """Nats by which the bound beats class frequencies; negative where it says nothing."""
        return self.entropy - self.rhs

    @property
    def linear(self) -> bool:
        """Whether the bounded classifier is a linear head: every target class is assigned to one source class."""
        return bool(((self.joint > 0).sum(1) == 1).all())

    @property
    def assignment(self) -> np.ndarray:
        """The source class that each target class is mostly made from, (K_T,)."""
        return self.joint.argmax(1)

    def to_logits(self, features: np.ndarray) -> np.ndarray:
        """Source logits (n, J) of target features (n, d)."""
        return features @ self.weight + self.bias

    def on(self, features: ArrayLike, labels: ArrayLike) -> "Bound":
        """The bound of the same classifier for other target images, (n, d) and (n,), such as held-out ones.

        Nothing is fitted; only class frequencies and optimal transport are those of the new images.
        """
        x, _ = checked(features, labels, "target")
        y, made, given = np.asarray(labels), (len(self.joint), len(self.weight)), (np.max(labels) + 1, x.shape[1])
        if given[0] > made[0] or given[1] != made[1]:
            raise InputError("the bound is for {} target classes and {} features, not {} and {}".format(*made, *given))
        there = Side(self.to_logits(x), y)
        return _terms(self.source, there, self.joint, self.temperature, self.offsets, self.weight, self.bias)


def cost(source: np.ndarray, target: np.ndarray, support: np.ndarray) -> np.ndarray:
    """The most that the loss can rise from source logits (n, J) to target logits (m, J), (n, m).

    -log sum_j B_ij softmax(a)_j has the gradient p - r, with p and r distributions and r on the `support` (J,) of B_i.
    """
    source, target = floats(source, "source"), floats(target, "target")
    rise = target - source[:, None]
    return rise.max(2) - rise[..., support].min(2)


def _plans(source: Side, target: Side, share: np.ndarray) -> tuple[np.ndarray, ...]:
    """Optimal transport within each target class as pairs of images: source, target, mass of the pair, cost of it.

    share : (K_T, J), distribution of kept source classes within each target class
    """
    counts, pairs = np.bincount(source.labels, minlength=share.shape[1]), []
    for i in np.unique(target.labels):
        rows, columns = np.flatnonzero(share[i, source.labels] > 0), np.flatnonzero(target.labels == i)
        mass = (share[i] / counts)[source.labels[rows]]
        costs = cost(source.logits[rows], target.logits[columns], share[i] > 0)
        plan = ot.emd(mass / mass.sum(), [], costs, numItermax=10**7)
        n, t = plan.nonzero()
        pairs.append((rows[n], columns[t], plan[n, t] * len(columns) / len(target.labels), costs[n, t]))
    return tuple(np.concatenate(part) for part in zip(*pairs, strict=True))


def _terms(
    source: Side, target: Side, joint: np.ndarray, s: float, offsets: np.ndarray, weight: np.ndarray, bias: np.ndarray
) -> Bound:
    """All terms, at temperature `s`; weight and bias are only handed on."""
    small, y = joint[:, joint.any(0)], target.labels
    prior, share = small / small.sum(0), small / small.sum(1, keepdims=True)
    classes = np.bincount(y, minlength=len(joint)) / len(y)
    needed = classes @ share  # how often each source class is needed
    loss = -log_softmax(s * source.logits + offsets, 1)[np.arange(len(source.labels)), source.labels]
    *_, mass, far = _plans(source, target, share)
    with np.errstate(divide="ignore"):
        log_p = np.asarray(logsumexp(log_softmax(s * target.logits + offsets, 1) + np.log(prior[y]), 1))
    return Bound(
        source_loss=float((needed / np.bincount(source.labels))[source.labels] @ loss),
        label_mismatch=float(0 - (classes @ (share * np.log(np.where(share > 0, prior, 1)))).sum()),
        feature_mismatch=float(s * (mass @ far)),
        measured=float(-log_p.mean()),
        entropy=float(-xlogy(classes, classes).sum()),
        joint=joint, temperature=float(s), offsets=offsets, weight=weight, bias=bias, source=source,
    )  # fmt: skip


def _temper(
    source: Side, unseen: np.ndarray, y: np.ndarray, share: np.ndarray, prior: np.ndarray, free: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Matrix (J, J) for the logits of both sides and offsets (J,) that make source loss plus transport small.

    One temperature s > 0 for all logits, in which the sum is convex; at 0 it is the entropy of the prior, and has a
    kink. Or a `free` matrix, as maps find some directions again and some not: in turns with the plan, not exact.

    unseen : (n, J) target logits, y : (n,) labels, prior : (J,)
    """
    scale, weight, size = source.logits.std() or 1.0, (prior / np.bincount(source.labels))[source.labels], len(prior)
    a, v, labels, weight = map(torch.from_numpy, (source.logits / scale, unseen / scale, source.labels, weight))
    one = torch.eye(size, dtype=torch.float64)

    def parts(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (x[:-size].view(size, size) if free else x[0] * one), x[-size:]

    def loss(x: np.ndarray, gap: torch.Tensor, mass: torch.Tensor, support: torch.Tensor) -> tuple[float, np.ndarray]:
        mix, offsets = parts(at := torch.tensor(x, requires_grad=True))
        rise = gap @ mix
        of_source = weight @ cross_entropy(a @ mix + offsets, labels, reduction="none")
        total = of_source + mass @ (rise.amax(1) - rise.where(support, torch.inf).amin(1))
        total.backward()
        return total.item(), at.grad.numpy()  # pyright: ignore[reportOptionalMemberAccess]

    x = np.r_[0.3 * one.numpy().ravel() if free else 0.3, np.log(prior)]
    bounds = [(None if free else 1e-9, None)] + [(None, None)] * (len(x) - 1)
    options = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 20 if free else 1000}
    for _ in range(5 if free else 1):
        mix, _ = parts(torch.from_numpy(x))
        plan = _plans(Side((a @ mix).numpy(), source.labels), Side((v @ mix).numpy(), y), share)
        n, t, mass = map(torch.from_numpy, plan[:3])
        given = v[t] - a[n], mass, torch.tensor(share > 0)[y][t]
        x = minimize(loss, x, given, "L-BFGS-B", True, bounds=bounds, options=options).x
    mix, offsets = parts(torch.from_numpy(x))
    return mix.numpy() / scale, offsets.numpy()


def task_transfer_bound(
    source: ArrayLike,
    source_labels: ArrayLike,
    head: tuple[ArrayLike, ArrayLike],
    target: ArrayLike,
    labels: ArrayLike,
    learn: str = "none",
    assignment: ArrayLike | None = None,
    steps: int = 60,
) -> Bound:
    """Bound the target loss of a head that is made from the source head.

    Parameters
    ----------
    source, source_labels : (N, d) features and (N,) int: images of the source, all or a sample
    head : (d, K_S) weights and (K_S,) biases of the source head
    target, labels : (n, d') features and (n,) int, 0..K_T-1
    learn : what leads from target features to source logits. "none": the source head; "map": an affine map, learned;
        "joint": also a matrix that turns the source's logits to directions that the map finds. Temperature and matrix
        are not chosen by the map itself, but by maps that have not seen the image
    assignment : (K_T,) int, the source class for each target class, or (K_T, K_S), shares of source classes for each.
        Default: the best one-to-one assignment by the source head, or with K_T > K_S with classes shared evenly
    steps : of Adam, for a learned map

    Returns
    -------
    Bound: rhs >= measured always, and rhs <= entropy if every target class has one source class

    >>> head = [[-9.0, 9.0]], [4.5, -4.5]
    >>> bound = dtl.bound.task_transfer_bound([[0.0], [1.0]], [0, 1], head, [[0.1], [0.9]], [1, 0])
    >>> bound.assignment.tolist(), bound.measured <= bound.rhs <= bound.entropy
    ([1, 0], True)
    """
    choice(learn, LEARN, "learn")
    whole("steps", steps, 1)
    z, _ = checked(source, source_labels, "source")
    x, _ = checked(target, labels, "target")
    of_source, y = np.asarray(source_labels), np.asarray(labels)
    if len(several(head, "head")) != 2:
        raise InputError(f"head must be two arrays, weight (d, K) and bias (K,), not {len(head)}")
    weight, bias = (floats(part, "head") for part in head)
    if weight.ndim != 2 or bias.shape != weight.shape[1:] or not np.isfinite([*weight, bias]).all():
        raise InputError(f"head must be finite, (d, K) and (K,), not {weight.shape} and {bias.shape}")
    takes, counts = f"the head takes {len(weight)} features", np.bincount(y)
    if z.shape[1] != len(weight) or of_source.max() >= len(bias):
        said = f"the source has {z.shape[1]} features and labels up to {of_source.max()}"
        raise InputError(f"{takes} and knows {len(bias)} classes, but {said}")
    if x.shape[1] != len(weight) and learn == "none":
        raise InputError(f"{takes}, not {x.shape[1]}: use learn='map' for another encoder")
    if counts.min() < (1 if learn == "none" else 2):
        k = int(np.argmin(counts))
        said = f"target class {k} has {counts[k] or 'no'} image: number classes without gaps"
        raise InputError(f"{said}, and give two images of every class for a map, which is judged on other images")
    logits = z @ weight + bias
    if assignment is None:
        assignment = _assign(logits, of_source, x @ weight + bias if x.shape[1] == len(weight) else None, y)
    joint = _joint(np.asarray(assignment), counts / len(y), len(bias), of_source)
    kept = np.flatnonzero(joint.any(0))
    rows = np.isin(of_source, kept)
    near = Side(logits[rows][:, kept], np.searchsorted(kept, of_source[rows]))
    share, prior = joint[:, kept] / joint[:, kept].sum(1, keepdims=True), joint[:, kept].sum(0)
    if learn == "none":
        weight, bias = weight[:, kept], bias[kept]
        unseen = x @ weight + bias
    else:
        (weight, bias), unseen = _learn(near, x, y, share, steps), np.empty((len(x), len(kept)))
        for seen, left in StratifiedKFold(min(3, int(counts.min())), shuffle=True, random_state=0).split(x, y):
            slope, at_zero = _learn(near, x[seen], y[seen], share, steps)
            unseen[left] = x[left] @ slope + at_zero
    mix, offsets = _temper(near, unseen, y, share, prior, learn == "joint")
    s = mix[0, 0]
    if learn == "joint":
        s, near, weight, bias = 1.0, near._replace(logits=near.logits @ mix), weight @ mix, bias @ mix
    there, fits = Side(x @ weight + bias, y), ((s, offsets), (0.0, np.log(prior)))
    return min((_terms(near, there, joint, *fit, weight, bias) for fit in fits), key=attrgetter("rhs"))


def _assign(logits: np.ndarray, of_source: np.ndarray, target: np.ndarray | None, y: np.ndarray) -> np.ndarray:
    """The source class for each target class that gives the least loss (Hungarian method), (K_T,).

    Without target logits, those of another encoder, the source classes that the head itself knows best.
    """
    there = np.unique(of_source)
    if target is None:
        own = [-log_softmax(logits[of_source == j], 1)[:, j].mean() for j in there]
        loss = np.tile(own, (y.max() + 1, 1))
    else:
        loss = np.stack([-log_softmax(target[y == i], 1).mean(0)[there] for i in range(y.max() + 1)])
    times = -(-len(loss) // len(there))  # how many target classes may share a source class
    return there[linear_sum_assignment(np.tile(loss, times))[1] % len(there)]


def _joint(assignment: np.ndarray, classes: np.ndarray, n_source: int, of_source: np.ndarray) -> np.ndarray:
    """(K_T, K_S) from one source class for each target class, or from shares of all."""
    shares = assignment[:, None] == np.arange(n_source) if assignment.ndim == 1 else assignment
    absent = np.setdiff1d(np.arange(n_source), of_source)
    fits = shares.shape == (len(classes), n_source) and not shares[:, absent].any()
    if not fits or not (shares >= 0).all() or not shares.sum(1).all():
        shape = f"({len(classes)},) source classes, or ({len(classes)}, {n_source}) shares that are not negative"
        raise InputError(f"assignment must be {shape}, and use no source class without images")
    return classes[:, None] * shares / shares.sum(1, keepdims=True)


def _learn(source: Side, x: np.ndarray, y: np.ndarray, share: np.ndarray, steps: int) -> tuple[np.ndarray, ...]:
    """Weight and bias from target features to source logits: ridge regression on class means, then less transport."""
    scaler, spread = StandardScaler().fit(x), source.logits.std() or 1.0
    known = source._replace(logits=source.logits / spread)
    means = np.stack([known.logits[known.labels == j].mean(0) for j in range(share.shape[1])])
    start = Ridge(len(x)).fit(scaler.transform(x), (share @ means)[y])
    inputs = torch.from_numpy(np.c_[scaler.transform(x), np.ones(len(x))])
    weight = torch.tensor(np.c_[np.atleast_2d(start.coef_), start.intercept_].T, requires_grad=True)
    support, logits, adam = torch.tensor(share > 0)[y], torch.tensor(known.logits), torch.optim.Adam([weight], lr=0.003)
    n = t = mass = torch.empty(0)  # filled in the first step
    for step in range(steps):
        v = inputs @ weight
        if step % 10 == 0:
            n, t, mass = map(torch.from_numpy, _plans(known, Side(v.detach().numpy(), y), share)[:3])
        rise = v[t] - logits[n]
        loss = mass @ (rise.amax(1) - rise.where(support[t], torch.inf).amin(1))
        adam.zero_grad()
        loss.backward()
        adam.step()
    final = weight.detach().numpy() * spread
    slope = final[:-1] / np.asarray(scaler.scale_)[:, None]
    return slope, final[-1] - np.asarray(scaler.mean_) @ slope
