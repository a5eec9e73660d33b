"""What all training methods share: one batch is one `perturb`, one `loss` and one update."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any, Unpack

from torch import Tensor, nn

from lit_robust import losses, require
from lit_robust.attacks import Attack
from lit_robust.batch import Batch
from lit_robust.first_batch import naming_drop_last
from lit_robust.guards import BNMode, checked, frozen
from lit_robust.ranks import weighted_mean
from lit_robust.training.arguments import TrainedArguments
from lit_robust.training.trained import Trained
from lit_robust.training.weight_perturbation import AWP, as_awp, perturbed_weights


class Defense(Trained):
    """Adversarial training with cross-entropy on what ``attack`` finds; the base of every method.

        min_theta  E  loss(theta; x, y, perturb(x, y))

    A method overrides ``adversary``, the attack of its inner maximisation, and ``loss``, one number per sample; or
    ``perturb``, if an attack alone does not describe it. While ``adversarial`` is false, a batch is one step of plain
    cross-entropy on clean images and calls neither, so a delayed start works on every method.

    Optimization is manual, with one optimizer step per batch (FreeAT takes m). The gradient is that of the weighted
    mean over all ranks.

    Args:
        attack: The training adversary.
        attack_bn_mode: The net's mode during the attack. Published methods differ, see each one. In ``train``, layers
            that are frozen by ``eval()`` stay so.
        weight_perturbation: Takes the gradient of each update at nearby weights where the loss is worse, see ``AWP``.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        attack_bn_mode: BNMode = "eval",
        weight_perturbation: AWP | None = None,
        **kwargs: Unpack[TrainedArguments],
    ) -> None:
        super().__init__(net, num_classes, attack, **kwargs)
        require.one_of("attack_bn_mode", attack_bn_mode, ("eval", "train"))
        self.attack_bn_mode = attack_bn_mode
        self.weight_perturbation = as_awp(weight_perturbation)
        #: What ``loss`` leaves for the metrics: numbers ``(N,)`` by name, and logits ``(N, C)`` to compute accuracies.
        #: ``optimize`` empties it before each call of ``loss`` and counts it once, after the update.
        self.seen: dict[str, Tensor] = {}

    checkpoint_parts = (*Trained.checkpoint_parts, AWP)

    #: Averages of ``net`` by name, while a fit has an ``EMAWeights(extra=...)``, which assigns them.
    averaged: Mapping[str, nn.Module] = MappingProxyType({})

    #: Divides a batch's loss instead of its own mean weight, while a ``CoresetSelection`` of this fit assigns it.
    mean_weight: float | None = None

    # The method: what the papers differ in.

    def adversary(self) -> Attack:
        """The attack in force now; build one that depends on the method's numbers by ``attacks.base.made_once``."""
        return self.attack

    def perturb(self, batch: Batch) -> Any:
        """Find the batch's adversarial images; the result goes to ``loss`` unchanged."""
        with self.attacked(batch.x) as net:
            return self.adversary()(net, batch.x, batch.y)

    def loss(self, batch: Batch, x_adv: Any) -> Tensor:
        """The training loss of each sample, ``(N,)``."""
        logits = self.net(x_adv)
        self.seen["robust"] = logits
        return losses.ce(logits, batch.y)

    def natural_loss(self, batch: Batch) -> Tensor:
        """The loss of each sample while ``adversarial`` is false, ``(N,)``."""
        logits = self.net(batch.x)
        self.seen["clean"] = logits
        return losses.ce(logits, batch.y)

    #: The method's numbers that must be 0 or above.
    not_negative: tuple[str, ...] = ()

    def check_numbers(self) -> None:
        """Refuse numbers out of range; ``AttributeRamp`` calls this before training, for the values it will set.

        Raises:
            ValueError: If a number of the method is out of range.
        """
        for name in self.not_negative:
            if name in vars(self):  # a base class checks before its subclass has set its own
                require.number(name, getattr(self, name), least=0)

    # The update.

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch: perturb, loss, weighted mean, update; the mean is returned for callbacks that read it."""
        batch = self.receive(batch)
        with naming_drop_last(), self.limits.naming_causes(), self.meter.counting():
            if self.adversarial:
                self.adversarial_step(batch)
            else:
                self.optimize(batch, lambda: self.natural_loss(batch))
        if self.trainer.is_last_batch:
            self.finish_epoch(batch_idx)
        return self.last_loss

    def adversarial_step(self, batch: Batch) -> None:
        """One perturbation and one update; ``FreeAT`` replays the batch, ``PGDAT`` may add the authors' forward."""
        # A compiled graph computes every gradient it can, so parameters are frozen during the attack.
        with frozen(self.net) if self.compiled else nullcontext(), checked():
            x_adv = self.perturb(batch)
        self.optimize(batch, lambda: self.loss(batch, x_adv))

    def optimize(self, batch: Batch, loss: Callable[[], Tensor]) -> None:
        """Take one optimizer step on the weighted mean of ``(N,)`` losses, and count the metrics."""

        def mean() -> Tensor:
            self.seen = {}
            values = loss()
            self.seen["loss"] = values
            return weighted_mean(values, batch.weight, self.mean_weight)

        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        with perturbed_weights(self, mean):
            value = mean()
            self.manual_backward(value)
        self.last_loss = value.detach()
        optimizer.step()
        self.metrics.count(self.seen, batch.y, batch.weight)
        self.seen = {}  # frees its autograd graphs
