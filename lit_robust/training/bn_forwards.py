"""Forwards of the authors' code that serve no update, but move BatchNorm's running statistics."""

from typing import get_args

import torch
from torch import Tensor, nn

from lit_robust import require
from lit_robust.guards import BNMode
from lit_robust.training.arguments import BNForwards


def check_bn_forwards(bn_forwards: BNForwards, attack_bn_mode: BNMode, authors_mode: BNMode) -> BNForwards:
    """Refuse ``bn_forwards="authors"`` with another mode of the attack than the authors'.

    Args:
        bn_forwards: The method's argument.
        attack_bn_mode: The net's mode during the attack.
        authors_mode: The mode in the authors' code.

    Raises:
        ValueError: If ``bn_forwards`` is unknown, or the modes differ.
    """
    require.one_of("bn_forwards", bn_forwards, get_args(BNForwards))
    if bn_forwards == "authors" and attack_bn_mode != authors_mode:
        raise ValueError(
            f'attack_bn_mode="{attack_bn_mode}" must be "{authors_mode}" with bn_forwards="authors", as in their code: '
            'set it so, or bn_forwards="needed".'
        )
    return bn_forwards


@torch.no_grad()
def move_statistics(net: nn.Module, x: Tensor) -> None:
    """Run a forward that moves the running statistics and nothing else."""
    net(x)
