"""dtl: which part of the source data helps or hurts a transferred model, and how sure we are."""

from dtl import (
    beton,
    check,
    data,
    design,
    imagenet200,
    influence,
    leakage,
    mistakes,
    models,
    plots,
    projection,
    removal,
    results,
    scale,
    study,
    substitutes,
    targets,
    testbed,
    tiles,
    training,
    transfer,
    widgets,
)
from dtl.data import ImageDataset, TransferProblem, Truth, from_folders, load
from dtl.design import subset_masks
from dtl.influence import Influence, estimate_influence, linear_datamodeling_score, models_needed
from dtl.leakage import leaked, misleading
from dtl.mistakes import flip_rate, suspects
from dtl.projection import Subpopulations, project, subpopulations
from dtl.removal import removal_curve
from dtl.study import Study
from dtl.tiles import influence_to_zarr
from dtl.training import Recipe

__all__ = [
    "ImageDataset",
    "Influence",
    "Recipe",
    "Study",
    "Subpopulations",
    "TransferProblem",
    "Truth",
    "beton",
    "check",
    "data",
    "design",
    "estimate_influence",
    "flip_rate",
    "from_folders",
    "imagenet200",
    "influence",
    "influence_to_zarr",
    "leakage",
    "leaked",
    "linear_datamodeling_score",
    "misleading",
    "load",
    "mistakes",
    "models",
    "models_needed",
    "plots",
    "project",
    "projection",
    "removal",
    "removal_curve",
    "results",
    "scale",
    "study",
    "subpopulations",
    "subset_masks",
    "substitutes",
    "suspects",
    "targets",
    "testbed",
    "tiles",
    "training",
    "transfer",
    "widgets",
]
