"""What a checkpoint holds of the data: a loader's position and the selected images."""

from typing import Any

from torch import Tensor

from lit_robust.checkpoint_sections import is_count
from lit_robust.shown import shown


def position_of(state: Any) -> tuple[int, int]:
    """The epoch of a loader and the number of its batches that were yielded.

    Raises:
        ValueError: If the state does not hold both.
    """
    if not isinstance(state, dict) or not all(is_count(state.get(key)) for key in ("epoch", "batches")):
        raise _broken("its loader's state", state, "the counts epoch and batches")
    return state["epoch"], state["batches"]


def selection_of(state: Any) -> dict[str, Tensor | None]:
    """The arguments for ``select``; without a selection they are None.

    Raises:
        ValueError: If the state holds neither None nor tensors.
    """
    selection = state.get("selection") if isinstance(state, dict) else state
    if isinstance(state, dict) and "selection" in state and selection is None:
        return {"indices": None, "weights": None}
    parts = ("indices", "weights")
    if not isinstance(selection, dict) or not all(isinstance(selection.get(part), Tensor) for part in parts):
        raise _broken("the data's selection", selection, "the tensors indices and weights, or null")
    return {part: selection[part] for part in parts}


def _broken(what: str, found: Any, needed: str) -> ValueError:
    return ValueError(
        f"the checkpoint is broken: {what} is {shown(found)}, but it must hold {needed}; use an earlier one."
    )
