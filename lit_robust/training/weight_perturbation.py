"""Adversarial weight perturbation: each update's gradient is taken at nearby weights where the loss is worse."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lit_robust import require
from lit_robust.guards import buffers_kept
from lit_robust.keywords import answer_keywords
from lit_robust.ranks import sums_over_ranks
from lit_robust.schedules.base import check_epochs_have_a_length
from lit_robust.shown import shown


@dataclass(frozen=True)
class AWP:
    """Adversarial weight perturbation (Wu et al., NeurIPS 2020, arXiv:2004.05884), on top of any method but FreeAT.

        v_l = |w_l| g_l / |g_l|  for each tensor l,     g = grad_w L(w)
        w <- SGD( w, grad L(w + gamma v) )

    ``L`` is the method's own loss on the batch, whose adversary is crafted once, at w. One-dimensional tensors (biases,
    BatchNorm's) are not perturbed; |.| is the Euclidean norm of a whole tensor. ``loss`` is called twice per batch:
    once for g, which changes neither BatchNorm's statistics nor the metrics, and once at w + gamma v, which changes
    both. The weights are restored bit for bit before gradients are clipped and the optimizer steps. With several ranks
    g is the gradient over all of them. While ``adversarial`` is false, weights are not perturbed either.

    As in the authors' code: both passes are in train mode. Differs from the authors' code: it finds g by a step of a
    second net, whose rate cancels; it steps at w + gamma v and subtracts gamma v afterwards, so weight decay acts at w
    + gamma v, here at w; it leaves out tensors whose names lack "weight". In AT-AWP (``train_cifar10.py``) a batch's
    learning rate is that of its end, ``epoch + (i + 1) / len``, so a drop comes one batch earlier than here, and the
    first batch of each epoch but the first is attacked in eval mode, which the evaluation before it has left behind;
    all other batches are attacked in train mode.

    In 16-mixed the gradient scaler does not act on g, so its small entries become 0; bf16-mixed has no such limit.

    Args:
        gamma: The relative size of the perturbation: 0.005 for TRADES and 0.01 for PGD training in the authors' code.
        warm_up: The number of epochs without perturbation. The authors' code for TRADES begins in epoch 10, counted
            from 1.

    Raises:
        ValueError: If an argument is negative, or the net trains no tensor of more than one dimension.
    """

    gamma: float = 0.005
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        require.number("AWP's gamma", self.gamma, least=0)
        require.number("AWP's warm_up", self.warm_up, least=0)

    @contextmanager
    def perturbed(self, net: nn.Module, loss: Callable[[], Tensor]) -> Iterator[None]:
        """Move the net's weights up the loss, and restore them afterwards."""
        weights = [weight for weight in net.parameters() if weight.requires_grad and weight.ndim > 1]
        if not weights:
            raise ValueError(
                "AWP perturbs tensors of more than one dimension, but this net trains none: leave "
                "weight_perturbation out."
            )
        with buffers_kept(net):
            # Not by `backward`, which would leave gradients on the parameters and start DDP's reduction.
            gradients = torch.autograd.grad(loss(), weights, allow_unused=True, materialize_grads=True)
        with kept(weights):
            with torch.no_grad():
                for weight, gradient in zip(weights, sums_over_ranks(gradients), strict=True):
                    weight.add_(self.gamma * weight.norm() / (gradient.norm() + 1e-20) * gradient)
            yield


class Perturbable(Protocol):
    """What ``perturbed_weights`` needs of a Defense."""

    net: nn.Module
    adversarial: bool
    weight_perturbation: AWP | None

    @property
    def trainer(self) -> Any:
        """Its trainer."""

    @property
    def time(self) -> float:
        """Fractional epochs."""


@contextmanager
def perturbed_weights(defense: Perturbable, closure: Callable[[], Tensor]) -> Iterator[None]:
    """Run a backward pass at the perturbed weights, if the method perturbs them now."""
    awp = defense.weight_perturbation
    if awp is not None and awp.warm_up > 0:
        check_epochs_have_a_length(defense.trainer, "weight_perturbation.warm_up")
    if awp is None or not defense.adversarial or defense.time < awp.warm_up:
        yield
        return

    with awp.perturbed(defense.net, closure):
        yield


def as_awp(weight_perturbation: Any) -> AWP | None:
    """Refuse in Python what the command line refuses.

    Raises:
        TypeError: If it is neither an AWP nor None.
    """
    if weight_perturbation is None or isinstance(weight_perturbation, AWP):
        return weight_perturbation
    raise TypeError(f"weight_perturbation={shown(weight_perturbation)} is not an AWP: write AWP(gamma=0.005), or None.")


@contextmanager
def kept(tensors: Any) -> Iterator[None]:
    """Restore the tensors' values bit for bit on leaving."""
    tensors = list(tensors)
    copies = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, copy in zip(tensors, copies, strict=True):
                tensor.copy_(copy)


answer_keywords([AWP])
