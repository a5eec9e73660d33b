"""What all training methods share: one batch is one `perturb`, one `loss` and one update."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import Tensor, nn

from lit_robust import losses
from lit_robust.attacks import Attack
from lit_robust.batch import Batch
from lit_robust.guards import frozen, network_mode
from lit_robust.require import check_not_negative
from lit_robust.schedules import Schedule
from lit_robust.seeds import seed
from lit_robust.training.evaluated import Evaluated
from lit_robust.training.metrics import Tally
from lit_robust.training.monitors import check_monitors
from lit_robust.training.ranks import average_buffers, gather_over_ranks, weighted_mean, world_size
from lit_robust.training.rates import LearningRate
from lit_robust.training.resume import check_weights_finite, check_weights_fit, end_the_epoch, warn_of_other_data
from lit_robust.training.weight_perturbation import AWP, as_awp, perturbed_weights


class Defense(Evaluated):
    """Adversarial training with a cross-entropy on what ``attack`` finds; every method starts from here.

        min_theta  E  loss(theta; x, y, perturb(x, y))

    A method overrides two verbs: ``perturb``, the inner maximisation, and ``loss``, one number per sample. While
    ``adversarial`` is false a batch is a step of plain cross-entropy on clean images and calls neither, so a delayed
    start works on every method.

    Optimization is manual, with one optimizer step a batch (FreeAT takes m); gradients are those of the weighted mean
    over all ranks, and all random numbers of a batch are seeded from (seed, epoch, batch, rank), which makes a resumed
    run equal to an uninterrupted one.

    Args:
        net: Returns logits ``(N, num_classes)`` for images in [0, 1]; normalisation is inside it.
        num_classes: The number of classes; the command line takes it from the data.
        attack: The adversary of the training.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: A ``lit_robust.schedules.Schedule``, whose value at each moment in fractional epochs multiplies
            the optimizer's ``lr``, or any scheduler of torch.
        lr_interval: When a scheduler of torch takes its step; a Schedule needs none.
        momentum: A Schedule of SGD's momentum (or Adam's first beta), absolute; None leaves the optimizer's.
        attack_bn_mode: The net's mode while the adversary is crafted. Published methods differ, see each one.
        val_attack: The attack behind ``val/acc/robust``, by which the best checkpoint is chosen; by default 7 steps of
            eps/7 from the clean image, the selection of NuAT's and GAT's code for CIFAR-10, at the training attack's
            eps.
        test_attacks: The attacks of ``test`` by name; PGD-20 at the training attack's eps by default.
        weight_perturbation: Takes the gradient of each update at nearby weights where the loss is worse, see ``AWP``.
        gradient_clip_val: Clips the norm of the gradient; Lightning's own option refuses manual optimization.
        channels_last: Keeps images and weights in the memory format that GPUs (and most CPUs) are faster with.
        compile: Compiles the net with ``torch.compile``.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        attack: Attack,
        *,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=5e-4),
        lr_scheduler: Schedule | LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        momentum: Schedule | None = None,
        attack_bn_mode: Literal["eval", "train"] = "eval",
        val_attack: Attack | None = None,
        test_attacks: dict[str, Attack] | None = None,
        weight_perturbation: AWP | None = None,
        gradient_clip_val: float | None = None,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__(net, num_classes, attack, val_attack, test_attacks, channels_last, compile)
        if _given_hyperparameters.get() is not None:
            # Built by the command line: keep the configuration, so that `load_from_checkpoint` can build it again.
            # Built in Python: arguments are live objects, which a checkpoint that is safe to load cannot hold.
            self.save_hyperparameters(logger=False)
        if attack_bn_mode not in ("eval", "train"):
            raise ValueError(f'attack_bn_mode="{attack_bn_mode}" is unknown: choose "eval" or "train".')
        if gradient_clip_val is not None and not gradient_clip_val > 0:
            raise ValueError(f"gradient_clip_val={gradient_clip_val} must be above 0, or null for no clipping.")
        self.automatic_optimization = False
        self.attack = attack
        self.adversarial = True
        self.attack_bn_mode = attack_bn_mode
        self.weight_perturbation = as_awp(weight_perturbation)
        self.gradient_clip_val = gradient_clip_val
        self.rate = LearningRate(optimizer, lr_scheduler, lr_interval, momentum)
        self.tally = Tally()
        #: The training metrics of the last whole epoch, by name.
        self.epoch_means: dict[str, float] = {}
        #: Index in its epoch of the batch in training.
        self.batch_idx = 0
        #: Tensors that belong to one rank and outlive a batch; a checkpoint holds every rank's, ``load_net`` none.
        self.rank_state: dict[str, Tensor] = {}
        self._trained_on: dict[str, Any] = {}

    # The method: what the papers differ in.

    def perturb(self, batch: Batch) -> Any:
        """Craft the batch's adversary; whatever is returned goes to ``loss`` untouched."""
        with network_mode(self.net, self.attack_bn_mode):
            return self.attack(self.net, batch.x, batch.y)

    def loss(self, batch: Batch, x_adv: Any) -> Tensor:
        """The training loss of each sample, ``(N,)``."""
        return losses.ce(self.observe("robust", self.net(x_adv), batch), batch.y)

    def natural_loss(self, batch: Batch) -> Tensor:
        """The loss of each sample while there is no adversary, ``(N,)``."""
        return losses.ce(self.observe("clean", self.net(batch.x), batch), batch.y)

    #: The method's numbers that must be 0 or above.
    not_negative: tuple[str, ...] = ()

    def check_numbers(self) -> None:
        """Refuse numbers out of range; ``AttributeRamp`` asks before the training whether its values will do.

        Raises:
            ValueError: If a number of the method is out of range.
        """
        check_not_negative(**{name: value for name, value in vars(self).items() if name in self.not_negative})

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One batch: perturb, loss, weighted mean, update."""
        batch = self.receive(batch)
        if self.adversarial:
            self.adversarial_step(batch)
        else:
            self.optimize(lambda: self.mean(self.natural_loss(batch), batch))
        if self.trainer.is_last_batch:
            average_buffers(self.net)
            self._log_training(batch_idx, on_epoch=True)

    def adversarial_step(self, batch: Batch) -> None:
        """What one batch is while there is an adversary; Free training alone makes something else of it."""
        # A compiled graph computes every gradient that it could: without this, the parameters' in attacks too.
        with frozen(self.net) if self.compiled else nullcontext():
            x_adv = self.perturb(batch)
        self.optimize(lambda: self.mean(self.loss(batch, x_adv), batch))

    def optimize(self, closure: Callable[[], Tensor]) -> None:
        """One step of the optimizer on the closure's scalar loss."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        with perturbed_weights(self, closure):
            self.manual_backward(closure())
        optimizer.step()

    def mean(self, values: Tensor, batch: Batch) -> Tensor:
        """The scalar to minimise: the weighted mean of ``(N,)`` losses over the batches of all ranks."""
        self.tally.add("loss", values, batch.weight)
        return weighted_mean(values, batch.weight)

    def observe(self, which: str, logits: Tensor, batch: Batch) -> Tensor:
        """Count logits that the method computes anyway towards ``train/acc/<which>``, and hand them on."""
        self.tally.add(f"acc/{which}", logits.detach().argmax(dim=1) == batch.y, batch.weight)
        return logits

    # The clock: what happens around a batch.

    def on_train_start(self) -> None:
        """Go on with what a checkpoint held, on the device; report the epoch of which it had seen every batch.

        Raises:
            ValueError: If a callback waits for a validation that there is not.
        """
        if not _validates(self.trainer):
            check_monitors(self.trainer, logged=())
        warn_of_other_data(self._fingerprint(), self._trained_on)
        self.rate.insist()
        self.rank_state = {name: value.to(self.device) for name, value in self.rank_state.items()}
        self.tally.sums = {name: entry.to(self.device) for name, entry in self.tally.sums.items()}
        if self.trainer.is_last_batch and self.tally.sums:
            self._log_training(self.trainer.fit_loop.batch_idx, on_epoch=True)
            self.tally.reset()

    def configure_optimizers(self) -> Any:
        """Build the optimizer and, where torch's own is used, the scheduler that ``rate`` steps."""
        return self.rate.configure(self.net.parameters())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the batch, so that its random numbers do not depend on the batches before, and set the rates."""
        seed(self.device, "train", self.current_epoch, batch_idx, self.global_rank)
        self.batch_idx = batch_idx
        if self.trainer.fit_loop.total_batch_idx > 0:
            self.rate.batch_done()  # now and not at its end, where callbacks save before the module's turn comes
        self.rate.set(self.time)

    @property
    def time(self) -> float:
        """Fractional epochs since the start of training: what every schedule is a function of."""
        return float(self.current_epoch + self.batch_idx / self.trainer.num_training_batches)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip here, where gradients are unscaled in every precision."""
        if self.gradient_clip_val is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.gradient_clip_val)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Report now and then, because logging costs as much as a small net's forward."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by one of the trainer's connectors
        if (self.trainer.fit_loop.total_batch_idx + 1) % every == 0:
            self._log_training(batch_idx, on_epoch=False)
        if self.trainer.is_last_batch:
            self.tally.reset()

    def _log_training(self, batch_idx: int, on_epoch: bool) -> None:
        values = self.tally.means(self.current_epoch, batch_idx)
        if on_epoch:
            self.epoch_means = values
        updates = float(self.trainer.global_step)
        values |= {"adversarial": float(self.adversarial), "lr": self.rate.current, "updates": updates}
        for name, value in values.items():
            self.log(
                f"train/{name}",
                value,
                on_step=not on_epoch,
                on_epoch=on_epoch,
                prog_bar=name == "loss",
                batch_size=1,
            )

    def on_train_epoch_end(self) -> None:
        """Step a torch scheduler that counts epochs."""
        self.rate.epoch_done(self.trainer.callback_metrics)

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add how the net was built, for ``load_net``, and what an exact resume needs beside weights.

        Raises:
            FloatingPointError: If loss or weights are no longer finite; the checkpoint before stays what it was.
        """
        self.tally.means(self.current_epoch, self.batch_idx)
        check_weights_finite(self.state_dict())
        checkpoint["lit_robust"] = {
            "net": getattr(self.net, "recipe", None),
            "tally": gather_over_ranks(self.tally.sums),
            "ranks": gather_over_ranks(self.rank_state),
            "data": self._fingerprint(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another net in one sentence, and go on where the checkpoint stands."""
        super().on_load_checkpoint(checkpoint)
        check_weights_fit(self.state_dict(), checkpoint.get("state_dict", {}))
        state = checkpoint.get("lit_robust", {})
        self.tally.sums = self._of_this_rank(state.get("tally", []))
        self.rank_state = self._of_this_rank(state.get("ranks", []))
        self._trained_on = state.get("data", {})
        end_the_epoch(checkpoint.get("loops", {}).get("fit_loop", {}))

    def _fingerprint(self) -> dict[str, Any]:
        return getattr(getattr(self.trainer, "datamodule", None), "fingerprint", {})

    def _of_this_rank(self, states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return states[self.global_rank] if len(states) == world_size() else {}


def _validates(trainer: Trainer) -> bool:
    """Whether the run has images to validate on; those of a later epoch only, which are not loaded yet, count."""
    return trainer.limit_val_batches > 0 and (trainer.val_dataloaders is None or any(trainer.num_val_batches))
