"""Numbers as functions of time: learning rates, momenta, and ramps of lambda or eps.

Time is counted in *fractional epochs* from the start of training, 2.5 being the middle of the third epoch, so
a schedule holds whatever the number of batches in an epoch is. One kind of value serves two ends: as a
learning-rate schedule it is a factor of the optimizer's rate, with peak 1; as a ramp it is the attribute.
"""

from lit_robust.schedules.base import Schedule, drops
from lit_robust.schedules.curves import (
    Cosine,
    Linear,
    MultiStep,
    PerEpoch,
    PeriodicCosine,
    PiecewiseLinear,
    Product,
    Staircase,
)
from lit_robust.schedules.cyclic import Cyclic, CyclicMomentum, CyclicStep

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
