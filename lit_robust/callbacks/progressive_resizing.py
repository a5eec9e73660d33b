"""Small images first: the size of images, and of batches, as functions of the epoch."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lit_robust import require
from lit_robust.callbacks.adversarial_training import AdversarialTraining
from lit_robust.callbacks.batch_paths import tensor_at
from lit_robust.callbacks.epoch_values import is_read_only
from lit_robust.callbacks.needs import callbacks_of, check_alone
from lit_robust.data.augment import sides
from lit_robust.data.resident import ResidentDataModule
from lit_robust.first_batch import outputs
from lit_robust.lightning_internals import epochs_done, next_epoch, reload_every_epoch
from lit_robust.nets.image_shapes import name_of
from lit_robust.schedules import Schedule


class Sized(Protocol):
    """What is needed of the trainer's data module, as all of ``lit_robust.data`` have it; its loaders must follow."""

    #: The shorter side of the images in a batch of training.
    image_size: int | None
    #: The number of images in a batch of a rank.
    batch_size: int


class WithNet(Protocol):
    """What is read of the module: a net, which is tried on each size."""

    net: nn.Module


class ProgressiveResizing(Callback):
    """Trains on small images first, which cost less, and on larger ones later.

    Wong et al. (arXiv:2001.03994) train ImageNet so (their code): 128 pixels and batches of 512 for 6 epochs, 224 and
    224 for 6 more, and 288 and 128 for 3. Theirs also reads images that were resized on disk before. ::

        ProgressiveResizing(Staircase([0, 6, 12], [128, 224, 288]), Staircase([0, 6, 12], [512, 224, 128]))

    The sizes depend only on the epoch, so there is no state to resume; the loaders are made again for every epoch. With
    a ``FolderDataModule``, each epoch's validation has that epoch's size, so its accuracies are comparable within a
    size only, and a test or prediction has the size of the last epoch. Small data sets that stay on the device, such as
    CIFAR-10, are resized for training only. The net must take images of any size, as ResNets do. Learning rates that
    belong to a size are a matter of ``lr_scheduler``. Afterwards the data have the sizes that they had before.

    Args:
        image_size: The shorter side at each epoch, rounded; images of a small data set keep their proportions.
        batch_size: The images per batch and rank at each epoch, rounded; None leaves the data's.

    Raises:
        TypeError: If one is not a Schedule, or the trainer has no data module whose ``image_size`` can be set.
        ValueError: If a value within ``max_epochs`` is below 1, a small data set would be enlarged, the net cannot read
            images of a size, the loaders do not follow, or there are two of these callbacks.
    """

    logged_keys = ()

    def __init__(self, image_size: Schedule, batch_size: Schedule | None = None) -> None:
        example = "give a Schedule, such as lit_robust.schedules.Staircase([0, 6], [128, 224])"
        require.instance("image_size", image_size, Schedule, example)
        if batch_size is not None:
            require.instance("batch_size", batch_size, Schedule, example)
        self.schedules = {"image_size": image_size} | ({} if batch_size is None else {"batch_size": batch_size})
        self._before: tuple[Any, dict[str, Any]] | None = None
        #: Whether a batch of the present sizes is still to be looked at.
        self._unchecked = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the data and all sizes, and set those of the first epoch or, outside a fit, of the last."""
        check_alone(trainer, self, ProgressiveResizing, "two ProgressiveResizing would undo each other: keep one.")
        data = getattr(trainer, "datamodule", None)
        if missing := [name for name in self.schedules if not hasattr(data, name)]:
            raise TypeError(
                f"ProgressiveResizing sets {missing[0]} of the data module, but "
                f"{'there is no data module' if data is None else f'{type(data).__name__} has none'}: give the trainer "
                "a data module of lit_robust.data, or another one with this attribute."
            )
        if fixed := [name for name in self.schedules if is_read_only(data, name)]:
            raise TypeError(
                f"ProgressiveResizing sets {fixed[0]} of the data module, but in {type(data).__name__} it is a "
                "property without a setter: add one, or make it an ordinary attribute."
            )
        most = min(data.image_shape[1:]) if isinstance(data, ResidentDataModule) else None
        for epoch in range(_epochs(trainer)):
            sizes = self.sizes(epoch)
            for name, size in sizes.items():
                require.integer(f"{name} at epoch {epoch}", size, least=1)
            if most is not None and sizes["image_size"] > most:
                raise ValueError(
                    f"image_size at epoch {epoch}={sizes['image_size']} would enlarge the images of "
                    f"{type(data).__name__}: give sizes of at most {most}."
                )
        if self._before is None or self._before[0] is not data:
            self._before = data, {name: getattr(data, name) for name in self.schedules}
        self._set(trainer, 0 if stage == "fit" else _epochs(trainer) - 1)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Set the sizes of the epoch that a run continues with."""
        if trainer.state.fn == "fit":
            self._set(trainer, epochs_done(checkpoint))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse sizes that the net cannot read, and have the loaders made again for every epoch.

        Raises:
            ValueError: If there is one.
        """
        reload_every_epoch(trainer)
        # After 0 only if a coreset skips the first epochs: a resumed run counts from 0 until later.
        if epoch := next_epoch(trainer):
            self._set(trainer, epoch)
        data: Any = getattr(trainer, "datamodule", None)
        net, shape = getattr(pl_module, "net", None), getattr(data, "image_shape", None)
        if net is None or shape is None:
            return
        (channels, height, width), tried = shape, dict[int, int]()
        for epoch in range(_epochs(trainer)):
            tried.setdefault(self.sizes(epoch)["image_size"], epoch)
        for size, epoch in tried.items():
            x = torch.zeros(2, channels, *sides(height, width, size), device=pl_module.device)
            x = trainer.precision_plugin.convert_input(x)
            try:
                outputs(net, x, name_of(net), "give other sizes, or choose a net for any size, such as a ResNet")
            except ValueError as error:
                raise ValueError(f"image_size at epoch {epoch}={size}: {error}") from error

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Refuse data whose images do not follow, at the first batch of each epoch.

        Raises:
            ValueError: If they do not.
        """
        if not self._unchecked:
            return
        self._unchecked = False
        x, size = _images(trainer, batch), self.sizes(trainer.current_epoch)["image_size"]
        if x is not None and min(x.shape[-2:]) != size:
            data: Any = getattr(trainer, "datamodule", None)
            raise ValueError(
                f"image_size={size} is what ProgressiveResizing sets, but a batch of {type(data).__name__} has images "
                f"of {x.shape[-2]}x{x.shape[-1]}: have its training loader read image_size, or leave the callback out."
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the sizes of the next epoch; the last ones stay."""
        if (epoch := next_epoch(trainer)) < _epochs(trainer):
            self._set(trainer, epoch)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the data the sizes that they had before."""
        if self._before is not None:
            data, sizes = self._before
            self._before = None
            _assign(data, sizes)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give them back also where a run is refused or fails, after which Lightning does not call ``teardown``."""
        self.teardown(trainer, pl_module, "fit")

    def sizes(self, epoch: int) -> dict[str, int]:
        """The attributes of the data at an epoch, by name."""
        return {name: round(schedule(float(epoch))) for name, schedule in self.schedules.items()}

    def _set(self, trainer: Any, epoch: int) -> None:
        _assign(trainer.datamodule, self.sizes(epoch))
        self._unchecked = True


def _epochs(trainer: Trainer) -> int:
    """The number of epochs, at least 1; 1000, as Lightning's default, if it is not limited."""
    return max(trainer.max_epochs if trainer.max_epochs not in (None, -1) else 1000, 1)


def _assign(data: Any, sizes: Mapping[str, Any]) -> None:
    for name, size in sizes.items():
        setattr(data, name, size)  # not through ``vars``, which a property would never read


def _images(trainer: Trainer, batch: Any) -> Tensor | None:
    """A batch's images: where ``AdversarialTraining`` finds them, in ``x``, or else its first tensor of four axes."""
    for attacked in callbacks_of(trainer, AdversarialTraining):
        return tensor_at(batch, attacked.adapter.x, "x")
    if isinstance(x := getattr(batch, "x", None), Tensor):
        return x
    found = [part for part in _tensors(batch) if part.ndim == 4]
    return min(found, key=lambda part: not part.is_floating_point(), default=None)  # masks hold integers


def _tensors(part: Any) -> Iterator[Tensor]:
    """All tensors of a batch, in order."""
    if isinstance(part, Tensor):
        yield part
    elif is_dataclass(part):
        yield from _tensors([getattr(part, field.name) for field in fields(part)])
    elif isinstance(part, tuple | list | Mapping):
        for one in part.values() if isinstance(part, Mapping) else part:
            yield from _tensors(one)
