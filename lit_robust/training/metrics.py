"""Training metrics that cost nothing: sums on the device, read now and then."""

import math

import torch
from torch import Tensor

from lit_robust.training.ranks import sum_over_ranks


class Tally:
    """Weighted means over an epoch, without a word to the logger or the host until they are asked for.

    `self.log` costs 0.3 ms a call, as much as a small net's forward; adding to a tensor costs a hundredth of it.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, weight: Tensor) -> None:
        """Add ``(N,)`` values under ``(N,)`` weights."""
        entry = torch.stack([(values.detach() * weight).sum(), weight.sum()])
        self.sums[name] = self.sums[name] + entry if name in self.sums else entry

    def means(self, epoch: int, batch_idx: int) -> dict[str, float]:
        """The means over this epoch so far and over all ranks; every rank must ask.

        Raises:
            FloatingPointError: If the loss is not finite any more.
        """
        means = {name: float(total / weight) for name, (total, weight) in self._over_ranks().items()}
        if not math.isfinite(means.get("loss", 0.0)):
            raise FloatingPointError(
                f"the training loss is {means['loss']} in epoch {epoch} by batch {batch_idx}: lower the learning rate, "
                "clip gradients (gradient_clip_val) or train in bf16-mixed instead of 16-mixed; the checkpoint before "
                "is intact."
            )
        return means

    def _over_ranks(self) -> dict[str, Tensor]:
        return {name: sum_over_ranks(entry) for name, entry in sorted(self.sums.items())}

    def reset(self) -> None:
        """Start an epoch."""
        self.sums = {}
