"""Task transfer analysis as released: every transform by gradient. Kept to be looked at; `bound` is what to use."""

from typing import NamedTuple

import numpy as np
import ot
import torch
from numpy.typing import ArrayLike
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from dtl._checks import InputError, check_kind, floats, real, several, whole
from dtl._scores import checked


class Released(NamedTuple):
    """What the released objective ends with: transforms, terms, their sum, and the loss that the sum is meant to bound.

    rhs = source_loss + label_mismatch + lipschitz * feature_mismatch, with the largest gradient of the loss in the
    source's space where the mismatch is measured in the target's: a sum that can lie below `measured`.
    """

    A: np.ndarray
    A_inverse: np.ndarray
    b: np.ndarray
    B: np.ndarray
    D: np.ndarray
    source_loss: float
    label_mismatch: float
    feature_mismatch: float
    lipschitz: float
    measured: float

    @property
    def rhs(self) -> float:
        return self.source_loss + self.label_mismatch + self.lipschitz * self.feature_mismatch

    @property
    def assignment(self) -> np.ndarray:
        """The source class that makes up most of each target class, (K_T,)."""
        return (self.B * self.D).argmax(1)


def released_objective(
    source: ArrayLike,
    source_labels: ArrayLike,
    head: tuple[ArrayLike, ArrayLike],
    target: ArrayLike,
    labels: ArrayLike,
    weight: float = 1e6,
    steps: int = 300,
    batch: int = 200,
    seed: int = 0,
) -> Released:
    """The objective as its authors minimise it: all transforms at once, by gradient, constraints as penalties.

    The sum of the conditional entropy of labels, the re-weighted loss, twice W, and the squared errors of P_T = B D
    and of A as orthogonal, where W = transport of squared feature distances + `weight` times squared distances of label
    vectors, with the plan of un-squared ones, solved for a new batch at each step. Written from the formulas. Compare
    seeds before you believe an assignment.

    Parameters
    ----------
    source to labels : as in `task_transfer_bound`, from one encoder, every class present; a head for the features as
        given
    weight : of label distances; 1e6 and 1e8 are the published values

    >>> z, y = np.repeat(3 * np.eye(2), 20, 0), np.repeat([0, 1], 20)
    >>> dtl.bound.released_objective(z, y, (3 * np.eye(2), np.zeros(2)), z, y, steps=5).B.sum(0).round(6).tolist()
    [1.0, 1.0]
    """
    weight, steps, batch = real("weight", weight), whole("steps", steps, 1), whole("batch", batch, 1)
    z, of_source = checked(source, source_labels, "source")
    x, y = checked(target, labels, "target")
    if x.shape[1] != z.shape[1]:
        raise InputError(f"source and target have {z.shape[1]} and {x.shape[1]} features: A is square, use one encoder")
    W, c = (torch.as_tensor(floats(part, "head")) for part in several(head, "head"))
    centre, spread = z.mean(0), z.std(0) + 1e-9
    c, W = c + torch.from_numpy(centre) @ W, W * torch.from_numpy(spread)[:, None]
    z, x = torch.from_numpy((z - centre) / spread), torch.from_numpy(StandardScaler().fit_transform(x))
    rng, n_source, n_target = np.random.default_rng(whole("seed", seed, 0)), of_source.max() + 1, y.max() + 1
    prior, wanted = np.bincount(of_source) / len(z), np.bincount(y) / len(x)
    by_class = _loss_by_class(z @ W + c, of_source)
    A, A_inverse = (torch.eye(z.shape[1], dtype=torch.float64, requires_grad=True) for _ in range(2))
    b = torch.zeros(z.shape[1], dtype=torch.float64, requires_grad=True)
    to_b = torch.tensor(rng.random((n_target, n_source)), requires_grad=True)
    to_d = torch.tensor(prior, requires_grad=True)
    adam = torch.optim.Adam([{"params": [A, A_inverse, b, to_b]}, {"params": [to_d], "lr": 1e-3}], lr=1e-2)
    eye, target_vectors = torch.eye(z.shape[1], dtype=torch.float64), torch.eye(n_target, dtype=torch.float64)

    def draw(of: np.ndarray, share: np.ndarray) -> np.ndarray:
        rows = [rng.choice(np.flatnonzero(of == k), max(1, int(batch * s))) for k, s in enumerate(share)]
        return np.concatenate(rows)

    for _ in range(steps):
        B, D = to_b.softmax(0), to_d.softmax(0)
        rows, columns = draw(of_source, D.detach().numpy()), draw(y, wanted)
        moved, mixed = z[rows] @ A.T + b, B.T[of_source[rows]]
        near, vectors = x[columns], target_vectors[y[columns]]
        with torch.no_grad():
            far = torch.cdist(moved, near) + weight * torch.cdist(mixed, vectors)
            plan = torch.from_numpy(ot.emd([], [], far.numpy()))
        n, t = plan.nonzero(as_tuple=True)
        squares = (moved[n] - near[t]).square().sum(1) + weight * (mixed[n] - vectors[t]).square().sum(1)
        entropy = -(D * torch.special.xlogy(B, B).sum(0)).sum()
        penalty = (torch.from_numpy(wanted) - B @ D).square().sum()
        inverse = (A @ A_inverse - eye).square().sum() + (A_inverse @ A - eye).square().sum()
        total = entropy + D @ by_class + 2 * (plan[n, t] @ squares) + penalty + inverse
        adam.zero_grad()
        total.backward()
        adam.step()
    found = (part.detach() for part in (A, A_inverse, b, to_b.softmax(0), to_d.softmax(0)))
    return released_terms(z, of_source, (W, c), x, y, *found)


def _loss_by_class(logits: torch.Tensor, y: np.ndarray) -> torch.Tensor:
    return torch.stack([F.cross_entropy(logits[y == j], torch.from_numpy(y[y == j])) for j in range(y.max() + 1)])


def released_terms(z, of_source, head, x, y, A, A_inverse, b, B, D) -> Released:
    """The terms that the released code reports at the end, of standardised features; all tensors but the labels."""
    (W, c), z = head, check_kind(z, "torch.Tensor", "z")
    pulled = ((x - b) @ A_inverse.T).requires_grad_()
    each = -((pulled @ W + c).softmax(1) @ B.T).log()[range(len(y)), y]
    (slope,) = torch.autograd.grad(each.sum(), pulled)
    becomes, moved = B.argmax(0).numpy()[of_source], z @ A.T + b
    both = [i for i in np.unique(y) if (becomes == i).any()]
    far = [ot.emd2([], [], torch.cdist(moved[becomes == i], x[y == i]).numpy()) for i in both]
    return Released(
        *(part.numpy() for part in (A, A_inverse, b, B, D)),
        source_loss=float(D @ _loss_by_class(z @ W + c, of_source)),
        label_mismatch=float(-(D * torch.special.xlogy(B, B).sum(0)).sum()),
        feature_mismatch=float(np.mean(far)),
        lipschitz=float(slope.norm(dim=1).max()),
        measured=float(each.detach().mean()),
    )
