"""A sampler of a weighted subset, for loaders that are not of ``lit_robust.data``."""

from collections.abc import Iterator, Sized

import torch
from torch import Tensor
from torch.utils.data import Sampler

from lit_robust.seeds import derive_seed, run_seed


def resampled(indices: Tensor, weights: Tensor, seed: int) -> Tensor:
    """Draw as many samples as there are, each in proportion to its weight, by systematic sampling.

    A sample of weight ``w`` is drawn ``w S / sum(w)`` times, rounded up or down, so an unweighted loss over the draws
    has the expectation of the weighted mean, with as little variance as whole numbers allow.

    Args:
        indices: Positions ``(S,)``.
        weights: Their weights ``(S,)``, above 0.
        seed: Other draws for another one.

    Returns:
        Positions ``(S,)``, in the order of ``indices``.
    """
    shares = weights.double().cumsum(0) * (len(weights) / weights.double().sum())
    start = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ticks = torch.arange(len(weights), dtype=torch.float64) + start
    return indices[torch.searchsorted(shares, ticks, right=True).clamp(max=len(indices) - 1)]


class CoresetSampler(Sampler[int]):
    """Yields the positions of the subset that ``CoresetSelection`` chooses, in a new order in each epoch.

    Give the same one to the ``DataLoader`` and to the callback. Until the first selection it yields all positions.

    Args:
        dataset: The training set; the subset is chosen from all of its items.
        resample: Whether each epoch draws in proportion to the weights, for a loss that is the plain mean over a batch.
            With false every position comes once, and the loss must weight it by ``sampler.weight_of(position)``.
    """

    def __init__(self, dataset: Sized, resample: bool = True) -> None:
        self.dataset = dataset
        self.resample = resample
        self.indices = torch.arange(len(dataset))
        self.weights = torch.ones(len(dataset))
        self.in_order = False
        self.epoch = 0
        #: How many positions of the next iteration's epoch have been used before a resume.
        self.used = 0

    def select(self, indices: Tensor, weights: Tensor | None = None, in_order: bool = False) -> None:
        """Yield these positions ``(S,)`` from the next iteration on; ``in_order`` turns the shuffling off."""
        self.indices = indices
        self.weights = torch.ones(len(indices)) if weights is None else weights
        self.in_order = in_order

    def weight_of(self, positions: Tensor) -> Tensor:
        """The weights of positions ``(N,)``, 0 where one is not selected."""
        table = torch.zeros(len(self.dataset))
        table[self.indices] = self.weights
        return table[positions.cpu()]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        seed = derive_seed(run_seed(), "coreset", self.epoch)
        positions = resampled(self.indices, self.weights, seed) if self.resample else self.indices
        if not self.in_order:
            positions = positions[torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))]
        used, self.used = self.used, 0
        yield from positions[used:].tolist()
