"""Rules for which batches get a costlier step: an even share of them, or those after a detector has fired.

Time is in fractional epochs. A rule is a value; what it remembers is in the method's ``memory.values``, as ``MEMORY``
lists it. A detector looks once in ``every``, and only then the host waits for the device. What it sees must be summed
over ranks, so that all ranks decide alike.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from lit_robust import require
from lit_robust.batch import Batch

#: When a detector looked and what it saw, no further back than it compares; when the alert ends; what second steps have
#: cost so far, in epochs; how many alerts and batches there have been; whether the last batch had a second step.
MEMORY: dict[str, Any] = {
    "times": [], "values": [], "until": 0.0, "spent": 0.0, "triggers": 0, "batches": 0, "alert": None,
}  # fmt: skip


class Trigger(ABC):
    """A rule for which batches get a second attack step.

    Of the method it reads ``memory``, ``time``, ``batch_idx`` and ``trainer``, and calls ``log_now``.
    """

    #: Whether the method must leave its clean cross-entropy in ``memory.tensors``.
    watches_clean_loss = False

    @abstractmethod
    def alert(self, method: Any, batch: Batch) -> bool:
        """Whether this batch gets one; asked once in every batch, before its attack."""


@dataclass(frozen=True)
class EvenShare(Trigger):
    """Second steps evenly spread, as an ablation: does it matter when they are taken?

    Args:
        share: Of all batches; 0.1 of 50 epochs costs the 5 that we read in "50+5".

    Raises:
        ValueError: If it is not in [0, 1].
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        require.number("share", self.share, least=0, most=1)

    def alert(self, method: Any, batch: Batch) -> bool:
        """Whether the share of the batches, with this one, reaches another whole number."""
        batches: int = method.memory.values["batches"]
        return math.floor((batches + 1) * self.share) > math.floor(batches * self.share)


@dataclass(frozen=True, kw_only=True)
class Detector(Trigger):
    """A rule that watches a number; when it fires, all batches of the next ``duration`` get a second step.

    Args:
        every: How often it looks, in epochs.
        duration: For how long there are second steps, in epochs; an alert goes on while the rule keeps firing.
        extra_epochs: What second steps may cost in all, which we read as the 5 of "50+5". Then it only watches.

    Raises:
        ValueError: If one is not above 0.
    """

    every: float = 0.05
    duration: float = 0.5
    extra_epochs: float = 5.0

    #: How far back in time the rule compares.
    window = 0.0

    def __post_init__(self) -> None:
        require.number("every", self.every, above=0)
        require.number("duration", self.duration, above=0)
        require.number("extra_epochs", self.extra_epochs, above=0)

    @abstractmethod
    def measure(self, method: Any, batch: Batch) -> float | None:
        """The number that is watched, the same on every rank; None if there is none yet."""

    @abstractmethod
    def fires(self, times: list[float], values: list[float]) -> bool:
        """Whether the last value is suspicious; the first is the last one from before the window."""

    def smoothed(self, times: list[float], values: list[float], time: float, value: float) -> float:
        """What is noted of a measurement; the measurement itself by default."""
        return value

    def alert(self, method: Any, batch: Batch) -> bool:
        """Look if the moment has come; whether an alert is on and affordable."""
        memory, time = method.memory.values, method.time
        period = max(1, round(self.every * method.trainer.num_training_batches))
        if method.batch_idx % period == 0 and (value := self.measure(method, batch)) is not None:
            times, values = memory["times"], memory["values"]
            values.append(self.smoothed(times, values, time, value))
            times.append(time)
            while len(times) > 1 and times[1] <= time - self.window:
                del times[0], values[0]
            if self.fires(times, values):
                memory["triggers"] += time >= memory["until"]
                memory["until"] = time + self.duration
            method.log_now(watched=values[-1], triggers=memory["triggers"])
        return bool(time < memory["until"] and memory["spent"] < self.extra_epochs)
