"""Parameter groups that a callback adds to the optimizer in mid-training, as Lightning's BaseFinetuning does."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn

from lit_robust.nets.foldable import NORMALIZATIONS


def unfreeze_added(net: nn.Module, added: Sequence[Mapping[str, Any]]) -> None:
    """Unfreeze the weights of added groups, and a BatchNorm beside such a layer, which is unfrozen with it.

    BaseFinetuning freezes them again in a resumed training, and adds them only once.
    """
    weights = {id(weight) for group in added for weight in group["params"]}
    parts = [part for part in net.modules() if weights & set(map(id, part.parameters(recurse=False)))]
    for siblings in ([*part.children()] for part in net.modules()):
        if any(one in parts for one in siblings):
            parts += [one for one in siblings if isinstance(one, NORMALIZATIONS)]
    BaseFinetuning.make_trainable(parts)


def base_rates_with(
    added: Sequence[Mapping[str, Any]], now: float, own: Sequence[float], saved: Sequence[float]
) -> list[float]:
    """The rates that a Schedule multiplies, with those of groups that have been added.

    An added group keeps the ratio of its rate to the first group's. After a resume that is known from the checkpoint;
    the quotient of present rates is rounded, and there is none where the Schedule is 0.

    Args:
        added: The groups.
        now: The present rate of the first group.
        own: The rates before, of the groups before them.
        saved: All rates of the checkpoint from which training resumes, in the same order; empty in a new training.
    """
    rates = [*own]
    for group in added:
        if len(rates) < len(saved):
            rates.append(saved[len(rates)] * (own[0] / saved[0] if saved[0] else 1))  # exactly 1 with the same lr
        else:
            rates.append(group["lr"] * own[0] / now if now else group["lr"])
    return rates
