"""A signal that stops a training while it selects: the selection is left to the run that resumes it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch

from lit_robust.ranks import max_over_ranks

T = TypeVar("T")


class Stops(Protocol):
    """A module that a signal stops between batches, such as every Defense."""

    def stop_asked(self) -> int:
        """The signal by which any rank was asked to stop, 0 if none; all ranks must call it equally often."""

    def stop_for(self, signum: int) -> None:
        """Save the run and raise."""


class Interrupted(Exception):  # caught below
    """A signal has come during a selection."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def stops(module: object) -> bool:
    """Whether a module has what ``Stops`` says."""
    return all(hasattr(module, name) for name in ("stop_asked", "stop_for"))


def until_asked(module: Any, batches: Iterable[T], total: int, device: torch.device) -> Iterator[T]:
    """The batches, until a signal asks the module to stop.

    Args:
        module: It is asked before each batch, if it can be.
        batches: Those of this rank.
        total: Their number; ranks ask before as many batches as each of them has.
        device: Where ranks agree.

    Raises:
        Interrupted: If there is a signal.
    """
    asks = -int(max_over_ranks(torch.tensor(-total, device=device))) if stops(module) else 0
    for number, batch in enumerate(batches):
        if number < asks and (signum := module.stop_asked()):
            raise Interrupted(signum)
        yield batch


@contextmanager
def saved_if_stopped(module: Any) -> Iterator[None]:
    """Stop the run for a signal that came in the body, after the body has restored what it had changed."""
    signum = 0
    try:
        yield
    except Interrupted as interrupted:
        signum = interrupted.signum
    if signum:
        stopping: Stops = module
        stopping.stop_for(signum)
