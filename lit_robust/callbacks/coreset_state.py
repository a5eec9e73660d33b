"""A coreset in a checkpoint."""

from typing import Any

import torch

from lit_robust.selection import Coreset


def state_of(coreset: Coreset | None) -> dict[str, Any]:
    """The coreset as tensors and numbers; None before the first selection."""
    if coreset is None:
        return {"indices": None, "weights": None, "filled": 0}
    return {"indices": coreset.indices.to(torch.int32), "weights": coreset.weights, "filled": coreset.filled}


def coreset_of(state: dict[str, Any]) -> Coreset | None:
    """The coreset that ``state_of`` has described."""
    if state["indices"] is None:
        return None
    return Coreset(state["indices"].long(), state["weights"], int(state["filled"]))
