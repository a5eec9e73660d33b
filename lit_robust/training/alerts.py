"""Rules that decide which batches get NuAT-H's second attack step: an even share, or those after a detector fired.

Time is in fractional epochs. A rule is a value; its state is in the method's ``memory.values``, under the keys of
``MEMORY``. A detector measures every ``every`` epochs; the host waits for the device only then. Measurements must be
summed over ranks, so that all ranks decide alike.

Only NuAT-H uses them. They are not in its file because ``rebuild_method`` must know ``Trigger`` to build the
rules that a checkpoint names, and ``training`` does not import ``defenses``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lit_robust import require
from lit_robust.attacks import PGD
from lit_robust.batch import Batch
from lit_robust.checkpoint_states import broken
from lit_robust.training.memory import Memory

#: Times and values of a detector's measurements, as far back as it compares; the alert's end; the cost of second steps
#: so far, in epochs; the numbers of alerts and of batches; whether the last batch had a second step.
MEMORY: dict[str, Any] = {
    "times": [], "values": [], "until": 0.0, "spent": 0.0, "triggers": 0, "batches": 0, "alert": None,
}  # fmt: skip


def check_measurements(values: Mapping[str, Any]) -> None:
    """Refuse times and values of a checkpoint that are not those of measurements.

    Raises:
        ValueError: If they differ in number, or the times do not increase.
    """
    times, found = values["times"], values["values"]
    if len(times) != len(found) or any(later < earlier for earlier, later in pairwise(times)):
        raise broken("memory.values.times", times, f"times in order, one for each of the {len(found)} values")


#: The sum of the clean cross-entropy and of the weights: of the last batch, and since the last measurement.
SUMS = dict.fromkeys(("last_clean", "clean"), (torch.float32, (2,)))


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

    def folded(self, net: nn.Module, x: Tensor) -> nn.Module:
        """A net in eval mode as attacks see it."""

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
        """Whether ``floor(share * batches)`` increases with this batch."""
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
        batches = method.trainer.num_training_batches  # infinite before training, when a coreset may be selected
        period = max(1, round(self.every * batches)) if math.isfinite(batches) else 1
        if method.batch_idx % period == 0 and (value := self.measure(method, batch)) is not None:
            times, values = memory["times"], memory["values"]
            values.append(self.smoothed(times, values, time, value))
            times.append(time)
            older = sum(1 for earlier in times[1:] if earlier <= time - self.window)
            del times[:older], values[:older]
            if self.fires(times, values):
                memory["triggers"] += time >= memory["until"]
                memory["until"] = time + self.duration
            method.log_now(watched=values[-1], triggers=memory["triggers"])
        return bool(time < memory["until"] and memory["spent"] < self.extra_epochs)
