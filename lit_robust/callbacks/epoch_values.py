"""What the module will have in an epoch that is still to come, and the last turn of an epoch's end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, replace
from operator import attrgetter
from typing import Any, Protocol

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from lit_robust.lightning_internals import set_current_epoch

#: What is called with the trainer and the module.
Turn = Callable[[Trainer, LightningModule], None]


class SetsValues(Protocol):
    """What a callback has that sets attributes of the module at an epoch's start, so that others can ask for them."""

    def values_at(self, epoch: int) -> Mapping[str, Any]:
        """The values at the start of an epoch that comes next, by the attributes' paths, such as ``attack.eps``."""


class CountsBatches(Protocol):
    """What a method has that depends on the place within an epoch."""

    batch_idx: int


@contextmanager
def as_in_epoch(trainer: Any, module: Any, epoch: int) -> Iterator[None]:
    """Within it, the module has the values and the trainer the number of an epoch that has not begun.

    A module that counts batches is at the epoch's first one: the number of the last one is not in a checkpoint.
    """
    values: dict[str, Any] = {"batch_idx": 0} if isinstance(getattr(module, "batch_idx", None), int) else {}
    for callback in trainer.callbacks:
        if hasattr(callback, "values_at"):
            values |= callback.values_at(epoch)
    before = {path: attrgetter(path)(module) for path in values}
    owners = {name: attrgetter(name)(module) for name in {path.partition(".")[0] for path in values}}
    now = trainer.current_epoch
    try:
        set_current_epoch(trainer, epoch)
        for path, value in values.items():
            assign(module, path.split("."), value)
        yield
    finally:
        set_current_epoch(trainer, now)
        for path, value in before.items():
            assign(module, path.split("."), value)
        for name, owner in owners.items():
            if attrgetter(name)(module) is not owner:  # a copy of what is frozen: the original comes back
                setattr(module, name, owner)


def assign(owner: Any, path: Sequence[str], value: Any) -> Any:
    """Set the attribute at the end of a path; returns the owner, or its replacement if it is frozen."""
    name, *rest = path
    before = getattr(owner, name)
    if rest:
        value = assign(before, rest, value)
    elif value == before and isinstance(value, int) == isinstance(before, int):  # 2 steps are not 2.0 steps
        value = before
    if value is before:  # nothing has changed: an attack is not built and checked again
        return owner
    try:
        setattr(owner, name, value)
    except FrozenInstanceError:
        return replace(owner, **{name: value})
    return owner


def is_read_only(owner: Any, name: str) -> bool:
    """Whether an attribute is a property without a setter."""
    found = getattr(type(owner), name, None)
    return isinstance(found, property) and found.fset is None


class LastTurn(EarlyStopping):
    """Calls functions when all other callbacks have had their turn, those that write checkpoints as well.

    So a finished epoch is saved before what is done here, which may take long; a run that is resumed from there does it
    when it begins. At an epoch's end it also runs after the module's own hook. It subclasses ``EarlyStopping``, because
    Lightning runs only that and checkpoint callbacks after this hook. While it is in the list, which is during a fit,
    ``trainer.early_stopping_callback`` returns it if there is no other; it never stops a training.

    Args:
        begin: Called in ``on_fit_start``.
        go_on: Called in ``on_train_epoch_end``.
    """

    logged_keys = ()
    monitor = None  # type: ignore[assignment]  # nothing is monitored, and nothing stopped

    def __init__(self, begin: Turn, go_on: Turn) -> None:
        self.begin, self.go_on = begin, go_on
        self.stopped_epoch = 0

    @property
    def state_key(self) -> str:
        """Its class alone, as it monitors nothing."""
        return type(self).__qualname__

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self.begin(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on."""
        self.go_on(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def put_last(self, trainer: Any) -> None:
        """Enter the list of callbacks: a new one, because the trainer may be iterating over the old one."""
        self.leave(trainer)
        trainer.callbacks = [*trainer.callbacks, self]

    def leave(self, trainer: Any) -> None:
        """Leave the list again."""
        trainer.callbacks = [callback for callback in trainer.callbacks if callback is not self]
