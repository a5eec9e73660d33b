"""MNIST, CIFAR-10, CIFAR-100 and SVHN, read and downloaded by torchvision."""

import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_robust import require
from lit_robust.data.resident import ResidentDataModule
from lit_robust.whole_files import path_of


def data_root(root: str | None) -> str:
    """The folder with the data sets: ``root``, else the environment's ``LIT_ROBUST_DATA``, else ``data``."""
    default = os.environ.get("LIT_ROBUST_DATA") or "data"
    return str(path_of("root", default if root in (None, "") else root, "a folder"))


class TorchvisionDataModule(ResidentDataModule):
    """A small data set that torchvision reads; the subclass says which.

    Args:
        root: The folder with torchvision's layout; by default the environment's ``LIT_ROBUST_DATA``, else
            ``data``.
        download: Whether to fetch what is missing.
        **kwargs: Arguments of :class:`~lit_robust.data.ImageDataModule`.
    """

    def __init__(self, root: str | None = None, *, download: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require.flags(download=download)
        self.root = data_root(root)
        self.download = download

    @abstractmethod
    def _open(self, train: bool, download: bool) -> tuple[Tensor, Tensor]:
        """The set's images ``(N, C, H, W)`` uint8 and its labels."""

    def prepare_data(self) -> None:
        """Download what is missing, if allowed; Lightning calls it in one process."""
        if self.download:
            for train in (True, False):
                self._try_to_open(train, download=True)

    def _arrays(self, train: bool) -> tuple[Tensor, Tensor]:
        images, labels = self._try_to_open(train, download=False)
        return images.contiguous(), labels.long()

    def _try_to_open(self, train: bool, download: bool) -> tuple[Tensor, Tensor]:
        try:
            images, labels = self._open(train, download)
            if len(images) != len(labels):
                raise ValueError(f"{len(images)} images but {len(labels)} labels")
        except ImportError as error:
            raise ImportError('SVHN\'s files are read by SciPy: pip install "lit-robust[digits]" brings it.') from error
        except Exception as error:  # torchvision raises many kinds for broken files
            name = type(self).__name__.removesuffix("DataModule")
            reason = str(error).split(". ")[0] or type(error).__name__
            raise FileNotFoundError(
                f"{name} cannot be read from root={self.root!r} ({reason}): set download: true, after "
                "deleting a broken copy, or point root or the environment's LIT_ROBUST_DATA to a good one."
            ) from error
        return images, labels


class MNISTDataModule(TorchvisionDataModule):
    """MNIST: 60,000 + 10,000 grey digits of 28 x 28. GAT holds out 10,000 by ``permutation_last``."""

    num_classes = 10
    image_shape = (1, 28, 28)
    train_images = 60_000

    def _open(self, train: bool, download: bool) -> tuple[Tensor, Tensor]:
        from torchvision import datasets  # late, for the command line's start

        data = datasets.MNIST(self.root, train=train, download=download)
        return data.data.unsqueeze(1), data.targets


class CIFAR10DataModule(TorchvisionDataModule):
    """CIFAR-10: 50,000 + 10,000 colour images of 32 x 32, cropped and mirrored by default.

    Args:
        root: The folder with torchvision's layout; by default the environment's ``LIT_ROBUST_DATA``, else
            ``data``.
        augment: Whether training images are cropped and mirrored at random.
        **kwargs: Arguments of :class:`~lit_robust.data.ImageDataModule`, and ``download``.
    """

    num_classes = 10
    image_shape = (3, 32, 32)
    train_images = 50_000

    def __init__(self, root: str | None = None, *, augment: bool = True, **kwargs: Any) -> None:
        super().__init__(root, augment=augment, **kwargs)

    def _open(self, train: bool, download: bool) -> tuple[Tensor, Tensor]:
        from torchvision import datasets

        data = getattr(datasets, self._source)(self.root, train=train, download=download)
        self._names: list[str] = data.classes
        return torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets)

    @property
    def class_names(self) -> Sequence[str]:
        """From ``airplane`` to ``truck``, as the files name them."""
        self.setup()
        return self._names

    _source = "CIFAR10"


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100: as CIFAR-10, with 100 (fine) classes."""

    num_classes = 100
    _source = "CIFAR100"


class SVHNDataModule(TorchvisionDataModule):
    """SVHN: 73,257 + 26,032 house numbers of 32 x 32; the additional easy images are not used.

    Not augmented by default (ACS crops and mirrors it). SciPy must be installed.
    """

    num_classes = 10
    image_shape = (3, 32, 32)
    train_images = 73_257

    def _open(self, train: bool, download: bool) -> tuple[Tensor, Tensor]:
        from torchvision import datasets

        data = datasets.SVHN(self.root, split="train" if train else "test", download=download)
        return torch.from_numpy(data.data), torch.from_numpy(data.labels)
