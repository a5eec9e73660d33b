"""Gradient embeddings: what a coreset's samples are compared by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lit_robust import require


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
    if not isinstance(embeddings, Tensor | Outer):
        raise TypeError(f"embeddings must be a tensor (N, D) or an Outer, not {type(embeddings).__name__}.")
    if isinstance(embeddings, Tensor) and (embeddings.ndim != 2 or not embeddings.is_floating_point()):
        raise ValueError(
            f"embeddings of {embeddings.dtype} and shape {tuple(embeddings.shape)} must be floating-point rows (N, D)."
        )
    require.integer("budget", budget, least=1)
    if budget > len(embeddings):
        raise ValueError(f"budget={budget} is more than the {len(embeddings)} embeddings there are: choose fewer.")
    if not bool(squared_norms(embeddings).isfinite().all()):
        raise ValueError("embeddings must be finite: the gradients of some samples are not.")
    return int(budget)


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
    """All inner products of two sets of embeddings, ``(N_a, N_b)``."""
    if isinstance(a, Outer) and isinstance(b, Outer):
        products = [
            (left_a @ left_b.T).mul_(right_a @ right_b.T) for left_a, right_a in a.terms for left_b, right_b in b.terms
        ]
        for other in products[1:]:
            products[0] += other
        return products[0]
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
    """How far a coreset's gradient is from the whole set's, ``|sum_i g_i - sum_S weight_i g_i| / |sum_i g_i|``."""
    whole = weighted_sum(embeddings, ones_for(embeddings))
    part = weighted_sum(rows(embeddings, indices), weights.to(whole))
    return float((whole - part).norm() / whole.norm().clamp(min=torch.finfo(whole.dtype).tiny))


def of_batches(embeddings: Embeddings, batch_size: int) -> Tensor:
    """The mean embedding of each block of ``batch_size`` consecutive samples, dense: ``(N / batch_size, D)``."""
    blocks = torch.split(torch.arange(len(embeddings), device=device_of(embeddings)), batch_size)
    parts = [rows(embeddings, block) for block in blocks]
    return torch.stack([weighted_sum(part, ones_for(part) / len(part)).flatten() for part in parts])


def own_class(embeddings: Outer, y: Tensor) -> Tensor:
    """The part of each gradient that belongs to the output of the sample's own class, dense: ``(N, D)``."""
    return torch.stack([left.gather(1, y[:, None]) * right for left, right in embeddings.terms]).sum(0)


def bias_of(embeddings: Embeddings) -> Tensor:
    """The bias's part of what ``last_layer_gradients`` returns, ``(N, C)``."""
    if isinstance(embeddings, Outer):
        return torch.stack([left for left, _ in embeddings.terms]).sum(0)
    return embeddings


def last_layer_gradients(head: nn.Linear, loss: Callable[[], Tensor]) -> Outer:
    """The gradient of each sample's loss with respect to the last layer's weight and bias.

    For cross-entropy these are ``p - onehot(y)`` and its outer product with the features (Dolatabadi et al., ECCV 2022,
    arXiv:2112.00378). They are taken at the outputs of ``head``, whatever the loss does with them, so any
    training objective can select: one that runs the net twice, on clean and adversarial images, has two terms.

    Args:
        head: The net's last layer. Each forward of it gets N rows, or several blocks of N rows, one term each; extra
            rows, such as SATR1's iterative image, are ignored.
        loss: Runs the net and returns the loss of each sample, ``(N,)``.

    Returns:
        Rows whose ``right`` is one wider than the features; ``bias_of`` gives the bias's part.

    Raises:
        ValueError: If the loss never calls ``head``.
    """
    features: list[Tensor] = []
    outputs: list[Tensor] = []

    def with_leaf(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        # Differentiate at a zero added to the output: its gradient equals the output's, also with frozen parameters,
        # and no graph of the rest of the net is needed.
        features.append(inputs[0].detach())
        outputs.append(torch.zeros_like(output, requires_grad=True))
        return output + outputs[-1]

    handle = head.register_forward_hook(with_leaf)
    try:
        with torch.enable_grad():
            values = loss()
            total = values.sum()
    finally:
        handle.remove()
    grads = torch.autograd.grad(total, outputs, allow_unused=True) if outputs and total.requires_grad else []
    precision = torch.promote_types(total.dtype, torch.float32)  # bfloat16 is too coarse for sums
    terms = [
        term
        for grad, inputs in zip(grads, features, strict=False)
        if grad is not None
        for term in zip(*(_blocks(part.to(precision), len(values)) for part in (grad, inputs)), strict=True)
    ]
    if not terms:
        raise ValueError("the loss does not depend on the net's last layer, so there are no gradients to select by.")
    # The bias counts as the weight of one more feature, which is always 1.
    right = [torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1) for _, inputs in terms]
    if len(terms) == 1:
        return Outer(terms[0][0], right[0])
    return Outer(torch.stack([grad for grad, _ in terms], dim=1), torch.stack(right, dim=1))


def concatenated(parts: list[Embeddings]) -> Embeddings:
    """The embeddings of several batches as one."""
    if all(isinstance(part, Outer) for part in parts):
        outers = [part for part in parts if isinstance(part, Outer)]
        return Outer(torch.cat([part.left for part in outers]), torch.cat([part.right for part in outers]))
    return torch.cat([part for part in parts if isinstance(part, Tensor)])


def _blocks(part: Tensor, size: int) -> list[Tensor]:
    return list(torch.split(part[: len(part) // size * size], size))
