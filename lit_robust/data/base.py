"""What all data sets share: splits, budgets, weighted subsets and the loaders that Lightning asks for."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lit_robust import require
from lit_robust.batch import Batch
from lit_robust.data.loaders import EpochLoader, Samples, check_selection, positions_of
from lit_robust.data.splits import Split, hold_out
from lit_robust.lightning_internals import reload_every_epoch
from lit_robust.seeds import run_seed


class ImageDataModule(LightningDataModule, ABC):
    """A labelled image data set with a held-out validation part.

    Order and augmentation follow from the seed of ``seed_everything``, the split from ``split_seed`` alone.
    A batch's ``index`` is the position in the training set as it lies on disk (of validation images too), or
    in the test set. Every image counts once an epoch, over all ranks; a sample that only fills a rank up has
    weight 0.

    Args:
        batch_size: Training images in a batch, per rank.
        eval_batch_size: The same for validation and test.
        val_size: Training images held out for validation: a tenth, at most 1,000, by default. With 0 there is no
            validation, and no checkpoint can be chosen by it.
        split: Which images those are: ``random``, or ``stratified``, which takes from each class its share, or as
            a paper does it, ``first`` (SAT), ``first_per_class`` (NuAT, GAT on CIFAR-10), ``permutation_first``
            (Rice et al.), ``permutation_last`` (GAT on MNIST).
        split_seed: Seed of the split.
        train_size: Train on the first so many of the images that are not held out, for budgets; None for all.
        test_size: Test on the first so many, for budgets; None for all.
        augment: Whether training images are cropped and mirrored at random.
        drop_last: Whether to leave out a last training batch that is not full. (Batch norm over
            a single value a channel fails: one image left over in a net that ends in 1 x 1 features.)

    Raises:
        ValueError: If a size or the split makes no sense.
    """

    #: Images on disk in the training set, where that is known beforehand.
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
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("val_size", val_size, 0),
            ("split_seed", split_seed, 0),
            ("train_size", train_size, 1),
            ("test_size", test_size, 1),
        ):
            if value is not None:
                require.integer(name, value, least)
        require.one_of("split", split, get_args(Split))
        if split == "first_per_class" and (val_size or 0) % self.num_classes:
            raise ValueError(f"val_size={val_size} does not divide evenly among {self.num_classes} classes.")
        if self.train_images is not None and (val_size or 0) >= self.train_images:
            raise ValueError(f"val_size={val_size} leaves no image of {self.train_images} to train on: take fewer.")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_size = val_size
        self.split = split
        self.split_seed = split_seed
        self.train_size = train_size
        self.test_size = test_size
        self.augment = augment
        self.drop_last = drop_last
        self._selected: Samples | None = None

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    def class_names(self) -> Sequence[str]:
        """What pictures call the classes, by label; reads the data where the names lie there."""
        return [str(label) for label in range(self.num_classes)]

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a batch's images."""

    @abstractmethod
    def _read(self) -> tuple[Tensor, Tensor]:
        """Find or load both sets; their labels ``(N,)`` int64, training and test."""

    @abstractmethod
    def _loader(self, samples: Samples, *, train: bool, augment: bool, **walk: Any) -> EpochLoader:
        """A loader of samples of the training or the test set; ``walk`` is for :class:`EpochLoader`."""

    def setup(self, stage: str | None = None) -> None:
        """Read the data once, whatever the stage; a later call changes nothing.

        Raises:
            FileNotFoundError: If the data are missing or broken.
            ValueError: If they have fewer images than the arguments ask for.
        """
        if self._selected is not None:
            return
        train_labels, test_labels = self._read()
        self._on_disk = len(train_labels)
        train, val = self._hold_out(train_labels)
        self._train = train[self._first("train_size", train_labels[train], self.train_size)]
        self._val = val[self._order(train_labels[val])]
        self._test = self._first("test_size", test_labels, self.test_size)
        self._selected = Samples.once(self._train)

    def _hold_out(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of the images to train on and of those to validate on, among those of the training set."""
        size = min(1000, math.ceil(len(labels) / 10)) if self.val_size is None else self.val_size
        return hold_out(labels, size, self.split, self.split_seed)

    def _first(self, name: str, labels: Tensor, size: int | None) -> Tensor:
        if size is not None and size > len(labels):
            raise ValueError(f"{name}={size} is more than the {len(labels)} images there are.")
        return self._order(labels)[:size]

    def _order(self, labels: Tensor) -> Tensor:
        """In which order images are gone through and budgets cut; overridden where files are sorted by class."""
        return torch.arange(len(labels))

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells the training images from others at no cost; a checkpoint keeps it."""
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

    def select(self, indices: Tensor | None, weights: Tensor | None = None) -> None:
        """Train on a weighted subset from the next epoch on; ``select(None)`` returns to the whole set.

        Under DDP, call it on every rank with the same values. Call it where the number of batches may still
        change: before ``fit``, in ``on_fit_start``, or in ``on_train_epoch_end`` (in ``on_train_epoch_start``
        only for as many samples as before). A checkpoint carries the selection.

        Args:
            indices: Positions in the training set, as in ``Batch.index``, or a mask over all of it.
            weights: What each sample counts, as ``Batch.weight`` will say; None for 1.

        Raises:
            ValueError: If an index is not a training image, or the weights are not positive or not as many.

        Shape:
            indices: ``(S,)``;  weights: ``(S,)``.
        """
        chosen = self._samples()
        if indices is None:
            chosen.indices, chosen.weights = self._train, torch.ones(len(self._train))
        else:
            indices = positions_of(indices, self._on_disk)
            weights = torch.ones(len(indices)) if weights is None else weights
            weights = torch.as_tensor(weights).detach().to("cpu", torch.float32)
            check_selection(indices, weights, self._train)
            chosen.indices, chosen.weights = indices.clone(), weights.clone()
        if self.trainer is not None:
            reload_every_epoch(self.trainer)

    def state_dict(self) -> dict[str, Any]:
        """The selection, for a checkpoint."""
        chosen = self._samples()
        if chosen.indices is self._train:
            return {"selection": None}
        return {"selection": {"indices": chosen.indices.to(torch.int32), "weights": chosen.weights}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Return to the selection of a checkpoint whose training goes on."""
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return  # a checkpoint may be tested on other data, where its training subset means nothing
        selection = state_dict["selection"] or {"indices": None, "weights": None}
        if selection["indices"] is not None or self._samples().indices is not self._train:
            self.select(**selection)

    def train_dataloader(self) -> Iterable[Batch]:
        """The selected training images, shuffled and augmented."""
        return self._walk(self._samples(), train=True, augment=self.augment, shuffle=True, drop_last=self.drop_last)

    def plain_train_dataloader(self) -> Iterable[Batch]:
        """Every training image, as it is and in order, whatever is selected: coresets are chosen from it."""
        self.setup()
        return self._walk(Samples.once(self._train), train=True)

    def val_dataloader(self) -> Iterable[Batch]:
        """The images held out; an empty list with ``val_size=0``."""
        self.setup()
        return self._walk(Samples.once(self._val), train=True) if len(self._val) else []

    def test_dataloader(self) -> Iterable[Batch]:
        """The test set."""
        self.setup()
        return self._walk(Samples.once(self._test), train=False)

    def predict_dataloader(self) -> Iterable[Batch]:
        """The test set."""
        return self.test_dataloader()

    def _samples(self) -> Samples:
        self.setup()
        assert self._selected is not None
        return self._selected

    def _walk(self, samples: Samples, *, augment: bool = False, shuffle: bool = False, **walk: Any) -> EpochLoader:
        rank, world = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return self._loader(
            samples,
            augment=augment,
            shuffle=shuffle,
            batch_size=self.batch_size if shuffle else self.eval_batch_size,
            rank=rank,
            world=world,
            seed=run_seed(),
            **walk,
        )

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
