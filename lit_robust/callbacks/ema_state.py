"""What averages of weights need of a module, and what a checkpoint holds of them, checked before it is restored."""

from collections.abc import Mapping
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelPruning, StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lit_robust.callbacks.needs import check_alone
from lit_robust.checkpoint_states import Rule, check_entries, check_tensors, of_rank
from lit_robust.ranks import float_buffers
from lit_robust.torch_internals import plain_name

#: The section with the averages' float buffers on each rank.
BUFFERS = "averaged_buffers"

#: What the number of updates of an average must be.
_UPDATES: Rule = (
    lambda value: isinstance(value, Tensor) and value.shape == () and value.dtype == torch.int64 and int(value) >= 0,
    "a count of updates, at least 0",
)


def check_trainer(trainer: Any, me: Callback) -> None:
    """Refuse callbacks that would undo the average, or save other weights.

    Raises:
        ValueError: If there is one.
    """
    why = (
        "only one callback may average weights, because swaps do not nest: give the decays of further averages to the "
        'first EMAWeights, as extra={"name": decay}.'
    )
    check_alone(trainer, me, WeightAveraging, why)
    swa = "EMAWeights' average would replace that of StochasticWeightAveraging: leave one of these callbacks out."
    check_alone(trainer, me, StochasticWeightAveraging, swa)
    pruning = "EMAWeights cannot average the masked weights of ModelPruning: prune in a later fit, without EMAWeights."
    check_alone(trainer, me, ModelPruning, pruning)
    if any(getattr(other, "save_weights_only", False) for other in trainer.checkpoint_callbacks):
        raise ValueError(
            "ModelCheckpoint(save_weights_only=True) would save the live weights instead of EMAWeights' "
            "average: set it to False."
        )


def not_copied(module: nn.Module) -> str | None:
    """Why a module cannot be copied for an average, and what to do; None if each of its attributes can be."""
    for path, part in reversed(list(module.named_modules())):  # the innermost first, as outer ones hold them
        # A LightningModule's state is without its trainer, which its copies lack.
        for name, value in chain(part.named_buffers(recurse=False), part.__getstate__().items()):
            try:
                deepcopy(value)
            except (RuntimeError, TypeError, ValueError) as error:
                place = f"{path}.{name}".removeprefix(".")
                reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
                return f"EMAWeights copies {type(module).__name__}, but not its {place} ({reason}): {_remedy(value)}."
    return None


def _remedy(value: Any) -> str:
    if isinstance(value, Tensor):
        return (
            "detach() what the module keeps of a graph, or replace torch.nn.utils.weight_norm by "
            "torch.nn.utils.parametrizations.weight_norm"
        )
    return "keep it outside the module, or give its class a __deepcopy__"


def check_initialized(module: nn.Module) -> None:
    """Refuse a lazy module, whose weights have no shape before its first batch.

    Raises:
        ValueError: If a parameter or a buffer has none.
    """
    for name, one in chain(module.named_parameters(), module.named_buffers()):
        if is_lazy(one):
            raise ValueError(
                f"EMAWeights cannot average {name}, which a lazy layer has not initialized yet: run one batch through "
                "the net before the fit."
            )


def check_same_tensors(average: nn.Module, live: nn.Module) -> None:
    """Refuse live weights that differ from their average by name or shape.

    Raises:
        ValueError: If they do.
    """
    mine, theirs = _shapes(average), _shapes(live)
    if mine != theirs:
        names = ", ".join(sorted({name for name, _ in set(mine) ^ set(theirs)})) or "their order"
        raise ValueError(
            f"EMAWeights' average and the trained module differ in {names}: give the module its final parameters "
            "before the fit, or leave EMAWeights out."
        )


def _shapes(module: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(plain_name(name), one.shape) for name, one in chain(module.named_parameters(), module.named_buffers())]


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
