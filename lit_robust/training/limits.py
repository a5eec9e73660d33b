"""Range checks of every batch's pixels and labels that rarely wait for the device."""

import torch
from torch import Tensor

from lit_robust import require
from lit_robust.batch import Batch
from lit_robust.ranks import max_over_ranks


class Limits:
    """The range of pixels and labels since the last check; only ``check`` waits for the device.

    Args:
        num_classes: Labels are 0 to ``num_classes - 1``; a sample that should not count has weight 0.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.reached: Tensor | None = None

    def watch(self, batch: Batch) -> Batch:
        """Add a batch, and return it with labels clamped to the classes, so that no kernel fails before ``check``."""
        x, y = torch.stack(torch.aminmax(batch.x.detach())), torch.stack(torch.aminmax(batch.y))
        reached = torch.stack([-x[0], x[1], -y[0].to(x.dtype), y[1].to(x.dtype)]).float()
        self.reached = reached if self.reached is None else torch.maximum(self.reached, reached)
        return batch._replace(y=batch.y.clamp(0, self.num_classes - 1))

    def check(self) -> None:
        """Refuse values out of range since the last check, on any rank; every rank must call it.

        Raises:
            ValueError: If a pixel was outside [0, 1] or NaN, or a label was not one of the classes.
        """
        if self.reached is None:
            return
        reached = max_over_ranks(self.reached.nan_to_num(nan=torch.inf)).tolist()
        self.reached = None
        require.later_batches(reached, self.num_classes)
