"""What the methods that remember a number of each training image have in common."""

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
    """Adversarial training with a number for each image, which is 0 at first and is known by ``Batch.index``.

    The table is the same on every rank when an epoch starts. Within it a rank writes down what it learns of its own
    images, and after the epoch's last batch the ranks exchange that. Images of weight 0, which only fill a rank up,
    are another rank's and not written. A checkpoint holds the tables of all ranks, so a run resumes exactly; it may be
    resumed on another number of ranks, too.

    Raises:
        ValueError: If the training's images have no index, or it is not known how many there are.
    """

    def __init__(self, net: nn.Module, num_classes: int, attack: Attack, **kwargs: Unpack[DefenseArguments]) -> None:
        super().__init__(net, num_classes, attack, **kwargs)
        self.memory.declare(merge)

    def recall(self, batch: Batch) -> Tensor:
        """The numbers of a batch's images, ``(N,)``."""
        return self.memory.tensors["numbers"][batch.index]

    def remember(self, batch: Batch, numbers: Tensor) -> None:
        """Write down the ``(N,)`` numbers of a batch's images."""
        table, changed = (self.memory.tensors[name] for name in ("numbers", "changed"))
        exists = batch.weight > 0
        table[batch.index] = torch.where(exists, numbers, table[batch.index])
        changed[batch.index] |= exists

    def on_train_start(self) -> None:
        """Make room for all images, also when an epoch is resumed."""
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
        """Let all ranks know what each has learned."""
        super().end_epoch()
        self.memory.merge_ranks(self.device)

    def make_room(self) -> None:
        """Lengthen the table to the images of the training's loader."""
        n, tensors = images_in(self.trainer.train_dataloader), self.memory.tensors
        for name, dtype in (("numbers", torch.float32), ("changed", torch.bool)):
            known = tensors.get(name, torch.zeros(0, dtype=dtype, device=self.device))
            tensors[name] = torch.cat([known, known.new_zeros(max(n - len(known), 0))])


def merge(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One table from those of all ranks: the number of the rank that changed it, the mean if several have."""
    numbers, changed = (torch.stack([state[name] for state in states]) for name in ("numbers", "changed"))
    times = changed.sum(dim=0)
    means = (numbers * changed).sum(dim=0) / times.clamp_min(1)
    return {"numbers": torch.where(times > 0, means, numbers[0]), "changed": torch.zeros_like(changed[0])}


def images_in(loader: Any) -> int:
    """One more than the largest index that a loader can give.

    Raises:
        ValueError: If there is no knowing.
    """
    if hasattr(loader, "samples"):  # one of lit_robust.data, whose indices count the images that are held out, too
        return int(loader.samples.indices.max()) + 1
    try:
        images = loader.dataset
        while isinstance(images, Subset):  # whose images keep the indices of the whole
            images = images.dataset
        return len(images)
    except (AttributeError, TypeError):
        raise ValueError(
            f"this method remembers a number of each image, but {type(loader).__name__} does not tell how many there "
            "are: give a DataLoader of a dataset that has a length."
        ) from None


def check_index(index: Tensor, images: int) -> None:
    """Refuse images that nothing can be remembered of.

    Raises:
        ValueError: If they have no index, or one that is not below the number of images.
    """
    low, high = int(index.min()), int(index.max())
    if low < 0:
        raise ValueError(
            "this method knows an image by its index, which the training's loader does not give: let it yield "
            "lit_robust.batch.Batch(x, y, index, weight)."
        )
    if high >= images:
        raise ValueError(f"a batch has the index {high}, but there are {images} images: let indices count from 0.")
