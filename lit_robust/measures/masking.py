"""Signs of gradient masking, one number per image: how far from linear the loss is in the threat set.

Where a net overfits to a single-step attack, the gradient at an image says little about the loss next to it. Training
methods penalise these numbers, and overfitting rules watch them.

The functions use the net in its current mode. Their results have a graph to its parameters, unless the docstring says
otherwise. Where a number is undefined for an image, it is NaN.

Shape:
    x: ``(N, C, H, W)``;  y: ``(N,)`` int64;  gradients: like ``x``;  every other tensor and result: ``(N,)``.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from lit_robust import losses
from lit_robust.attacks import PGD
from lit_robust.guards import crafting
from lit_robust.threats import Threat


def ce_and_gradient(net: nn.Module, x: Tensor, y: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """The cross-entropy of each image, without a graph, and its gradient in the images.

    Call it with autograd enabled: in a training loss, or inside ``crafting``.

    Args:
        net: Returns logits.
        x: Images, which may leave [0, 1].
        y: Their labels.
        create_graph: Give the gradient a graph to the parameters, so that a training loss may depend on it. A compiled
            net then runs uncompiled, because its graph has no second derivative.
    """
    x = x.detach().requires_grad_()
    with torch.compiler.set_stance("force_eager") if create_graph else nullcontext():
        ce = losses.ce(net(x), y)
        (gradient,) = torch.autograd.grad(ce.sum(), x, create_graph=create_graph)
    return ce.detach(), gradient


def gradient_cosine(at_image: Tensor, beside: Tensor) -> Tensor:
    """The alignment of the gradients at an image and at a random point of the ball around it; 1 if the loss is linear.

        cos( grad CE(f(x), y), grad CE(f(x + eta), y) ),     eta ~ U(-eps, eps)

    GradAlign (Andriushchenko and Flammarion, NeurIPS 2020, arXiv:2007.02617). NaN where a gradient is 0; in a training
    loss, mask these images with ``torch.where``, which keeps the loss's gradient finite.

    Args:
        at_image: The gradient at ``x``.
        beside: The gradient at ``ball.random_start(x)``, see ``ce_and_gradient``.
    """
    lengths = _length(at_image) * _length(beside)
    exists = lengths > 0
    cosine = (at_image * beside).flatten(1).sum(dim=1) / torch.where(exists, lengths, 1.0)
    return torch.where(exists, cosine, torch.nan)


def linearity_error(net: nn.Module, x: Tensor, y: Tensor, ball: Threat) -> Tensor:
    """How far from linear the loss is between two random points of the ball; 0 if it is linear.

        (CE(f(x_c), y) - (1 - t) CE(f(x_a), y) - t CE(f(x_b), y))^2
        x_a, x_b = x + U(-eps, eps) each,  t ~ U(0, 1),  x_c = (1 - t) x_a + t x_b

    ELLE (Abad Rocamora et al., ICLR 2024, arXiv:2401.11618). As in the authors' code the points are not clipped to
    [0, 1], and go through the net in one forward.

    Args:
        net: Returns logits.
        x: Images in [0, 1].
        y: Their labels.
        ball: Where the two points are drawn from.
    """
    x_a, x_b = ball.random_start(x), ball.random_start(x)
    t = torch.rand(len(x), dtype=x.dtype, device=x.device)
    x_c = torch.lerp(x_a, x_b, t.view(-1, *[1] * (x.ndim - 1)))
    ce_a, ce_b, ce_c = losses.ce(net(torch.cat([x_a, x_b, x_c])), y.repeat(3)).chunk(3)
    return (ce_c - torch.lerp(ce_a, ce_b, t.to(ce_a.dtype))).square()  # losses are in float32, also of a float64 net


def abnormal(before: Tensor, after: Tensor) -> Tensor:
    """Which images are abnormal: those whose loss an attack step has lowered, ``(N,)`` bool.

        CE(f(x + eta), y) > CE(f(x'), y),     x' one step up the gradient from x + eta

    AAER (Lin et al., NeurIPS 2023, arXiv:2404.08154).

    Args:
        before: The cross-entropy where the step starts.
        after: The cross-entropy where it ends.
    """
    return before > after


def second_step_gain(net: nn.Module, x: Tensor, y: Tensor, attack: PGD) -> Tensor:
    """How much a second attack step raises the cross-entropy, without a graph.

        CE(f(x2), y) - CE(f(x1), y),     x1 after one step of the attack, x2 after two

    0 if the loss is linear and the first step reaches the bound in every pixel. Ours, for NuAT-H (Sriramanan et al.,
    NeurIPS 2021), whose trigger is not published. It costs two attack steps and a forward.

    Args:
        net: Returns logits.
        x: Images in [0, 1].
        y: Their labels.
        attack: Gives the start and the step; its own number of steps is ignored.
    """
    with crafting(x, y) as (x, y):
        x_adv = attack.start(net, x)
        for k in range(2):
            first, gradient = ce_and_gradient(net, x_adv, y)
            x_adv = attack.step(net, x, x_adv, gradient, k)
        with torch.no_grad():
            return losses.ce(net(x_adv), y) - first


def _length(gradient: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return length
