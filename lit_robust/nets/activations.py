"""The outputs of a net's stages, which perceptual distances compare."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

#: Layers that are a stage each where a net has no residual stages.
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus)
#: A net with more of them, such as DenseNet, has no obvious stages.
MOST = 20


def stages_of(body: nn.Module, prefix: str) -> tuple[str, ...]:
    """Name the layers whose outputs are a net's activations; none if this is not obvious.

    They are the residual stages, ``stage1`` to ``stage4`` here and ``layer1`` to ``layer4`` in torchvision and timm, as
    in the code of Laidlaw et al. (arXiv:2006.12655); otherwise every activation layer, as there in AlexNet.

    Args:
        body: The part of the net below its head.
        prefix: The name of ``body`` in the net.
    """
    stages = [name for name, _ in body.named_modules() if re.fullmatch(r"([^a-z]*\.)?(stage|layer)\d", name)]
    layers = [name for name, part in body.named_modules() if isinstance(part, ACTIVATIONS)]
    found = stages or (layers if len(layers) <= MOST else [])
    return tuple(f"{prefix}.{name}" for name in found)


@contextmanager
def watching(net: nn.Module, stages: Sequence[str]) -> Iterator[list[Tensor]]:
    """Collect what leaves these layers, in the order in which they run; images of features ``(N, C, H, W)`` only.

    Empty the list before another forward.
    """
    found: list[Tensor] = []

    def collect(layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            found.append(output)

    handles = [net.get_submodule(name).register_forward_hook(collect) for name in stages]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
