"""Adversarial coreset selection: training on a weighted subset that is chosen again every few epochs."""

import math
import time
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_robust import require
from lit_robust.attacks.base import Attack, check_attack
from lit_robust.callbacks import coreset_checks, coreset_data, coreset_reports
from lit_robust.callbacks.adapter import Adapter, Channels
from lit_robust.callbacks.batch_paths import Key
from lit_robust.callbacks.coreset_plan import Plan
from lit_robust.callbacks.coreset_state import coreset_of, state_of
from lit_robust.callbacks.epoch_values import LastTurn, as_in_epoch
from lit_robust.callbacks.last_layer import embed, is_natural_now
from lit_robust.callbacks.needs import check_alone, check_net, is_trial
from lit_robust.callbacks.selection_cost import selecting
from lit_robust.callbacks.selection_stops import saved_if_stopped
from lit_robust.callbacks.skipped_epochs import move_to_front, require_epochs, skip
from lit_robust.lightning_internals import epochs_done, set_current_epoch
from lit_robust.lightning_resume_internals import end_the_epoch
from lit_robust.schedules import Schedule
from lit_robust.selection import CRAIG, Coreset, Selector
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

    The adversary and the loss are the module's own (a Defense's ``perturb_all`` if it has one, else ``perturb``, and
    ``loss``; clean images and cross-entropy while ``adversarial`` is false or for ``Natural``; of another module
    ``AdversarialTraining``'s attack, and cross-entropy), with the current weights, not their average, and with what a
    delayed start, ramps and other callbacks with ``values_at`` set for the epoch to come. Net, memory and random state
    are restored. A ``fast_dev_run`` tries the selection on one batch and trains on all images. Weights reach the loss
    as ``Batch.weight``; a module that does not use it gets images drawn in proportion to them. It logs the coreset's
    size, how many filled the budget, the selections' seconds, the weighted gradients' error, and the mean weight.

    Differs from the authors' code (``hmdolatabadi/ACS``): the first selection is at ``E_warm``, not the next multiple
    of ``every``; a coreset's size is rounded, not cut off; attack and gradients see the same augmented image, with
    BatchNorm in eval mode; TRADES' beta counts once; batches are shuffled. Theirs come in order, and the weights of
    whole chosen batches cancel, as they do with ``official_order=True, selector=CRAIG(scope="batch")``.

    Args:
        fraction: The share of the training images; a Schedule, a function of the epoch, lets it grow.
        selector: How they are chosen: ``CRAIG``, ``GradMatch`` or ``Random``.
        every: Epochs from one selection to the next; None selects once.
        warm: The kappa of the paper: the share of the epochs before the first selection. 0 selects before training.
        attack: The selection's adversary, with cross-entropy; None for the training's own adversary and loss.
        normalize: What divides a batch's weighted loss: the ``batch``'s own sum of weights, as in the authors' code,
            or the weights' mean over the whole ``subset`` times the number of images. ``subset`` is unbiased for the
            coreset's weighted mean; ``batch`` keeps an update a convex combination of gradients and is the default.
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

    logged_keys = tuple(f"train/coreset/{name}" for name in ("size", "filled", "seconds", "error", "weight"))

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
        self.plan = Plan(fraction, every, warm)
        require.instance("selector", selector, Selector, "give CRAIG(), GradMatch() or Random()")
        if attack is not None:
            check_attack("attack", attack)
        require.one_of("normalize", normalize, ("batch", "subset"))
        require.flags(official_order=official_order)
        coreset_data.check_sampler(sampler, selector)
        self.fraction, self.every, self.warm = fraction, every, warm
        self.selector, self.attack, self.sampler = selector, attack, sampler
        self.normalize, self.official_order = normalize, official_order
        self.adapter = Adapter(x, y, net, mean, std)
        self._last_turn = LastTurn(self._begin, self._go_on)
        self._forget()

    def _forget(self) -> None:
        #: The coreset in force, as positions in the training set; None before the first selection.
        self.coreset: Coreset | None = None
        #: The epoch that is trained or comes next, and the seconds of all selections.
        self.epoch, self.seconds = 0, 0.0
        #: The relative error of the coreset's gradient; None if the selector reads none, or if it is not finite.
        self.error: float | None = None
        #: Whether the epoch's coreset is still to be chosen, by ``LastTurn`` after the previous epoch or a resume.
        self._pending = False
        #: Epochs finished before resuming a run without a coreset, else None.
        self._joined: int | None = None
        self._used, self._resumed, self._weighted = 0, False, True  # weighted, until an epoch from its start is not

    # Timing.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check what is trained on, and forget an earlier fit; a checkpoint is loaded after this."""
        if stage != "fit":
            return
        check_alone(trainer, self, CoresetSelection, "two CoresetSelection callbacks overrule each other: keep one.")
        check_net(pl_module, self.adapter.net, "CoresetSelection differentiates")
        coreset_checks.check_data(trainer, self.sampler)
        coreset_data.settle_draws(pl_module, self.sampler)
        coreset_checks.check_weighted(pl_module, self.sampler, self.normalize)
        require_epochs(trainer, self.plan.warm)
        # Skipped epochs must show in `current_epoch` before other callbacks read it.
        move_to_front(trainer, self)
        self._last_turn.put_last(trainer)
        coreset_data.select_everything(trainer, self.sampler)
        self._forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan the first epoch, or continue from a checkpoint; the last turn selects, if it is time."""
        coreset_checks.check_schedulers(trainer, *self.plan.starts(trainer.max_epochs))
        if self._joined is not None:
            self.epoch = self._joined
            coreset_reports.tell_of_joining(self.epoch)
        elif not self._resumed:
            self._look_ahead(trainer, 0)

    def _begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Check the loader, when other callbacks have begun, and select for the first epoch."""
        self._epochs = coreset_checks.epochs_of(trainer, self.sampler)
        coreset_checks.check_plan(trainer, self.plan, self._epochs)
        coreset_reports.tell_of_limits(trainer, self.selector, self._epochs)
        self._go_on(trainer, module)
        if self.sampler is not None:  # workers ask it for positions before any hook of the epoch
            self.sampler.set_epoch(self.epoch)
            self.sampler.used = self._used

    def _go_on(self, trainer: Trainer, module: LightningModule) -> None:
        """Select for the epoch that comes next, when other callbacks and the module have ended the one before."""
        if coreset_checks.is_over(trainer, self.epoch):
            return  # a pending selection is saved as pending
        if self._pending:
            with saved_if_stopped(module), selecting(module, self.selector):
                self._select(trainer, module)
            self._pending = False
        if self.coreset is not None:
            how = self.epoch, self.official_order, self.normalize == "subset"
            coreset_data.apply(trainer, module, self.sampler, self.coreset, *how)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow skipped epochs."""
        set_current_epoch(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look for weights that only the user's loader can give, in epochs that begin here."""
        if self.coreset is not None and coreset_data.leaves_weights(pl_module, self.sampler):
            self._weighted = (self._weighted and batch_idx > 0) or bool((batch.weight != 1).any())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the sampler's position, because its DataLoader does not."""
        if self.sampler is not None:
            self._used = (batch_idx + 1) * self._epochs.batch_size

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the coreset that was trained on, and plan the next epoch, before other callbacks look at it."""
        self._used = 0
        if (coreset := self.coreset) is not None:
            coreset_checks.check_seen_weights(pl_module, self.sampler, self._weighted)
            values = (len(coreset.indices), coreset.filled, self.seconds, self.error, float(coreset.weights.mean()))
            coreset_data.log(pl_module, dict(zip(self.logged_keys, values, strict=True)))
        self._look_ahead(trainer, trainer.current_epoch + 1)

    def _look_ahead(self, trainer: Trainer, epoch: int) -> None:
        """Skip epochs as planned, and decide whether the next one needs a selection."""
        full, warm = self.plan.starts(trainer.max_epochs)
        if full <= epoch < warm:
            skip(trainer, epoch, warm)
            coreset_reports.tell_of_skips(self.plan, epoch, warm)
            epoch = warm
        self.epoch = epoch
        self._pending = epoch >= warm and (self.coreset is None or self.plan.is_due(epoch, trainer.max_epochs))

    def _select(self, trainer: Trainer, module: LightningModule) -> None:
        begun, epoch, trial = time.perf_counter(), self.epoch, is_trial(trainer)
        with as_in_epoch(trainer, module, epoch):
            given = (self.adapter, self.selector, self.sampler, self.attack, epoch)
            embedded, natural = embed(trainer, module, *given, 1 if trial else None), is_natural_now(module)
        count = len(embedded.y)
        chosen, error = coreset_data.choose(trainer, self.selector, embedded, self.plan.budget(epoch, count), epoch)
        self.seconds += (seconds := time.perf_counter() - begun) * self.selector.chooses_by_gradients
        rank_zero_info(coreset_reports.in_words(chosen, self.selector, count, epoch, seconds, error, natural))
        if trial:
            rank_zero_info("fast_dev_run: the coreset was chosen from one batch as a trial; all images are trained on.")
            return
        name = f"the selection by {type(self.selector).__name__} for epoch {epoch}"
        coreset_checks.check_batches(trainer, self._epochs, len(chosen.indices), name)
        if self.coreset is None:
            coreset_reports.tell_of_absent_classes(self.plan, epoch, embedded, chosen)
        self.coreset, self.error = chosen, error if error is None or math.isfinite(error) else None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module's loss and the data as they were."""
        coreset_data.forget_weights(pl_module)
        if stage == "fit":
            self._last_turn.leave(trainer)
            coreset_data.select_everything(trainer, self.sampler)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Do the same when training fails."""
        self.teardown(trainer, pl_module, "fit")

    # Checkpoints.

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Finish an epoch that was saved after its last batch, so that the next epoch's coreset is selected."""
        self._joined = None if self.state_key in checkpoint.get("callbacks", {}) else epochs_done(checkpoint)
        end_the_epoch(checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """The coreset, epoch and position, and what selections have cost."""
        own = {"epoch": self.epoch, "used": self._used, "seconds": self.seconds, "error": self.error}
        return state_of(self.coreset) | own | ({"pending": True} if self._pending else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint, if it can be used."""
        if isinstance(state_dict, dict):
            state_dict = {"pending": False} | state_dict  # older versions have no such entry
        self.coreset = coreset_of(f"callbacks[{self.state_key}]", state_dict)
        self.epoch, self._used, self._pending = (state_dict[name] for name in ("epoch", "used", "pending"))
        self.seconds, self.error, self._resumed = state_dict["seconds"], state_dict["error"], True
