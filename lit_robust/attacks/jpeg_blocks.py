"""JPEG's coefficients as a linear map to images: blocks of cosines, quantisation steps and colours."""

import math
from functools import lru_cache

import torch
from torch import Tensor

#: The standard's quantisation steps (ITU-T T.81, annex K); vertical frequencies are rows.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))
#: YCbCr to RGB.
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def decoded(coefficients: Tensor, height: int, width: int) -> Tensor:
    """The change of an image's pixels that quantised coefficients stand for, in units of [0, 1].

    Args:
        coefficients: For each of h x w squares of 16 x 16 pixels four blocks of luminance and one of each chrominance:
            first all of luminance, row by row, then all of Cb, then all of Cr.
        height: Image height, at most 16 h; the overhang is cropped on both sides.
        width: Image width, at most 16 w, cropped likewise.

    Shape:
        coefficients: ``(N, 6 h w, 8, 8)``;  result: ``(N, 3, height, width)``.
    """
    rows, columns = -(-height // 16), -(-width // 16)
    y, cb, cr = torch.split(coefficients, [4 * rows * columns, rows * columns, rows * columns], dim=1)
    cosines, bright, coloured = (table.to(coefficients) for table in tables())
    planes = [_plane(y * bright, cosines, 2 * rows, 2 * columns)]
    for part in (cb, cr):
        half = _plane(part * coloured, cosines, rows, columns)
        planes.append(half.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2))
    image = torch.einsum("ij,njhw->nihw", torch.tensor(TO_RGB).to(coefficients), torch.stack(planes, dim=1)) / 255
    top, left = (16 * rows - height) // 2, (16 * columns - width) // 2
    return image[:, :, top : top + height, left : left + width]


@lru_cache(maxsize=1)
def tables() -> tuple[Tensor, Tensor, Tensor]:
    """The orthonormal cosines (frequency by pixel), and the quantisation steps of luminance and chrominance, 8 x 8."""
    place, frequency = torch.arange(8) + 0.5, torch.arange(8).unsqueeze(1)
    cosines = 0.5 * torch.cos(math.pi * place * frequency / 8)
    cosines[0] = 8**-0.5
    coloured = torch.full((8, 8), 99.0)
    coloured[:4, :4] = torch.tensor(CHROMINANCE)
    return cosines, torch.tensor(LUMINANCE, dtype=torch.float32), coloured


def _plane(blocks: Tensor, cosines: Tensor, rows: int, columns: int) -> Tensor:
    """Blocks of frequencies, row by row, as one plane of pixels ``(N, 8 rows, 8 columns)``."""
    pixels = (cosines.mT @ blocks @ cosines).reshape(len(blocks), rows, columns, 8, 8)
    return pixels.transpose(2, 3).reshape(len(blocks), 8 * rows, 8 * columns)
