"""What a checkpoint holds of averages of weights, and its checks before any of it is restored."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_robust.checkpoint_states import Rule, check_entries, check_tensors, of_rank
from lit_robust.ranks import float_buffers

#: The section with the averages' float buffers on each rank.
BUFFERS = "averaged_buffers"

#: What the number of updates of an average must be.
_UPDATES: Rule = (
    lambda value: isinstance(value, Tensor) and value.shape == () and value.dtype == torch.int64 and int(value) >= 0,
    "a count of updates, at least 0",
)


def buffers_of(average: nn.Module, extra: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The float buffers of the main average and of extra ones by name, after the section with their average."""
    nets = {"state_dict": average} | {f"extra_averages.{name}": net for name, net in extra.items()}
    return {f"{place}.{name}": one for place, net in nets.items() for name, one in float_buffers(net).items()}


def checked_buffers(
    checkpoint: Mapping[str, Any],
    module: Mapping[str, Tensor],
    extra: Mapping[str, Mapping[str, Tensor]],
    buffers: Mapping[str, Tensor],
    rank: int,
) -> dict[str, Tensor]:
    """Check a checkpoint's averages, and return their float buffers of one rank, see ``of_rank``.

    Args:
        checkpoint: Its content; averages that it lacks are not checked.
        module: The ``state_dict`` of the module.
        extra: One of the same names and shapes for each extra average.
        buffers: What ``buffers_of`` returns for this training.
        rank: The rank of this process.

    Raises:
        ValueError: If they are broken or of another net.
    """
    saved = checkpoint.get("extra_averages", {})
    try:
        check_entries("extra_averages", saved, {})
        if "current_model_state" in checkpoint:
            check_entries("averaging_state", checkpoint.get("averaging_state"), {"n_averaged": _UPDATES})
            for name in ("state_dict", "current_model_state"):
                check_tensors(name, checkpoint[name], module)
        for name in extra.keys() & saved.keys():
            check_tensors(f"extra_averages.{name}", saved[name], extra[name])
        return of_rank(BUFFERS, checkpoint.get(BUFFERS, []), rank, buffers)
    except ValueError as error:
        reason = str(error).removeprefix("the checkpoint is broken: ").removesuffix("; use an earlier one.")
        raise ValueError(
            f"the checkpoint's averages are broken or of another net ({reason}): use an earlier one, or leave "
            "EMAWeights out."
        ) from error
