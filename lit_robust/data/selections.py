"""A selection of the training images: positions or a mask, and weights, as a user gives them."""

from typing import Any

import torch
from torch import Tensor

from lit_robust.shown import shown


def positions_of(indices: Any, on_disk: int, training: int) -> Tensor:
    """Positions ``(S,)`` on the CPU, from any container; a mask over all images is turned into them.

    Args:
        indices: As a user gives them.
        on_disk: The number of images, those that are held out included.
        training: The number of training images.

    Raises:
        ValueError: If they are neither positions nor such a mask. Zeros and ones, as many as there are images, are
            taken for a mask of numbers, because as positions they would repeat two images.
    """
    if isinstance(indices, list | tuple) and len({_is_flag(one) for one in indices}) > 1:
        raise ValueError("select() got numbers among True and False: give positions, or a mask.")
    try:
        found = torch.as_tensor(indices).detach().cpu()
        if found.ndim != 1:
            raise ValueError(f"of shape {tuple(found.shape)}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"select() needs a list, an array or a tensor (S,) of positions, or a mask, not {type(indices).__name__} "
            f"({error})."
        ) from error
    as_many = found.dtype != torch.bool and len(found) > 2 and len(found) in (on_disk, training)
    if as_many and bool(((found == 0) | (found == 1)).all()):
        remedy = "mask.bool()" if len(found) == on_disk else "training_labels()[1][mask.bool()]"
        raise ValueError(
            f"select() got {len(found)} zeros and ones, as many as there are images, so they are a mask, which it "
            f"would take for positions: give {remedy}."
        )
    if found.dtype == torch.bool:
        if found.shape != (on_disk,):
            raise ValueError(
                f"select() got a mask of shape {tuple(found.shape)}, but the training set has {on_disk} images, those "
                "that are held out included: give one value for each, or positions."
            )
        return found.nonzero().squeeze(1)
    if found.numel() and (found.is_floating_point() or found.is_complex()):  # an empty list makes floats
        raise ValueError(f"select() needs positions, which are integers, or a mask, but got {found.dtype}.")
    return found.to(torch.int64)


def _is_flag(value: Any) -> bool:
    """Whether it is True or False, also of NumPy or torch."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


def selected(indices: Any, weights: Any, on_disk: int, train: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and weights ``(S,)`` of a selection from the positions ``train``, as copies on the CPU.

    Raises:
        ValueError: As ``positions_of`` and ``check_selection``.
    """
    indices = positions_of(indices, on_disk, len(train))
    weights = torch.ones(len(indices)) if weights is None else weights
    try:
        weights = torch.as_tensor(weights).detach().to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"select() needs weights (S,) as a list, an array or a tensor of numbers, not {shown(weights)} ({error})."
        ) from error
    check_selection(indices, weights, train)
    return indices.clone(), weights.clone()


def check_selection(indices: Tensor, weights: Tensor, train: Tensor) -> None:
    """Refuse a selection that no epoch could train on.

    Args:
        indices: Positions ``(S,)``.
        weights: What each counts, ``(S,)``.
        train: The positions that may be selected.

    Raises:
        ValueError: If they are not as many, none, held out, or a weight is not above 0.
    """
    if indices.ndim != 1 or indices.shape != weights.shape or len(indices) == 0:
        raise ValueError(
            f"select() needs one weight for each index, at least one: got shapes {tuple(indices.shape)} and "
            f"{tuple(weights.shape)}."
        )
    foreign = indices[~torch.isin(indices, train)]
    if len(foreign):
        raise ValueError(
            f"select() got {len(foreign)} indices, {int(foreign[0])} among them, that are not among the "
            f"{len(train)} training images: they are held out, cut by train_size, or do not exist."
        )
    if not bool((weights.isfinite() & (weights > 0)).all()):
        raise ValueError("select() needs weights that are finite and above 0: leave samples out instead.")
