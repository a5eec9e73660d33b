"""Numbers as functions of time: learning rates, momenta, and ramps of lambda or eps.

Time is counted in *fractional epochs* from the start of training (2.5 is the middle of the third epoch), so a schedule
does not depend on the number of batches per epoch. As a learning-rate schedule, its value is a factor of the
optimizer's rate, with peak 1; as a ramp, it is the attribute's value.
"""

from lit_robust.keywords import answer_keywords
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

answer_keywords([globals()[name] for name in __all__])
