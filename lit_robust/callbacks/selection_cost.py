"""What the selections of coresets add to the cost of a training."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class CountsPasses(Protocol):
    """What counts forward and backward passes."""

    def counting(self) -> AbstractContextManager[None]:
        """Count the passes of the body."""


class HasPasses(Protocol):
    """What adds up the cost of a training."""

    passes: CountsPasses


class Metered(Protocol):
    """A module that adds up what its training costs, such as every Defense."""

    meter: HasPasses

    def selecting(self) -> AbstractContextManager[None]:
        """Add the seconds of the body to the cost, and note them and its passes as a selection's."""


def is_metered(module: object) -> bool:
    """Whether a module has what ``Metered`` says."""
    return all(hasattr(module, name) for name in ("meter", "selecting"))


def selecting(module: Any) -> AbstractContextManager[None]:
    """Within it, a metered module's clock runs for a selection."""
    metered: Metered = module
    return metered.selecting() if is_metered(module) else nullcontext()


def counting(module: Any) -> AbstractContextManager[None]:
    """Within it, a metered module's passes count."""
    metered: Metered = module
    return metered.meter.passes.counting() if is_metered(module) else nullcontext()
