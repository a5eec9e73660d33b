"""Checks of the tensors that selections read; each error is one sentence."""

import torch
from torch import Tensor

from lit_robust import require


def check_floating(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is not floating-point.

    Raises:
        TypeError: If it is not a tensor.
        ValueError: If it is not floating-point.
    """
    require.instance(name, tensor, Tensor, "give a tensor with a row for each sample")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} of {tensor.dtype} must be floating-point numbers: give {name}.float().")


def check_positions(name: str, positions: Tensor, size: int | None = None) -> None:
    """Refuse what is not a list of positions ``(S,)`` among ``size`` samples; None is any number of samples.

    Raises:
        TypeError: If it is not a tensor.
        ValueError: If it is empty, of another shape or type, or a position does not exist.
    """
    require.instance(name, positions, Tensor, "give a tensor of positions (S,)")
    if positions.ndim != 1 or len(positions) == 0:
        raise ValueError(f"{name} of shape {tuple(positions.shape)} must be (S,), with at least one position.")
    _check_integers(name, positions, size, "give positions in the set that is selected from")


def check_classes(y: Tensor, samples: int, classes: int | None = None) -> None:
    """Refuse what is not one class for each sample.

    Args:
        y: The classes, ``(N,)``.
        samples: N.
        classes: Their number; None if any class is allowed.

    Raises:
        TypeError: If it is not a tensor.
        ValueError: If it is of another shape or type, or a class is out of range.
    """
    require.instance("y", y, Tensor, "give a tensor of classes (N,)")
    if y.shape != (samples,):
        raise ValueError(f"y of shape {tuple(y.shape)} must be ({samples},): give one class for each sample.")
    _check_integers("y", y, classes, "give the numbers of the classes")


def check_weights(weights: Tensor, samples: int, positive: bool = True, name: str = "weights") -> None:
    """Refuse what is not one weight for each sample.

    Args:
        weights: The weights, ``(S,)``.
        samples: S.
        positive: Whether they must be above 0; else any finite number is allowed.
        name: What messages call them.

    Raises:
        TypeError: If it is not a tensor.
        ValueError: If it is of another shape or type, or a weight is not allowed.
    """
    require.instance(name, weights, Tensor, f"give a tensor of {name}, one for each sample")
    if weights.shape != (samples,):
        raise ValueError(f"{name} of shape {tuple(weights.shape)} must be ({samples},): give one for each sample.")
    if weights.dtype == torch.bool or weights.is_complex():
        raise ValueError(f"{name} of {weights.dtype} must be numbers: convert them.")
    allowed = weights.isfinite() & (weights > 0) if positive else weights.isfinite()
    if not bool(allowed.all()):
        found, needed = float(weights[~allowed][0]), "finite and above 0" if positive else "finite"
        raise ValueError(f"{name} must be {needed}, but {found:g} is among them: leave such samples out.")


def _check_integers(name: str, numbers: Tensor, below: int | None, remedy: str) -> None:
    if numbers.dtype == torch.bool or numbers.is_floating_point() or numbers.is_complex():
        raise ValueError(f"{name} of {numbers.dtype} must be integers: {remedy}.")
    for found in (int(numbers.min()), int(numbers.max())) if len(numbers) else ():
        if found < 0 or (below is not None and found >= below):
            bounds = "at least 0" if below is None else f"from 0 to {below - 1}"
            raise ValueError(f"{name} must be integers {bounds}, but {found} is among them: {remedy}.")
