"""Checks, before the first selection, that coresets take effect and fill at least one batch."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import IterableDataset

from lit_robust.batch import Batch
from lit_robust.callbacks.coreset_data import images_of, leaves_weights, weights_its_loss
from lit_robust.callbacks.coreset_plan import Plan
from lit_robust.lightning_internals import loader_maker
from lit_robust.selection import CoresetSampler


class Epochs(NamedTuple):
    """How a training's loader divides a coreset into batches."""

    batch_size: int
    drop_last: bool
    #: The number of all training images.
    images: int


def check_data(trainer: Any, sampler: CoresetSampler | None) -> None:
    """Refuse data that cannot be selected from.

    Raises:
        TypeError: If the DataModule is not one of ours, and there is no sampler.
        ValueError: If Lightning would replace the sampler.
    """
    if sampler is None and not hasattr(images_of(trainer), "selection_dataloader"):
        raise TypeError(
            "CoresetSelection needs a DataModule of lit_robust.data, or a CoresetSampler: give the same one to the "
            "training's DataLoader and to CoresetSelection(sampler=...)."
        )
    if sampler is not None and trainer.overfit_batches > 0:
        raise ValueError(
            f"overfit_batches={trainer.overfit_batches} replaces the sampler of the training's DataLoader, so no "
            "selection would have an effect: set limit_train_batches instead, or leave CoresetSelection out."
        )


def check_weighted(module: LightningModule, sampler: CoresetSampler | None, normalize: str) -> None:
    """Refuse ``normalize="subset"`` where weights do not reach the loss, and weights missing from the batches.

    Raises:
        ValueError: If there is one.
    """
    draws = sampler is not None and sampler.draws
    if normalize == "subset" and (draws or not weights_its_loss(module)):
        why = f"{type(module).__name__} is not a Defense and has its own loss"
        why = "CoresetSampler draws images by their weights" if draws else why
        raise ValueError(f'normalize="subset" divides weighted losses, but {why}: leave normalize="batch".')
    if sampler is not None and leaves_weights(module, sampler):
        with isolate_rng():
            item = sampler.collate_fn([sampler.items[0]])
        if not isinstance(item, Batch):
            raise unweighted(f"batches ({type(item).__name__}) have none")


def check_seen_weights(module: LightningModule, sampler: CoresetSampler | None, seen: bool) -> None:
    """Refuse an epoch in which no batch had a weight but 1, although the coreset has.

    Raises:
        ValueError: If the loss was to be weighted and was not.
    """
    if sampler is not None and leaves_weights(module, sampler) and not seen and bool((sampler.weights != 1).any()):
        raise unweighted("batches had the weight 1 throughout an epoch")


def unweighted(found: str) -> ValueError:
    """The error about a sampler that leaves the weights to a loss which does not get them."""
    return ValueError(
        f"sampler=CoresetSampler(resample=False) leaves the weights to the loss, but the loader's {found}: yield "
        "lit_robust.batch.Batch with weight=sampler.weight_of(positions), or leave resample=True."
    )


def epochs_of(trainer: Any, sampler: CoresetSampler | None) -> Epochs:
    """How the training's loader makes batches, if a coreset can be trained on by it; the sampler gets its workers.

    Raises:
        TypeError: If there are several loaders.
        ValueError: If the loader does not read the positions that the sampler yields.
    """
    with isolate_rng():
        loader = loader_maker(trainer)()
    if sampler is None:
        _, positions = images_of(trainer).training_labels()
        return Epochs(loader.batch_size, loader.drop_last, len(positions))
    check_loader(loader, sampler)
    sampler.workers = workers_of(loader)
    return Epochs(loader.batch_size, loader.drop_last, len(sampler.items))


def workers_of(loader: Any) -> dict[str, Any]:
    """A DataLoader's arguments about its processes; none if it prepares them for a dataset of its own."""
    if not getattr(loader, "num_workers", 0) or getattr(loader, "worker_init_fn", None) is not None:
        return {}
    return {"num_workers": loader.num_workers, "multiprocessing_context": loader.multiprocessing_context}


def check_loader(loader: Any, sampler: CoresetSampler) -> None:
    """Refuse a training's loader that does not read the positions that the sampler yields.

    Raises:
        TypeError: If there are several loaders.
        ValueError: If it has no or another sampler, or reads another dataset than the sampler was made for.
    """
    if isinstance(loader, CombinedLoader | Mapping | list | tuple):
        raise TypeError(
            f"CoresetSelection chooses from the dataset of one DataLoader, but the training has a "
            f"{type(loader).__name__} of them: give that with sampler=sampler alone."
        )
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        raise ValueError(
            f"the training's DataLoader reads {type(loader.dataset).__name__}, an IterableDataset, which has no "
            "positions to select: give a dataset with a length, whose items are read by their number."
        )
    own, batches = getattr(loader, "sampler", None) is sampler, getattr(loader, "batch_sampler", None)
    if not isinstance(getattr(loader, "batch_size", None), int) and (own or batches is not None):
        given = "a batch_sampler" if batches is not None else "no batch_size"
        raise ValueError(
            f"the training's DataLoader has {given}, but CoresetSelection counts images in batches of one size: build "
            "it as DataLoader(dataset, batch_size, sampler=sampler, ...)."
        )
    if not own:
        raise ValueError(
            "sampler is not that of the training's DataLoader, so no selection would have an effect: build it as "
            "DataLoader(dataset, sampler=sampler, ...) with the same CoresetSampler."
        )
    read, whole = sized_len(getattr(loader, "dataset", None)), len(sampler.items)
    if read is not None and read != whole:
        raise ValueError(
            f"the training's DataLoader reads a dataset of {read} items, but its CoresetSampler was made for one of "
            f"{whole}, whose positions are others: build both from the same, as CoresetSampler(dataset)."
        )


def check_batches(trainer: Any, epochs: Epochs, size: int, what: str) -> None:
    """Refuse a coreset with which an epoch would have no batch, or too few for a validation.

    Args:
        trainer: Its limits and ranks count.
        epochs: How the loader makes batches.
        size: The number of images of the coreset.
        what: Why it has that many: ``fraction=0.1``.

    Raises:
        ValueError: If there is none, or no validation would come.
    """
    number, trained = _batches(trainer, epochs, size)
    limit, ranks = trainer.limit_train_batches, f" on {trainer.world_size} ranks" if trainer.world_size > 1 else ""
    of = f"{what} of {epochs.images} images leaves {size}{ranks}"
    if number == 0:
        raise ValueError(
            f"{of}, fewer than one batch of batch_size={epochs.batch_size} with drop_last=True, so that an epoch would "
            "have no batch: take a smaller batch_size, a larger fraction, or drop_last=False."
        )
    if trained == 0 and limit:
        raise ValueError(
            f"{of} in {number} batches, of which limit_train_batches={limit} is none: set it to at least "
            f"{1 / number:.2g}."
        )
    interval = trainer.val_check_interval
    counts_in_epoch = isinstance(interval, int) and trainer.check_val_every_n_epoch is not None
    if counts_in_epoch and trainer.limit_val_batches > 0 and 0 < trained < interval:
        raise ValueError(
            f"{of}, so an epoch trains on {trained} batches, but val_check_interval={interval} waits for more: set it "
            "to at most that, or to 1.0, or count over epochs by check_val_every_n_epoch=None."
        )


def check_plan(trainer: Any, plan: Plan, epochs: Epochs) -> None:
    """Refuse a plan whose smallest coreset cannot be trained on.

    Raises:
        ValueError: As ``check_batches``, or if a fraction leaves its range.
    """
    least = plan.smallest(trainer.max_epochs)
    what = f"{plan.name(least)}={plan.share(least):g}"
    check_batches(trainer, epochs, plan.budget(least, epochs.images), what)
    tell_of_total_steps(trainer, plan, epochs)


def _batches(trainer: Any, epochs: Epochs, size: int) -> tuple[int, int]:
    """The number of batches of an epoch on ``size`` images, and how many of them are trained on."""
    share, limit = math.ceil(size / trainer.world_size), trainer.limit_train_batches
    number = share // epochs.batch_size if epochs.drop_last else math.ceil(share / epochs.batch_size)
    return number, min(number, limit) if isinstance(limit, int) else int(number * limit)


def tell_of_total_steps(trainer: Any, plan: Plan, epochs: Epochs) -> None:
    """Warn of torch schedulers, such as ``OneCycleLR``, that are made for more steps than the coresets leave."""
    if (last := trainer.max_epochs or -1) < 1:
        return
    whole, first = plan.starts(last)
    chosen = [plan.budget(plan.selected(epoch, last), epochs.images) for epoch in range(first, last)]
    steps = sum(_batches(trainer, epochs, size)[1] for size in [epochs.images] * whole + chosen)
    for config in trainer.lr_scheduler_configs:
        total = getattr(config.scheduler, "total_steps", None)
        if config.interval == "step" and isinstance(total, int) and total > steps:
            rank_zero_warn(
                f"{type(config.scheduler).__name__} is made for total_steps={total}, but the coresets leave {steps} "
                f"steps in {last} epochs, so its rate stops short: set total_steps={steps}, or give a Defense a "
                "Schedule."
            )


def is_over(trainer: Any, epoch: int) -> bool:
    """Whether ``epoch``, which comes next, is not trained."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    reached = 0 < epochs <= epoch or 0 <= steps <= trainer.global_step
    return bool(reached or trainer.should_stop or trainer.limit_train_batches == 0)


def check_schedulers(trainer: Any, first: int, end: int) -> None:
    """Refuse torch schedulers that count steps where epochs are skipped, in which there are none.

    Args:
        trainer: Its schedulers are checked.
        first: The first epoch that is skipped.
        end: The first one after these.

    Raises:
        ValueError: If there is one.
    """
    for config in trainer.lr_scheduler_configs if first < end else ():
        scheduler = config.scheduler
        if config.interval == "step" and not isinstance(scheduler, ReduceLROnPlateau):
            skipped = f"epoch {first}" if end - first == 1 else f"epochs {first} to {end - 1}"
            raise ValueError(
                f"{type(scheduler).__name__} counts steps, but the warm start skips {skipped} without any, so it would "
                'lag behind: let it count epochs (interval or lr_interval "epoch"), give a Defense a Schedule, or set '
                "warm=0."
            )
