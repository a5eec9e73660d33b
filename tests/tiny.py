"""The smallest things that train: a net with BatchNorm, and learnable images of its size."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_robust.batch import Batch

SHAPE, CLASSES = (3, 8, 8), 4


class TinyNet(nn.Module):
    """Convolution, BatchNorm, pooling and a linear head: 4 classes of 3 x 8 x 8 images."""

    stages = ("body.2",)

    def __init__(self, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten()
            )
            self.head = nn.Linear(width * 16, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Counting(TinyNet):
    """Counts its forwards, by whomever, in a buffer that it adds to and in one that it replaces."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.register_buffer("added", torch.zeros((), dtype=torch.int64))
        self.register_buffer("replaced", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.added.add_(1)
        self.replaced = self.replaced + 1
        return super().forward(x)


def images(n: int = 24, seed: int = 0) -> Batch:
    """Noise with one bright quarter, which is the class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    x = torch.rand(n, *SHAPE, generator=generator) * 0.5
    for label in range(CLASSES):
        row, column = divmod(label, 2)
        x[y == label, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.5
    return Batch(x, y, torch.arange(n), torch.ones(n))


def loader(batch: Batch, batch_size: int = 8) -> DataLoader[Any]:
    """Yields the images in order, like a user's loader: without index and weight."""
    return DataLoader(list(zip(batch.x, batch.y, strict=True)), batch_size=batch_size)


def indexed(batch: Batch, batch_size: int = 8) -> DataLoader[Any]:
    """The same with index and weight."""
    return DataLoader([Batch(*row) for row in zip(*batch, strict=True)], batch_size=batch_size)


class SaveAfter(Callback):
    """Saves after some batches, counted over all epochs; after an epoch's last one when the epoch ends."""

    def __init__(self, batches: int, path: Path) -> None:
        self.batches, self.path = batches, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx + 1 == self.batches and not trainer.is_last_batch:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.fit_loop.total_batch_idx + 1 == self.batches:
            trainer.save_checkpoint(self.path)


def trainer(tmp_path: Any, **kwargs: Any) -> Trainer:
    """A quiet trainer on the CPU that writes nothing by default."""
    quiet: dict[str, Any] = {
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(accelerator="cpu", default_root_dir=tmp_path, **(quiet | kwargs))


def two_ranks(tmp_path: Any, **kwargs: Any) -> Trainer:
    """A trainer with two processes of this machine."""
    return trainer(tmp_path, devices=2, strategy="ddp_fork", log_every_n_steps=1, **kwargs)


def assert_equal(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Two states are the same, bit for bit."""
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name


def named(value: object) -> str:
    """A test's id from a value, without addresses, which differ between workers."""
    return re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", str(value))
