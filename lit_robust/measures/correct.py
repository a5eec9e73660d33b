"""Which images are classified correctly."""

import torch
from torch import Tensor, nn

from lit_robust.logits import predicts


@torch.no_grad()
def is_correct(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Tell which images are classified correctly, ``(N,)`` bool."""
    return predicts(net(x), y)
