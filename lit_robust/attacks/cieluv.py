"""The colour space CIELUV, with axes scaled to [0, 1]."""

import torch
from torch import Tensor

#: sRGB's linear light to CIE XYZ, and the chromaticity of its white, as in ReColorAdv's code.
TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9504))
U_WHITE, V_WHITE = 0.1978, 0.4683


def from_rgb(x: Tensor) -> Tensor:
    """Convert sRGB to ``L* / 100, (u* + 100) / 200, (v* + 100) / 200``.

    Shape:
        x: ``(N, 3, H, W)`` in [0, 1];  result: the same.
    """
    light = torch.where(x < 0.04045, x / 12.92, ((x.clamp_min(0.04) + 0.055) / 1.055) ** 2.4)
    big_x, big_y, big_z = _mixed(light, torch.tensor(TO_XYZ)).unbind(dim=1)
    total = big_x + 15 * big_y + 3 * big_z + 1e-10
    lightness = torch.where(big_y < (6 / 29) ** 3, (29 / 3) ** 3 * big_y, 116 * big_y.clamp_min(1e-3) ** (1 / 3) - 16)
    u = 13 * lightness * (4 * big_x / total - U_WHITE)
    v = 13 * lightness * (9 * big_y / total - V_WHITE)
    return torch.stack([lightness / 100, (u + 100) / 200, (v + 100) / 200], dim=1)


def to_rgb(colours: Tensor) -> Tensor:
    """Convert back; out-of-gamut colours are moved close to sRGB's gamut and may lie slightly outside [0, 1].

    X / Y and Z / Y are at most those of sRGB's blue, so no dark pixel becomes bright.

    Shape:
        colours: ``(N, 3, H, W)``;  result: the same.
    """
    lightness, u, v = (colours * 200 - 100).unbind(dim=1)
    lightness = ((lightness + 100) / 2).clamp_min(0)
    big_y = torch.where(lightness <= 8, lightness * (3 / 29) ** 3, ((lightness + 16) / 116) ** 3)
    # u' / v' without a division by the lightness, which may be 0.
    up, vp = u + 13 * lightness * U_WHITE, (v + 13 * lightness * V_WHITE).clamp_min(1e-4)
    _, _, (x_of_blue, y_of_blue, z_of_blue) = zip(*TO_XYZ, strict=True)
    big_x = big_y * (9 * up / (4 * vp)).clamp(0, x_of_blue / y_of_blue)
    big_z = big_y * ((12 * 13 * lightness - 3 * up - 20 * vp) / (4 * vp)).clamp(0, z_of_blue / y_of_blue)
    light = _mixed(
        torch.stack([big_x, big_y, big_z], dim=1), torch.linalg.inv(torch.tensor(TO_XYZ, dtype=torch.float64))
    )
    return torch.where(light < 0.0031308, 12.92 * light, 1.055 * light.clamp_min(0.003) ** (1 / 2.4) - 0.055)


def _mixed(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("ij,njhw->nihw", matrix.to(x), x)
