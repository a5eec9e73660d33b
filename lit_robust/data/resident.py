"""Small data sets: all images stay on the device as bytes, and are augmented there."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from lit_robust import require
from lit_robust.batch import Batch, class_labels
from lit_robust.data.augment import crop_and_flip, resized
from lit_robust.data.base import ImageDataModule
from lit_robust.data.loaders import EpochLoader, Samples

Loader = TypeVar("Loader", bound=Iterable[Batch])


class ResidentLoader(EpochLoader):
    """Batches gathered from images on the device.

    Args:
        samples: The samples to iterate over, as positions in ``images``.
        images: All images.
        labels: All labels, on the device of ``images``.
        white: The stored value of a pixel of 1.0.
        augment: Whether each image is cropped and mirrored at random.
        **epoch: Arguments of :class:`EpochLoader`.

    Shape:
        images: ``(N, C, H, W)`` uint8;  labels: ``(N,)`` int64.
    """

    #: The shorter side of a batch's images; None leaves them as they are.
    image_size: int | None = None

    def __init__(
        self,
        samples: Samples,
        images: Tensor,
        labels: Tensor,
        *,
        white: int = 255,
        augment: bool = False,
        **epoch: Any,
    ) -> None:
        super().__init__(samples, **epoch)
        self.images = images
        self.labels = labels
        self.white = white
        self.augment = augment

    def _batches(self, share: Samples, numbers: range) -> Iterator[Batch]:
        device = self.images.device
        indices, weights = share.indices.to(device), share.weights.to(device)
        generator = torch.Generator(device)
        for number in numbers:
            index, weight = indices[self._slice(number)], weights[self._slice(number)]
            x = self.images[index]
            if self.augment:
                generator.manual_seed(self.draw_seed(number))
                x = crop_and_flip(x, generator)
            x = x.to(torch.float32) / self.white
            x = x if self.image_size is None else resized(x, self.image_size)
            yield Batch(x, self.labels[index], index, weight)


class ResidentDataModule(ImageDataModule):
    """A data set that fits on the device: a subclass says how to read it."""

    #: The stored value of a pixel of 1.0.
    white: ClassVar[int] = 255

    #: The shorter side of the images of training, which ``ProgressiveResizing`` sets; None leaves them as they are. The
    #: images of validation and test always have ``image_shape``.
    image_size: int | None = None

    @abstractmethod
    def _arrays(self, train: bool) -> tuple[Tensor, Tensor]:
        """Images ``(N, C, H, W)`` uint8 and labels ``(N,)`` int64 of the training or the test set."""

    def _read(self) -> tuple[Tensor, Tensor]:
        self._sets = {train: self._checked(*self._arrays(train), train) for train in (True, False)}
        return self._sets[True][1], self._sets[False][1]

    def _checked(self, images: Tensor, labels: Tensor, train: bool) -> tuple[Tensor, Tensor]:
        """Refuse arrays that do not belong together or are not what the class says of them."""
        name = f"{type(self).__name__}._arrays(train={train})"
        for what, value in (("images", images), ("labels", labels)):
            require.instance(f"{name}: {what}", value, Tensor, "return torch.from_numpy(...) of an array")
        if images.dtype != torch.uint8:
            raise ValueError(
                f"{name} returns images of {images.dtype}, but they are divided by white={self.white}: return uint8 "
                f"from 0 to {self.white}."
            )
        if len(images) != len(labels):
            raise ValueError(f"{name} returns {len(images)} images but {len(labels)} labels: return one for each.")
        hooks = ("on_before_batch_transfer", "on_after_batch_transfer")  # which may change the shape
        changes = any(getattr(type(self), hook) is not getattr(ImageDataModule, hook) for hook in hooks)
        if not changes and tuple(images.shape[1:]) != tuple(self.image_shape):
            raise ValueError(
                f"{name} returns images of shape {tuple(images.shape[1:])}, but image_shape={tuple(self.image_shape)}: "
                "make them equal."
            )
        labels = class_labels(labels)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(
                f"{name} returns labels from {int(labels.min())} to {int(labels.max())}, but "
                f"num_classes={self.num_classes}: number the classes from 0 on."
            )
        return images, labels

    def train_dataloader(self) -> Iterable[Batch]:
        """The selected training images, shuffled, augmented and resized; with ``overfit_batches`` in order."""
        return self._of_training(super().train_dataloader())

    def selection_dataloader(self) -> EpochLoader:
        """All training images in order, augmented and resized as in training, for coresets."""
        return self._of_training(super().selection_dataloader())

    def _of_training(self, loader: Loader) -> Loader:
        if isinstance(loader, ResidentLoader) and self.image_size is not None:
            loader.image_size = require.integer("image_size", self.image_size, least=1)
        return loader

    def _loader(self, samples: Samples, *, train: bool, augment: bool, **epoch: Any) -> EpochLoader:
        images, labels = self._sets[train]
        self._sets[train] = images.to(self._device), labels.to(self._device)
        return ResidentLoader(samples, *self._sets[train], white=self.white, augment=augment, **epoch)
