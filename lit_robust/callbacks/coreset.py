"""Adversarial coreset selection: training on a weighted subset that is chosen anew every few epochs."""

import time
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_robust import require
from lit_robust.attacks.base import Attack, check_attack
from lit_robust.callbacks import coreset_data
from lit_robust.callbacks.adapter import Adapter, Channels
from lit_robust.callbacks.batch_paths import Key
from lit_robust.callbacks.coreset_state import coreset_of, state_of
from lit_robust.callbacks.last_layer import embed, is_natural_now
from lit_robust.callbacks.needs import check_alone, check_net
from lit_robust.callbacks.skipped_epochs import follow_skipped, move_to_front, require_epochs, skip, warm_start
from lit_robust.lightning_internals import end_the_epoch
from lit_robust.schedules import Schedule
from lit_robust.seeds import derive_seed, run_seed
from lit_robust.selection import CRAIG, Coreset, Selector, gradient_error
from lit_robust.selection.embeddings import bias_of
from lit_robust.selection.sampler import CoresetSampler

#: The selector of the paper that needs no choice of a ridge.
DEFAULT = CRAIG()


class CoresetSelection(Callback):
    """Trains on a weighted subset whose gradient, at the adversarial images, is near that of all images.

        | sum_i grad Phi(x_i) - sum_{j in S} gamma_j grad Phi(x_j) |  small,     Phi(x) = max_delta L(f(x + delta), y)

    Adversarial Coreset Selection (Dolatabadi, Erfani and Leckie, ECCV 2022, arXiv:2112.00378): every ``every`` epochs,
    all training images are attacked with the current net, its last layer's gradients are computed at the images found
    (by Danskin's theorem they are those of Phi), and ``selector`` chooses. A warm start trains on all images first:

        E_warm = int(warm * max_epochs),     E_full = round(fraction * E_warm)
        epochs 0 .. E_full - 1 on all images;  E_full .. E_warm - 1 skipped;  the others on the coreset

    Schedules advance over skipped epochs; training costs ``fraction`` of a full training, plus the selections.

    The adversary and the loss are the module's own (those of a Defense by ``perturb`` and ``loss``; clean images and
    cross-entropy while ``adversarial`` is false or for ``Natural``; of another module the attack that
    ``AdversarialTraining`` lends it, and cross-entropy), with the current weights, not their average; if a delayed
    start ends with the selection's epoch, the images are still clean. Net, memory and random state are restored.
    Weights reach the loss as ``Batch.weight``; a module that does not use it gets images drawn in proportion to them.

    Differs from the authors' code (``hmdolatabadi/ACS``): the first selection is at ``E_warm``, not the next multiple
    of ``every``; attack and gradients see the same augmented image, with BatchNorm in eval mode; TRADES' beta counts
    once; batches are shuffled. Theirs come in order, and the weights of whole chosen batches cancel, as they do with
    ``official_order=True, selector=CRAIG(scope="batch")``.

    Args:
        fraction: The share of the training images; a Schedule, a function of the epoch, lets it grow.
        selector: How they are chosen: ``CRAIG``, ``GradMatch`` or ``Random``.
        every: Epochs from one selection to the next; None selects once.
        warm: The kappa of the paper: the share of the epochs before the first selection. 0 selects before training.
        attack: The selection's adversary, with cross-entropy; None for the training's own adversary and loss.
        normalize: What divides a batch's weighted loss: the ``batch``'s own sum of weights, as in the authors' code,
            or the weights' mean over the whole ``subset`` times the number of images. ``subset`` is unbiased;
            ``batch`` keeps an update a convex combination of gradients and is the default.
        official_order: Whether batches come in the order of the training set, without shuffling.
        sampler: For loaders that are not of ``lit_robust.data``: the ``CoresetSampler`` of the training's DataLoader.
        x: Where a batch keeps its images: an index, a key, the name of a field, or a path such as ``"views.0"``.
        y: The same for the labels.
        net: The sub-module that turns images into logits; None for the module itself or, if it has no ``forward``, its
            ``net``. Its last layer must be a Linear.
        mean: What the data pipeline subtracts from pixels in [0, 1], if it normalises.
        std: What it then divides them by.

    Raises:
        TypeError: If there is neither a DataModule of ``lit_robust.data`` nor a sampler.
        ValueError: If an argument is out of range, ``max_epochs`` is missing, or pixels, labels or net do not fit.
    """

    logged_keys = tuple(f"train/coreset/{name}" for name in ("size", "filled", "seconds", "error"))

    def __init__(
        self,
        fraction: float | Schedule,
        selector: Selector = DEFAULT,
        every: int | None = 20,
        warm: float = 0.5,
        attack: Attack | None = None,
        normalize: Literal["batch", "subset"] = "batch",
        official_order: bool = False,
        sampler: CoresetSampler | None = None,
        x: Key = 0,
        y: Key = 1,
        net: str | None = None,
        mean: Channels | None = None,
        std: Channels | None = None,
    ) -> None:
        if not isinstance(fraction, Schedule):
            require.number("fraction", fraction, above=0, most=1)
        require.instance("selector", selector, Selector, "give CRAIG(), GradMatch() or Random()")
        if every is not None:
            require.integer("every", every, least=1)
        require.number("warm", warm, least=0, below=1)
        if attack is not None:
            check_attack("attack", attack)
        require.one_of("normalize", normalize, ("batch", "subset"))
        require.instance("official_order", official_order, bool, "give True or False")
        coreset_data.check_sampler(sampler, selector)
        self.fraction = fraction
        self.selector = selector
        self.every = every
        self.warm = warm
        self.attack = attack
        self.normalize = normalize
        self.official_order = official_order
        self.sampler = sampler
        self.adapter = Adapter(x, y, net, mean, std)
        self._forget()

    def _forget(self) -> None:
        #: The coreset in force, as positions in the training set; None before the first selection.
        self.coreset: Coreset | None = None
        #: The epoch that is trained or comes next, and the seconds of all selections.
        self.epoch, self.seconds = 0, 0.0
        self._used = 0
        #: The relative error of the coreset's gradient; None if the selector reads none.
        self.error: float | None = None

    # When.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check what is trained on, and forget an earlier fit; a checkpoint is loaded after this."""
        if stage != "fit":
            return
        check_alone(trainer, self, CoresetSelection, "two CoresetSelection callbacks overrule each other: keep one.")
        check_net(pl_module, self.adapter.net, "CoresetSelection differentiates")
        if self.sampler is None:
            coreset_data.check_selects(trainer)
        require_epochs(trainer, self.warm)
        # Skipped epochs must show in `current_epoch` before other callbacks read it.
        move_to_front(trainer, self)
        coreset_data.select_everything(trainer, self.sampler)
        self._forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Select before the first epoch, without a warm start; or continue from a checkpoint."""
        if self.coreset is not None:
            self._apply(trainer, pl_module)
        elif self.epoch == 0:
            self._prepare(trainer, pl_module, 0)
        if self.sampler is not None:  # workers ask it for positions before any hook of the epoch
            self.sampler.set_epoch(self.epoch)
            self.sampler.used = self._used

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the loader has the sampler."""
        if self.sampler is not None:
            coreset_data.check_loader(trainer, self.sampler)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow skipped epochs."""
        follow_skipped(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the sampler's position, because its DataLoader does not."""
        if self.sampler is not None:
            loader: Any = trainer.train_dataloader
            self._used = (batch_idx + 1) * int(loader.batch_size)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the coreset that was trained on, and select the next epoch's if it is time."""
        self._used = 0
        if self.coreset is not None:
            values = map(float, (len(self.coreset.indices), self.coreset.filled, self.seconds, self.error or 0.0))
            row = dict(zip(self.logged_keys, values, strict=True))
            if self.error is None:
                del row["train/coreset/error"]
            pl_module.log_dict(row, on_step=False, on_epoch=True, sync_dist=True, reduce_fx="max", batch_size=1)
        self._prepare(trainer, pl_module, trainer.current_epoch + 1)

    def _prepare(self, trainer: Trainer, module: LightningModule, epoch: int) -> None:
        """Skip, select and apply as planned for the next epoch."""
        epochs = trainer.max_epochs or -1
        full, warm = warm_start(self._share, self.warm, epochs)
        if full <= epoch < warm:
            skip(trainer, epoch, warm)
            epoch = warm
        self.epoch = epoch
        if epoch < warm or 0 < epochs <= epoch or trainer.should_stop:
            return
        due = self.every is not None and (epoch - warm) % self.every == 0
        if self.coreset is None or due:
            self._select(trainer, module, epoch)
        self._apply(trainer, module)

    def _share(self, epoch: int) -> float:
        if not isinstance(self.fraction, Schedule):
            return self.fraction
        return require.number(f"fraction({epoch})", self.fraction(float(epoch)), above=0, most=1)

    # What.

    def _select(self, trainer: Trainer, module: LightningModule, epoch: int) -> None:
        begun = time.perf_counter()
        embedded = embed(trainer, module, self.adapter, self.selector, self.sampler, self.attack, epoch)
        budget = max(1, round(self._share(epoch) * len(embedded.y)))
        chosen: Coreset | None = None
        if trainer.is_global_zero:
            draw = derive_seed(run_seed(), "coreset", epoch if self.selector.draws_anew else 0)
            generator = torch.Generator().manual_seed(draw)
            compared = bias_of(embedded.embeddings) if self.selector.reads == "bias" else embedded.embeddings
            positions, weights, filled = self.selector(compared, embedded.y, budget, generator)
            if self.selector.reads != "nothing":
                self.error = gradient_error(embedded.embeddings, positions.to(embedded.y.device), weights)
            chosen = Coreset(embedded.index[positions.to(embedded.index.device)].cpu(), weights, filled)
        self.coreset, self.error = trainer.strategy.broadcast((chosen, self.error))
        self.seconds += (seconds := time.perf_counter() - begun)
        assert self.coreset is not None
        facts = len(embedded.y), epoch, seconds, self.error, is_natural_now(module)
        rank_zero_info(coreset_data.in_words(self.coreset, self.selector, *facts))

    def _apply(self, trainer: Trainer, module: LightningModule) -> None:
        assert self.coreset is not None
        by_mean = self.normalize == "subset"
        coreset_data.apply(trainer, module, self.sampler, self.coreset, self.epoch, self.official_order, by_mean)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module's loss and the data as they were."""
        coreset_data.forget_weights(pl_module)
        if stage == "fit":
            coreset_data.select_everything(trainer, self.sampler)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Do the same when training fails."""
        self.teardown(trainer, pl_module, "fit")

    # Checkpoints.

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Finish an epoch that was saved after its last batch, so that the next epoch's coreset is selected."""
        end_the_epoch(checkpoint.get("loops", {}).get("fit_loop", {}))

    def state_dict(self) -> dict[str, Any]:
        """The coreset, epoch and position, and what selections have cost."""
        own = {"epoch": self.epoch, "used": self._used, "seconds": self.seconds, "error": self.error}
        return state_of(self.coreset) | own

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint, if it can be used."""
        self.coreset = coreset_of(f"callbacks[{self.state_key}]", state_dict)
        self.epoch, self._used = state_dict["epoch"], state_dict["used"]
        self.seconds, self.error = state_dict["seconds"], state_dict["error"]
