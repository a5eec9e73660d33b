"""Iterating over an epoch: the order of the samples, each rank's share, and the batch to resume from."""

import math
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler

from lit_robust import require
from lit_robust.batch import Batch
from lit_robust.data.saved import position_of
from lit_robust.seeds import derive_seed


@dataclass
class Samples:
    """Positions in a data set and their weights; a change takes effect in the loader's next epoch.

    Shape:
        indices: ``(N,)`` int64;  weights: ``(N,)`` float32; both on the CPU.
    """

    indices: Tensor
    weights: Tensor
    #: Whether they keep their order in every epoch, instead of being shuffled.
    in_order: bool = False

    @classmethod
    def once(cls, indices: Tensor) -> "Samples":
        """Each position with weight 1."""
        return cls(indices, torch.ones(len(indices)))


class EpochLoader(ABC):
    """A loader that takes its rank's share of each epoch, and can resume in the middle of an epoch.

    A batch depends only on (seed, epoch, batch index, rank) and on the samples, not on earlier draws. All ranks have
    the same number of batches, of the same sizes: ranks with fewer samples repeat some with weight 0. It is not a
    ``DataLoader``, so Lightning neither wraps nor rebuilds it, and ``use_distributed_sampler`` has no effect; Lightning
    calls ``set_epoch``, ``state_dict`` and ``load_state_dict``.

    Args:
        samples: The samples to iterate over; read again at the start of each epoch.
        batch_size: Images per batch and rank.
        shuffle: Whether each epoch has its own order.
        drop_last: Whether to leave out a last batch that is not full.
        in_blocks: Whether batch ``k`` is the ``k``-th block of ``batch_size`` consecutive samples for any number
            of ranks, which take turns; then the ranks' last batches differ in size. Otherwise every ``world``-th sample
            is a rank's.
        rank: The rank of this process.
        world: The number of ranks.
        seed: The seed of order and augmentation.

    Raises:
        ValueError: If there is no batch.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        in_blocks: bool = False,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
    ) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.in_blocks = in_blocks
        self.rank = rank
        self.world = world
        self.seed = seed
        self.epoch = 0
        self._resume_at = 0
        self._done = 0
        if len(self) == 0:
            raise ValueError(
                f"batch_size={batch_size} with drop_last={drop_last} makes no batch of "
                f"{len(samples.indices)} images on {world} ranks: take a smaller batch_size."
            )

    #: Lightning asks a loader for both of its samplers.
    batch_sampler = None

    @property
    def sampler(self) -> Any:
        """This loader, or a sequential sampler around it: Lightning calls ``set_epoch`` on a loader's sampler only."""
        # Not an attribute: a reference cycle would keep worker processes until the garbage collector runs.
        return self if self.shuffle else _InOrder(self)

    def __len__(self) -> int:
        if self.in_blocks:
            return math.ceil(math.ceil(len(self.samples.indices) / self.batch_size) / self.world)
        share = math.ceil(len(self.samples.indices) / self.world)
        return share // self.batch_size if self.drop_last else math.ceil(share / self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; a position to resume from is dropped if the epoch changes."""
        if epoch != self.epoch:
            self._resume_at = 0
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """The epoch and the number of its batches that were yielded."""
        return {"epoch": self.epoch, "batches": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iteration start after the batches that were yielded."""
        self.epoch, self._resume_at = position_of(state)
        self._done = self._resume_at

    def __iter__(self) -> Iterator[Batch]:
        # A generator, so that nothing happens before the first next(): Lightning calls iter() to see whether it works,
        # and again before it sets the epoch.
        self._done, self._resume_at = self._resume_at, 0
        if self._done > len(self):
            raise ValueError(
                f"the checkpoint was written after {self._done} batches of an epoch, which has {len(self)} here: "
                "resume with the data, batch_size and ranks of its training, or use another checkpoint."
            )
        for batch in self._batches(self._share(), range(self._done, len(self))):
            self._done += 1
            yield batch

    def _share(self) -> Samples:
        """This rank's samples of the epoch, in order."""
        n = len(self.samples.indices)
        order = torch.arange(n)
        if self.shuffle and not self.samples.in_order:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "shuffle", self.epoch))
            order = torch.randperm(n, generator=generator)
        if self.in_blocks:
            own = torch.split(torch.arange(n), self.batch_size)[self.rank :: self.world]
            padding = torch.full((len(self) - len(own),), n)  # padding of weight 0 for ranks that have no last block
            mine = torch.cat([*own, padding])
        else:
            mine = torch.arange(self.rank, math.ceil(n / self.world) * self.world, self.world)
        own_order = order[mine % n]
        weights = self.samples.weights[own_order]
        weights[mine >= n] = 0
        return Samples(self.samples.indices[own_order], weights)

    def draw_seed(self, number: int) -> int:
        """The seed of batch ``number``'s augmentation; in blocks, the same on any number of ranks."""
        place = (number * self.world + self.rank, 0) if self.in_blocks else (number, self.rank)
        return derive_seed(self.seed, "data", self.epoch, *place)

    def images_before(self, number: int) -> int | None:
        """How many images of the set precede batch ``number`` of this rank; None if they are not a block."""
        return (number * self.world + self.rank) * self.batch_size if self.in_blocks else None

    def _slice(self, number: int) -> slice:
        """Where batch ``number`` lies in the rank's share."""
        return slice(number * self.batch_size, (number + 1) * self.batch_size)

    @abstractmethod
    def _batches(self, share: Samples, numbers: range) -> Iterator[Batch]:
        """The batches with these numbers."""


class _InOrder(SequentialSampler):
    """Tells Lightning that a loader does not shuffle; without it, Lightning warns that it turns shuffling off."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the loader's next iteration, for its augmentation."""
        loader: Any = self.data_source
        loader.set_epoch(epoch)


def ignore_interrupts(worker: int) -> None:
    """Let a worker process go on after Ctrl-C, which a terminal sends to all: the training ends its batch and saves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def drawn(positions: Mapping[str, Tensor], n: int, split: str, seed: int) -> Samples:
    """Draw distinct samples of a split.

    Raises:
        ValueError: If there is no such split, or it has fewer.
    """
    require.one_of("split", split, [*positions])
    require.integer("n", n, least=1)
    if n > (most := len(positions[split])):
        raise ValueError(f'n={n} is more than the {most} images of split="{split}": draw fewer.')
    order = torch.randperm(most, generator=torch.Generator().manual_seed(seed))
    return Samples.once(positions[split][order[:n]])
