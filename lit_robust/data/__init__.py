"""Data sets as Lightning DataModules: pixels in [0, 1], batches as :class:`~lit_robust.batch.Batch`."""

from lit_robust.data.base import ImageDataModule
from lit_robust.data.digits import DigitsDataModule
from lit_robust.data.imagenet import ImageFolderDataModule, ImageNet100DataModule, ImagenetteDataModule
from lit_robust.data.torchvision_sets import CIFAR10DataModule, CIFAR100DataModule, MNISTDataModule, SVHNDataModule
from lit_robust.keywords import answer_keywords

__all__ = [
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "DigitsDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageNet100DataModule",
    "ImagenetteDataModule",
    "MNISTDataModule",
    "SVHNDataModule",
]

answer_keywords([globals()[name] for name in __all__])
