"""Catastrophic overfitting of single-step methods, noticed in the epoch in which it happens."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_robust import require
from lit_robust.attacks import Attack
from lit_robust.batch import Batch, as_batch
from lit_robust.callbacks.needs import callbacks_of, net_of
from lit_robust.callbacks.overfitting_rules import Bound, OverfittingRule, PGDDrop
from lit_robust.guards import network_mode, own_random_state
from lit_robust.seeds import seed

Action = Literal["warn", "stop", "restore"]

#: By which Fast AT's code stops early.
FAST_AT = PGDDrop()


class HasAttack(Protocol):
    """What ``CatastrophicOverfittingMonitor`` needs of a module beside a net, if the rule leaves the bound open."""

    attack: Attack


class CatastrophicOverfittingMonitor(Callback):
    """Tells when a net has lost its robustness from one epoch to the next, as single-step methods do.

    After each epoch the rule measures the net on the epoch's first batches, as the early stop in Fast AT's code
    does (Wong et al., ICLR 2020, arXiv:2001.03994): in train mode, with the weights as they are after the
    epoch, and over all ranks. ``monitor/<rule>/<name>`` is logged, and ``train/catastrophic_overfitting/<rule>``,
    0 or 1; when it is 1 a warning says so in one line. ``train/catastrophic_overfitting`` is 1 when any monitor
    of the run says so.

    A rule that leaves the bound open measures at the eps that ``module.attack`` has at the end of the epoch. While
    a ramp moves it, rules compare nothing, because a larger eps breaks more images of any net; only ``FGSMGap`` and
    ``AbnormalRise``, whose numbers mean the same at every eps, are heard then.

    Measuring leaves no trace: modes, BatchNorm's statistics and random numbers are put back, so a monitored run is
    the run without a monitor, up to the action. A resumed run sees what an uninterrupted one does; only if it has
    several ranks and is resumed in mid-epoch, that epoch is judged by batches of rank zero.

    Different from the authors' code: there is one batch, of 128 images; and the first epoch has nothing to be
    compared with, where they compare with an accuracy of 0, which comes to the same.

    Args:
        rule: What is measured and judged. Monitors with rules of different classes may run side by side.
        action: ``warn`` goes on, ``stop`` ends the training after this epoch, and ``restore`` also brings
            back the net's weights and buffers of the last healthy epoch, as the authors do; checkpoints carry
            them until then.
        images: How many are measured on all ranks together: as many whole batches as it takes, or the epoch has.
            An accuracy of 0.5 on 512 of them is known to 0.022 (one standard error), on 128 to 0.044.

    Raises:
        TypeError: If the module has no ``net``, or the batches are neither ``Batch`` nor ``(x, y)``.
        ValueError: If there is no such action, the rule needs an ``attack.eps`` that the module lacks, or weights
            are to be restored that an average would replace after the fit.
    """

    def __init__(self, rule: OverfittingRule = FAST_AT, action: Action = "warn", images: int = 512) -> None:
        require.one_of("action", action, get_args(Action))
        require.integer("images", images, least=1)
        self.rule = rule
        self.action = action
        self.images = images
        self._forget()

    def _forget(self) -> None:
        self._batches: list[Batch] = []
        self._earlier: list[dict[str, float]] = []
        self._bound: Bound | None = None
        self._healthy: dict[str, Tensor] | None = None

    @property
    def name(self) -> str:
        """The rule's class, which tells monitors apart in logs and checkpoints."""
        return type(self.rule).__name__

    @property
    def state_key(self) -> str:
        """Tells monitors with different rules apart."""
        return f"{type(self).__qualname__}{{'rule': {self.name!r}}}"

    @property
    def follows(self) -> bool:
        """Whether the rule measures at the eps of the training."""
        return any(value is None for value in vars(self.rule).values())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check module and callbacks and start from nothing; a checkpoint is read after this."""
        if stage == "fit":
            _net(pl_module)
            if self.follows and math.isnan(_bound(pl_module).eps):
                raise ValueError(
                    f"{self.name} measures at the training's eps, but {type(pl_module).__name__} has no attack.eps: "
                    "give the rule an attack or eps of its own, or list AdversarialTraining, which lends an attack, "
                    "before the monitor."
                )
            if self.action == "restore":
                _check_no_average(trainer)
            self._forget()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep copies of the epoch's first batches."""
        if batch_idx == 0:
            self._batches = []
        if sum(len(kept.x) for kept in self._batches) * trainer.world_size < self.images:
            self._batches.append(Batch(*(part.detach().clone() for part in as_batch(batch))))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, judge, report and act."""
        if not self._batches:
            return
        bound = _bound(pl_module)
        if self.follows and not self.rule.across_eps and bound != self._bound:
            self._earlier = []
        current = self._measure(trainer, pl_module, bound)
        overfits = bool(self._earlier) and self.rule.overfits(self._earlier, current)
        values = {f"monitor/{self.name}/{name}": value for name, value in current.items()}
        flags = dict.fromkeys(("", f"/{self.name}"), float(overfits))
        values |= {f"train/catastrophic_overfitting{which}": flag for which, flag in flags.items()}
        # The maximum, because a second monitor with another rule logs the flag without a name, too.
        pl_module.log_dict(values, on_step=False, on_epoch=True, reduce_fx="max", sync_dist=True, batch_size=1)
        if overfits:
            self._act(trainer, pl_module, current)
        elif self.action == "restore":
            state = _net(pl_module).state_dict()
            self._healthy = {name: value.detach().clone() for name, value in state.items()}
        self._earlier.append(current)
        self._bound, self._batches = bound, []

    def _measure(self, trainer: Trainer, pl_module: LightningModule, bound: Bound) -> dict[str, float]:
        """The rule's means over the batches of all ranks; batch by batch, as the training sees them."""
        net, device = _net(pl_module), pl_module.device
        batches = [Batch(*(part.to(device) for part in batch)) for batch in self._batches]
        with _untouched(net, device):
            seed(device, "monitor", trainer.current_epoch, trainer.global_rank)
            measured = [self.rule.measure(net, batch.x, batch.y, bound) for batch in batches]
        values = {name: torch.cat([numbers[name] for numbers in measured]) for name in measured[0]}
        return _means(values, torch.cat([batch.weight for batch in batches]) > 0, trainer)

    def _act(self, trainer: Trainer, pl_module: LightningModule, current: Mapping[str, float]) -> None:
        changes = [f"{name} {self._earlier[-1][name]:.3g} -> {value:.3g}" for name, value in current.items()]
        consequence = "training goes on"
        if self.action != "warn":
            trainer.should_stop = True
            consequence = "training stops"
        if self.action == "restore" and self._healthy is not None:
            _net(pl_module).load_state_dict(self._healthy)
            consequence = "training stops with the weights of the last healthy epoch"
        rank_zero_warn(
            f"catastrophic overfitting in epoch {trainer.current_epoch}, says {self.name}: {', '.join(changes)}; "
            f"{consequence}."
        )

    def state_dict(self) -> dict[str, Any]:
        """All numbers so far, the first batches of an epoch under way, and the weights to bring back."""
        return {
            "earlier": self._earlier,
            "bound": None if self._bound is None else tuple(self._bound),
            "batches": [tuple(batch) for batch in self._batches],
            "healthy": self._healthy,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint ends."""
        self._earlier, self._healthy = state_dict["earlier"], state_dict["healthy"]
        self._bound = None if state_dict["bound"] is None else Bound(*state_dict["bound"])
        self._batches = [Batch(*batch) for batch in state_dict["batches"]]


@contextmanager
def _untouched(net: nn.Module, device: torch.device) -> Iterator[None]:
    """Train mode inside; flags, buffers and random numbers as before outside."""
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    with network_mode(net, "train"), own_random_state(device):
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


def _bound(module: object) -> Bound:
    """How far the module's attack goes now; an eps of NaN if it does not say."""
    attack = getattr(module, "attack", None)
    return Bound(float(getattr(attack, "eps", math.nan)), getattr(attack, "norm", "linf"))


def _check_no_average(trainer: Any) -> None:
    for other in callbacks_of(trainer, WeightAveraging):
        raise ValueError(
            f'action="restore" would be undone by {type(other).__name__}, which leaves its average in the module '
            'after the fit: set action="stop", and go back to the best checkpoint.'
        )


def _net(module: object) -> nn.Module:
    return net_of(module, "CatastrophicOverfittingMonitor attacks")
