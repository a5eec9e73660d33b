"""Catastrophic overfitting of single-step methods, noticed in the epoch in which it happens."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_robust import losses
from lit_robust.attacks import FGSM, PGD, Attack
from lit_robust.attacks.base import crafting, input_gradient, network_mode, pixel_magnitude
from lit_robust.batch import Batch, as_batch
from lit_robust.magnitudes import Magnitude
from lit_robust.seeds import derive_seed, run_seed
from lit_robust.threats import Linf

Action = Literal["warn", "stop", "restore"]

#: The attack by which Fast AT's code decides whether to stop, with its eps for CIFAR-10.
PGD5 = PGD(eps=8 / 255, step_size=2 / 255, steps=5)
SINGLE_STEP = FGSM(eps=8 / 255)


class HasNet(Protocol):
    """What ``CatastrophicOverfittingMonitor`` needs of a module: a net from images in [0, 1] to logits."""

    net: nn.Module


class OverfittingRule(ABC):
    """What is measured on a batch, and what change from one epoch to the next is called overfitting.

    A subclass is a frozen dataclass.
    """

    @abstractmethod
    def measure(self, net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Give each sample's numbers ``(N,)`` by name; samples that are NaN are left out of the mean."""

    @abstractmethod
    def overfits(self, previous: Mapping[str, float], current: Mapping[str, float]) -> bool:
        """Judge the means of two epochs that follow each other."""


@dataclass(frozen=True)
class PGDDrop(OverfittingRule):
    """The accuracy under PGD falls by more than ``threshold``, as Fast AT's code stops early.

    Args:
        attack: The code's PGD-5 for CIFAR-10 by default; its ``eps`` should be the one trained with.
        threshold: The code's 0.2 is 20 points of accuracy.
    """

    attack: Attack = PGD5
    threshold: float = 0.2

    def measure(self, net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Attack the batch."""
        return {"acc/pgd": _correct(net, self.attack, x, y)}

    def overfits(self, previous: Mapping[str, float], current: Mapping[str, float]) -> bool:
        """Compare the accuracies."""
        return current["acc/pgd"] - previous["acc/pgd"] < -self.threshold


@dataclass(frozen=True)
class FGSMGap(OverfittingRule):
    """The signature of catastrophic overfitting: the net withstands a single step, and not PGD.

    The accuracy under the single step exceeds that under PGD by more than ``margin``, and did not in the epoch before.
    So a net is reported once, when the gap opens, also where PGD had never been withstood before.

    Args:
        single_step: The attack that the net learns to deceive; its ``eps`` should be the one trained with.
        attack: The stronger one.
        margin: Our choice; there is no published one.
    """

    single_step: Attack = SINGLE_STEP
    attack: Attack = PGD5
    margin: float = 0.3

    def measure(self, net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Attack the batch twice."""
        return {
            "acc/fgsm": _correct(net, self.single_step, x, y),
            "acc/pgd": _correct(net, self.attack, x, y),
        }

    def overfits(self, previous: Mapping[str, float], current: Mapping[str, float]) -> bool:
        """Compare the gaps."""
        before, now = (values["acc/fgsm"] - values["acc/pgd"] for values in (previous, current))
        return before <= self.margin < now


@dataclass(frozen=True)
class GradientCosineDrop(OverfittingRule):
    """The loss stops being linear around the images: GradAlign's measure (NeurIPS 2020, arXiv:2007.02617).

        cos( grad CE(f(x), y), grad CE(f(x + eta), y) ),     eta ~ U(-eps, eps)

    Samples with no gradient at either point are left out, as in the authors' code.

    Args:
        eps: The radius; it should be the one trained with.
        factor: The cosine falls below this share of the previous epoch's. Our choice; GradAlign only logs it.
    """

    eps: Magnitude = 8 / 255
    factor: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", pixel_magnitude(self.eps, "eps", "linf"))

    def measure(self, net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Compare the gradients at an image and next to it."""
        with crafting(x, y) as (x, y):
            points = x, Linf(self.eps).random_start(x)
            at_image, beside = (_gradient(net, point, y).flatten(1) for point in points)
        exists = (at_image.norm(dim=1) > 0) & (beside.norm(dim=1) > 0)
        cosine = F.cosine_similarity(at_image, beside)
        return {"gradient_cosine": torch.where(exists, cosine, torch.nan)}

    def overfits(self, previous: Mapping[str, float], current: Mapping[str, float]) -> bool:
        """Compare the cosines."""
        return current["gradient_cosine"] < self.factor * previous["gradient_cosine"]


class CatastrophicOverfittingMonitor(Callback):
    """Tells when a net has lost its robustness from one epoch to the next, as single-step methods do.

    After each epoch the rule measures the net on the epoch's first batch, as the early stop in Fast AT's code
    does (Wong et al., ICLR 2020, arXiv:2001.03994): in train mode, with the weights as they are after the
    epoch, and over all ranks. ``monitor/<name>`` is logged, and ``train/catastrophic_overfitting``, 0 or 1;
    when it is 1 a warning says so in one line. Measuring leaves no trace: modes, BatchNorm's statistics and
    random numbers are put back, so a monitored run is the run without a monitor, up to the action. A resumed
    run sees what an uninterrupted one does; only if it has several ranks and is resumed in mid-epoch, that
    epoch is judged by rank zero's first batch.

    Different from the authors' code: the first epoch has nothing to be compared with, where they compare with
    an accuracy of 0, which comes to the same.

    Args:
        rule: What is measured and judged. Monitors with rules of different classes may run side by side.
        action: ``warn`` goes on, ``stop`` ends the training after this epoch, and ``restore`` also brings
            back the net's weights and buffers of the last healthy epoch, as the authors do; checkpoints carry
            them until then. Averages that ``EMAWeights`` keeps stay as they are, and ``fit`` still ends with
            the first of them in the module.

    Raises:
        TypeError: If the module has no ``net``, or the batches are neither ``Batch`` nor ``(x, y)``.
        ValueError: If there is no such action.
    """

    def __init__(self, rule: OverfittingRule = PGDDrop(), action: Action = "warn") -> None:
        if action not in get_args(Action):
            raise ValueError(f'action="{action}" is unknown: choose warn, stop or restore.')
        self.rule = rule
        self.action = action
        self._first_batch: Batch | None = None
        self._previous: dict[str, float] | None = None
        self._healthy: dict[str, Tensor] | None = None

    @property
    def state_key(self) -> str:
        """Tells monitors with different rules apart."""
        return self._generate_state_key(rule=type(self.rule).__name__)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the module and start from nothing; a checkpoint is read after this."""
        if stage == "fit":
            _fitting(pl_module)
            self._first_batch = self._previous = self._healthy = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep a copy of the epoch's first batch."""
        if batch_idx == 0:
            self._first_batch = Batch(*(part.detach().clone() for part in as_batch(batch)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, judge, report and act."""
        if self._first_batch is None:
            return
        net = _fitting(pl_module).net
        batch = Batch(*(part.to(pl_module.device) for part in self._first_batch))
        seed = derive_seed(run_seed(), "monitor", trainer.current_epoch, trainer.global_rank)
        with _untouched(net, seed, batch.x.device):
            current = _means(self.rule.measure(net, batch.x, batch.y), batch.weight > 0, trainer)
        overfits = self._previous is not None and self.rule.overfits(self._previous, current)
        values = {f"monitor/{name}": value for name, value in current.items()}
        values["train/catastrophic_overfitting"] = float(overfits)
        # The maximum, because a second monitor with another rule logs the same flag.
        pl_module.log_dict(values, on_step=False, on_epoch=True, reduce_fx="max", sync_dist=True, batch_size=1)
        if overfits:
            self._act(trainer, net, current)
        elif self.action == "restore":
            self._healthy = {name: value.detach().clone() for name, value in net.state_dict().items()}
        self._previous, self._first_batch = current, None

    def _act(self, trainer: Trainer, net: nn.Module, current: Mapping[str, float]) -> None:
        assert self._previous is not None
        changes = [f"{name} {self._previous[name]:.3f} -> {value:.3f}" for name, value in current.items()]
        consequence = "training goes on"
        if self.action != "warn":
            trainer.should_stop = True
            consequence = "training stops"
        if self.action == "restore" and self._healthy is not None:
            net.load_state_dict(self._healthy)
            consequence = "training stops with the weights of the last healthy epoch"
        rank_zero_warn(
            f"catastrophic overfitting in epoch {trainer.current_epoch}: {', '.join(changes)} "
            f"({type(self.rule).__name__}); {consequence}."
        )

    def state_dict(self) -> dict[str, Any]:
        """The last numbers, the first batch of an epoch under way, and the weights to bring back."""
        batch = None if self._first_batch is None else tuple(self._first_batch)
        return {"previous": self._previous, "first_batch": batch, "healthy": self._healthy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint ends."""
        batch = state_dict["first_batch"]
        self._first_batch = None if batch is None else Batch(*batch)
        self._previous, self._healthy = state_dict["previous"], state_dict["healthy"]


@contextmanager
def _untouched(net: nn.Module, seed: int, device: torch.device) -> Iterator[None]:
    """Train mode and seeded random numbers inside; flags, buffers and random numbers as before outside."""
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    with network_mode(net, "train"), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)


def _means(values: Mapping[str, Tensor], exists: Tensor, trainer: Trainer) -> dict[str, float]:
    """Mean of each ``(N,)`` over the samples of all ranks that exist and have a number."""
    table = torch.stack([value.float() for value in values.values()])
    counts = exists & table.isfinite()
    sums = torch.stack([torch.where(counts, table, 0.0).sum(dim=1), counts.float().sum(dim=1)])
    total, count = trainer.strategy.reduce(sums, reduce_op="sum")
    return dict(zip(values, (total / count).tolist(), strict=True))


def _correct(net: nn.Module, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
    x_adv = attack(net, x, y)
    with torch.no_grad():
        predicted: Tensor = net(x_adv).argmax(dim=1)
    return (predicted == y).float()


def _gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return input_gradient(losses.ce(net(x), y), x)


def _fitting(module: object) -> HasNet:
    # From Python 3.12 on, `isinstance(module, HasNet)` does not see what a torch module finds in its `__getattr__`.
    if isinstance(getattr(module, "net", None), nn.Module):
        return cast(HasNet, module)
    raise TypeError(
        f"CatastrophicOverfittingMonitor attacks module.net, which {type(module).__name__} lacks: name the "
        "nn.Module that returns its logits so."
    )
