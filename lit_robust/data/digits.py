"""scikit-learn's digits: real images inside a package, so that a first run needs no download."""

from typing import Any

import torch
from torch import Tensor

from lit_robust.data.resident import ResidentDataModule


class DigitsDataModule(ResidentDataModule):
    """1,797 handwritten digits of 8 x 8 with 17 grey levels: 1,400 to train on, 397 to test on.

    ``split_seed`` determines the test images.

    Args:
        val_size: Training images held out for validation.
        **kwargs: Arguments of :class:`~lit_robust.data.ImageDataModule`.

    Raises:
        ImportError: In ``setup``, if scikit-learn is not installed.
    """

    num_classes = 10
    image_shape = (1, 8, 8)
    train_images = 1400
    white = 16

    def __init__(self, *, val_size: int = 100, **kwargs: Any) -> None:
        super().__init__(val_size=val_size, **kwargs)

    def _arrays(self, train: bool) -> tuple[Tensor, Tensor]:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError('The digits come with scikit-learn: pip install "lit-robust[digits]".') from error
        digits = load_digits()
        order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(self.split_seed))
        mine = order[: self.train_images] if train else order[self.train_images :]
        images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
        return images[mine], torch.from_numpy(digits.target).long()[mine]
