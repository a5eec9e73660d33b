"""Layers that mislead gradient attacks without making a net robust, for digits (8 x 8 pixels).

The transformations in front of a net are those of Guo et al. (ICLR 2018, arXiv:1711.00117) and Xie et al. (ICLR 2018,
arXiv:1711.01991), at the size of digits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BitDepth(nn.Module):
    """Three bits per pixel: rounding, whose gradient is 0."""

    def forward(self, x: Tensor) -> Tensor:
        return (7 * x).round() / 7


class JPEG(nn.Module):
    """The lossy step of JPEG: the cosine transform of the 8 x 8 pixels is rounded."""

    def forward(self, x: Tensor) -> Tensor:
        k = torch.arange(8, dtype=x.dtype)
        cosines = torch.cos(torch.pi * (k + 0.5) * k.unsqueeze(1) / 8) / 2
        cosines[0] /= 2**0.5
        return cosines.T @ ((cosines @ x @ cosines.T / 0.15).round() * 0.15) @ cosines


class CropAndRescale(nn.Module):
    """A random 7 x 7 part in full size."""

    def forward(self, x: Tensor) -> Tensor:
        top, left = torch.randint(2, (2,)).tolist()
        return F.interpolate(x[..., top : top + 7, left : left + 7], size=(8, 8), mode="bilinear", align_corners=False)


class RandomResize(nn.Module):
    """A random smaller size, padded at random sides."""

    def forward(self, x: Tensor) -> Tensor:
        size = int(torch.randint(6, 9, ()))
        top, left = torch.randint(9 - size, (2,)).tolist()
        smaller = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
        return F.pad(smaller, (left, 8 - size - left, top, 8 - size - top))


class DropoutOn(nn.Module):
    """Dropout of pixels that stays on in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.2, training=True)


class NumpyStep(nn.Module):
    """Pixels that pass through NumPy, where their graph ends."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy().copy())


class Times1000(nn.Module):
    """Logits so large that float32's softmax is 0 or 1."""

    def forward(self, logits: Tensor) -> Tensor:
        return 1000 * logits


class SaturatedSigmoid(nn.Module):
    """A sigmoid that is 0 or 1 in float32; it is centred between the two largest logits, so classes stay."""

    def forward(self, logits: Tensor) -> Tensor:
        middle = logits.topk(2, dim=1).values.mean(dim=1, keepdim=True)
        return torch.sigmoid(500 * (logits - middle))


#: The masks by the alarm that names their cause.
MASKS = {
    "zero_gradient": (BitDepth, JPEG, SaturatedSigmoid),
    "scaling": (Times1000,),
    "random": (CropAndRescale, RandomResize, DropoutOn),
    "no_graph": (NumpyStep,),
}


def masked(mask: nn.Module, net: nn.Module) -> nn.Sequential:
    """The net behind the mask, or in front of it; the mask is ``"mask"`` in ``named_modules``."""
    behind = isinstance(mask, (Times1000, SaturatedSigmoid))
    parts = [("net", net), ("mask", mask)] if behind else [("mask", mask), ("net", net)]
    whole = nn.Sequential()
    for name, part in parts:
        whole.add_module(name, part)
    return whole
