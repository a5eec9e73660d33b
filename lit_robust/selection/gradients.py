"""The gradients of a net's last layer, sample by sample."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lit_robust import require
from lit_robust.selection.embeddings import Outer


def last_layer_gradients(head: nn.Linear, loss: Callable[[], Tensor]) -> Outer:
    """The gradient of each sample's loss with respect to the last layer's weight and bias.

    For cross-entropy these are ``p - onehot(y)`` and its outer product with the features (Dolatabadi et al., ECCV 2022,
    arXiv:2112.00378). They are taken at the outputs of ``head``, for any loss that depends on them, so
    any training objective can select: one that runs the net twice, on clean and adversarial images, has two terms.

    Args:
        head: The net's last layer. Each forward of it gets N rows, or several blocks of N rows, one term each; extra
            rows, such as SATR1's iterative image, are ignored.
        loss: Runs the net and returns the loss of each sample, ``(N,)``.

    Returns:
        Rows whose ``right`` is one wider than the features; ``bias_of`` gives the bias's part.

    Raises:
        TypeError: If ``head`` is not a Linear.
        ValueError: If the loss never calls ``head``, or is not one number per sample.
    """
    require.instance("head", head, nn.Linear, "give the net's last layer")
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
            values = require.instance("loss()", loss(), Tensor, "return the loss of each sample (N,)")
            if values.ndim != 1:
                raise ValueError(
                    f'loss() of shape {tuple(values.shape)} must be (N,): compute it with reduction="none".'
                )
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


def _blocks(part: Tensor, size: int) -> list[Tensor]:
    return list(torch.split(part[: len(part) // size * size], size))
