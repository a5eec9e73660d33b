"""When NuAT-H takes a second attack step.

What is known of NuAT-H and NuAT-WA-H: their purpose, stability at a marginal cost; a plot over the clean cross-entropy;
and names such as "50+5" epochs, which we read as second steps that cost 5 epochs of one more step each. The trigger is
not published. **All rules here are ours**: two detectors of gradient masking, and an even share to compare them with.

Time is in fractional epochs. A rule is a value; what it remembers is in the method's ``memory.values``, as ``MEMORY``
lists it. A detector looks once in ``every``, and only then the host waits for the device. What it sees is summed over
ranks, so that all ranks decide alike.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lit_robust.attacks import PGD
from lit_robust.batch import Batch
from lit_robust.guards import network_mode
from lit_robust.measures.masking import second_step_gain
from lit_robust.require import check_not_negative, check_positive
from lit_robust.training.memory import Memory
from lit_robust.training.ranks import sum_over_ranks

#: When a detector looked and what it saw, no further back than it compares; when the alert ends; what second steps have
#: cost so far, in epochs; how many alerts and batches there have been; whether the last batch had a second step.
MEMORY: dict[str, Any] = {
    "times": [], "values": [], "until": 0.0, "spent": 0.0, "triggers": 0, "batches": 0, "alert": None,
}  # fmt: skip


class Method(Protocol):
    """What a rule may ask of NuAT."""

    net: nn.Module
    memory: Memory
    batch_idx: int
    trainer: Any

    @property
    def time(self) -> float:
        """Fractional epochs."""

    def single_step(self) -> PGD:
        """The attack's start and its step, unguided."""

    def log_now(self, **values: float) -> None:
        """Hand values to the loggers at once."""


class Trigger(ABC):
    """A rule for which batches get a second attack step."""

    @abstractmethod
    def alert(self, method: Method, batch: Batch) -> bool:
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
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share} must be in [0, 1].")

    def alert(self, method: Method, batch: Batch) -> bool:
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
        check_positive(every=self.every, duration=self.duration, extra_epochs=self.extra_epochs)

    @abstractmethod
    def measure(self, method: Method, batch: Batch) -> float | None:
        """The number that is watched, the same on every rank; None if there is none yet."""

    @abstractmethod
    def fires(self, times: list[float], values: list[float]) -> bool:
        """Whether the last value is suspicious; the first is the last one from before the window."""

    def smoothed(self, times: list[float], values: list[float], time: float, value: float) -> float:
        """What is noted of a measurement; the measurement itself by default."""
        return value

    def alert(self, method: Method, batch: Batch) -> bool:
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


@dataclass(frozen=True, kw_only=True)
class CleanLossDrop(Detector):
    """Fires when the clean cross-entropy falls abnormally fast: a net that masks gradients learns clean images easily.

        m(t - window) - m(t) > drop m(t - window),      m the moving average of the training's clean cross-entropy

    A division of the learning rate makes it fall, too; such false alarms cost at most ``extra_epochs``.

    Args:
        every: See ``Detector``.
        duration: See ``Detector``.
        extra_epochs: See ``Detector``.
        drop: The share of the loss that may be lost in a window.
        window: How long that is, in epochs.
        smoothing: The time constant of the moving average, in epochs; 0.13 are 100 of NuAT's 766 batches.
        warm_up: How long it stays silent, in epochs, because in the beginning every loss falls fast; the default is
            meant for about 50 epochs.
    """

    drop: float = 0.15
    window: float = 0.5
    smoothing: float = 0.13
    warm_up: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(window=self.window, smoothing=self.smoothing)
        check_not_negative(warm_up=self.warm_up)
        if not 0 < self.drop < 1:
            raise ValueError(f"drop={self.drop} is the share of the loss that may be lost: choose 0 < drop < 1.")

    def alert(self, method: Method, batch: Batch) -> bool:
        """Add what the batch before has shown; then look if the moment has come."""
        tensors = method.memory.tensors
        if (last := tensors.pop("last_clean", None)) is not None:
            tensors["clean"] = tensors["clean"] + last if "clean" in tensors else last
        return super().alert(method, batch)

    def measure(self, method: Method, batch: Batch) -> float | None:
        """The mean over the batches since the last look."""
        clean = method.memory.tensors.pop("clean", None)
        return None if clean is None else _mean_over_ranks(clean)

    def smoothed(self, times: list[float], values: list[float], time: float, value: float) -> float:
        """The moving average."""
        if not times:
            return value
        keep = math.exp((times[-1] - time) / self.smoothing)
        return keep * values[-1] + (1 - keep) * value

    def fires(self, times: list[float], values: list[float]) -> bool:
        """Compare with the moving average a window ago."""
        full = times[0] <= times[-1] - self.window
        return full and times[-1] >= self.warm_up and values[0] - values[-1] > self.drop * values[0]


@dataclass(frozen=True, kw_only=True)
class SecondStepGain(Detector):
    """Fires when a second step finds what the first one missed; while the loss is nearly linear there is no such gain.

        CE(f(x2), y) - CE(f(x1), y) > gain,      x1 after one unguided step, x2 after two, on the batch at hand

    A look costs two attack steps and a forward, in eval mode.

    Args:
        every: See ``Detector``.
        duration: See ``Detector``.
        extra_epochs: See ``Detector``.
        gain: The difference of the mean cross-entropies that is still normal.
    """

    gain: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(gain=self.gain)

    def measure(self, method: Method, batch: Batch) -> float:
        """The difference, over the batches of all ranks."""
        with network_mode(method.net, "eval"):
            gain = second_step_gain(method.net, batch.x, batch.y, method.single_step())
        return _mean_over_ranks(torch.stack([(gain * batch.weight).sum(), batch.weight.sum()]))

    def fires(self, times: list[float], values: list[float]) -> bool:
        """Compare the last one with the bound."""
        return values[-1] > self.gain


def _mean_over_ranks(total_and_weight: Tensor) -> float:
    total, weight = sum_over_ranks(total_and_weight).tolist()
    return float(total / weight)
