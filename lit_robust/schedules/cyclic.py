"""Triangles, as torch's CyclicLR draws them."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from lit_robust import require
from lit_robust.schedules.base import Schedule, blend


@dataclass(frozen=True)
class Cyclic(Schedule):
    """One triangle, 0 -> 1 -> 0: ``up`` epochs of rise and ``down`` epochs of fall; 0 afterwards.

    The code of Fast AT, N-FGSM and NuAT-WA uses torch's CyclicLR, which by default also cycles the momentum
    (``CyclicMomentum``), and would start a second cycle.
    """

    up: float
    down: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require.number("up", self.up, above=0)
        require.number("down", self.down, above=0)

    def __call__(self, time: float) -> float:
        """Follow the triangle."""
        return _triangle(time, self.up, self.down)


@dataclass(frozen=True)
class CyclicStep(Schedule):
    """The "cyclic-step" rate of NuAT's code (NeurIPS 2021): a triangle, cut short, then held and divided twice.

    NuAT's 100 epochs are ``CyclicStep(40, 50, 80)``: a rate of 0.1 is reached at epoch 40, 0.02 at epoch 80;
    it is held until epoch 85 is over, then it is 0.002 in epochs 86 to 90 and 0.0002 from 91 on. NuAT2's 55
    epochs are ``CyclicStep(20, 20, 35)``.

    Args:
        up: Epochs from 0 to the peak.
        down: Epochs from the peak to 0, if the triangle were followed to its end.
        until: When the triangle is left.
        after: Epochs from ``until`` to each division. The authors divide once the epochs ``until + 5`` and
            ``until + 10`` are over.
        factor: The factor of each division.
    """

    up: float
    down: float
    until: float
    after: Sequence[float] = (6.0, 11.0)
    factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require.number("up", self.up, above=0)
        require.number("down", self.down, above=0)
        require.number("until", self.until, above=0, finite=False)
        require.number("factor", self.factor, above=0)
        require.increasing("after", self.after)
        if self.until >= self.up + self.down:
            raise ValueError(f"until={self.until} must come before the triangle ends at {self.up + self.down}.")

    def __call__(self, time: float) -> float:
        """Follow the triangle until it is left, then count the divisions."""
        held = _triangle(min(time, self.until), self.up, self.down)
        return held * self.factor ** bisect_right(self.after, time - self.until)


@dataclass(frozen=True)
class CyclicMomentum(Schedule):
    """The momentum of torch's CyclicLR, opposite to the rate: ``high``, ``low`` at the rate's peak, ``high``.

    The values are absolute. Methods whose papers say "momentum 0.9" and whose code calls CyclicLR with its
    defaults (NuAT, Fast AT, N-FGSM, AAER, ELLE) were trained with this.

    Args:
        up: The rate's rise, in epochs.
        down: Its fall.
        until: As in ``CyclicStep``: from then on CyclicLR is not stepped any more, so the momentum stays where it
            is (0.88 in NuAT) while the rate is held and divided.
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
        require.number("up", self.up, above=0)
        require.number("down", self.down, above=0)
        require.number("until", self.until, above=0, finite=False)
        if not 0 <= self.low <= self.high < 1:
            raise ValueError(f"low={self.low} and high={self.high} must satisfy 0 <= low <= high < 1.")

    def __call__(self, time: float) -> float:
        """Mirror the rate's triangle."""
        return blend(self.high, self.low, _triangle(min(time, self.until), self.up, self.down))


def _triangle(time: float, up: float, down: float) -> float:
    return max(0.0, min(time / up, 1 - (time - up) / down))
