"""When NuAT-H takes a second attack step.

Known of NuAT-H and NuAT-WA-H are their purpose, stability at a marginal cost; a plot over the clean cross-entropy; and
notations such as "50+5" epochs, which we read as second steps that cost 5 epochs of one more step each. The trigger is
not published. **All rules here are ours**, made to fit what is known: two detectors of gradient masking, and an even
share to compare them with.

Time is in fractional epochs. A detector looks once in ``every``, and only then the host waits for the device; what it
sees is summed over ranks, so that all ranks decide alike.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_robust import losses
from lit_robust.attacks.base import input_gradient
from lit_robust.batch import Batch
from lit_robust.defenses.gat import GAT
from lit_robust.guards import crafting, network_mode
from lit_robust.require import check_not_negative, check_positive
from lit_robust.training.ranks import sum_over_ranks


@dataclass
class Memory:
    """What a run of NuAT-H remembers; the same on every rank, and all of it in a checkpoint."""

    #: When a detector looked, and what it saw, no further back than it compares.
    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    #: When the alert ends.
    until: float = 0.0
    #: The cost of the second steps so far, in epochs.
    spent: float = 0.0
    triggers: int = 0
    batches: int = 0
    #: Whether the batch at hand gets a second step; None before the first.
    alert: bool | None = None
    #: Sum and weight of this epoch's clean cross-entropies at the last look; before the first one of the epoch, minus
    #: those that the epoch before left over.
    seen: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def note(self, time: float, value: float, since: float) -> None:
        """Write a value down, and forget all but the last one before ``since``."""
        self.times.append(time)
        self.values.append(value)
        while len(self.times) > 1 and self.times[1] <= since:
            del self.times[0], self.values[0]


class Trigger(ABC):
    """A rule for which batches get a second attack step; a value, whose memory is kept by ``Hybrid``."""

    @abstractmethod
    def alert(self, memory: Memory, time: float) -> bool:
        """Whether the batch at hand gets it."""

    @abstractmethod
    def look(self, memory: Memory, method: GAT, batch: Batch) -> None:
        """Measure what the rule depends on, before it is asked."""

    def end_epoch(self, memory: Memory, method: GAT) -> None:  # noqa: B027  # most rules need nothing
        """Take along what the method forgets with an epoch."""


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

    def alert(self, memory: Memory, time: float) -> bool:
        """Whether the share of the batches, with this one, reaches another whole number."""
        return math.floor((memory.batches + 1) * self.share) > math.floor(memory.batches * self.share)

    def look(self, memory: Memory, method: GAT, batch: Batch) -> None:
        """There is nothing to measure."""


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
    def measure(self, memory: Memory, method: GAT, batch: Batch) -> float | None:
        """The number that is watched, the same on every rank; None if there is none yet."""

    @abstractmethod
    def fires(self, memory: Memory) -> bool:
        """Whether what was noted, up to now, is suspicious."""

    def judge(self, memory: Memory, time: float, value: float) -> None:
        """Note the number, and begin or prolong an alert."""
        memory.note(time, value, since=time - self.window)
        if self.fires(memory):
            memory.triggers += time >= memory.until
            memory.until = time + self.duration

    def alert(self, memory: Memory, time: float) -> bool:
        """Whether an alert is on and affordable."""
        return time < memory.until and memory.spent < self.extra_epochs

    def look(self, memory: Memory, method: GAT, batch: Batch) -> None:
        """Measure and judge, if the moment has come."""
        period = max(1, round(self.every * method.trainer.num_training_batches))
        if method.batch_idx % period == 0:
            value = self.measure(memory, method, batch)
            if value is not None:
                self.judge(memory, method.time, value)
                _log(method, watched=memory.values[-1], triggers=memory.triggers)


@dataclass(frozen=True, kw_only=True)
class CleanLossDrop(Detector):
    """Fires when the clean cross-entropy falls abnormally fast: who masks gradients learns clean images with ease.

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

    def measure(self, memory: Memory, method: GAT, batch: Batch) -> float | None:
        """The mean over the batches since the last look."""
        before, memory.seen = memory.seen, _clean(method)
        total, weight = (now - then for now, then in zip(memory.seen, before, strict=True))
        return total / weight if weight > 0 else None

    def end_epoch(self, memory: Memory, method: GAT) -> None:
        """Leave the batches since the last look to the next one, for the method's sums start again at 0."""
        memory.seen = [then - now for now, then in zip(_clean(method), memory.seen, strict=True)]

    def judge(self, memory: Memory, time: float, value: float) -> None:
        """Judge the moving average."""
        keep = math.exp((memory.times[-1] - time) / self.smoothing) if memory.times else 0.0
        super().judge(memory, time, keep * memory.values[-1] + (1 - keep) * value if memory.times else value)

    def fires(self, memory: Memory) -> bool:
        """Compare with the moving average a window ago."""
        time, then = memory.times[-1], memory.values[0]
        full = memory.times[0] <= time - self.window
        return full and time >= self.warm_up and then - memory.values[-1] > self.drop * then


@dataclass(frozen=True, kw_only=True)
class SecondStepGain(Detector):
    """Fires when a second step finds what the first one missed, which a nearly linear loss has nothing of.

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

    def measure(self, memory: Memory, method: GAT, batch: Batch) -> float:
        """The difference, over the batches of all ranks."""
        return _mean_over_ranks(second_step_gain(method, batch), batch.weight)

    def fires(self, memory: Memory) -> bool:
        """Compare the last one with the bound."""
        return memory.values[-1] > self.gain


def _clean(method: GAT) -> list[float]:
    """Sum and weight of this epoch's clean cross-entropies, over all ranks."""
    entry = method.tally.sums.get("ce/clean")
    return [0.0, 0.0] if entry is None else sum_over_ranks(entry).tolist()


def _log(method: GAT, **values: float) -> None:
    """Log at once: `self.log` keeps only what falls on its own steps."""
    for logger in method.loggers:
        logger.log_metrics({f"train/{name}": float(value) for name, value in values.items()}, step=method.global_step)


def second_step_gain(method: GAT, batch: Batch) -> Tensor:
    """By how much a second step of the method's attack raises each sample's cross-entropy, ``(N,)``."""
    attack, net = method.one_step(), method.net
    with network_mode(net, "eval"), crafting(batch.x, batch.y) as (x, y):
        x_adv = attack.start(x)
        for k in range(2):
            first = losses.ce(net(x_adv.requires_grad_()), y)
            x_adv = attack.step(x, x_adv, input_gradient(first, x_adv), k).detach()
        with torch.no_grad():
            return losses.ce(net(x_adv), y) - first.detach()


def _mean_over_ranks(values: Tensor, weight: Tensor) -> float:
    total, weights = sum_over_ranks(torch.stack([(values * weight).sum(), weight.sum()])).tolist()
    return float(total / weights)


class Hybrid:
    """Asks a trigger once a batch, and remembers on its behalf."""

    def __init__(self, trigger: Trigger) -> None:
        self.trigger = trigger
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.memory = Memory()

    def begin_batch(self, method: GAT, batch: Batch) -> None:
        """Decide about a batch, and count what it costs.

        ``train/alert`` is the decision, logged with the first batch and whenever it changes; ``train/two_step`` is the
        share of this epoch's batches so far.
        """
        memory = self.memory
        self.trigger.look(memory, method, batch)
        before, alert = memory.alert, self.trigger.alert(memory, method.time)
        if alert != before:
            _log(method, alert=alert)
        memory.alert = alert
        memory.batches += 1
        memory.spent += alert / method.trainer.num_training_batches
        method.tally.add("two_step", torch.full_like(batch.weight, float(alert)), batch.weight)

    def end_epoch(self, method: GAT) -> None:
        """Tell the trigger before the method's sums are reset."""
        self.trigger.end_epoch(self.memory, method)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the memory, as plain values."""
        return asdict(self.memory)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the memory of a checkpoint."""
        self.memory = Memory(**state)
