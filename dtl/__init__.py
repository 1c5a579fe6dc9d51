"""dtl: which part of the source data helps or hurts a transferred model, and how sure we are."""

from dtl import (
    check,
    data,
    design,
    influence,
    models,
    plots,
    removal,
    scale,
    study,
    testbed,
    training,
    transfer,
    widgets,
)
from dtl.data import ImageDataset, TransferProblem, Truth, from_folders, load
from dtl.design import subset_masks
from dtl.influence import Influence, estimate_influence, linear_datamodeling_score, models_needed
from dtl.removal import removal_curve
from dtl.study import Study
from dtl.training import Recipe

__all__ = [
    "ImageDataset",
    "Influence",
    "Recipe",
    "Study",
    "TransferProblem",
    "Truth",
    "check",
    "data",
    "design",
    "estimate_influence",
    "from_folders",
    "influence",
    "linear_datamodeling_score",
    "load",
    "models",
    "models_needed",
    "plots",
    "removal",
    "removal_curve",
    "scale",
    "study",
    "subset_masks",
    "testbed",
    "training",
    "transfer",
    "widgets",
]
