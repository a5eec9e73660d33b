"""Counts forward and backward passes through a net."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def goes_on(net: nn.Module, inputs: Any) -> bool:
    """Whether a gradient at a net's logits passes through the net, to its inputs or to its parameters."""
    wanted = (one.requires_grad for one in inputs if isinstance(one, Tensor))
    return any(wanted) or any(parameter.requires_grad for parameter in net.parameters())


class PassCounter:
    """Counts forward and backward passes, in images.

    A backward pass counts when its gradient reaches the logits; a double backward (GradAlign) reaches them twice. One
    that ends at the last layer, because neither the images nor a parameter ask for a gradient, does not count. It is a
    forward hook, which costs a few microseconds and never waits for the device. Passes through parts of a net
    (``net.features``) and through a gradient's own graph are not counted.
    """

    def __init__(self) -> None:
        self.forwards = self.backwards = 0
        self.counts = False  #: Whether it counts now.

    def __call__(self, net: nn.Module, inputs: Any, logits: Tensor) -> None:
        """Count a forward, and its backward if one comes."""
        if not self.counts:
            return
        n = len(logits)
        self.forwards += n

        def see_gradient(gradient: Tensor) -> None:
            self.backwards += n

        if logits.requires_grad and goes_on(net, inputs):
            logits.register_hook(see_gradient)  # type: ignore[no-untyped-call]  # torch's

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the passes of the body."""
        self.counts = True
        try:
            yield
        finally:
            self.counts = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "PassCounter":
        """Copies of a net that are made during the training count here, too."""
        return self
