"""What all training methods share: one batch is one `perturb`, one `loss` and one update."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import Tensor, nn

from lit_robust import losses
from lit_robust.attacks import PGD, Attack
from lit_robust.attacks.base import frozen, network_mode
from lit_robust.attacks.evaluation import Accuracy, Survivors, rows_of, surviving, table
from lit_robust.batch import Batch, as_batch
from lit_robust.defenses.checks import check_attacks, check_first_batch
from lit_robust.defenses.distributed import average_buffers, gather_over_ranks, weighted_mean, world_size
from lit_robust.defenses.rates import LearningRate
from lit_robust.defenses.resume import check_weights_finite, check_weights_fit, end_the_epoch
from lit_robust.defenses.tally import Tally
from lit_robust.schedules import Schedule
from lit_robust.seeds import derive_seed, run_seed
from lit_robust.threats import Norm


class Defense(LightningModule):
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
            eps/7 from the clean image, the selection of NuAT's and GAT's code, at the training attack's eps.
        test_attacks: The attacks of ``test`` by name; PGD-20 at the training attack's eps by default.
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
        gradient_clip_val: float | None = None,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if _given_hyperparameters.get() is not None:
            # Built by the command line: keep the configuration, so that `load_from_checkpoint` can build it again.
            # Built in Python: arguments are live objects, which a checkpoint that is safe to load cannot hold.
            self.save_hyperparameters(logger=False)
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes} leaves nothing to classify: it must be at least 2.")
        if attack_bn_mode not in ("eval", "train"):
            raise ValueError(f'attack_bn_mode="{attack_bn_mode}" is unknown: choose "eval" or "train".')
        if gradient_clip_val is not None and not gradient_clip_val > 0:
            raise ValueError(f"gradient_clip_val={gradient_clip_val} must be above 0, or null for no clipping.")
        val_attack = val_attack or _like(attack, steps=7, share=1 / 7, init="zero")
        test_attacks = test_attacks or {"pgd20": _like(attack, steps=20, share=1 / 4, init="uniform")}
        check_attacks({"attack": attack, "val_attack": val_attack}, test_attacks)
        self.automatic_optimization = False
        self.net = net.to(memory_format=torch.channels_last) if channels_last else net
        if compile:
            self.net.compile()
        self.num_classes = num_classes
        self.attack = attack
        self.adversarial = True
        self.attack_bn_mode = attack_bn_mode
        self.gradient_clip_val = gradient_clip_val
        self.channels_last = channels_last
        self.compiled = compile
        self.rate = LearningRate(optimizer, lr_scheduler, lr_interval, momentum)
        self.val_attacks = {"robust": val_attack}
        self.test_attacks = test_attacks
        self.val_survivors = Survivors(rows_of(self.val_attacks))
        self.test_survivors = Survivors(rows_of(self.test_attacks))
        #: Filled by `test`: the accuracies by the name of the tested checkpoint.
        self.test_results: dict[str, dict[str, Accuracy]] = {}
        self.tally = Tally()
        #: Index in its epoch of the batch in training.
        self.batch_idx = 0
        #: Tensors that belong to one rank and outlive a batch; a checkpoint holds every rank's, ``load_net`` none.
        self.rank_state: dict[str, Tensor] = {}
        self._checked_stages: set[Any] = set()

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
        """Go on with what a checkpoint held, on the device; report the epoch of which it had seen every batch."""
        self.rank_state = {name: value.to(self.device) for name, value in self.rank_state.items()}
        self.tally.sums = {name: entry.to(self.device) for name, entry in self.tally.sums.items()}
        if self.trainer.is_last_batch and self.tally.sums:
            self._log_training(self.trainer.fit_loop.batch_idx, on_epoch=True)
            self.tally.reset()

    def configure_optimizers(self) -> Any:
        """Build the optimizer and, where torch's own is used, the scheduler that ``rate`` steps."""
        return self.rate.configure(self.net.parameters())

    def receive(self, raw: Any) -> Batch:
        """Give every batch the same type and memory format, and check the first one of a stage."""
        batch = as_batch(raw)
        if self.channels_last:
            batch = batch._replace(x=batch.x.contiguous(memory_format=torch.channels_last))
        if self.trainer.state.stage not in self._checked_stages:
            check_first_batch(self.net, batch, self.num_classes)
            self._checked_stages.add(self.trainer.state.stage)
        return batch

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the batch, so that its random numbers do not depend on the batches before, and set the rates."""
        torch.manual_seed(derive_seed(run_seed(), "train", self.current_epoch, batch_idx, self.global_rank))
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

    # Evaluation: attacks find gradients by themselves, also under Lightning's inference mode.

    def on_validation_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Draw the same random starts in every epoch."""
        torch.manual_seed(derive_seed(run_seed(), "evaluate", batch_idx, self.global_rank))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count who survives the validation attack."""
        batch = self.receive(batch)
        self.val_survivors.update(self._surviving(self.val_attacks, batch), batch.weight)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/acc/clean`` and ``val/acc/robust``."""
        self._log_accuracies("val", self.val_survivors)

    def on_test_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Draw the same random starts in every test."""
        self.on_validation_batch_start(batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count who survives which attack; in float32, because bfloat16's coarse logits flatter a net."""
        batch = self.receive(batch)
        with torch.autocast(self.device.type, enabled=False):
            self.test_survivors.update(self._surviving(self.test_attacks, batch), batch.weight)

    def on_test_epoch_end(self) -> None:
        """Log ``test/acc/<attack>`` and print the table of all checkpoints tested so far."""
        checkpoint = str(self.trainer.ckpt_path or "")
        name = checkpoint.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".ckpt") or "these weights"
        self.test_results[name] = self._log_accuracies("test", self.test_survivors)
        if self.trainer.is_global_zero:
            print(f"\n{table(self.test_results)}\n")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the class probabilities ``(N, num_classes)``."""
        probabilities: Tensor = self.net(self.receive(batch).x).float().softmax(dim=1)
        return probabilities

    def _surviving(self, attacks: dict[str, Attack], batch: Batch) -> dict[str, Tensor]:
        with frozen(self.net) if self.compiled else nullcontext():
            return surviving(self.net, attacks, batch)

    def _log_accuracies(self, split: str, survivors: Survivors) -> dict[str, Accuracy]:
        accuracies = survivors.accuracies()
        survivors.reset()
        for name, accuracy in accuracies.items():
            self.log(f"{split}/acc/{name}", accuracy.value, prog_bar=split == "val", batch_size=1)
        return accuracies

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add how the net was built, for ``load_net``, and what an exact resume needs beside weights.

        Raises:
            FloatingPointError: If loss or weights are no longer finite; the checkpoint before stays what it was.
        """
        self.tally.means(self.current_epoch, self.batch_idx)
        check_weights_finite(dict(self.named_parameters()))
        checkpoint["lit_robust"] = {
            "net": getattr(self.net, "recipe", None),
            "tally": gather_over_ranks(self.tally.sums),
            "ranks": gather_over_ranks(self.rank_state),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another net in one sentence, and go on where the checkpoint stands."""
        check_weights_fit(self.state_dict(), checkpoint.get("state_dict", {}))
        state = checkpoint.get("lit_robust", {})
        self.tally.sums = self._of_this_rank(state.get("tally", []))
        self.rank_state = self._of_this_rank(state.get("ranks", []))
        end_the_epoch(checkpoint.get("loops", {}).get("fit_loop", {}))

    def _of_this_rank(self, states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return states[self.global_rank] if len(states) == world_size() else {}


def _like(attack: Attack, steps: int, share: float, init: Literal["zero", "uniform"]) -> PGD:
    """PGD in the threat set of another attack, with steps of a share of its eps."""
    eps: float | None = getattr(attack, "eps", None)
    norm: Norm = getattr(attack, "norm", "linf")
    if eps is None:
        raise ValueError(f"{type(attack).__name__} has no eps: state val_attack and test_attacks yourself.")
    return PGD(eps=eps, step_size=share * eps, steps=steps, norm=norm, init=init)
