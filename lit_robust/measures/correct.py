"""Which images are classified correctly."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def is_correct(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Tell which images are classified correctly, ``(N,)`` bool."""
    logits: Tensor = net(x)
    return (logits.argmax(dim=1) == y) & logits.isfinite().all(dim=1)  # NaN is wrong, not class 0
