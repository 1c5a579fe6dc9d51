"""Models per minute: `dtl.Study` against loops that train one model at a time.

    python tests/benchmarks/models_per_minute.py                # five rounds, ten minutes or so on two quiet cores
    python tests/benchmarks/models_per_minute.py --rounds 1 --models 16 --loop-models 4

Every arm trains the same subsets of the testbed with the same net, epochs, batch, learning rate and schedule, transfers
with fixed features and evaluates validation and test examples:

study : `dtl.Study`, as a reader would call it
plain : a PyTorch loop with the usual care: tensors normalised once, features computed once, scikit-learn's solver for
    the probe
reference : the loop of the papers' code: a DataLoader, and a probe trained by 15 epochs of SGD through the frozen net

The loops run with torch's default threads. Rounds are interleaved, so that what else the machine does hits all arms.
"""

import os
import platform
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated

import numpy as np
import sklearn
import torch
import typer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dtl
from dtl.doctor import hardware

RECIPE = dtl.Recipe()
PROBE_EPOCHS, PROBE_LR = 15, 0.1


def study(problem: dtl.TransferProblem, masks: np.ndarray, seed: int) -> np.ndarray:
    """Test accuracy of each model, (models,)."""
    run = dtl.Study(problem, RECIPE, masks, seed=seed).run(device="cpu", progress=False)
    return run.outputs("correct", split="test").mean(1)


def plain(problem: dtl.TransferProblem, masks: np.ndarray, seed: int) -> np.ndarray:
    x, y = tensors(problem)
    found = []
    for j, mask in enumerate(masks):
        members, relabel = subset(problem, mask)
        net, optimiser, schedule = fresh(seed + j, int(mask.sum()), members)
        for _ in range(RECIPE.epochs):
            order = members[torch.randperm(len(members))]
            for index in order[: len(order) // RECIPE.batch_size * RECIPE.batch_size].split(RECIPE.batch_size):
                loss = F.cross_entropy(net(x["source"][index]), relabel[y["source"][index]])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        net.eval()
        with torch.inference_mode():
            features = {part: net[:-1](x[part]).numpy() for part in x if part != "source"}
        probe = LogisticRegression(C=1 / (RECIPE.probe_l2 * len(y["target_train"])), max_iter=1000)
        probe = make_pipeline(StandardScaler(), probe).fit(features["target_train"], y["target_train"])
        probability = {part: probe.predict_proba(features[part]) for part in ("target_validation", "target_test")}
        found.append((probability["target_test"].argmax(1) == y["target_test"].numpy()).mean())
    return np.array(found)


def reference(problem: dtl.TransferProblem, masks: np.ndarray, seed: int) -> np.ndarray:
    x, y = tensors(problem)
    found = []
    for j, mask in enumerate(masks):
        members, relabel = subset(problem, mask)
        net, optimiser, schedule = fresh(seed + j, int(mask.sum()), members)
        sources = TensorDataset(x["source"][members], relabel[y["source"][members]])
        for _ in range(RECIPE.epochs):
            for images, labels in DataLoader(sources, RECIPE.batch_size, shuffle=True, drop_last=True):
                optimiser.zero_grad()
                F.cross_entropy(net(images), labels).backward()
                optimiser.step()
                schedule.step()
        net.requires_grad_(False).eval()
        net[-1] = nn.Linear(RECIPE.widths[-1], problem.target_train.n_classes)
        optimiser = torch.optim.SGD(net[-1].parameters(), PROBE_LR, RECIPE.momentum)
        targets = TensorDataset(x["target_train"], y["target_train"])
        for _ in range(PROBE_EPOCHS):
            for images, labels in DataLoader(targets, RECIPE.batch_size, shuffle=True):
                optimiser.zero_grad()
                F.cross_entropy(net(images), labels).backward()
                optimiser.step()
        hits: dict[str, list[torch.Tensor]] = {"target_validation": [], "target_test": []}
        with torch.inference_mode():
            for part, right in hits.items():
                for images, labels in DataLoader(TensorDataset(x[part], y[part]), RECIPE.batch_size):
                    right.append(net(images).softmax(1).argmax(1) == labels)
        found.append(torch.cat(hits["target_test"]).float().mean().item())
    return np.array(found)


def tensors(problem: dtl.TransferProblem) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Normalised images and labels of each part."""
    source = problem.source.images.float() / 255
    mean, std = source.mean((0, 2, 3), keepdim=True), source.std((0, 2, 3), keepdim=True)
    x = {part: (dataset.images.float() / 255 - mean) / std for part, dataset in problem.parts.items()}
    return x, {part: dataset.labels for part, dataset in problem.parts.items()}


def subset(problem: dtl.TransferProblem, mask: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of a subset's examples, and the label of each class among those that are left."""
    present = torch.from_numpy(mask)
    return present[problem.source.labels].nonzero()[:, 0], present.cumsum(0) - 1


def fresh(
    seed: int, n_classes: int, members: torch.Tensor
) -> tuple[nn.Sequential, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise((3, *RECIPE.widths)):  # the net of `dtl.models`, from plain torch modules
        kernel, padding = (3, 1) if n_in == 3 else (2, 0)
        convolution = nn.Conv2d(n_in, n_out, kernel, stride=2, padding=padding, bias=False)
        layers += [convolution, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(RECIPE.widths[-1], n_classes))
    optimiser = torch.optim.SGD(net.parameters(), RECIPE.lr, RECIPE.momentum, weight_decay=RECIPE.weight_decay)
    steps = RECIPE.epochs * (len(members) // RECIPE.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, RECIPE.lr, steps + 1, pct_start=RECIPE.warmup, anneal_strategy="linear", cycle_momentum=False
    )
    return net, optimiser, schedule


ARMS: dict[str, Callable[[dtl.TransferProblem, np.ndarray, int], np.ndarray]] = {
    "study": study,
    "plain": plain,
    "reference": reference,
}


def main(
    rounds: Annotated[int, typer.Option(min=1, help="interleaved rounds")] = 5,
    models: Annotated[int, typer.Option(min=2, help="models of the study in a round")] = 64,
    loop_models: Annotated[int, typer.Option(min=2, help="of these, models that each loop trains too")] = 16,
) -> None:
    """Measure models per minute of a study and of two loops, and print a table."""
    if "OMP_NUM_THREADS" in os.environ:
        raise typer.BadParameter("unset OMP_NUM_THREADS: the loops must run with torch's default threads")
    problem = dtl.load("testbed", seed=0)
    masks = dtl.subset_masks(problem.source.n_classes, rounds * models)
    for arm in ARMS.values():  # first calls allocate and load what later ones reuse
        arm(problem, masks[:2], 1)
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    accuracy: dict[str, list[np.ndarray]] = {name: [] for name in ARMS}
    rate: dict[str, list[float]] = {name: [] for name in ARMS}
    for r in range(rounds):
        of_round = masks[r * models : (r + 1) * models]
        for name, arm in ARMS.items():
            own = of_round if name == "study" else of_round[:loop_models]
            start = time.perf_counter()
            accuracy[name].append(arm(problem, own, 1000 * (r + 1)))
            seconds[name].append(time.perf_counter() - start)
            rate[name].append(60 * len(own) / seconds[name][-1])
        print(f"round {r + 1}: " + ", ".join(f"{name} {rate[name][-1]:.0f} a minute" for name in ARMS), flush=True)

    print(f"\n{hardware()}, load {os.getloadavg()[0]:.1f}, {platform.platform()}")
    print(
        f"python {platform.python_version()}, torch {torch.__version__} ({torch.get_num_threads()} threads), "
        f"numpy {np.__version__}, scikit-learn {sklearn.__version__}"
    )
    print(
        f"{problem.name}, {RECIPE.epochs} epochs, batch {RECIPE.batch_size}, lr {RECIPE.lr}, widths {RECIPE.widths}, "
        f"{RECIPE.models_at_once} models at once\n"
    )
    print("| arm | models | models a minute, median (min to max) | study is faster by | test accuracy (sd) | study's |")
    print("|---|---|---|---|---|---|")
    for name in ARMS:
        ratio = np.array(rate["study"]) / rate[name]
        own = np.concatenate(accuracy[name])
        same = np.concatenate([a[: len(b)] for a, b in zip(accuracy["study"], accuracy[name], strict=True)])
        gap = same - own  # on the same subsets
        print(
            f"| {name} | {len(own)} | {np.median(rate[name]):.0f} ({min(rate[name]):.0f} to {max(rate[name]):.0f}) "
            f"| {np.median(ratio):.1f} ({ratio.min():.1f} to {ratio.max():.1f}) "
            f"| {own.mean():.3f} ({own.std(ddof=1):.3f}) "
            f"| {same.mean():.3f}, difference {gap.mean():+.3f} ± {gap.std(ddof=1) / len(gap) ** 0.5:.3f} |"
        )


if __name__ == "__main__":
    typer.run(main)
