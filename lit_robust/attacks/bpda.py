"""Attacks through a step that has no useful gradient."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_robust import require
from lit_robust.attacks.base import Attack
from lit_robust.nets.folded import unfolded
from lit_robust.shown import shown
from lit_robust.threats import Norm

#: A step of a net, such as a preprocessing of images.
Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BPDA(Attack):
    """Backward-pass differentiable approximation (Athalye et al., ICML 2018, arXiv:1802.00420, section 4.1).

    An attack on a net with a step ``g`` that cannot be differentiated or whose gradient is 0: rounding, JPEG, a
    conversion to NumPy. The forward pass computes ``g``; the backward pass differentiates a substitute ``s``, by
    default the identity, which is the paper's special case for steps with ``g(x)`` close to ``x``.

        net(x) = f(g(x)),     gradient = J_s(x)^T grad f(g(x))

    The forward pass is exact, so the attack sees the logits of the defended net. A compiled net runs uncompiled here.

    ============  ========================================================  =======================================
    ``forward``   is                                                        the net that is attacked
    ============  ========================================================  =======================================
    a name        a layer in the net, as in ``net.named_modules()``:        contains ``g``: the form for a test,
                  ``"0"``, ``"body.quantise"``; ``""`` is the whole net     whose accuracy is that of the net
    a function    a preprocessing in front of the net; not in YAML          is ``f`` alone
    ============  ========================================================  =======================================

    Args:
        attack: The attack on the differentiable net, such as ``PGD(...)``.
        forward: The step ``g``.
        substitute: A differentiable function or net with the shapes of ``g``; None for the identity. If ``forward`` is
            the whole net, it returns logits.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: When called, if the net has no such layer, or the substitute returns another shape.
    """

    attack: Attack
    forward: str | Step
    substitute: Step | None = None

    def __post_init__(self) -> None:
        require.instance("attack", self.attack, Attack, "give one such as PGD(steps=40)")
        if not isinstance(self.forward, str) and not callable(self.forward):
            raise TypeError(
                f"forward={shown(self.forward)} is not a step: give a layer's name, or a function of images."
            )
        if self.substitute is not None:
            require.function("substitute", self.substitute, "leave it out for the identity")

    @property
    def eps(self) -> float | None:
        """The bound of the attack."""
        return getattr(self.attack, "eps", None)

    @property
    def norm(self) -> Norm:
        """The norm of the attack."""
        norm: Norm = getattr(self.attack, "norm", "linf")
        return norm

    @property
    def targeted(self) -> bool:
        """Whether the attack is targeted: ``y`` are the classes to reach."""
        return bool(getattr(self.attack, "targeted", False))

    @property
    def is_long(self) -> bool:
        """Whether the attack is long."""
        return self.attack.is_long

    @property
    def package(self) -> str:
        """The package that the attack runs."""
        return self.attack.package

    def check_installed(self) -> None:
        """Fail at once if the attack needs a package that is missing."""
        self.attack.check_installed()

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Attack through the step."""
        if isinstance(self.forward, str):
            net = unfolded(net)  # a layer that is folded has another output
            layer = _layer(net, self.forward)
        else:
            layer = _Step(self.forward)
            net = nn.Sequential(layer, net)
        # A graph that was compiled before would not see the substitute.
        with torch.compiler.set_stance("force_eager"), _substituted(layer, self.substitute):
            return self.attack(net, x, y)


class _Step(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Step) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _layer(net: nn.Module, name: str) -> nn.Module:
    layers: dict[str, nn.Module] = dict(net.named_modules())
    if name not in layers:
        known = ", ".join(layers)
        raise ValueError(f'forward="{name}" is not a layer of the net: give one of {known.removeprefix(", ")}.')
    return layers[name]


@contextmanager
def _substituted(layer: nn.Module, substitute: Step | None) -> Iterator[None]:
    """Give a layer the gradient of another function; its output stays."""

    def straight_through(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        smooth = inputs[0] if substitute is None else substitute(inputs[0])
        if smooth.shape != output.shape:
            raise ValueError(
                f"BPDA's substitute returns the shape {tuple(smooth.shape)}, but forward {tuple(output.shape)}: give a "
                "substitute with the shapes of forward."
            )
        return output.detach() + (smooth - smooth.detach())  # the difference is exactly 0

    handle = layer.register_forward_hook(straight_through)
    try:
        yield
    finally:
        handle.remove()
