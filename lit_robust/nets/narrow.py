"""Strided 1 x 1 convolutions of few channels, which torch gets wrong on CPUs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Input channels from which oneDNN is right with AVX512; with AVX2 it is from 8.
ENOUGH_CHANNELS = 16


class SubsamplingConv2d(nn.Conv2d):
    """A strided 1 x 1 convolution that drops pixels first; the result is the same.

    On x86, oneDNN writes past a buffer when it computes the weights' gradient of a strided 1 x 1 convolution of 2 to 15
    channels in float32 and channels_last (uxlfoundation/oneDNN, issue 6035, in torch 2.15 still). With AVX2 and fewer
    than 8 channels the process crashes or hangs, or the gradients are wrong by half of their size.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return ``(N, out_channels, ceil(H / stride), ceil(W / stride))``."""
        down, across = self.stride
        return F.conv2d(input[:, :, ::down, ::across], self.weight, self.bias)


def is_channels_last(net: nn.Module) -> bool:
    """Whether a convolution's weights are in channels_last, so that its results are, too."""
    layout = torch.channels_last
    weights = (part.weight for part in net.modules() if isinstance(part, nn.Conv2d))
    return any(weight.is_contiguous(memory_format=layout) and not weight.is_contiguous() for weight in weights)


def miscalculated(net: nn.Module) -> list[str]:
    """The names of a net's convolutions whose gradients oneDNN may get wrong in channels_last on a CPU."""
    onednn: Any = torch.backends.mkldnn
    if not onednn.is_available():
        return []
    return [name for name, part in net.named_modules() if type(part) is nn.Conv2d and _is_narrow(part)]


def _is_narrow(conv: nn.Conv2d) -> bool:
    strided_1x1 = conv.kernel_size == (1, 1) and max(conv.stride) > 1 and conv.groups == 1
    return strided_1x1 and 1 < conv.in_channels < ENOUGH_CHANNELS
