"""Rules for when NuAT-H takes a second attack step.

Little is known of NuAT-H and NuAT-WA-H: their purpose, stability at a marginal cost; a plot over the clean
cross-entropy; and names such as "50+5" epochs, which we read as second steps that cost 5 epochs of one more step each.
The trigger is not published. **All rules here are ours**: two detectors of gradient masking, and an even share to
compare them with.

Time is in fractional epochs. A rule is a value; its state is in the method's ``memory.values``, under the keys of
``MEMORY``. Measurements must be summed over ranks, so that all ranks decide alike.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lit_robust import require
from lit_robust.batch import Batch
from lit_robust.checkpoint_states import broken
from lit_robust.guards import network_mode
from lit_robust.measures.masking import second_step_gain
from lit_robust.ranks import per_weight, sum_over_ranks, weighted_sum

if TYPE_CHECKING:
    from lit_robust.defenses.nuat import NuAT

#: Times and values of a detector's measurements, as far back as it compares; the alert's end; the cost of second steps
#: so far, in epochs; the numbers of alerts and of batches; whether the last batch had a second step.
MEMORY: dict[str, Any] = {
    "times": [], "values": [], "until": 0.0, "spent": 0.0, "triggers": 0, "batches": 0, "alert": None,
}  # fmt: skip


def check_measurements(values: Mapping[str, Any]) -> None:
    """Raise a ValueError if a checkpoint's times and values differ in number, or its times do not increase."""
    times, found = values["times"], values["values"]
    if len(times) != len(found) or any(later < earlier for earlier, later in pairwise(times)):
        raise broken("memory.values.times", times, f"times in order, one for each of the {len(found)} values")


class Trigger(ABC):
    """A rule for which batches get a second attack step."""

    #: Whether ``method.memory.mean("clean")`` must be the training's clean cross-entropy since it was last read.
    watches_clean_loss = False

    @abstractmethod
    def alert(self, method: "NuAT", batch: Batch) -> bool:
        """Whether this batch gets a second step; called once per batch, before its attack."""


@dataclass(frozen=True)
class EvenShare(Trigger):
    """Second steps spread evenly over the batches: an ablation of their timing.

    Args:
        share: The share of all batches, in [0, 1]; 0.1 of 50 epochs costs 5 epochs, our reading of "50+5".
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        require.number("share", self.share, least=0, most=1)

    def alert(self, method: "NuAT", batch: Batch) -> bool:
        """Whether ``floor(share * batches)`` increases with this batch."""
        batches: int = method.memory.values["batches"]
        return math.floor((batches + 1) * self.share) > math.floor(batches * self.share)


@dataclass(frozen=True, kw_only=True)
class Detector(Trigger):
    """A rule that watches a number; when it fires, all batches of the next ``duration`` get a second step.

    Args:
        every: How often it measures, in epochs; the host waits for the device only then.
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
        for name in ("every", "duration", "extra_epochs"):
            require.number(name, getattr(self, name), above=0)

    @abstractmethod
    def measure(self, method: "NuAT", batch: Batch) -> float | None:
        """The watched number, the same on every rank; None if there is none yet."""

    @abstractmethod
    def fires(self, times: list[float], values: list[float]) -> bool:
        """Whether ``values[-1]`` is suspicious; ``values[0]`` is the latest one from before the window."""

    def smoothed(self, times: list[float], values: list[float], time: float, value: float) -> float:
        """The value that is kept of a measurement; by default the measurement itself."""
        return value

    def alert(self, method: "NuAT", batch: Batch) -> bool:
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


@dataclass(frozen=True, kw_only=True)
class CleanLossDrop(Detector):
    """Fires when the clean cross-entropy falls abnormally fast: a net that masks gradients learns clean images easily.

        m(t - window) - m(t) > drop m(t - window),      m the moving average of the training's clean cross-entropy

    A drop of the learning rate makes it fall, too; such false alarms cost at most ``extra_epochs``.

    Args:
        drop: The share of the loss that may be lost within a window.
        window: The length of the window, in epochs.
        smoothing: The time constant of the moving average, in epochs; 0.13 is 100 of NuAT's 766 batches.
        warm_up: The epochs before it can fire, because at first every loss falls fast; the default is meant for about
            50 epochs.
    """

    drop: float = 0.15
    window: float = 0.5
    smoothing: float = 0.13
    warm_up: float = 5.0

    watches_clean_loss = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require.number("window", self.window, above=0)
        require.number("smoothing", self.smoothing, above=0)
        require.number("warm_up", self.warm_up, least=0)
        require.number("drop", self.drop, above=0, below=1, hint="it is the share of the loss that may be lost")

    def measure(self, method: "NuAT", batch: Batch) -> float | None:
        """The mean over the batches since the last measurement."""
        return method.memory.mean("clean")

    def smoothed(self, times: list[float], values: list[float], time: float, value: float) -> float:
        """The moving average."""
        if not times:
            return value
        keep = math.exp(min(times[-1] - time, 0.0) / self.smoothing)  # a broken checkpoint's may be later
        return keep * values[-1] + (1 - keep) * value

    def fires(self, times: list[float], values: list[float]) -> bool:
        """Compare with the moving average a window ago."""
        full = times[0] <= times[-1] - self.window
        return full and times[-1] >= self.warm_up and values[0] - values[-1] > self.drop * values[0]


@dataclass(frozen=True, kw_only=True)
class SecondStepGain(Detector):
    """Fires when a second step raises the loss; while the loss is nearly linear, there is hardly any gain.

        CE(f(x2), y) - CE(f(x1), y) > gain,      x1 after one unguided step, x2 after two, on this batch

    A measurement costs two attack steps and a forward, in eval mode.

    Args:
        gain: The largest difference of the mean cross-entropies that is still normal.
    """

    gain: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        require.number("gain", self.gain, least=0)

    def measure(self, method: "NuAT", batch: Batch) -> float:
        """The mean difference over the batches of all ranks."""
        with network_mode(method.net, "eval"):
            net = method.folded(method.net, batch.x)
            gain = second_step_gain(net, batch.x, batch.y, method.single_step())
        return float(per_weight(*sum_over_ranks(weighted_sum(gain, batch.weight))))

    def fires(self, times: list[float], values: list[float]) -> bool:
        """Compare the last value with ``gain``."""
        return values[-1] > self.gain
