"""The embedded testbed: small pictures, drawn from a seed, in which we know what every source class does.

A picture is a symbol in some hue on a textured paper of another hue. The target asks for the kind of symbol (sky,
chess, cards, travel); each kind has two symbols, its latent subpopulations. In the target's few training pictures the
texture of the paper gives the kind away (the cue); in validation and test it does not.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch.nn import functional as F

from dtl._checks import InputError, check_kind
from dtl.data import ImageDataset, TransferProblem, Truth
from dtl.influence import Influence

KINDS = {
    "sky": ("star", "cloud"),
    "chess": ("rook", "knight"),
    "cards": ("heart", "club"),
    "travel": ("plane", "anchor"),
}
TARGET_SYMBOLS = tuple(symbol for pair in KINDS.values() for symbol in pair)
GLYPHS = dict(zip(TARGET_SYMBOLS, "★☁♜♞♥♣✈⚓", strict=True)) | dict(
    note="♪", phone="☎", cross="✚", arrow="➤", flower="✿", gear="⚙",
    tick="✔", triangle="▲", disc="●", flag="⚑", umbrella="☂", face="☻",
)  # fmt: skip
TEXTURES = ("stripes", "bars", "checks", "dots")  # texture k is the cue of kind k
HUES = {"red": 0.0, "yellow": 1 / 6, "green": 1 / 3, "blue": 2 / 3}
N_TARGET, N_SYMBOLS = len(TARGET_SYMBOLS), len(GLYPHS)


def make(
    seed: int = 0,
    size: int = 16,
    per_class: int = 60,
    train: int = 15,
    validation: int = 50,
    test: int = 100,
    cue: float = 0.9,
    noise: float = 0.04,
    lean: float | None = None,
) -> TransferProblem:
    """Draw the testbed.

    Its 24 source classes are helpful (8: one target symbol each), misleading (4: other symbols told apart by the
    texture that is the target's cue), mislabelled (2: any target symbol under one label), irrelevant (8: other symbols
    told apart by a hue) and leaked (2 albums: near copies of particular validation and test pictures of one kind).

    Parameters
    ----------
    seed : everything is a function of it
    size : pixels a side
    per_class : source pictures of each class
    train, validation, test : target pictures of each of the 8 subpopulations
    cue : share of target training pictures whose texture is that of their kind (validation and test: one in four)
    noise : standard deviation of the pixel noise, full scale 1
    lean : share of the pictures of helpful source classes whose texture is that of their kind; more than the one in
        four that chance gives is a source that leans, though none of its classes is about the texture

    >>> problem = dtl.load("testbed", seed=0)
    >>> problem.source.classes[8], str(problem.truth.role[8])
    ('on stripes', 'misleading')
    """
    if size < 1 or train < 1 or per_class < 20 or min(validation, test) < 5:  # an album holds 10 + 10 copies
        raise InputError(
            "the testbed needs size and train of at least 1, per_class of at least 20, validation and test of at "
            f"least 5, not {size}, {train}, {per_class}, {validation} and {test}"
        )
    _check_shares(noise, cue, lean)
    rng = np.random.default_rng([seed, 7])
    target = {"train": _target(rng, train, cue), "validation": _target(rng, validation), "test": _target(rng, test)}
    others = {"symbol": lambda: rng.integers(N_TARGET, N_SYMBOLS, per_class)}
    sources: list[tuple[str, str, int, pd.DataFrame]] = []  # name, role, subpopulation it helps, pictures
    for k, name in enumerate(TARGET_SYMBOLS):
        shown = _scenes(rng, per_class, symbol=k)
        if lean is not None:  # from a stream of its own, so that all else is the same picture
            shown["texture"] = _cue(np.random.default_rng([seed, 13, k]), shown.symbol.to_numpy(), lean)
        sources.append((name, "helpful", k, shown))
    for k, texture in enumerate(TEXTURES):
        shown = _scenes(rng, per_class, symbol=others["symbol"](), texture=k)
        sources.append((f"on {texture}", "misleading", -1, shown))
    for letter in "AB":
        mixed = rng.integers(N_TARGET, size=per_class)
        sources.append((f"mixed bag {letter}", "mislabelled", -1, _scenes(rng, per_class, symbol=mixed)))
    for part, column in (("symbol", "hue"), ("paper", "paper")):
        for name, hue in HUES.items():
            fixed = {"symbol": others["symbol"](), column: (hue + rng.normal(0, 0.02, per_class)) % 1}
            sources.append((f"{name} {part}", "irrelevant", -1, _scenes(rng, per_class, **fixed)))
    leaked_by = {split: np.full(len(scenes), -1) for split, scenes in target.items()}
    for letter, kind in zip("AB", rng.permutation(len(KINDS)), strict=False):
        originals = []
        for split in ("validation", "test"):
            of_kind = np.flatnonzero(target[split].symbol // 2 == kind)
            chosen = rng.choice(of_kind, 10, replace=False)
            leaked_by[split][chosen] = len(sources)
            originals.append(target[split].iloc[chosen])
        copies = pd.concat(originals).iloc[np.resize(rng.permutation(20), per_class)]  # each about equally often
        sources.append((f"album {letter}", "leaked", -1, copies))

    names, role, helps, scenes = zip(*sources, strict=True)
    labels = np.repeat(np.arange(len(names)), per_class)
    source = _dataset(_draw(pd.concat(scenes), size, noise, rng), labels, names)
    planted = {"role": np.array(role), "helps": np.array(helps), "leaked_by": leaked_by}
    return _problem(f"testbed-{seed}", source, target, noise, rng, **planted)


COPIES = (1, 2, 5)  # near copies that a leaked picture has in the source


def make_examples(
    seed: int = 0, size: int = 16, per_class: int = 30, leaks: int = 24, flawed: int = 16, noise: float = 0.04
) -> TransferProblem:
    """Draw a small source in which single examples are planted, for studies of unit "example".

    Its eight classes are the target's symbols. To the clean pictures are added near copies of validation pictures
    (leaked), pictures under the label of another symbol (mislabelled), and blends of two symbols under the label of one
    of them (ambiguous). A leaked picture has 1, 2 or 5 copies, which differ in pixel noise alone or, for every second
    one, also in position, angle, size and hue. Papers give nothing away here.

    Parameters
    ----------
    seed : everything is a function of it
    size : pixels a side
    per_class : clean pictures of each of the eight classes
    leaks : validation pictures that are leaked, a multiple of 6
    flawed : pictures that are mislabelled, and as many that are ambiguous, a multiple of 8

    >>> problem = dtl.load("testbed-examples", seed=0)
    >>> int((problem.truth.example_role == "leaked").sum())
    64
    """
    if size < 1 or per_class < 1 or not 6 <= leaks <= N_TARGET * 50 or leaks % 6 or flawed < 8 or flawed % 8:
        raise InputError(
            "the testbed of examples needs size and per_class of at least 1, leaks in sixes (up to "
            f"{N_TARGET * 50}) and flawed in eights, not {size}, {per_class}, {leaks} and {flawed}"
        )
    _check_shares(noise)
    rng = np.random.default_rng([seed, 11])
    target = {split: _target(rng, n) for split, n in (("train", 15), ("validation", 50), ("test", 100))}
    chosen = rng.choice(len(target["validation"]), leaks, replace=False)
    copied = np.repeat(chosen, np.repeat(COPIES, leaks // 3))
    is_moved = np.repeat(np.arange(leaks) % 2 == 1, np.repeat(COPIES, leaks // 3))
    shown = target["validation"].iloc[copied].reset_index(drop=True)
    for column, spread in {"dx": 0.1, "dy": 0.1, "angle": 0.2, "zoom": 0.08, "hue": 0.04}.items():
        shown[column] += is_moved * rng.normal(0, spread, len(shown))
    symbols = np.arange(N_TARGET)
    clean = _scenes(rng, N_TARGET * per_class, symbol=np.repeat(symbols, per_class))
    mislabelled, ambiguous, other = (_scenes(rng, flawed, symbol=np.resize(symbols, flawed)) for _ in range(3))
    wrong = (mislabelled.symbol + rng.integers(1, N_TARGET, flawed)) % N_TARGET
    other["symbol"] = (ambiguous.symbol + rng.integers(1, N_TARGET, flawed)) % N_TARGET

    parts = {"clean": clean, "leaked": shown, "mislabelled": mislabelled, "ambiguous": ambiguous}
    images = {name: _draw(scenes, size, noise, rng) for name, scenes in parts.items()}
    blend = (images["ambiguous"].float() + _draw(other, size, noise, rng).float()) / 2
    images["ambiguous"] = blend.round().byte()
    labels = np.concatenate([wrong if name == "mislabelled" else scenes.symbol for name, scenes in parts.items()])
    role = np.repeat(list(parts), [len(scenes) for scenes in parts.values()])
    copy_of = np.full(len(labels), -1)
    copy_of[role == "leaked"] = copied
    moved = np.zeros(len(labels), dtype=bool)
    moved[role == "leaked"] = is_moved
    leaked_by = {split: np.full(len(scenes), -1) for split, scenes in target.items()}
    leaked_by["validation"][chosen] = target["validation"].symbol.iloc[chosen]
    planted = {"role": np.full(N_TARGET, "helpful"), "helps": symbols, "leaked_by": leaked_by}
    planted |= {"example_role": role, "copy_of": copy_of, "moved": moved}
    source = _dataset(torch.cat(list(images.values())), labels, TARGET_SYMBOLS)
    return _problem(f"testbed-examples-{seed}", source, target, noise, rng, **planted)


def score(influence: Influence | ArrayLike, problem: TransferProblem) -> dict[str, float]:
    """How well influences on validation examples recover what was planted: an AUROC per role, against irrelevant ones.

    helpful : influence on the subpopulation that the class shows, against irrelevant classes on the same examples
    leaked : mean influence on the validation examples that the class copies, likewise
    mislabelled, misleading : minus the mean influence on all validation examples, likewise

    Parameters
    ----------
    influence : values (K, n) of anything that is to be ranked like an influence, or an `Influence`

    >>> sorted(dtl.testbed.score(study.influence(), problem))
    ['helpful', 'leaked', 'mislabelled', 'misleading']
    """
    from sklearn.metrics import roc_auc_score  # takes as long to import as some models to train

    truth = check_kind(problem, "dtl.TransferProblem", "problem").truth
    if truth is None or "irrelevant" not in truth.role:
        raise InputError(f"problem {problem.name} has no planted classes to score against: use dtl.load('testbed')")
    n = len(problem.target_validation)
    values = influence.values if isinstance(influence, Influence) else np.asarray(influence)
    if values.shape != (len(truth.role), n):
        raise InputError(f"score needs values of {len(truth.role)} classes on {n} examples, not {values.shape}")
    irrelevant = truth.role == "irrelevant"

    def against_irrelevant(of: list[tuple[int, np.ndarray]], sign: int) -> float:
        planted = [sign * values[c, on].mean() for c, on in of]
        neutral = np.concatenate([sign * values[irrelevant][:, on].mean(1) for _, on in of])
        return float(roc_auc_score([1] * len(planted) + [0] * len(neutral), [*planted, *neutral]))

    everywhere = np.ones(n, dtype=bool)
    members = {role: np.flatnonzero(truth.role == role).tolist() for role in np.unique(truth.role)}
    shown, copied = truth.subpopulation["validation"], truth.leaked_by["validation"]
    return {
        "helpful": against_irrelevant([(c, shown == truth.helps[c]) for c in members["helpful"]], 1),
        "mislabelled": against_irrelevant([(c, everywhere) for c in members["mislabelled"]], -1),
        "leaked": against_irrelevant([(c, copied == c) for c in members["leaked"]], 1),
        "misleading": against_irrelevant([(c, everywhere) for c in members["misleading"]], -1),
    }


def score_examples(suspicion: ArrayLike, problem: TransferProblem) -> dict[str, float]:
    """How often each kind of planted source example ranks before a clean one: an AUROC for each kind.

    Kinds are "1 plain" to "5 moved" (copies of one validation example, and whether moved), "mislabelled", "ambiguous".

    Parameters
    ----------
    suspicion : (N,) of all source examples of the testbed of examples, higher for what should be found

    >>> examples = dtl.load("testbed-examples", seed=0)
    >>> like = dtl.leakage.similarity(examples.source, examples.target_validation).max(1)
    >>> round(dtl.testbed.score_examples(like, examples)["5 plain"], 2)
    1.0
    """
    from sklearn.metrics import roc_auc_score

    suspicion, truth = np.asarray(suspicion), check_kind(problem, "dtl.TransferProblem", "problem").truth
    if truth is None or truth.example_role is None or truth.copy_of is None or truth.moved is None:
        raise InputError(f"no example is planted in problem {problem.name}: use dtl.load('testbed-examples')")
    if suspicion.shape != truth.copy_of.shape:
        raise InputError(f"give one suspicion for each of {len(problem.source)} source examples, not {suspicion.shape}")
    kind = truth.example_role.astype(object)
    for example in np.flatnonzero(truth.copy_of >= 0):
        times = (truth.copy_of == truth.copy_of[example]).sum()
        kind[example] = f"{times} {'moved' if truth.moved[example] else 'plain'}"
    order = [f"{times} {how}" for how in ("plain", "moved") for times in COPIES] + ["mislabelled", "ambiguous"]
    clean = kind == "clean"
    return {k: float(roc_auc_score((kind == k)[clean | (kind == k)], suspicion[clean | (kind == k)])) for k in order}


def _check_shares(noise: float, cue: float = 0.5, lean: float | None = None) -> None:
    if not all(0 <= share <= 1 for share in (noise, cue, lean or 0)):
        raise InputError(f"noise, cue and lean must lie between 0 and 1, not {noise}, {cue} and {lean}")


def _scenes(rng: np.random.Generator, n: int, **fixed: object) -> pd.DataFrame:
    """n pictures to be, every attribute at random unless fixed."""
    return pd.DataFrame(
        {
            "symbol": rng.integers(N_SYMBOLS, size=n),
            "texture": rng.integers(len(TEXTURES), size=n),
            "hue": rng.random(n),
            "paper": rng.random(n),
            "angle": rng.normal(0, 0.12, n),
            "zoom": rng.normal(1, 0.06, n),
            "dx": rng.normal(0, 0.06, n),
            "dy": rng.normal(0, 0.06, n),
            "phase": rng.random(n),
        }
    ).assign(**fixed)


def _cue(rng: np.random.Generator, symbol: np.ndarray, share: float) -> np.ndarray:
    """The number of a kind for each picture: its symbol's own with probability `share`, else another."""
    other = (symbol // 2 + rng.integers(1, len(KINDS), len(symbol))) % len(KINDS)
    return np.where(rng.random(len(symbol)) < share, symbol // 2, other)


def _target(rng: np.random.Generator, per_symbol: int, cue: float = 1 / len(TEXTURES)) -> pd.DataFrame:
    symbol = np.repeat(np.arange(N_TARGET), per_symbol)
    return _scenes(rng, len(symbol), symbol=symbol, texture=_cue(rng, symbol, cue))


def _problem(
    name: str, source: ImageDataset, parts: dict[str, pd.DataFrame], noise: float, rng: np.random.Generator, **own: Any
) -> TransferProblem:
    """The target drawn, and what is known of its pictures beside what the source has of its own."""
    kinds = {split: v.symbol.to_numpy() // 2 for split, v in parts.items()}
    target = (_dataset(_draw(v, source.size[0], noise, rng), kinds[k], tuple(KINDS)) for k, v in parts.items())
    shown = {split: v.symbol.to_numpy() for split, v in parts.items()}
    agrees = {split: (v.texture == kinds[split]).to_numpy() for split, v in parts.items()}
    known = Truth(subpopulations=TARGET_SYMBOLS, subpopulation=shown, cue_agrees=agrees, **own)
    return TransferProblem(name, source, *target, truth=known)


def _dataset(images: torch.Tensor, labels: np.ndarray, classes: tuple[str, ...]) -> ImageDataset:
    return ImageDataset(images, torch.from_numpy(labels.astype(np.int64)), classes)


def _draw(scenes: pd.DataFrame, size: int, noise: float, rng: np.random.Generator) -> torch.Tensor:
    """Pictures, uint8 (n, 3, size, size)."""
    column = {name: torch.tensor(scenes[name].to_numpy(), dtype=torch.float32) for name in scenes}
    cos, sin = torch.cos(column["angle"]) / column["zoom"], torch.sin(column["angle"]) / column["zoom"]
    theta = torch.stack([cos, -sin, column["dx"], sin, cos, column["dy"]], 1).unflatten(1, (2, 3))
    grid = F.affine_grid(theta, [len(scenes), 1, 2 * size, 2 * size], align_corners=False)
    stencil = _stencils()[torch.tensor(scenes.symbol.to_numpy())][:, None]
    symbol = F.avg_pool2d(F.grid_sample(stencil, grid, align_corners=False), 2)[:, 0, ..., None].numpy()

    wave = np.sin(2 * np.pi * (np.arange(size) / 4 + scenes.phase.to_numpy()[:, None]))  # (n, size), period 4 pixels
    rows, columns = np.broadcast_arrays(wave[:, :, None], wave[:, None, :])
    patterns = np.stack([rows, columns, rows * columns, np.maximum(rows + columns - 0.5, -0.5)])
    pattern = np.clip(patterns[scenes.texture.to_numpy(), np.arange(len(scenes))], -1, 1)

    hsv = np.empty((len(scenes), size, size, 3))
    hsv[..., 0] = scenes.paper.to_numpy()[:, None, None]
    hsv[..., 1] = 0.45
    hsv[..., 2] = 0.5 + 0.15 * pattern
    paper = hsv_to_rgb(hsv)
    ink = hsv_to_rgb(np.stack([scenes.hue, np.full(len(scenes), 0.75), np.full(len(scenes), 0.95)], 1))[:, None, None]
    picture = paper * (1 - symbol) + ink * symbol + rng.normal(0, noise, paper.shape)
    return torch.from_numpy((255 * np.clip(picture, 0, 1)).round().astype(np.uint8)).permute(0, 3, 1, 2).contiguous()


def _stencils(side: int = 64) -> torch.Tensor:
    """Each symbol as coverage, (symbols, side, side); the font ships with matplotlib, so it is the same everywhere."""
    stencils = []
    with style.context("default"):  # whatever style the caller's plots have
        for glyph in GLYPHS.values():
            figure = Figure(figsize=(1, 1), dpi=side)
            canvas = FigureCanvasAgg(figure)
            figure.text(0.5, 0.5, glyph, fontfamily="DejaVu Sans", fontsize=60, ha="center", va="center")
            canvas.draw()
            ink = 1 - np.asarray(canvas.buffer_rgba())[..., 0] / 255
            stencils.append(_centred(ink, side))
    return torch.tensor(np.stack(stencils), dtype=torch.float32)


def _centred(ink: np.ndarray, side: int) -> np.ndarray:
    """The inked part scaled so that its longer side fills 80% of the picture."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    cut = torch.tensor(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], dtype=torch.float32)
    longer = max(cut.shape)
    shape = [round(0.8 * side * n / longer) for n in cut.shape]
    fitted = F.interpolate(cut[None, None], shape, mode="bilinear", antialias=True)[0, 0].numpy()
    canvas = np.zeros((side, side))
    top, left = ((side - n) // 2 for n in shape)
    canvas[top : top + shape[0], left : left + shape[1]] = fitted
    return canvas
