"""Rules for when NuAT-H takes a second attack step.

Little is known of NuAT-H and NuAT-WA-H: their purpose, stability at a marginal cost; a plot over the clean
cross-entropy; and names such as "50+5" epochs, which we read as second steps that cost 5 epochs of one more step each.
The trigger is not published. **All rules here are ours**: two detectors of gradient masking, and an even share to
compare them with.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_robust import require
from lit_robust.batch import Batch
from lit_robust.guards import network_mode
from lit_robust.measures.masking import second_step_gain
from lit_robust.ranks import sum_over_ranks
from lit_robust.training.alerts import MEMORY, Detector, EvenShare, Trigger, Watched

__all__ = ["MEMORY", "CleanLossDrop", "Detector", "EvenShare", "SecondStepGain", "Trigger", "Watched"]


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

    def alert(self, method: Watched, batch: Batch) -> bool:
        """Add the loss of the previous batch, then measure if it is time."""
        tensors = method.memory.tensors
        if (last := tensors.pop("last_clean", None)) is not None:
            tensors["clean"] = tensors["clean"] + last if "clean" in tensors else last
        return super().alert(method, batch)

    def measure(self, method: Watched, batch: Batch) -> float | None:
        """The mean over the batches since the last measurement."""
        clean = method.memory.tensors.pop("clean", None)
        return None if clean is None else _mean_over_ranks(clean)

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

    def measure(self, method: Watched, batch: Batch) -> float:
        """The mean difference over the batches of all ranks."""
        with network_mode(method.net, "eval"):
            net = method.folded(method.net, batch.x)
            gain = second_step_gain(net, batch.x, batch.y, method.single_step())
        return _mean_over_ranks(torch.stack([(gain * batch.weight).sum(), batch.weight.sum()]))

    def fires(self, times: list[float], values: list[float]) -> bool:
        """Compare the last value with ``gain``."""
        return values[-1] > self.gain


def _mean_over_ranks(total_and_weight: Tensor) -> float:
    total, weight = sum_over_ranks(total_and_weight).tolist()
    return float(total / weight)
