"""Gradient embeddings: what a coreset's samples are compared by."""

import math
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import torch
from torch import Tensor

from lit_robust import require
from lit_robust.selection.checks import check_classes, check_floating, check_positions, check_weights

#: How many inner products of ``Outer`` are computed at once: beside the result, no more memory than two such blocks.
GRAM_BLOCK = 2**22


@dataclass(frozen=True)
class Outer:
    """Rows that are outer products, as the gradients of a linear layer's weights are: ``row_i = left_i (x) right_i``.

    With ``R`` terms a row is the sum of ``R`` outer products. A row has ``C * D`` numbers, which are never computed:
    inner products are ``(left_i . left_j) (right_i . right_j)``.

    Shape:
        left: ``(N, C)`` or ``(N, R, C)``;  right: ``(N, D)`` or ``(N, R, D)``.
    """

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        for name, factor in (("left", self.left), ("right", self.right)):
            check_floating(name, factor)
        if self.left.ndim not in (2, 3) or self.left.shape[:-1] != self.right.shape[:-1]:
            raise ValueError(
                f"left={tuple(self.left.shape)} and right={tuple(self.right.shape)} must be (N, C) and (N, D), or "
                "(N, R, C) and (N, R, D): give one pair of factors for each row."
            )

    def __len__(self) -> int:
        return len(self.left)

    @property
    def terms(self) -> list[tuple[Tensor, Tensor]]:
        """The factors ``(N, C)`` and ``(N, D)`` of each of the ``R`` terms."""
        if self.left.ndim == 2:
            return [(self.left, self.right)]
        return list(zip(self.left.unbind(1), self.right.unbind(1), strict=True))


#: One row per sample: a dense tensor ``(N, D)``, or its factors.
Embeddings: TypeAlias = Tensor | Outer


def check_embeddings(embeddings: Embeddings, budget: int) -> int:
    """Refuse unusable embeddings and a budget outside 1 to N; returns the budget.

    Raises:
        TypeError: If they are neither a tensor nor ``Outer``.
        ValueError: If a tensor is not ``(N, D)``, a number is not finite, or ``budget`` is not between 1 and ``N``.
    """
    check_rows(embeddings)
    require.integer("budget", budget, least=1, hint="it is the number of samples to choose")
    if budget > len(embeddings):
        raise ValueError(f"budget={budget} is more than the {len(embeddings)} embeddings there are: choose fewer.")
    if not bool(squared_norms(embeddings).isfinite().all()):
        raise ValueError(
            "embeddings must be finite with finite squares, but those of some samples are not: lower the learning rate "
            "if they are gradients of a net whose loss has diverged."
        )
    return int(budget)


def check_rows(embeddings: Embeddings) -> None:
    """Refuse embeddings that are not rows of numbers.

    Raises:
        TypeError: If they are neither a tensor nor ``Outer``.
        ValueError: If a tensor is not ``(N, D)``, or of integers.
    """
    require.instance("embeddings", embeddings, (Tensor, Outer), "give a tensor (N, D), or the factors of its rows")
    if isinstance(embeddings, Tensor):
        check_floating("embeddings", embeddings)
        if embeddings.ndim != 2:
            raise ValueError(f"embeddings of shape {tuple(embeddings.shape)} must be rows (N, D): give one per sample.")


def device_of(embeddings: Embeddings) -> torch.device:
    """The embeddings' device."""
    return (embeddings.left if isinstance(embeddings, Outer) else embeddings).device


def ones_for(embeddings: Embeddings) -> Tensor:
    """A weight of 1 for each row, ``(N,)``."""
    like = embeddings.left if isinstance(embeddings, Outer) else embeddings
    return like.new_ones(len(like))


def rows(embeddings: Embeddings, which: Tensor) -> Embeddings:
    """The embeddings of some samples."""
    if isinstance(embeddings, Outer):
        return Outer(embeddings.left[which], embeddings.right[which])
    return embeddings[which]


def gram(a: Embeddings, b: Embeddings) -> Tensor:
    """All inner products of two sets of embeddings, ``(N_a, N_b)``; those of ``Outer`` in blocks of rows."""
    if isinstance(a, Outer) and isinstance(b, Outer):
        products = a.left.new_zeros(len(a), len(b))
        per_block = max(1, GRAM_BLOCK // max(1, len(b)))
        for (left_a, right_a), (left_b, right_b) in product(a.terms, b.terms):
            parts = (torch.split(whole, per_block) for whole in (products, left_a, right_a))
            for block, left, right in zip(*parts, strict=True):
                block.addcmul_(left @ left_b.T, right @ right_b.T)
        return products
    if isinstance(a, Outer) or isinstance(b, Outer):
        raise TypeError("inner products need two sets of one kind: two tensors, or two Outer.")
    return a @ b.T


def squared_norms(embeddings: Embeddings) -> Tensor:
    """The squared length of each row, ``(N,)``."""
    if isinstance(embeddings, Tensor):
        return embeddings.square().sum(dim=1)
    terms = embeddings.terms
    return torch.stack([(la * lb).sum(1) * (ra * rb).sum(1) for la, ra in terms for lb, rb in terms]).sum(0)


def weighted_sum(embeddings: Embeddings, weights: Tensor) -> Tensor:
    """The sum of all rows, each times its weight: ``(D,)``, or ``(C, D)`` for ``Outer``."""
    if isinstance(embeddings, Tensor):
        return weights @ embeddings
    return torch.stack([(left * weights[:, None]).T @ right for left, right in embeddings.terms]).sum(0)


def products_with(embeddings: Embeddings, vector: Tensor) -> Tensor:
    """The inner product of each row with what ``weighted_sum`` returns, ``(N,)``."""
    if isinstance(embeddings, Tensor):
        return embeddings @ vector
    return torch.stack([((left @ vector) * right).sum(1) for left, right in embeddings.terms]).sum(0)


def gradient_error(embeddings: Embeddings, indices: Tensor, weights: Tensor) -> float:
    """How far a coreset's gradient is from the whole set's, ``|sum_i g_i - sum_S weight_i g_i| / |sum_i g_i|``.

    Args:
        embeddings: One row per sample, ``(N, D)`` or ``Outer``.
        indices: Positions of the coreset's samples, ``(S,)``.
        weights: Their weights, ``(S,)``.

    Returns:
        The error; infinite where the gradients of all samples add up to 0, and NaN where their sum is not finite.

    Raises:
        TypeError: If an argument is not a tensor.
        ValueError: If the rows, positions or weights cannot be used.
    """
    check_rows(embeddings)
    check_positions("indices", indices, len(embeddings))
    check_weights(weights, len(indices), positive=False)
    return relative_error(embeddings, indices, weights)


def relative_error(embeddings: Embeddings, indices: Tensor, weights: Tensor) -> float:
    """As ``gradient_error``, without checks."""
    whole = weighted_sum(embeddings, ones_for(embeddings))
    part = weighted_sum(rows(embeddings, indices), weights.to(whole))
    off, length = torch.stack([(whole - part).norm(), whole.norm()]).tolist()
    return float(off / length if length else math.inf if off else 0.0)


def of_batches(embeddings: Embeddings, batch_size: int) -> Tensor:
    """The sum of each block of ``batch_size`` consecutive samples, over ``batch_size``: dense, ``(N / batch_size, D)``.

    These are means, but for a shorter last block, which counts in proportion to its samples.

    Raises:
        TypeError: If the embeddings are neither a tensor nor ``Outer``.
        ValueError: If they are not rows, or ``batch_size`` is below 1.
    """
    check_rows(embeddings)
    require.integer("batch_size", batch_size, least=1)
    blocks = torch.split(torch.arange(len(embeddings), device=device_of(embeddings)), batch_size)
    parts = [rows(embeddings, block) for block in blocks]
    return torch.stack([weighted_sum(part, ones_for(part) / batch_size).flatten() for part in parts])


def own_class(embeddings: Outer, y: Tensor) -> Tensor:
    """The part of each gradient that belongs to the output of the sample's own class, dense: ``(N, D)``.

    Raises:
        TypeError: If the embeddings are not an ``Outer``, or ``y`` is not a tensor.
        ValueError: If ``y`` is not one class for each sample, from 0 to C - 1.
    """
    require.instance("embeddings", embeddings, Outer, "give the factors of each row")
    check_classes(y, len(embeddings), embeddings.left.shape[-1])
    return torch.stack([left.gather(1, y[:, None]) * right for left, right in embeddings.terms]).sum(0)


def bias_of(embeddings: Embeddings) -> Tensor:
    """The bias's part of what ``last_layer_gradients`` returns, ``(N, C)``."""
    if isinstance(embeddings, Outer):
        return torch.stack([left for left, _ in embeddings.terms]).sum(0)
    return embeddings


def concatenated(parts: list[Embeddings]) -> Embeddings:
    """The embeddings of several batches as one.

    Raises:
        ValueError: If there is none, or they are of both kinds.
    """
    kinds = {type(part) is Outer for part in parts}
    if len(kinds) != 1:
        found = "tensors and Outers" if kinds else "nothing"
        raise ValueError(f"parts holds {found}: give the embeddings of at least one batch, all of one kind.")
    if all(isinstance(part, Outer) for part in parts):
        outers = [part for part in parts if isinstance(part, Outer)]
        return Outer(torch.cat([part.left for part in outers]), torch.cat([part.right for part in outers]))
    return torch.cat([part for part in parts if isinstance(part, Tensor)])
