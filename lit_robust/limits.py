"""Range checks of every batch's pixels and labels that rarely wait for the device."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lit_robust import require
from lit_robust.batch import Batch
from lit_robust.ranks import max_over_ranks


class Limits:
    """The range of pixels and labels since the last check; only ``check`` waits for the device.

    Args:
        num_classes: Labels are 0 to ``num_classes - 1``; a sample that should not count has weight 0. None if the
            labels are not classes, and are not checked.
        reduce: The element-wise maximum over ranks; every rank must then call ``check``. None checks each rank alone.
    """

    def __init__(self, num_classes: int | None, reduce: Callable[[Tensor], Tensor] | None = max_over_ranks) -> None:
        self.num_classes = num_classes
        self.reduce = reduce
        self.reached: Tensor | None = None

    def watch(self, batch: Batch) -> Batch:
        """Add a batch, and return it with labels ``within`` the classes."""
        self.add(batch.x.detach(), batch.y)
        return batch._replace(y=self.within(batch.y))

    def add(self, x: Tensor, y: Tensor | None) -> None:
        """Add pixels, and labels if there are any, without waiting for the device."""
        low, high = torch.aminmax(x)
        first, last = (low, high) if y is None or self.num_classes is None else torch.aminmax(y)
        reached = torch.stack([-low.float(), high.float(), -first.float(), last.float()])
        self.reached = reached if self.reached is None else torch.maximum(self.reached, reached)

    def within(self, y: Tensor) -> Tensor:
        """The labels clamped to the classes, so that no kernel fails before ``check``."""
        return y if self.num_classes is None else y.clamp(0, self.num_classes - 1)

    def check(self) -> None:
        """Refuse values out of range since the last check.

        Raises:
            ValueError: If a pixel was outside [0, 1] or NaN, or a label was not one of the classes.
        """
        self._check(self.reduce)

    @contextmanager
    def naming_causes(self) -> Iterator[None]:
        """Name pixels out of range where the body fails because numbers derived from them are not finite.

        Raises:
            ValueError: In place of the FloatingPointError.
        """
        try:
            yield
        except FloatingPointError:
            self._check(None)  # the other ranks may not have failed
            raise

    def _check(self, reduce: Callable[[Tensor], Tensor] | None) -> None:
        if self.reached is None:
            return
        reached, self.reached = self.reached.nan_to_num(nan=torch.inf), None
        _check_reached((reduce(reached) if reduce else reached).tolist(), self.num_classes)


def _check_reached(reached: Sequence[float], classes: int | None) -> None:
    """Check the range of pixels and labels that batches after the first one have reached.

    Args:
        reached: The negated smallest pixel, the largest pixel, and the same of the labels, so that all are maxima.
        classes: The number of classes; None if there are no class labels.

    Raises:
        ValueError: If a pixel was outside [0, 1], or a label was none of the classes.
    """
    low, high, first, last = reached
    if low > require.TOLERANCE or high > 1 + require.TOLERANCE:
        raise ValueError(
            f"pixels of a later batch run from {-low:.4g} to {high:.4g}, but every eps is in units of [0, 1]: let the "
            "loader give all images as it gives the first ones."
        )
    if classes is not None and (-first < 0 or last >= classes):
        raise ValueError(
            f"labels of a later batch run from {-first:.0f} to {last:.0f}, but there are the classes 0 to "
            f"{classes - 1}: {require.BY_WEIGHT}."
        )
