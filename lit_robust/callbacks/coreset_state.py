"""What a checkpoint holds of a ``CoresetSelection``."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_robust.checkpoint_sections import is_count
from lit_robust.checkpoint_states import Rule, broken, check_entries, is_finite
from lit_robust.selection import Coreset


def _are_positions(value: Any) -> bool:
    """Whether it is None or a tensor of distinct positions in ascending order, at least one."""
    if value is None:
        return True
    fits = isinstance(value, Tensor) and value.dtype in (torch.int32, torch.int64) and value.ndim == 1 and len(value)
    return bool(fits) and bool((value[:1] >= 0).all()) and bool((value[1:] > value[:-1]).all())


def _are_weights(value: Any) -> bool:
    """Whether it is None or a tensor of finite numbers above 0."""
    if value is None:
        return True
    fits = isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 1
    return fits and bool((value.isfinite() & (value > 0)).all())


_COUNT: Rule = (is_count, "a count")
_RULES: dict[str, Rule] = {
    "indices": (_are_positions, "a tensor of ascending positions in the training set, or null before a selection"),
    "weights": (_are_weights, "a tensor of weights above 0, or null before a selection"),
    "filled": _COUNT,
    "epoch": _COUNT,
    "used": _COUNT,
    "pending": (lambda value: isinstance(value, bool), "true or false"),
    "seconds": (lambda value: is_finite(value) and value >= 0, "a number of seconds"),
    "error": (lambda value: value is None or (is_finite(value) and value >= 0), "a number of at least 0, or null"),
}


def state_of(coreset: Coreset | None) -> dict[str, Any]:
    """The coreset as tensors and numbers; None before the first selection."""
    if coreset is None:
        return {"indices": None, "weights": None, "filled": 0}
    return {"indices": coreset.indices.to(torch.int32), "weights": coreset.weights, "filled": coreset.filled}


def coreset_of(where: str, state: Mapping[str, Any]) -> Coreset | None:
    """The coreset of a state that ``state_of`` has described.

    Args:
        where: The place of the state in the checkpoint, for messages.
        state: All entries of the callback's state, which are checked.

    Raises:
        ValueError: If an entry is missing or cannot be used.
    """
    check_entries(where, state, _RULES)
    indices, weights = state["indices"], state["weights"]
    if indices is None and weights is None:
        return None
    if indices is None:
        raise broken(f"{where}.indices", indices, f"a position for each of the {len(weights)} weights")
    if weights is None or len(weights) != len(indices):
        raise broken(f"{where}.weights", weights, f"a weight for each of the {len(indices)} indices")
    return Coreset(indices.long(), weights, state["filled"])
