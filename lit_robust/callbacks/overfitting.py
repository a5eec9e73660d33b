"""Catastrophic overfitting of single-step methods, detected in the epoch in which it happens."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_robust import require
from lit_robust.attacks import Attack
from lit_robust.batch import Batch
from lit_robust.callbacks.adapter import Adapter, Channels
from lit_robust.callbacks.batch_paths import Key
from lit_robust.callbacks.needs import check_net, check_no_average
from lit_robust.callbacks.overfitting_bound import Bound
from lit_robust.callbacks.overfitting_rules import OverfittingRule, PGDDrop
from lit_robust.callbacks.overfitting_states import RULES, check_kept
from lit_robust.checkpoint_states import broken, check_entries, check_tensors
from lit_robust.guards import buffers_kept, network_mode, own_random_state
from lit_robust.measures.attack_checks import tell_of_short_steps
from lit_robust.measures.default_attacks import threat_of
from lit_robust.seeds import seed

Action = Literal["warn", "stop", "restore"]

#: The rule by which Fast AT's code stops early.
FAST_AT = PGDDrop()


class HasAttack(Protocol):
    """What ``CatastrophicOverfittingMonitor`` needs of a module besides a net, if the rule sets no eps."""

    attack: Attack


class CatastrophicOverfittingMonitor(Callback):
    """Detects that a net has lost its robustness from one epoch to the next, as happens in single-step training.

    After each epoch the rule measures the net on the epoch's first batches, as the early stop in Fast AT's code does
    (Wong et al., ICLR 2020, arXiv:2001.03994): in train mode, with the weights after the epoch, and over all ranks. It
    logs ``monitor/<rule>/<name>`` and ``train/catastrophic_overfitting/<rule>``, 0 or 1, and warns at 1.
    ``train/catastrophic_overfitting`` is 1 if it is for any monitor of the run.

    A rule without its own eps measures at the ``module.attack.eps`` of the epoch's end. While a ramp moves eps, rules
    do not compare epochs, because a larger eps breaks more images of any net; only ``FGSMGap`` and ``AbnormalRise``,
    whose numbers mean the same at every eps, still do.

    Measuring changes nothing: modes, BatchNorm's statistics and random numbers are restored, so up to the action a
    monitored run equals one without a monitor. A resumed run measures what an uninterrupted one does, except that with
    several ranks an epoch that is resumed mid-way is judged by batches of rank zero.

    Differs from the authors' code: it measures one batch, of 128 images, and compares the first epoch with an accuracy
    of 0; ours compares the first epoch with nothing, which is equivalent.

    Args:
        rule: What is measured and judged. Monitors with rules of different classes may run side by side.
        action: ``warn`` continues, ``stop`` ends training after this epoch, and ``restore`` also restores the net's
            weights and buffers of the last healthy epoch, as the authors do; checkpoints hold them until then. A run
            that is resumed after such an end trains no more, unless the action is now ``warn``.
        images: The number of images, over all ranks together: as many whole batches as it takes, or as the epoch has.
            The standard error of an accuracy of 0.5 is 0.022 on 512 images, and 0.044 on 128.
        x: Where a batch keeps its images: an index, a key, the name of a field, or a path such as ``"views.0"``.
        y: The same for the labels.
        net: The sub-module from images to logits; None for the module itself or, without ``forward``, its ``net``.
        mean: What the data pipeline subtracts from pixels in [0, 1], if it normalises.
        std: What it then divides them by.

    Raises:
        TypeError: If the module has no net.
        ValueError: If pixels, labels or net do not fit in the first batch, ``action`` is unknown, the rule needs an
            ``attack.eps`` that the module lacks, or ``restore`` is combined with a weight average, which would replace
            the restored weights after the fit.
    """

    def __init__(
        self,
        rule: OverfittingRule = FAST_AT,
        action: Action = "warn",
        images: int = 512,
        x: Key = 0,
        y: Key = 1,
        net: str | None = None,
        mean: Channels | None = None,
        std: Channels | None = None,
    ) -> None:
        require.one_of("action", action, get_args(Action))
        require.integer("images", images, least=1)
        require.instance("rule", rule, OverfittingRule, "give PGDDrop(), FGSMGap() or a rule of your own")
        tell_of_short_steps({f"rule.{name}": value for name, value in vars(rule).items()})
        self.rule = rule
        self.action = action
        self.images = images
        self.adapter = Adapter(x, y, net, mean, std)
        self._forget()

    def _forget(self) -> None:
        self._batches: list[Batch] = []
        self._earlier: list[dict[str, float]] = []
        self._bound: Bound | None = None
        self._healthy: dict[str, Tensor] | None = None
        self._checked = self._stopped = False

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

    @property
    def logged_keys(self) -> list[str]:
        """The keys that it logs in training and validation."""
        return [
            "train/catastrophic_overfitting",
            f"train/catastrophic_overfitting/{self.name}",
            f"monitor/{self.name}/*",
        ]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check module and callbacks, and reset; a checkpoint is loaded after this."""
        if stage == "fit":
            check_net(pl_module, self.adapter.net, "CatastrophicOverfittingMonitor attacks")
            require.fine_precision(str(trainer.precision))
            if self.follows and math.isnan(_bound(pl_module).eps):
                raise ValueError(
                    f"{self.name} measures at the training's eps, but {type(pl_module).__name__} has no attack.eps: "
                    "give the rule an attack or eps of its own, or list AdversarialTraining, which lends an attack, "
                    "before the monitor."
                )
            if self.action == "restore":
                check_no_average(trainer)
            self._forget()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at once if the run is resumed after the monitor has stopped it."""
        trainer.should_stop = trainer.should_stop or (self._stopped and self.action != "warn")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep copies of the epoch's first batches."""
        if batch_idx == 0:
            self._batches = []
        if not self._checked:
            self.adapter.check(pl_module, batch)
            self._compare_kept(self.adapter.labelled(batch))
        if sum(len(kept.x) for kept in self._batches) * trainer.world_size < self.images:
            self._batches.append(Batch(*(part.detach().clone() for part in self.adapter.labelled(batch))))

    def _compare_kept(self, batch: Batch) -> None:
        """Refuse a checkpoint's batches that do not fit this training, of which ``batch`` is one."""
        where = f"callbacks[{self.state_key}].batches"
        check_kept(where, self._batches, batch, self.adapter.limits.num_classes)
        self._checked = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, judge, report and act."""
        if not self._batches:
            return
        bound = _bound(pl_module)
        if self.follows and not self.rule.across_eps and bound != self._bound:
            self._earlier = []
        current = self._measure(trainer, pl_module, bound)
        if self._earlier and self._earlier[-1].keys() != current.keys():
            raise broken(f"callbacks[{self.state_key}].earlier", self._earlier, f"the means {', '.join(current)}")
        overfits = bool(self._earlier) and self.rule.overfits(self._earlier, current)
        values = {f"monitor/{self.name}/{name}": value for name, value in current.items()}
        flags = dict.fromkeys(("", f"/{self.name}"), float(overfits))
        values |= {f"train/catastrophic_overfitting{which}": flag for which, flag in flags.items()}
        # The maximum, because monitors with other rules also log the flag without a rule's name.
        pl_module.log_dict(values, on_step=False, on_epoch=True, reduce_fx="max", sync_dist=True, batch_size=1)
        if overfits:
            self._act(trainer, pl_module, current)
        elif self.action == "restore":
            state = self.adapter.users_net(pl_module).state_dict()
            self._healthy = {name: value.detach().clone() for name, value in state.items()}
        self._earlier.append(current)
        self._bound, self._batches = bound, []

    def _measure(self, trainer: Trainer, pl_module: LightningModule, bound: Bound) -> dict[str, float]:
        """The rule's means over the batches of all ranks; measured batch by batch, as in training."""
        device = pl_module.device
        batches = [Batch(*(part.to(device) for part in batch)) for batch in self._batches]
        if not self._checked:  # a run that is resumed at an epoch's end has seen no batch of its own
            self.adapter.check_outputs(pl_module, batches[0].x, batches[0].y)
            self._compare_kept(batches[0])
        net = self.adapter.logits_net(pl_module)
        with network_mode(net, "train"), buffers_kept(net), own_random_state(device):
            seed(device, "monitor", trainer.current_epoch, trainer.global_rank)
            measured = [self.rule.measure(net, batch.x, batch.y, bound) for batch in batches]
        values = {name: torch.cat([numbers[name] for numbers in measured]) for name in measured[0]}
        return _means(values, torch.cat([batch.weight for batch in batches]) > 0, trainer)

    def _act(self, trainer: Trainer, pl_module: LightningModule, current: Mapping[str, float]) -> None:
        changes = [f"{name} {self._earlier[-1][name]:.3g} -> {value:.3g}" for name, value in current.items()]
        consequence = "training goes on"
        if self.action != "warn":
            trainer.should_stop = self._stopped = True
            consequence = "training stops"
        if self.action == "restore" and self._healthy is not None:
            self.adapter.users_net(pl_module).load_state_dict(self._healthy)
            consequence = "training stops with the weights of the last healthy epoch"
        rank_zero_warn(
            f"catastrophic overfitting in epoch {trainer.current_epoch}, says {self.name}: {', '.join(changes)}; "
            f"{consequence}."
        )

    def state_dict(self) -> dict[str, Any]:
        """All numbers so far, the first batches of the present epoch, the weights to restore, and a stop."""
        return {
            "earlier": self._earlier,
            "bound": None if self._bound is None else tuple(self._bound),
            "batches": [tuple(batch) for batch in self._batches],
            "healthy": self._healthy,
            **({"stopped": True} if self._stopped else {}),  # older versions have no such entry
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another net; here, because ``load_state_dict`` does not see the module."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if isinstance(state, dict) and state.get("healthy") is not None:
            where = f"callbacks[{self.state_key}].healthy"
            check_tensors(where, state["healthy"], self.adapter.users_net(pl_module).state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint, if it can be used."""
        if isinstance(state_dict, dict):
            state_dict = {"stopped": False, **state_dict}
        check_entries(f"callbacks[{self.state_key}]", state_dict, RULES)
        self._earlier, self._healthy, self._stopped = (state_dict[name] for name in ("earlier", "healthy", "stopped"))
        self._bound = None if state_dict["bound"] is None else Bound(*state_dict["bound"])
        self._batches = [Batch(*batch) for batch in state_dict["batches"]]


def _means(values: Mapping[str, Tensor], exists: Tensor, trainer: Trainer) -> dict[str, float]:
    """The mean of each ``(N,)`` over the samples of all ranks that exist and have a finite number."""
    table = torch.stack([value.float() for value in values.values()])
    counts = exists & table.isfinite()
    sums = torch.stack([torch.where(counts, table, 0.0).sum(dim=1), counts.float().sum(dim=1)])
    total, count = trainer.strategy.reduce(sums, reduce_op="sum")
    return dict(zip(values, (total / count).tolist(), strict=True))


def _bound(module: object) -> Bound:
    """The present bound of the module's attack; its eps is NaN if there is none."""
    eps, norm = threat_of(getattr(module, "attack", None)) or (math.nan, "linf")
    return Bound(float(eps), norm)
