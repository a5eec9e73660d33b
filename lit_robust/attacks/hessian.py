"""The curvature of the cross-entropy with respect to a net's weights."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from lit_robust import losses
from lit_robust.guards import network_mode

#: A point or a direction in the space of weights: a tensor for each parameter's name.
Weights = dict[str, Tensor]


def softmax_eigenvalue(logits: Tensor) -> Tensor:
    """The largest eigenvalue of ``diag p - p p^T``, ``p = softmax(logits)``, at most 1/2; ``(N,)``.

    It lies between the two largest probabilities and solves ``sum_i p_i^2 / (p_i - lambda) = 1``, whose left side grows
    there. Bisection finds it; a solver for ``(N, C, C)`` matrices takes longer and synchronises with the host.
    """
    p = logits.float().softmax(dim=1)
    high, low = p.topk(2, dim=1).values.unbind(dim=1)
    high = high.clamp(max=0.5)
    for _ in range(30):
        middle = (low + high) / 2
        above = (p.square() / (p - middle.unsqueeze(1))).sum(dim=1) < 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (low + high) / 2


def last_layer_eigenvalue(logits: Tensor, features: Tensor, bias: bool = True) -> Tensor:
    """The largest eigenvalue of each sample's Hessian of the cross-entropy in a linear last layer's weights, ``(N,)``.

    For ``z = W h + b`` the Hessian is ``(diag p - p p^T) x h~ h~^T`` with ``h~ = (h, 1)``, for any label.
    """
    return softmax_eigenvalue(logits) * (features.float().square().sum(dim=1) + bias)


def sharpest_direction(net: nn.Module, x: Tensor, y: Tensor, iterations: int) -> Weights:
    """The top eigenvector of the Hessian of the batch's mean cross-entropy, by power iteration from its gradient."""
    with _twice_differentiable(net, x) as weights:
        slope = grad(lambda at: _losses(net, at, x, y).mean())
        direction = _normalized(slope(weights))
        for _ in range(iterations):
            direction = _normalized(jvp(slope, (weights,), (direction,))[1])
    return direction


def curvatures(net: nn.Module, x: Tensor, y: Tensor, direction: Weights) -> Tensor:
    """``v^T H_i v`` of each sample's cross-entropy along one direction of the weights, ``(N,)``."""
    with _twice_differentiable(net, x) as weights:

        def slopes(at: Weights) -> Tensor:
            along: Tensor = jvp(lambda at: _losses(net, at, x, y), (at,), (direction,))[1]
            return along

        curvature: Tensor = jvp(slopes, (weights,), (direction,))[1]
    return curvature


def top_eigenvalue(
    net: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], tol: float = 0.01, iterations: int = 50
) -> tuple[float, bool]:
    """The eigenvalue of largest magnitude of the Hessian of the mean cross-entropy in all weights, by power iteration.

    Args:
        net: It is differentiated in eval mode.
        batches: Images, adversarial ones for the adversarial loss, and labels.
        tol: The relative change at which to stop.
        iterations: The number of iterations at which to stop in any case.

    Returns:
        The Rayleigh quotient, and whether it had settled to ``tol``.
    """
    n = sum(len(y) for _, y in batches)

    def times_hessian(weights: Weights, direction: Weights) -> Weights:
        total: Weights = {name: torch.zeros_like(part) for name, part in direction.items()}
        for x, y in batches:
            slope = grad(lambda at, x=x, y=y: _losses(net, at, x, y).sum() / n)
            for name, part in jvp(slope, (weights,), (direction,))[1].items():
                total[name] += part
        return total

    with _twice_differentiable(net, batches[0][0]) as weights:
        generator = torch.Generator().manual_seed(0)
        drawn = {name: torch.randn(part.shape, generator=generator).to(part) for name, part in weights.items()}
        direction, before = _normalized(drawn), math.inf
        for _ in range(iterations):
            product = times_hessian(weights, direction)
            value = float(sum((direction[name] * part).sum() for name, part in product.items()))
            if abs(value - before) <= tol * abs(value):
                return value, True
            direction, before = _normalized(product), value
    return before, False


@contextmanager
def _twice_differentiable(net: nn.Module, x: Tensor) -> Iterator[Weights]:
    """Yield the net's weights, with settings that suit second derivatives: uncompiled, float32, eval mode."""
    with (
        network_mode(net, "eval"),
        torch.autocast(x.device.type, enabled=False),
        torch.compiler.set_stance("force_eager"),
        warnings.catch_warnings(),
    ):
        # raised inside torch at its first forward-mode differentiation
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        yield {name: parameter.detach() for name, parameter in net.named_parameters()}


def _losses(net: nn.Module, weights: Weights, x: Tensor, y: Tensor) -> Tensor:
    return losses.ce(functional_call(net, weights, (x.detach(),)), y)


def _normalized(direction: Weights) -> Weights:
    length = sum(part.square().sum() for part in direction.values()) ** 0.5
    return {name: part / length.clamp_min(torch.finfo(part.dtype).tiny) for name, part in direction.items()}
