"""What a checkpoint holds of the data: a loader's position and the selected images."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from lit_robust.checkpoint_sections import is_count
from lit_robust.checkpoint_states import broken


def position_of(state: Any) -> tuple[int, int]:
    """The epoch of a loader and the number of its batches that were yielded.

    Raises:
        ValueError: If the state does not hold both.
    """
    if not isinstance(state, dict) or not all(is_count(state.get(key)) for key in ("epoch", "batches")):
        raise broken("its loader's state", state, "the counts epoch and batches by name")
    return state["epoch"], state["batches"]


def selection_of(state: Any) -> dict[str, Any]:
    """The arguments for ``select``; without a selection ``indices`` and ``weights`` are None.

    Raises:
        ValueError: If the state holds neither None nor tensors.
    """
    selection = state.get("selection") if isinstance(state, dict) else state
    if isinstance(state, dict) and "selection" in state and selection is None:
        return {"indices": None, "weights": None}
    parts = ("indices", "weights")
    if not isinstance(selection, dict) or not all(isinstance(selection.get(part), Tensor) for part in parts):
        raise broken("the data's selection", selection, "the tensors indices and weights by name, or null")
    return {part: selection[part] for part in parts} | {"in_order": selection.get("in_order") is True}


def saved_arguments(checkpoint: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The plain arguments of a data module that a checkpoint holds.

    Args:
        checkpoint: The checkpoint.
        names: The arguments to look for.

    Raises:
        ValueError: If they are not by name, or one is neither a number nor a word.
    """
    saved = checkpoint.get("datamodule_hyper_parameters") or {}
    if not isinstance(saved, dict):
        raise broken("its datamodule_hyper_parameters", saved, "arguments by name")
    found = {name: saved[name] for name in sorted(names) if name in saved}
    for name, value in found.items():
        if not isinstance(value, bool | int | float | str | None):
            raise broken(f"its argument {name} of the data", value, f"a number or a word, or give {name}=...")
    return found
