"""The data of a coreset: all training samples to choose from, and the loaders that yield the chosen ones."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_robust import require
from lit_robust.batch import Batch
from lit_robust.lightning_internals import reload_every_epoch
from lit_robust.seeds import derive_seed, run_seed, seed
from lit_robust.selection import Coreset, CoresetSampler, Embeddings, Selector, gradient_error, resampled
from lit_robust.selection.embeddings import bias_of

#: Samples per batch of an embedding where the data's own batches are unknown.
BATCH_SIZE = 128


class SelectsImages(Protocol):
    """What ``CoresetSelection`` needs of the data, as all of ``lit_robust.data`` have it."""

    def select(self, indices: Tensor | None, weights: Tensor | None = None, in_order: bool = False) -> None:
        """Train on a weighted subset from the next epoch on."""

    def selection_dataloader(self) -> Any:
        """All training images in order, augmented as in training; ranks take batches in turn."""

    def training_labels(self) -> tuple[Tensor, Tensor]:
        """Labels and positions ``(N,)`` of all training images."""


class WeightsItsLoss(Protocol):
    """A module whose loss uses ``Batch.weight``, such as every Defense, so that each sample comes once."""

    mean_weight: float | None

    def natural_loss(self, batch: Any) -> Tensor:
        """The loss of each sample on clean images."""


class Embedded(NamedTuple):
    """The training set as selectors see it: embeddings, classes ``(N,)`` and positions in the set ``(N,)``."""

    embeddings: Embeddings
    y: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nothing needs


def images_of(trainer: Any) -> SelectsImages:
    """The trainer's DataModule, whose type it does not declare."""
    data: SelectsImages = trainer.datamodule
    return data


def batches_of(trainer: Trainer, sampler: CoresetSampler | None, epoch: int) -> Iterator[tuple[int, Any]]:
    """This rank's batches of all training samples, each with the number of samples before it."""
    if sampler is None:
        loader = images_of(trainer).selection_dataloader()
        loader.set_epoch(epoch)
        for number, batch in enumerate(loader):
            yield loader.images_before(number), batch
        return
    # A process that reads items has no GPU.
    device = torch.device("cpu") if sampler.workers else trainer.strategy.root_device
    places = range(trainer.global_rank * BATCH_SIZE, len(sampler.items), trainer.world_size * BATCH_SIZE)
    batches = BatchesByPlace(sampler, epoch, device)
    yield from DataLoader(batches, batch_size=None, sampler=places, collate_fn=_as_it_is, **sampler.workers)


class BatchesByPlace(Dataset[tuple[int, Any]]):
    """Batches of a sampler's items, augmented in the same way in whatever process they are read."""

    def __init__(self, sampler: CoresetSampler, epoch: int, device: torch.device) -> None:
        self.items, self.collate_fn = sampler.items, sampler.collate_fn
        self.epoch, self.device = epoch, device

    def __getitem__(self, first: int) -> tuple[int, Any]:
        """The batch that begins with this item, and the item's number."""
        seed(self.device, "selected data", self.epoch, first)
        return first, self.collate_fn([self.items[i] for i in range(first, min(first + BATCH_SIZE, len(self.items)))])


def _as_it_is(batch: Any) -> Any:
    """Keep torch from converting what the user's ``collate_fn`` has made."""
    return batch


def number_of_batches(trainer: Trainer, sampler: CoresetSampler | None) -> int:
    """How many batches ``batches_of`` yields."""
    if sampler is None:
        return len(images_of(trainer).selection_dataloader())
    return len(range(trainer.global_rank * BATCH_SIZE, len(sampler.items), trainer.world_size * BATCH_SIZE))


def labels_alone(trainer: Trainer, sampler: CoresetSampler | None) -> Embedded:
    """For selectors that read no gradients; with a sampler all samples count as one class."""
    if sampler is None:
        y, index = images_of(trainer).training_labels()
    else:
        index = torch.arange(len(sampler.items))
        y = torch.zeros_like(index)
    return Embedded(torch.empty(len(y), 0), y, index)


def choose(
    trainer: Trainer, selector: Selector, embedded: Embedded, budget: int, epoch: int
) -> tuple[Coreset, float | None]:
    """Choose on the first rank, for all; also the relative error of the weighted gradients' sum, if any are read."""
    chosen, error = None, None
    if trainer.is_global_zero:
        draw = derive_seed(run_seed(), "coreset", epoch if selector.draws_anew else 0)
        generator = torch.Generator().manual_seed(draw)
        compared = bias_of(embedded.embeddings) if selector.reads == "bias" else embedded.embeddings
        positions, weights, filled = selector(compared, embedded.y, budget, generator)
        if selector.reads != "nothing":
            # Weights of 1 stand for equal ones: the loss divides by their sum.
            scale = 1.0 if selector.chooses_by_gradients else len(embedded.y) / len(positions)
            error = gradient_error(embedded.embeddings, positions.to(embedded.y.device), scale * weights)
        chosen = Coreset(embedded.index[positions.to(embedded.index.device)].cpu(), weights, filled)
    chosen, error = trainer.strategy.broadcast((chosen, error))
    assert chosen is not None
    return chosen, error


def apply(
    trainer: Trainer,
    module: LightningModule,
    sampler: CoresetSampler | None,
    coreset: Coreset,
    epoch: int,
    in_order: bool,
    by_mean_weight: bool,
) -> None:
    """Train the next epoch on the coreset.

    Weights reach a module that uses them as ``Batch.weight``; for another one samples are drawn in proportion to them.
    """
    indices, weights, _ = coreset
    if weights_its_loss(module):
        fitting: Any = module
        fitting.mean_weight = float(weights.mean()) if by_mean_weight else None
    if sampler is not None:
        sampler.select(indices, weights, in_order)
        reload_every_epoch(trainer)
    elif weights_its_loss(module):
        images_of(trainer).select(indices, weights, in_order)
    else:
        drawn = resampled(indices, weights, derive_seed(run_seed(), "coreset", epoch))
        images_of(trainer).select(drawn, None, in_order)


def weights_its_loss(module: object) -> bool:
    """Whether a module has what ``WeightsItsLoss`` says."""
    return all(hasattr(module, name) for name in ("mean_weight", "natural_loss"))


def leaves_weights(module: object, sampler: CoresetSampler | None) -> bool:
    """Whether a user's loader must put the weights into its batches."""
    return sampler is not None and not sampler.draws and weights_its_loss(module)


def settle_draws(module: object, sampler: CoresetSampler | None) -> None:
    """Let a sampler that leaves it open draw, unless the module reads weights and the loader's batches have them."""
    if sampler is not None and sampler.resample is None:
        sampler.draw(not (weights_its_loss(module) and gives_weights(sampler)))


def gives_weights(sampler: CoresetSampler) -> bool:
    """Whether a batch of the sampler's items follows the weights that they are selected with; nothing stays selected.

    Batches that a DataModule's or module's hooks fill in later cannot be seen here.
    """
    found = []
    sampler.draw(False)
    for weight in (1.0, 2.0):
        sampler.select(torch.tensor([0]), torch.tensor([weight]))
        with isolate_rng():
            found.append(sampler.collate_fn([sampler.items[0]]))
    sampler.select(None)
    one, two = (batch.weight if isinstance(batch, Batch) else None for batch in found)
    return one is not None and two is not None and not torch.equal(one, two)


def forget_weights(module: Any) -> None:
    """Undo what ``apply`` has set on the module."""
    if weights_its_loss(module):
        module.mean_weight = None


def check_sampler(sampler: CoresetSampler | None, selector: Selector) -> None:
    """Refuse what is not a CoresetSampler, and by-class selection without gradients, where labels are not read.

    Raises:
        TypeError: If it is neither None nor a ``CoresetSampler``.
        ValueError: If the selector reads no gradients, but selects by class.
    """
    if sampler is None:
        return
    require.instance("sampler", sampler, CoresetSampler, "give the CoresetSampler of the training's DataLoader")
    if selector.reads == "nothing" and selector.scope == "class":
        raise ValueError(
            'scope="class" of Random needs the classes of all images, which are not read from a loader of your own: '
            'set scope="all".'
        )


def select_everything(trainer: Trainer, sampler: CoresetSampler | None) -> None:
    """Undo what a fit has selected."""
    if sampler is not None:
        sampler.select(None)
    elif hasattr(images_of(trainer), "selection_dataloader"):  # not if the fit was refused because it is absent
        images_of(trainer).select(None)


def log(module: LightningModule, values: Mapping[str, float | None]) -> None:
    """Log what is known of a coreset at an epoch's end."""
    row = {name: float(value) for name, value in values.items() if value is not None}
    module.log_dict(row, on_step=False, on_epoch=True, sync_dist=True, reduce_fx="max", batch_size=1)
