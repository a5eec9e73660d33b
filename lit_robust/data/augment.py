"""Random crops and flips of a whole batch, each image with its own draw; and resizing of the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_and_flip(x: Tensor, generator: torch.Generator, padding: int | None = None) -> Tensor:
    """Pad each image with zeros, crop it at random to its old size, and mirror it with probability 1/2.

    The augmentation of nearly every CIFAR paper. torchvision's transforms draw once for a whole batch; here one gather
    crops and mirrors all images, each with its own draw.

    Args:
        x: The images, of any dtype.
        generator: Where the draws come from; on the device of ``x``.
        padding: Width of the border in pixels; by default an eighth of the image, at most CIFAR's 4, and none for
            images below 4 pixels. (Nets learn nothing from digits of 8 x 8 that are shifted by 4.)

    Shape:
        x: ``(N, C, H, W)``;  returned: the same.
    """
    n, channels, height, width = x.shape
    short = min(height, width)
    padding = min(4, -(-short // 8), short // 4) if padding is None else padding

    def draw(choices: int) -> Tensor:
        return torch.randint(choices, (n, 1, 1, 1), generator=generator, device=x.device)

    def along(axis: int, size: int) -> Tensor:
        return torch.arange(size, device=x.device).view([-1 if i == axis else 1 for i in range(4)])

    top, left, mirrored = draw(2 * padding + 1), draw(2 * padding + 1), draw(2)
    rows = top + along(2, height)
    columns = left + torch.where(mirrored == 1, width - 1 - along(3, width), along(3, width))
    return F.pad(x, [padding] * 4)[along(0, n), along(1, channels), rows, columns]


def resized(x: Tensor, size: int) -> Tensor:
    """Resize images so that their shorter side has ``size`` pixels, bilinearly with antialiasing.

    Shape:
        x: ``(N, C, H, W)`` float in [0, 1];  returned: ``(N, C, size, size)`` for square images.
    """
    height, width = x.shape[-2:]
    to = sides(height, width, size)
    return x if x.shape[-2:] == to else F.interpolate(x, to, mode="bilinear", antialias=True).clamp(0, 1)


def sides(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width in the same proportion, the shorter one of which is ``size``."""
    short = min(height, width)
    return round(height * size / short), round(width * size / short)
