"""A sampler of a weighted subset, for loaders that are not of ``lit_robust.data``."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DistributedSampler, IterableDataset, default_collate

from lit_robust import require
from lit_robust.seeds import derive_seed, run_seed
from lit_robust.selection.checks import check_positions, check_weights
from lit_robust.shown import shown


def resampled(indices: Tensor, weights: Tensor, seed: int) -> Tensor:
    """Draw as many samples as there are, each in proportion to its weight, by systematic sampling.

    A sample of weight ``w`` is drawn ``w S / sum(w)`` times, rounded up or down, so an unweighted loss over the draws
    has the expectation of the weighted mean, with as little variance as whole numbers allow.

    Args:
        indices: Positions ``(S,)``.
        weights: Their weights ``(S,)``, above 0.
        seed: Seed of the draw.

    Returns:
        Positions ``(S,)``, in the order of ``indices``.

    Raises:
        TypeError: If indices or weights are not tensors.
        ValueError: If there is none, or not one finite weight above 0 for each.
    """
    check_positions("indices", indices)
    check_weights(weights, len(indices))
    shares = weights.double().cumsum(0) * (len(weights) / weights.double().sum())
    start = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ticks = torch.arange(len(weights), dtype=torch.float64) + start
    return indices[torch.searchsorted(shares, ticks, right=True).clamp(max=len(indices) - 1)]


class CoresetSampler(DistributedSampler[int]):
    """Yields the positions of the subset that ``CoresetSelection`` chooses, in a new order in each epoch.

    Give the same one to the ``DataLoader`` and to the callback. Until the first selection it yields all positions.

    Each rank gets every ``world``-th position. If the number of positions is not a multiple of the world size, some
    are repeated, as in torch's ``DistributedSampler``. It is one so that Lightning does not add its own.

    Args:
        dataset: The training set; the subset is chosen from all of its items.
        resample: Whether each epoch draws in proportion to the weights, for a loss that is the plain mean over a batch.
            With false every position comes once, and the loss must weight it by ``sampler.weight_of(position)``. None
            leaves it to ``CoresetSelection``: positions come once where the module reads ``Batch.weight`` and the
            loader's batches have the weights there, and are drawn elsewhere.
        collate_fn: Makes a batch of items while samples are selected; the ``DataLoader``'s own.

    Raises:
        TypeError: If the dataset has no length or no items by number, or an argument is of another type.
        ValueError: If the dataset is empty.
    """

    def __init__(
        self,
        dataset: Sequence[Any],
        resample: bool | None = None,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        by_number = all(hasattr(dataset, name) for name in ("__len__", "__getitem__"))
        if not by_number or isinstance(dataset, IterableDataset):
            raise TypeError(
                f"dataset={shown(dataset)} must have a length and items by number, from which positions are selected: "
                "give a map-style dataset."
            )
        if len(dataset) == 0:
            raise ValueError(f"dataset={shown(dataset)} is empty: give the training set.")
        if resample is not None:
            require.flags(resample=resample)
        if not callable(collate_fn):
            raise TypeError(f"collate_fn={shown(collate_fn)} must be a function: give that of the DataLoader.")
        super().__init__(dataset, num_replicas=1, rank=0)  # type: ignore[arg-type]  # a Dataset has no length
        self.items = dataset
        self.resample = resample
        self.collate_fn = collate_fn
        #: What a DataLoader needs to read items in other processes while samples are selected; empty for this one.
        self.workers: dict[str, Any] = {}
        #: How many of the epoch's positions this rank has used before a resume.
        self.used = 0
        # Shared, so that the workers of a DataLoader, which have copies of the sampler, see each selection.
        self._table = _shared(torch.ones(len(dataset)))
        self.draw(resample is not False)

    def draw(self, draws: bool) -> None:
        """Draw in proportion to the weights from now on, or yield each position once; a selection is forgotten."""
        self.draws = draws
        self.select(None)

    def select(self, indices: Tensor | None, weights: Tensor | None = None, in_order: bool = False) -> None:
        """Yield these positions ``(S,)`` from the next iteration on, or all; ``in_order`` turns the shuffling off.

        Raises:
            TypeError: If indices or weights are not tensors, or ``in_order`` is not a bool.
            ValueError: If a position is beyond the dataset, or there is not one finite weight above 0 for each.
        """
        require.flags(in_order=in_order)
        if indices is None:
            indices = torch.arange(len(self.items))
        check_positions("indices", indices, len(self.items))
        weights = torch.ones(len(indices)) if weights is None else weights
        check_weights(weights, len(indices))
        self.indices, self.weights = indices, weights
        self.in_order = in_order
        table = torch.zeros(len(self.items))
        table[indices] = torch.ones(len(indices)) if self.draws else weights.float()
        if len(table) == len(self._table):
            self._table.copy_(table)
        else:  # the items have been exchanged
            self._table = _shared(table)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; a position to resume from is dropped if the epoch changes."""
        if epoch != self.epoch:
            self.used = 0
        self.epoch = epoch

    def weight_of(self, positions: Tensor) -> Tensor:
        """The weights of positions ``(N,)`` in a loss: 0 where one is not selected, and 1 where they are drawn by them.

        It may be asked in the workers of a DataLoader, also in persistent ones.
        """
        return self._table.to(positions.device)[positions]

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / _rank_and_world()[1])

    def __iter__(self) -> Iterator[int]:
        seed = derive_seed(run_seed(), "coreset", self.epoch)
        positions = resampled(self.indices, self.weights, seed) if self.draws else self.indices
        if not self.in_order:
            positions = positions[torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))]
        rank, world = _rank_and_world()
        own = torch.arange(rank, len(self) * world, world) % len(positions)
        yield from positions[own][self.used :].tolist()


def _shared(tensor: Tensor) -> Tensor:
    shared: Tensor = tensor.share_memory_()  # type: ignore[no-untyped-call]  # torch's
    return shared


def _rank_and_world() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
