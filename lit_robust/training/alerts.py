"""Rules for which batches get a costlier step: an even share of them, or those after a detector has fired.

Time is in fractional epochs. A rule is a value; its state is in the method's ``memory.values``, under the keys of
``MEMORY``. A detector measures every ``every`` epochs, and only then the host waits for the device. Measurements must
be summed over ranks, so that all ranks decide alike.

NuAT-H is their only reader. They are not in its file because ``rebuild_method`` must know ``Trigger`` to build the
rules that a checkpoint names, and ``training`` does not import ``defenses``.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from lit_robust import require
from lit_robust.attacks import PGD
from lit_robust.batch import Batch
from lit_robust.training.memory import Memory

#: Times and values of a detector's measurements, as far back as it compares; the alert's end; the cost of second steps
#: so far, in epochs; the numbers of alerts and of batches; whether the last batch had a second step.
MEMORY: dict[str, Any] = {
    "times": [], "values": [], "until": 0.0, "spent": 0.0, "triggers": 0, "batches": 0, "alert": None,
}  # fmt: skip


class Watched(Protocol):
    """What a rule needs of a method; a subclass of ``Trigger`` may need more."""

    net: nn.Module
    memory: Memory
    batch_idx: int

    @property
    def time(self) -> float:
        """Fractional epochs."""

    @property
    def trainer(self) -> Any:
        """Lightning's trainer, which knows the number of batches."""

    def single_step(self) -> PGD:
        """The attack's start and its step, unguided."""

    def log_now(self, **values: float) -> None:
        """Log values at once."""


class Trigger(ABC):
    """A rule for which batches get a second attack step."""

    #: Whether the method must leave its clean cross-entropy in ``memory.tensors``.
    watches_clean_loss = False

    @abstractmethod
    def alert(self, method: Watched, batch: Batch) -> bool:
        """Whether this batch gets a second step; called once per batch, before its attack."""


@dataclass(frozen=True)
class EvenShare(Trigger):
    """Second steps spread evenly over the batches: an ablation of their timing.

    Args:
        share: The share of all batches; 0.1 of 50 epochs costs 5 epochs, our reading of "50+5".

    Raises:
        ValueError: If ``share`` is not in [0, 1].
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        require.number("share", self.share, least=0, most=1)

    def alert(self, method: Watched, batch: Batch) -> bool:
        """Whether ``share`` times the number of batches reaches another whole number with this one."""
        batches: int = method.memory.values["batches"]
        return math.floor((batches + 1) * self.share) > math.floor(batches * self.share)


@dataclass(frozen=True, kw_only=True)
class Detector(Trigger):
    """A rule that watches a number; when it fires, all batches of the next ``duration`` get a second step.

    Args:
        every: How often it measures, in epochs.
        duration: The length of an alert, in epochs; firing again prolongs it.
        extra_epochs: The most that second steps may cost in all, in epochs: our reading of the 5 in "50+5". Once they
            are spent, the detector only watches.

    Raises:
        ValueError: If an argument is not above 0.
    """

    every: float = 0.05
    duration: float = 0.5
    extra_epochs: float = 5.0

    #: How far back the rule compares, in epochs.
    window = 0.0

    def __post_init__(self) -> None:
        require.number("every", self.every, above=0)
        require.number("duration", self.duration, above=0)
        require.number("extra_epochs", self.extra_epochs, above=0)

    @abstractmethod
    def measure(self, method: Watched, batch: Batch) -> float | None:
        """The watched number, the same on every rank; None if there is none yet."""

    @abstractmethod
    def fires(self, times: list[float], values: list[float]) -> bool:
        """Whether ``values[-1]`` is suspicious; ``values[0]`` is the latest one from before the window."""

    def smoothed(self, times: list[float], values: list[float], time: float, value: float) -> float:
        """The value that is kept of a measurement; by default the measurement itself."""
        return value

    def alert(self, method: Watched, batch: Batch) -> bool:
        """Measure if it is time; whether an alert is on and affordable."""
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
