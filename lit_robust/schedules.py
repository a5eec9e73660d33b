"""Numbers as functions of time: learning rates, momenta, and ramps of lambda or eps.

Time is counted in *fractional epochs* from the start of training, 2.5 being the middle of the third epoch, so
a schedule holds whatever the number of batches in an epoch is. One kind of value serves two ends: as a
learning-rate schedule it is a factor of the optimizer's rate, with peak 1; as a ramp it is the attribute.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lit_robust.magnitudes import Magnitude, magnitude

__all__ = [
    "Cosine",
    "Cyclic",
    "CyclicMomentum",
    "CyclicStep",
    "Linear",
    "MultiStep",
    "PerEpoch",
    "PeriodicCosine",
    "PiecewiseLinear",
    "Product",
    "Schedule",
    "Staircase",
    "drops",
]

#: What a schedule passes through: any number, or ``8/255``. Magnitude comes first: jsonargparse saves a value
#: by the first type of a union that takes it, and float would take a Magnitude, which YAML cannot hold.
Value = Magnitude | float


class Schedule(ABC):
    """A pure function of time in fractional epochs, written down as a value.

    A subclass is a frozen dataclass. Whatever its numbers come as (YAML, NumPy, ``"8/255"``), it keeps and
    returns plain floats, for a checkpoint that is safe to load holds nothing else.
    """

    @abstractmethod
    def __call__(self, time: float) -> float:
        """Give the value at a moment."""

    def __post_init__(self) -> None:
        """Turn the arguments into plain, hashable values.

        Raises:
            TypeError: If one is no number.
            ValueError: If one is NaN, or a fraction that cannot be read.
        """
        for name, value in list(vars(self).items()):
            object.__setattr__(self, name, _plain(name, value))


@dataclass(frozen=True)
class _Knots(Schedule):
    times: Sequence[float]
    values: Sequence[Value]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_increasing("times", self.times)
        if len(self.times) != len(self.values):
            raise ValueError(f"{len(self.times)} times have {len(self.values)} values: each needs exactly one.")


@dataclass(frozen=True)
class PiecewiseLinear(_Knots):
    """Straight lines through ``(times[i], values[i])``; the first and the last value are held outside."""

    def __call__(self, time: float) -> float:
        """Interpolate between the knots around ``time``."""
        right = bisect_right(self.times, time)
        if right in (0, len(self.times)):
            return self.values[max(right - 1, 0)]
        left = right - 1
        return _blend(self.values[left], self.values[right], _share(time, self.times[left], self.times[right]))


@dataclass(frozen=True)
class Staircase(_Knots):
    """``values[i]`` from ``times[i]`` until ``times[i + 1]``; the first and the last are held outside."""

    def __call__(self, time: float) -> float:
        """Give the value of the stair that ``time`` is on."""
        return self.values[max(bisect_right(self.times, time) - 1, 0)]


@dataclass(frozen=True)
class _Ramp(Schedule):
    start: Value
    stop: Value
    begin: float
    end: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.begin < self.end:
            raise ValueError(f"end={self.end} must come after begin={self.begin}; for a jump use a Staircase.")


@dataclass(frozen=True)
class Linear(_Ramp):
    """A straight line from ``start`` at ``begin`` to ``stop`` at ``end``, held outside."""

    def __call__(self, time: float) -> float:
        """Interpolate between the ends."""
        return _blend(self.start, self.stop, _share(time, self.begin, self.end))


@dataclass(frozen=True)
class Cosine(_Ramp):
    """Half a cosine wave from ``start`` at ``begin`` to ``stop`` at ``end``, held outside."""

    def __call__(self, time: float) -> float:
        """Interpolate between the ends."""
        return _blend(self.start, self.stop, _wave(_share(time, self.begin, self.end)))


@dataclass(frozen=True)
class PeriodicCosine(Schedule):
    """The strength of Periodic Adversarial Scheduling (PAS; Liu et al., NeurIPS 2020, arXiv:2006.08403).

        eps(t) = min(cap, low + (high - low) (1 - cos(pi tau)) / 2),   tau = (t mod period) / period

    A cycle climbs from ``low`` towards ``high`` and is cut off at ``cap``; the next starts at ``low`` again.
    """

    low: Magnitude
    high: Magnitude
    cap: Magnitude
    period: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(period=self.period)
        if not self.low <= min(self.high, self.cap):
            raise ValueError(f"low={self.low} must not exceed high={self.high} or cap={self.cap}.")

    def __call__(self, time: float) -> float:
        """Climb along half a cosine wave up to the cap."""
        return min(self.cap, _blend(self.low, self.high, _wave(time % self.period / self.period)))


@dataclass(frozen=True)
class MultiStep(Schedule):
    """1, multiplied by ``factor`` at every milestone.

    The milestone 75 acts at ``time >= 75``, that is from the first batch of epoch 75 on, epochs counting from
    0, like torch's MultiStepLR stepped once an epoch. A rate divided *after* epoch 70 has the milestone 71.
    """

    milestones: Sequence[float]
    factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_increasing("milestones", self.milestones)
        _check_positive(factor=self.factor)

    def __call__(self, time: float) -> float:
        """Count the milestones that have passed."""
        return self.factor ** bisect_right(self.milestones, time)


@dataclass(frozen=True)
class Cyclic(Schedule):
    """One triangle, 0 -> 1 -> 0: ``up`` epochs of rise and ``down`` epochs of fall; 0 afterwards.

    The authors who train with it (Fast AT, N-FGSM, NuAT-WA) call torch's CyclicLR, which cycles the momentum
    too unless told otherwise (``CyclicMomentum``) and would start a second cycle.
    """

    up: float
    down: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(up=self.up, down=self.down)

    def __call__(self, time: float) -> float:
        """Follow the triangle."""
        return _triangle(time, self.up, self.down)


@dataclass(frozen=True)
class CyclicStep(Schedule):
    """The "cyclic-step" rate of NuAT's code (NeurIPS 2021): a triangle left half-way, held, divided twice.

    NuAT's 100 epochs are ``CyclicStep(40, 50, 80)``: a rate of 0.1 is reached at epoch 40, 0.02 at epoch 80;
    it is held until epoch 85 is over, then it is 0.002 in epochs 86 to 90 and 0.0002 from 91 on. NuAT2's 55
    epochs are ``CyclicStep(20, 20, 35)``.

    Args:
        up: Epochs from 0 to the peak.
        down: Epochs from the peak to 0, if the triangle were followed to its end.
        until: The moment at which it is left.
        after: How many epochs after ``until`` the divisions come. The authors make them once the epochs
            ``until + 5`` and ``until + 10`` are over.
        factor: What each division multiplies by.
    """

    up: float
    down: float
    until: float
    after: Sequence[float] = (6.0, 11.0)
    factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(up=self.up, down=self.down, until=self.until, factor=self.factor)
        _check_increasing("after", self.after)
        if self.until >= self.up + self.down:
            raise ValueError(f"until={self.until} must come before the triangle ends at {self.up + self.down}.")

    def __call__(self, time: float) -> float:
        """Follow the triangle until it is left, then count the divisions."""
        held = _triangle(min(time, self.until), self.up, self.down)
        return held * self.factor ** bisect_right(self.after, time - self.until)


@dataclass(frozen=True)
class CyclicMomentum(Schedule):
    """The momentum that torch's CyclicLR cycles against the rate: ``high``, ``low`` at its peak, ``high``.

    The values are absolute. Methods whose papers say "momentum 0.9" and whose code calls CyclicLR with its
    defaults (NuAT, Fast AT, N-FGSM, AAER, ELLE) were trained with this.

    Args:
        up: The rate's rise, in epochs.
        down: Its fall.
        until: That of ``CyclicStep``: from there on CyclicLR is not stepped any more, so the momentum stays
            where it is (0.88 in NuAT) while the rate is held and divided.
        low: The momentum at the rate's peak.
        high: The momentum where the rate is 0.
    """

    up: float
    down: float
    until: float = math.inf
    low: float = 0.8
    high: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(up=self.up, down=self.down, until=self.until)
        if not 0 <= self.low <= self.high < 1:
            raise ValueError(f"low={self.low} and high={self.high} must satisfy 0 <= low <= high < 1.")

    def __call__(self, time: float) -> float:
        """Mirror the rate's triangle."""
        return _blend(self.high, self.low, _triangle(min(time, self.until), self.up, self.down))


@dataclass(frozen=True)
class PerEpoch(Schedule):
    """Another schedule, held within each epoch at its value at the epoch's start.

    NuAT's lambda climbs so: ``PerEpoch(Linear(0, 4.5, 0, 90))`` is 4.5 min(e, 90) / 90 all through epoch e.
    """

    schedule: Schedule

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_schedules(self.schedule)

    def __call__(self, time: float) -> float:
        """Ask the other schedule about the start of the epoch."""
        return self.schedule(float(math.floor(time)))


@dataclass(frozen=True)
class Product(Schedule):
    """Schedules multiplied: ``Product([Linear(0, 1, 0, 5), MultiStep([30, 60])])`` is a warm-up and steps."""

    schedules: Sequence[Schedule]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_schedules(*self.schedules)

    def __call__(self, time: float) -> float:
        """Multiply the values."""
        return math.prod((schedule(time) for schedule in self.schedules), start=1.0)


def drops(schedule: Schedule, epochs: int) -> list[int]:
    """List the epochs at whose start the learning rate has dropped: jumped to a half or less within an epoch.

    A gradual decline is no drop: triangles and cosines have none, although their last epochs halve the rate
    again and again. Nor is a jump to 0, after which nothing is learned, nor a step of an epoch-wise decline,
    which falls at most twice as far as the step before it.

    Args:
        schedule: The learning rate's.
        epochs: How many are trained; what would drop after the last of them does not.
    """
    values = [schedule(float(epoch)) for epoch in range(epochs)]
    falls = [0.0, *(before - now for before, now in pairwise(values))]
    return [
        epoch
        for epoch in range(1, epochs)
        if 0 < values[epoch] <= values[epoch - 1] / 2
        and falls[epoch] > 2 * falls[epoch - 1]
        and _jumps_down(schedule, epoch - 1, epoch)
    ]


def _jumps_down(schedule: Schedule, left: float, right: float) -> bool:
    """Whether the value halves at the one moment that bisection for the steepest fall ends at."""
    while left < (middle := (left + right) / 2) < right:
        if schedule(left) - schedule(middle) > schedule(middle) - schedule(right):
            right = middle
        else:
            left = middle
    return schedule(right) <= schedule(left) / 2


def _triangle(time: float, up: float, down: float) -> float:
    return max(0.0, min(time / up, 1 - (time - up) / down))


def _share(time: float, begin: float, end: float) -> float:
    return min(max((time - begin) / (end - begin), 0.0), 1.0)


def _wave(share: float) -> float:
    return (1 - math.cos(math.pi * share)) / 2


def _blend(start: float, stop: float, share: float) -> float:
    return (1 - share) * start + share * stop  # in this form exact at both ends


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Schedule):
        return value
    if isinstance(value, str):
        return magnitude(value, name)
    if isinstance(value, Iterable):
        return tuple(_plain(name, item) for item in value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}={value!r} is not a number.") from None
    if math.isnan(number):
        raise ValueError(f"{name}={value!r} is not a number.")
    return number


def _check_positive(**arguments: float) -> None:
    for name, value in arguments.items():
        if not value > 0:
            raise ValueError(f"{name}={value} must be above 0.")


def _check_increasing(name: str, times: Sequence[float]) -> None:
    if not times or any(later <= earlier for earlier, later in pairwise(times)):
        raise ValueError(f"{name}={list(times)} must be at least one time, each later than the one before.")


def _check_schedules(*schedules: Schedule) -> None:
    for schedule in schedules:
        if not isinstance(schedule, Schedule):
            raise TypeError(f"{schedule!r} is not a Schedule.")
