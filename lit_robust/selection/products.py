"""The inner products of samples that a matching pursuit reads."""

import warnings

import torch
from torch import Tensor

from lit_robust.selection.embeddings import (
    Embeddings,
    device_of,
    gram,
    ones_for,
    products_with,
    rows,
    weighted_sum,
)

#: Above this size, inner products are computed when they are needed instead of being kept.
KEPT_BYTES = 2**30
#: Above this size, a warning states the memory of a pursuit that does not keep them.
TOLD_BYTES = 2**32


class Kept:
    """All inner products, computed at once, and those of the chosen samples, contiguous as every step reads them."""

    def __init__(self, embeddings: Embeddings, budget: int) -> None:
        self.all = gram(embeddings, embeddings)
        self._chosen = self.all.new_empty(budget, len(embeddings))
        self._count = 0

    def add(self, new: Tensor) -> None:
        """Choose a sample."""
        self._chosen[self._count] = self.all[new]
        self._count += 1

    def keep(self, which: Tensor) -> None:
        """Keep some of the chosen samples, by a mask."""
        kept = self._chosen[: self._count][which]
        self._count = len(kept)
        self._chosen[: self._count] = kept

    def of(self, some: Tensor, others: Tensor) -> Tensor:
        """Of some samples with others, all to all."""
        return self.all[some[:, None], others]

    def with_sum(self, weights: Tensor) -> Tensor:
        """Of all samples with the weighted sum of the chosen ones, ``(N,)``."""
        return weights.to(self._chosen.dtype) @ self._chosen[: self._count]


class OnDemand:
    """The same, computed when they are needed, so that no more than the embeddings is kept."""

    def __init__(self, embeddings: Embeddings) -> None:
        self._embeddings = embeddings
        self._chosen = torch.empty(0, dtype=torch.int64, device=device_of(embeddings))

    def add(self, new: Tensor) -> None:
        """Choose a sample."""
        self._chosen = torch.cat([self._chosen, new[None]])

    def keep(self, which: Tensor) -> None:
        """Keep some of the chosen samples, by a mask."""
        self._chosen = self._chosen[which]

    def of(self, some: Tensor, others: Tensor) -> Tensor:
        """Of some samples with others, all to all."""
        return gram(rows(self._embeddings, some), rows(self._embeddings, others))

    def with_sum(self, weights: Tensor) -> Tensor:
        """Of all samples with the weighted sum of the chosen ones, ``(N,)``."""
        chosen = rows(self._embeddings, self._chosen)
        return products_with(self._embeddings, weighted_sum(chosen, weights.to(ones_for(chosen))))


def products_of(embeddings: Embeddings, budget: int) -> Kept | OnDemand:
    """The inner products for a pursuit, kept if they fit; warns if the pursuit is large."""
    size = ones_for(embeddings).element_size()
    if len(embeddings) ** 2 * size <= KEPT_BYTES:
        return Kept(embeddings, budget)
    if (needed := 8 * budget**2) > TOLD_BYTES:
        warnings.warn(
            f"budget={budget} of {len(embeddings)} samples takes {needed / 1e9:.3g} GB for the inner products of those "
            'that are chosen: choose in parts (scope="class" or scope="batch"), or fewer.',
            stacklevel=4,
        )
    return OnDemand(embeddings)
