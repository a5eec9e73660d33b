"""What all data sets share: splits, budgets, weighted subsets and the loaders that Lightning asks for."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from lit_robust.batch import Batch
from lit_robust.checkpoint_files import read_checkpoint
from lit_robust.checkpoint_sections import check_reading
from lit_robust.data.loaders import EpochLoader, Samples, drawn
from lit_robust.data.saved import saved_arguments
from lit_robust.data.selectable import Selectable
from lit_robust.data.splits import Split, check_arguments, check_val_size, hold_out
from lit_robust.seeds import run_seed


class ImageDataModule(Selectable, ABC):
    """A labelled image data set with a held-out validation part.

    The seed of ``seed_everything`` determines order and augmentation, ``split_seed`` alone determines the split. A
    batch's ``index`` is the position in the training set on disk (for validation images, too), or in the test set.
    Every image counts once per epoch, over all ranks; a sample that only pads a rank's share has weight 0.

    Args:
        batch_size: Training images per batch and rank.
        eval_batch_size: The same for validation and test, whose batches the ranks take in turn.
        val_size: Number of images held out for validation, by default a tenth, at most 1,000; 0 for no validation.
        split: Which images are held out: ``random``; ``stratified``, in proportion to the classes; or as in a paper,
            ``first`` (SAT), ``first_per_class`` (NuAT, GAT on CIFAR-10), ``permutation_first`` (Rice et al.),
            ``permutation_last`` (GAT on MNIST).
        split_seed: Seed of the split.
        train_size: For budgets: train on this number of images only, the first that are not held out; None for all.
        test_size: For budgets: test on the first ``test_size`` images only; None for all.
        augment: Whether training images are cropped and mirrored at random.
        drop_last: Whether to leave out a last training batch that is not full; BatchNorm can fail on a single image.

    Raises:
        ValueError: If a size or the split is not valid.
    """

    #: Number of images in the training set on disk, if known in advance.
    train_images: ClassVar[int | None] = None

    def __init__(
        self,
        *,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        val_size: int | None = None,
        split: Split = "random",
        split_seed: int = 0,
        train_size: int | None = None,
        test_size: int | None = None,
        augment: bool = False,
        drop_last: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "val_size": val_size}
        sizes |= {"split_seed": split_seed, "train_size": train_size, "test_size": test_size}
        check_arguments(sizes, {"augment": augment, "drop_last": drop_last}, split)
        check_val_size(val_size or 0, split, self.num_classes, self.train_images)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_size = val_size
        self.split = split
        self.split_seed = split_seed
        self.train_size = train_size
        self.test_size = test_size
        self.augment = augment
        self.drop_last = drop_last

    def __str__(self) -> str:
        """The class, and the numbers of images once they are read; Lightning's own would walk the loaders."""
        if self._selected is None:
            return f"{type(self).__name__}, not set up"
        return f"{type(self).__name__}: {len(self._train)} train, {len(self._val)} val, {len(self._test)} test images"

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's instantiates whatever the file names
        cls,
        checkpoint_path: str | Path,
        map_location: None = None,
        hparams_file: None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Build this class with the plain arguments that a run has saved; the file cannot name another class.

        Args:
            checkpoint_path: A .ckpt file.
            map_location: Ignored: a data module has no tensors of a checkpoint.
            hparams_file: Must be None: a checkpoint holds its arguments.
            weights_only: Must not be False: tensors and plain values are all that is ever read.
            **kwargs: Arguments that replace the file's.

        Raises:
            ValueError: If the file cannot be used, or an argument is not plain.
        """
        check_reading(hparams_file, weights_only)
        names = {*signature(cls).parameters, *signature(ImageDataModule).parameters} - kwargs.keys()
        return cls(**saved_arguments(read_checkpoint(checkpoint_path), names), **kwargs)

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes by label, for pictures; reads the data if the names are stored there."""
        return [str(label) for label in range(self.num_classes)]

    @property
    def test_files(self) -> Sequence[str] | None:
        """The files of the test set by ``Batch.index``, relative to the folder of the data; None if it has none."""
        return None

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images in a batch."""

    @abstractmethod
    def _read(self) -> tuple[Tensor, Tensor]:
        """Find or load both sets; return the labels ``(N,)`` int64 of training and test."""

    @abstractmethod
    def _loader(self, samples: Samples, *, train: bool, augment: bool, **epoch: Any) -> EpochLoader:
        """A loader of samples of the training or the test set; ``epoch`` goes to :class:`EpochLoader`."""

    def setup(self, stage: str | None = None) -> None:
        """Read the data, for any stage; later calls do nothing.

        Raises:
            FileNotFoundError: If the data are missing or broken.
            ValueError: If they have fewer images than the arguments ask for.
        """
        if self._selected is not None:
            return
        train_labels, test_labels = self._read()
        self._on_disk, self._labels = len(train_labels), train_labels.cpu()
        train, val = self._hold_out(train_labels)
        self._train = train[self._first("train_size", train_labels[train], self.train_size)]
        self._val = val[self._order(train_labels[val])]
        self._test = self._first("test_size", test_labels, self.test_size)
        self._selected = Samples.once(self._train)

    def _hold_out(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Positions in the training set of the images to train on and of those to validate on."""
        size = min(1000, math.ceil(len(labels) / 10)) if self.val_size is None else self.val_size
        return hold_out(labels, size, self.split, self.split_seed)

    def _first(self, name: str, labels: Tensor, size: int | None) -> Tensor:
        if size is not None and size > len(labels):
            raise ValueError(f"{name}={size} is more than the {len(labels)} images there are.")
        return self._order(labels)[:size]

    def _order(self, labels: Tensor) -> Tensor:
        """The order of unshuffled images, in which budgets are cut; overridden where files are sorted by class."""
        return torch.arange(len(labels))

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Facts that identify the training images, without reading pixels; a checkpoint keeps them."""
        self.setup()
        return {
            "data": type(self).__name__,
            "num_classes": self.num_classes,
            "image_shape": list(self.image_shape),
            "train_images": len(self._train),
            "val_images": len(self._val),
            "split": self.split,
            "split_seed": self.split_seed,
        }

    def train_dataloader(self) -> Iterable[Batch]:
        """The selected training images, shuffled and augmented; with ``Trainer(overfit_batches=...)`` in order."""
        trainer: Any = self.trainer  # Lightning does not declare the attribute
        return self._walk(
            self._samples(),
            train=True,
            augment=self.augment,
            shuffle=trainer is None or trainer.overfit_batches == 0,
            drop_last=self.drop_last,
            batch_size=self.batch_size,
        )

    def plain_train_dataloader(self) -> Iterable[Batch]:
        """All training images, not augmented and in order, also under a selection."""
        self.setup()
        return self._walk(Samples.once(self._train), train=True)

    def selection_dataloader(self) -> EpochLoader:
        """All training images in order, augmented as in training, for coresets; ranks take batches in turn."""
        self.setup()
        samples, size = Samples.once(self._train), self.batch_size
        return self._walk(samples, train=True, augment=self.augment, batch_size=size, in_blocks=True)

    def val_dataloader(self) -> Iterable[Batch]:
        """The held-out images; an empty list with ``val_size=0``."""
        self.setup()
        return self._walk(Samples.once(self._val), train=True) if len(self._val) else []

    def test_dataloader(self) -> Iterable[Batch]:
        """The test set; a batch holds the same images on any number of ranks, which take turns."""
        self.setup()
        return self._walk(Samples.once(self._test), train=False, in_blocks=True)

    def predict_dataloader(self) -> Iterable[Batch]:
        """The test set."""
        return self.test_dataloader()

    def draw(self, n: int, split: Literal["train", "val", "test"] = "test", seed: int = 0) -> tuple[Tensor, Tensor]:
        """Draw images and labels, as ``x, y = data.draw(64)``; the same arguments always give the same ones.

        Args:
            n: The number of images; they are distinct and not augmented.
            split: Where they are drawn from.
            seed: Another one draws other images.

        Raises:
            ValueError: If the split has fewer images.

        Shape:
            x: ``(n, C, H, W)`` float32 in [0, 1];  y: ``(n,)`` int64.
        """
        if self._selected is None:
            self.prepare_data()
            self.setup()
        samples = drawn({"train": self._train, "val": self._val, "test": self._test}, n, split, seed)
        (batch,) = self._loader(samples, train=split != "test", augment=False, batch_size=n)
        return batch[:2]

    def _walk(
        self, samples: Samples, *, augment: bool = False, batch_size: int | None = None, **walk: Any
    ) -> EpochLoader:
        rank, world = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return self._loader(
            samples,
            augment=augment,
            batch_size=self.eval_batch_size if batch_size is None else batch_size,
            rank=rank,
            world=world,
            seed=run_seed(),
            **walk,
        )

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
