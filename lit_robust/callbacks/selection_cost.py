"""What the selections of coresets add to the cost of a training."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from lit_robust.selection import Selector


class Meter(Protocol):
    """What adds up the cost of a training."""

    def counting_selected(self) -> AbstractContextManager[None]:
        """Count the passes of the body, if it is within a selection."""


class Metered(Protocol):
    """A module that adds up what its training costs, such as every Defense."""

    meter: Meter

    def selecting(self) -> AbstractContextManager[None]:
        """Add the seconds of the body to the cost, and note them and its passes as a selection's."""


def is_metered(module: object) -> bool:
    """Whether a module has what ``Metered`` says."""
    return all(hasattr(module, name) for name in ("meter", "selecting"))


def selecting(module: Any, selector: Selector) -> AbstractContextManager[None]:
    """Within it, a metered module's clock runs for a selection; not for gradients that are only reported."""
    metered: Metered = module
    return metered.selecting() if is_metered(module) and selector.chooses_by_gradients else nullcontext()


def counting(module: Any) -> AbstractContextManager[None]:
    """Within it, a metered module's passes count as a selection's."""
    metered: Metered = module
    return metered.meter.counting_selected() if is_metered(module) else nullcontext()
