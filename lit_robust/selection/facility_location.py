"""CRAIG: a subset in which every sample's gradient has a near neighbour.

Source: Mirzasoleiman et al., ICML 2020, arXiv:1906.01827.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from lit_robust import require
from lit_robust.selection.checks import check_weights
from lit_robust.selection.embeddings import Embeddings, check_embeddings, gram, rows, squared_norms

#: Candidates whose gains are computed together.
BLOCK = 64
#: Above this size, distances are computed when they are needed instead of being kept.
KEPT_BYTES = 2**30


def facility_location(
    embeddings: Embeddings,
    budget: int,
    *,
    greedy: Literal["lazy", "stochastic"] = "lazy",
    epsilon: float = 0.01,
    generator: torch.Generator | None = None,
    sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Greedily choose the samples that most reduce the sum of all samples' distances to their nearest chosen one.

        F(S) = sum_i size_i ( max D - min_{j in S} D_ij ),     D_ij = |g_i - g_j|^2

    F is submodular, so greedy reaches at least 1 - 1/e of the optimum. The authors' code squares the distance, too,
    and takes the maximum over all pairs. ``lazy`` (Minoux) makes the same choices as plain greedy and computes only the
    gains that may still be the largest; ``stochastic`` (Mirzasoleiman et al., AAAI 2015) takes the best of a random
    sample of ``N / budget * log(1 / epsilon)`` candidates in each step.

    Args:
        embeddings: One row per sample, ``(N, D)`` or ``Outer``.
        budget: The number of samples to choose, at most ``N``.
        greedy: How each step finds its candidate.
        epsilon: For ``stochastic``: its expected value is at least ``1 - 1/e - epsilon`` of the optimum.
        generator: For ``stochastic``: where it draws candidates from; a CPU generator.
        sizes: How much each row counts, such as the number of samples whose mean it is: ``(N,)``, above 0. None is 1.

    Returns:
        Indices ``(budget,)``, ascending, and for each the number of samples that are nearest to it, or the sum of their
        sizes: float32, on the embeddings' device, with sum ``N``. A chosen sample counts towards itself, even if it has
        a duplicate: with weight 0 it would take a place of the budget, but no part in the training.

    Raises:
        TypeError: If the embeddings are neither a tensor nor ``Outer``, or the sizes are no tensor.
        ValueError: If an argument is out of range.
    """
    budget = check_embeddings(embeddings, budget)
    require.one_of("greedy", greedy, ("lazy", "stochastic"))
    require.number("epsilon", epsilon, above=0, below=1)
    if sizes is not None:
        check_weights(sizes, len(embeddings), name="sizes")
    distances = _Distances(embeddings, sizes)
    steps = _lazy(distances, budget) if greedy == "lazy" else _stochastic(distances, budget, epsilon, generator)
    indices = steps.sort().values
    return indices, _cluster_sizes(distances, indices)


class _Distances:
    """Squared distances between all rows; kept if they fit in ``KEPT_BYTES``, which a class of 10,000 does."""

    def __init__(self, embeddings: Embeddings, sizes: Tensor | None) -> None:
        self.embeddings, self.sizes = embeddings, sizes
        self.norms = squared_norms(embeddings)
        self.size = len(self.norms)
        self._kept: Tensor | None = None
        if self.size**2 * self.norms.element_size() <= KEPT_BYTES:
            self._kept = self._rows(torch.arange(self.size, device=self.norms.device))

    def __getitem__(self, which: Tensor) -> Tensor:
        return self._rows(which) if self._kept is None else self._kept[which]

    def _rows(self, which: Tensor) -> Tensor:
        distances = gram(rows(self.embeddings, which), self.embeddings).mul_(-2)
        distances.add_(self.norms).add_(self.norms[which][:, None]).clamp_(min=0)
        return distances.scatter_(1, which[:, None], 0)  # exactly 0 to itself, despite rounding

    def blocks(self) -> list[Tensor]:
        """All positions, in blocks."""
        return list(torch.split(torch.arange(self.size, device=self.norms.device), BLOCK))

    def largest(self) -> Tensor:
        """The largest distance of any two, ``()``."""
        return torch.stack([self[block].max() for block in self.blocks()]).max()


def _gains(distances: _Distances, which: Tensor, nearest: Tensor) -> Tensor:
    """How much F grows with each candidate, if ``nearest`` is each sample's distance to the chosen ones."""
    gains = (nearest - distances[which]).clamp_(min=0)
    return (gains if distances.sizes is None else gains * distances.sizes).sum(dim=1)


def _lazy(distances: _Distances, budget: int) -> Tensor:
    nearest = distances.largest().repeat(distances.size)
    # Gains only shrink as more is chosen, so an old gain is an upper bound.
    bounds = torch.cat([_gains(distances, block, nearest) for block in distances.blocks()])
    current = torch.ones_like(bounds, dtype=torch.bool)
    chosen = []
    for _ in range(budget):
        while not current[best := bounds.argmax()]:
            old = bounds.masked_fill(current, -torch.inf).topk(min(BLOCK, distances.size)).indices
            old = old[~current[old]]
            bounds[old] = _gains(distances, old, nearest)
            current[old] = True
        chosen.append(best)
        nearest = torch.minimum(nearest, distances[best[None]][0])
        current.fill_(False)
        bounds[best] = -torch.inf
        current |= bounds == -torch.inf
    return torch.stack(chosen)


def _stochastic(distances: _Distances, budget: int, epsilon: float, generator: torch.Generator | None) -> Tensor:
    sample = min(distances.size, math.ceil(distances.size / budget * math.log(1 / epsilon)))
    nearest = distances.largest().repeat(distances.size)
    left = torch.arange(distances.size)
    chosen = []
    for remaining in range(distances.size, distances.size - budget, -1):
        if sample < remaining:
            places = torch.randint(remaining, (sample,), generator=generator)
        else:
            places = torch.arange(remaining)
        candidates = left[places].to(nearest.device)
        best = int(_gains(distances, candidates, nearest).argmax())
        chosen.append(candidates[best])
        nearest = torch.minimum(nearest, distances[candidates[best : best + 1]][0])
        left[places[best]] = left[remaining - 1]  # the first `remaining - 1` are not chosen yet
    return torch.stack(chosen)


def _cluster_sizes(distances: _Distances, indices: Tensor) -> Tensor:
    """For each chosen sample the number of samples nearest to it, itself included, or the sum of their sizes."""
    to_chosen = [distances[block][:, indices].argmin(dim=1) for block in distances.blocks()]
    owner = torch.cat(to_chosen)
    owner[indices] = torch.arange(len(indices), device=owner.device)
    return torch.bincount(owner, distances.sizes, minlength=len(indices)).float()
