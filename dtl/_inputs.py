"""Masks and outputs before an influence is estimated: every check, and the design that the masks show.

The checks take NumPy and dask arrays.
"""

from typing import Any

import numpy as np

from dtl._checks import InputError, listed
from dtl.design import DESIGNS, block_length


def checked(included: Any, outputs: Any, held_out: bool = False) -> tuple[Any, Any]:
    """The masks as bool, and the outputs, after every check of the two; they may be dask arrays."""
    if included.ndim != 2 or outputs.ndim != 2 or len(included) != len(outputs):
        raise InputError(
            "masks must be (models, classes) and outputs (models, targets) with the same models, got shapes "
            f"{included.shape} and {outputs.shape}."
        )
    if included.dtype != bool and not np.isin(included, (0, 1)).all():
        raise InputError("masks must be boolean or 0/1: True where the model was trained on the class.")
    included = included.astype(bool)
    if len(included) < 2:
        raise InputError(f"At least two models are needed, got {len(included)}.")
    if included.shape[1] < 2:
        raise InputError(f"At least two source classes are needed, got {included.shape[1]}.")
    if outputs.shape[1] < 1:
        raise InputError("outputs hold no target.")
    if not (np.issubdtype(outputs.dtype, np.number) or outputs.dtype == bool) or np.iscomplexobj(outputs):
        raise InputError(f"outputs must be real numbers, got dtype {outputs.dtype}.")
    bad = np.asarray(~np.isfinite(outputs).all(axis=1))
    if bad.any():
        raise InputError(f"Outputs are NaN or infinite for models {listed(bad)}: train them again or leave them out.")
    counts = np.asarray(included.sum(axis=0))
    for flags, when in ((counts == 0, "never"), (counts == len(included), "always")):
        if flags.any() and not held_out:
            raise InputError(
                f"Classes {when} in a subset: {listed(flags)}. Their influence cannot be estimated; train more models "
                "or leave these classes out."
            )
    return included, outputs


def checked_design(included: Any, design: str | None) -> str:
    """The design, recognised or found to agree with the masks, which may be a dask array."""
    if design is None:
        if len(included) % 2 or not are_complements(included):
            return "random"
        return "balanced" if is_balanced(included) else "paired"
    if design not in DESIGNS:
        raise InputError(f"Unknown design {design!r}: choose one of {', '.join(DESIGNS)}.")
    if design != "random" and not are_complements(included):
        raise InputError(
            f'Rows of a {design} design must be pairs of complements: use design="random" for these masks.'
        )
    return design


def are_complements(included: np.ndarray) -> bool:
    last = len(included) // 2 * 2
    return bool((included[0:last:2] != included[1:last:2]).all())


def is_balanced(included: np.ndarray) -> bool:
    """Whether complementary pairs form whole balanced blocks: as many models, and all pairs of classes meet equally."""
    m, n_classes = included.shape
    length = block_length(n_classes)
    if m % length:
        return False
    signs = 2 * np.asarray(included[::2], dtype=np.float32) - 1
    gram = signs.T @ signs + m // length
    return not gram[~np.eye(n_classes, dtype=bool)].any()


def unpacked(masks: Any, n_units: int) -> Any:
    """Packed masks, a dask array, as bool (m, n_units)."""
    widths = tuple(8 * width for width in masks.chunks[1])
    bits = masks.map_blocks(np.unpackbits, axis=1, dtype=np.uint8, chunks=(masks.chunks[0], widths))
    return bits[:, :n_units].astype(bool)


def precision(outputs: Any) -> np.dtype:
    """float32 for outputs that it holds: sums round to 1e-6 of an output's spread, far below a standard error."""
    return np.result_type(outputs.dtype, np.float32)


def from_first(outputs: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Levels do not matter; measured from the first model, a target that never varies is exactly zero."""
    return np.subtract(outputs, outputs[:1], dtype=dtype)
