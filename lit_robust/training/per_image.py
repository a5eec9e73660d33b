"""The base of methods that remember a number for each training image.

CustomizedAT is the only one. The base is not in its file because it is about loaders, ranks and checkpoints, while
``defenses`` holds what the papers say; together they would also exceed the limit of a file.
"""

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from lit_robust.attacks import Attack
from lit_robust.batch import Batch, as_batch
from lit_robust.training.arguments import DefenseArguments
from lit_robust.training.defense import Defense


class PerImage(Defense):
    """Adversarial training with a number for each training image, initially 0 and looked up by ``Batch.index``.

    The table is the same on every rank at the start of an epoch. During the epoch each rank updates the numbers of its
    own images, and after the last batch the ranks merge their tables. Images of weight 0 are padding that belongs to
    another rank, and are not written. A checkpoint holds the tables of all ranks, so a run resumes exactly; it can also
    be resumed on another number of ranks.

    Raises:
        ValueError: If the training images have no index, or their number is unknown.
    """

    def __init__(self, net: nn.Module, num_classes: int, attack: Attack, **kwargs: Unpack[DefenseArguments]) -> None:
        super().__init__(net, num_classes, attack, **kwargs)
        self.memory.declare(merge, {"numbers": (torch.float32, (None,)), "changed": (torch.bool, (None,))})

    def recall(self, batch: Batch) -> Tensor:
        """The numbers of a batch's images, ``(N,)``.

        They are 0 for images not in the table yet, which a coreset selection can ask for.
        """
        table = self.memory.tensors.get("numbers", torch.zeros(0, device=batch.index.device))
        return torch.cat([table, table.new_zeros(1)])[batch.index.clamp(max=len(table))]

    def remember(self, batch: Batch, numbers: Tensor) -> None:
        """Store the ``(N,)`` numbers of a batch's images, where the table has room."""
        if not self.memory.tensors:
            return
        table, changed = (self.memory.tensors[name] for name in ("numbers", "changed"))
        index, exists = batch.index.clamp(max=len(table) - 1), (batch.weight > 0) & (batch.index < len(table))
        table[index] = torch.where(exists, numbers, table[index])
        changed[index] |= exists

    def on_train_start(self) -> None:
        """Extend the table to all images, also when an epoch is resumed."""
        super().on_train_start()
        self.make_room()

    def on_train_epoch_start(self) -> None:
        """Make room, because a callback may have selected other images."""
        super().on_train_epoch_start()
        self.make_room()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Check the indices of an epoch's first batch."""
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx == 0:
            check_index(as_batch(batch).index, images=len(self.memory.tensors["numbers"]))

    def end_epoch(self) -> None:
        """Merge the tables of all ranks."""
        super().end_epoch()
        self.memory.merge_ranks(self.device)

    def make_room(self) -> None:
        """Extend the table to all images of the training loader."""
        tensors = self.memory.tensors
        n = max(images_in(self.trainer.train_dataloader), *map(len, tensors.values()), 0)
        for name, dtype in (("numbers", torch.float32), ("changed", torch.bool)):
            known = tensors.get(name, torch.zeros(0, dtype=dtype, device=self.device))
            tensors[name] = torch.cat([known, known.new_zeros(max(n - len(known), 0))])


def merge(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One table from those of all ranks: the number from the rank that changed it, the mean if several did."""
    numbers, changed = (torch.stack([state[name] for state in states]) for name in ("numbers", "changed"))
    times = changed.sum(dim=0)
    means = (numbers * changed).sum(dim=0) / times.clamp_min(1)
    return {"numbers": torch.where(times > 0, means, numbers[0]), "changed": torch.zeros_like(changed[0])}


def images_in(loader: Any) -> int:
    """One more than the largest index that a loader can give.

    Raises:
        ValueError: If it is unknown.
    """
    if hasattr(loader, "samples"):  # a loader of lit_robust.data: its indices count the held-out images, too
        return int(loader.samples.indices.max()) + 1
    try:
        images = loader.dataset
        while isinstance(images, Subset):  # its images keep the indices of the whole dataset
            images = images.dataset
        return len(images)
    except (AttributeError, TypeError):
        raise ValueError(
            f"this method remembers a number for each image, but {type(loader).__name__} does not tell how many there "
            "are: give a DataLoader of a dataset that has a length."
        ) from None


def check_index(index: Tensor, images: int) -> None:
    """Refuse indices outside the table.

    Raises:
        ValueError: If an image has no index, or one that is not below the number of images.
    """
    low, high = int(index.min()), int(index.max())
    if low < 0:
        raise ValueError(
            "this method identifies images by their index, which the training loader does not give: let it yield "
            "lit_robust.batch.Batch(x, y, index, weight)."
        )
    if high >= images:
        raise ValueError(f"a batch has the index {high}, but there are {images} images: let indices count from 0.")
