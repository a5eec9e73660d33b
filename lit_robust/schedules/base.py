"""The base class of schedules, the epochs at which one drops, and what several kinds need."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, get_args, get_origin

from lit_robust import require
from lit_robust.magnitudes import Magnitude, magnitude
from lit_robust.shown import shown

#: A value of a schedule: any number, or ``8/255``. Magnitude comes first, because jsonargparse saves a value by the
#: first type of a union that accepts it, and float would accept a Magnitude, which YAML cannot hold.
Value = Magnitude | float


class Schedule(ABC):
    """A pure function of time in fractional epochs, as a value.

    A subclass is a frozen dataclass. It converts its numbers (from YAML, NumPy, ``"8/255"``) to plain floats, because a
    checkpoint that is safe to load holds nothing else.
    """

    @abstractmethod
    def __call__(self, time: float) -> float:
        """Return the value at a time."""

    def __post_init__(self) -> None:
        """Turn the arguments into plain, hashable values.

        Raises:
            TypeError: If one is not a list or a schedule, where that is needed.
            ValueError: If one is not a number, a fraction that cannot be read, or infinite although its default is not.
        """
        known = getattr(self, "__dataclass_fields__", {})
        for name, value in list(vars(self).items()):
            kind, default = (known[name].type, known[name].default) if name in known else (None, None)
            if get_origin(kind) is Sequence and (not isinstance(value, Iterable) or isinstance(value, str)):
                raise TypeError(f"{name}={shown(value)} is not a list: write [{shown(value)}].")
            object.__setattr__(self, name, _plain(name, value, kind, finite=default != math.inf))


def drops(schedule: Schedule, epochs: int) -> list[int]:
    """List the epochs at whose start the learning rate has dropped: jumped to a half or less within an epoch.

    A gradual decline is not a drop: triangles and cosines have none, although the rate halves repeatedly in their last
    epochs. Neither is a jump to 0, after which nothing is learned, nor a step of an epoch-wise decline, which falls at
    most twice as far as the step before it.

    Args:
        schedule: The schedule of the learning rate.
        epochs: The number of epochs trained; later drops are not listed.

    Raises:
        TypeError: If ``schedule`` is not a Schedule.
        ValueError: If ``epochs`` is not an integer of at least 0.
    """
    require.instance("schedule", schedule, Schedule, "give one of lit_robust.schedules")
    require.integer("epochs", epochs, least=0)
    values = [schedule(float(epoch)) for epoch in range(epochs)]
    falls = [0.0, *(before - now for before, now in pairwise(values))]
    return [
        epoch
        for epoch in range(1, epochs)
        if 0 < values[epoch] <= values[epoch - 1] / 2
        and falls[epoch] > 2.001 * falls[epoch - 1]  # a cosine over 3 epochs falls twice as far, up to rounding
        and _jumps_down(schedule, epoch - 1, epoch)
    ]


def _jumps_down(schedule: Schedule, left: float, right: float) -> bool:
    """Whether the value halves in one jump, at the point to which bisection for the steepest fall converges."""
    while left < (middle := (left + right) / 2) < right:
        if schedule(left) - schedule(middle) > schedule(middle) - schedule(right):
            right = middle
        else:
            left = middle
    return schedule(right) <= schedule(left) / 2


def _plain(name: str, value: Any, kind: Any = None, finite: bool = True) -> Any:
    """Convert a value; ``kind`` is the type of its field, if that is known."""
    if kind is Schedule:
        return require.instance(name, value, Schedule, "give one of lit_robust.schedules")
    if isinstance(value, str):
        return magnitude(value, name)
    if kind not in (float, int, Magnitude, Value):
        if isinstance(value, Schedule):
            return value
        if isinstance(value, Iterable):
            (of_items,) = get_args(kind) if get_origin(kind) is Sequence else (None,)
            return tuple(_plain(f"{name}[{i}]", item, of_items) for i, item in enumerate(value))
    least = 0 if kind is Magnitude else -math.inf
    return float(require.number(name, value, least=least, finite=finite, hint="write it as 30, 0.1 or 8/255"))


def share(time: float, begin: float, end: float) -> float:
    """The fraction of the time from ``begin`` to ``end`` that has passed, in [0, 1]."""
    return min(max((time - begin) / (end - begin), 0.0), 1.0)


def wave(share: float) -> float:
    """Half a cosine wave from 0 at 0 to 1 at 1."""
    return (1 - math.cos(math.pi * share)) / 2


def blend(start: float, stop: float, share: float) -> float:
    """Interpolate linearly from ``start`` at share 0 to ``stop`` at share 1."""
    return (1 - share) * start + share * stop  # this form is exact at both ends


def fractional_epoch(trainer: Any, batch_idx: int) -> float:
    """The start of a trainer's batch in fractional epochs, the argument of every schedule."""
    return float(trainer.current_epoch + batch_idx / trainer.num_training_batches)


def check_epochs_have_a_length(trainer: Any, name: str) -> None:
    """Refuse a function of fractional epochs if nothing says how many batches an epoch has: its time would stand still.

    Args:
        trainer: In or after ``on_train_start``.
        name: The argument that is a function of time.

    Raises:
        ValueError: If the training loader has no length.
    """
    if math.isinf(trainer.num_training_batches):
        raise ValueError(
            f"{name} is a function of the time in epochs, but the training loader has no length: set the trainer's "
            "limit_train_batches to the number of batches of an epoch."
        )
