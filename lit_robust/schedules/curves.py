"""Lines, stairs and waves through given points, and schedules made of others."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from lit_robust import require
from lit_robust.magnitudes import Magnitude
from lit_robust.schedules.base import Schedule, Value, blend, share, wave


@dataclass(frozen=True)
class _Knots(Schedule):
    times: Sequence[float]
    values: Sequence[Value]

    def __post_init__(self) -> None:
        super().__post_init__()
        require.increasing("times", self.times)
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
        return blend(self.values[left], self.values[right], share(time, self.times[left], self.times[right]))


@dataclass(frozen=True)
class Staircase(_Knots):
    """``values[i]`` from ``times[i]`` until ``times[i + 1]``; the first and the last are held outside."""

    def __call__(self, time: float) -> float:
        """Return the value of the step that ``time`` is on."""
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
        return blend(self.start, self.stop, share(time, self.begin, self.end))


@dataclass(frozen=True)
class Cosine(_Ramp):
    """Half a cosine wave from ``start`` at ``begin`` to ``stop`` at ``end``, held outside."""

    def __call__(self, time: float) -> float:
        """Interpolate between the ends."""
        return blend(self.start, self.stop, wave(share(time, self.begin, self.end)))


@dataclass(frozen=True)
class PeriodicCosine(Schedule):
    """The strength of Periodic Adversarial Scheduling (PAS; Liu et al., NeurIPS 2020, arXiv:2006.08403).

        eps(t) = min(cap, low + (high - low) (1 - cos(pi tau)) / 2),   tau = elapsed fraction of t's cycle, in [0, 1)

    A cycle climbs from ``low`` towards ``high`` and is cut off at ``cap``; the next one starts at ``low`` again. After
    the last cycle the value stays at ``min(cap, high)``. In the authors' code (``cycle_cos``) the value changes once
    per epoch by default, which is ``PerEpoch`` of this schedule, and the attack's step is scaled along with it.

    Args:
        low: Where each cycle begins.
        high: Where each cycle would end without a cap.
        cap: The bound to train for.
        ends: When the cycles end. MNIST has one cycle, ``[100]``, from 0 to 0.6 with a cap of 0.4.

    Raises:
        ValueError: If ``low`` exceeds one of the others, or the ends are not above 0 and increasing.
    """

    low: Magnitude
    high: Magnitude
    cap: Magnitude
    ends: Sequence[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        require.increasing("ends", self.ends)
        if not self.ends[0] > 0:
            raise ValueError(f"ends={list(self.ends)} must be above 0, where the first cycle begins.")
        if not self.low <= min(self.high, self.cap):
            raise ValueError(f"low={self.low} must not exceed high={self.high} or cap={self.cap}.")

    def __call__(self, time: float) -> float:
        """Climb along half a cosine wave up to the cap."""
        cycle = min(bisect_right(self.ends, time), len(self.ends) - 1)
        begin = self.ends[cycle - 1] if cycle else 0.0
        return min(self.cap, blend(self.low, self.high, wave(share(time, begin, self.ends[cycle]))))


@dataclass(frozen=True)
class MultiStep(Schedule):
    """1, multiplied by ``factor`` at every milestone.

    The milestone 75 applies at ``time >= 75``, that is from the first batch of epoch 75 on (epochs count from 0), like
    torch's MultiStepLR stepped once per epoch. A rate divided *after* epoch 70 has the milestone 71.
    """

    milestones: Sequence[float]
    factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require.increasing("milestones", self.milestones)
        require.number("factor", self.factor, above=0)

    def __call__(self, time: float) -> float:
        """Count the milestones that have passed."""
        return self.factor ** bisect_right(self.milestones, time)


@dataclass(frozen=True)
class PerEpoch(Schedule):
    """Another schedule, held within each epoch at its value at the epoch's start.

    NuAT's lambda, for example: ``PerEpoch(Linear(0, 4.5, 0, 90))`` is 4.5 min(e, 90) / 90 throughout epoch e.
    """

    schedule: Schedule

    def __call__(self, time: float) -> float:
        """Evaluate the other schedule at the start of the epoch."""
        return self.schedule(float(math.floor(time)))


@dataclass(frozen=True)
class Product(Schedule):
    """Schedules multiplied: ``Product([Linear(0, 1, 0, 5), MultiStep([30, 60])])`` is a warm-up, then steps."""

    schedules: Sequence[Schedule]

    def __call__(self, time: float) -> float:
        """Multiply the values."""
        return math.prod((schedule(time) for schedule in self.schedules), start=1.0)
