"""The baseline of every coreset: samples drawn at random."""

import torch
from torch import Tensor

from lit_robust.selection.embeddings import Embeddings, check_embeddings, device_of


def random_subset(
    embeddings: Embeddings, budget: int, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw samples without replacement, each with weight 1; only the number of embeddings matters.

    Args:
        embeddings: One row per sample, ``(N, D)`` or ``Outer``.
        budget: The number of samples to draw, at most ``N``.
        generator: Where to draw from; a CPU generator.

    Returns:
        Indices ``(budget,)``, ascending, and weights ``(budget,)`` of 1, on the embeddings' device.

    Raises:
        TypeError: If the embeddings are neither a tensor nor ``Outer``.
        ValueError: If ``budget`` is out of range.
    """
    budget = check_embeddings(embeddings, budget)
    drawn = torch.randperm(len(embeddings), generator=generator)[:budget].sort().values
    return drawn.to(device_of(embeddings)), torch.ones(budget, device=device_of(embeddings))
