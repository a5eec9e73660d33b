"""Which images are held out for validation, also as in papers, and how budgets are cut."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lit_robust import require

#: ``random``: drawn by PyTorch from ``split_seed``.
#: ``first``: the first images in file order (SAT's CIFAR-10: 5,000).
#: ``first_per_class``: the first images of each class in file order (NuAT, GAT on CIFAR-10: 100 per class).
#: ``permutation_first``: the head of NumPy's permutation of ``split_seed`` (Rice et al.: 1,000, seed 0).
#: ``permutation_last``: its tail (GAT on MNIST: 10,000, seed 0).
#: ``stratified``: as ``random``, but in proportion to the classes.
Split = Literal["random", "first", "first_per_class", "permutation_first", "permutation_last", "stratified"]


def check_arguments(sizes: Mapping[str, Any], flags: Mapping[str, bool], split: Split) -> None:
    """Refuse arguments of a data module that are invalid for any data; None leaves a size of a set to the data.

    Raises:
        TypeError: If a flag is not a bool.
        ValueError: If a size or the split is not valid.
    """
    for name, size in sizes.items():
        if size is not None or name.endswith("batch_size"):
            require.integer(name, size, least=0 if name in ("val_size", "split_seed") else 1)
    require.flags(**flags)
    require.one_of("split", split, get_args(Split))


def check_val_size(val_size: int, split: Split, classes: int, images: int | None) -> None:
    """Refuse a number of validation images that cannot be held out, so far as that is known before the data are read.

    Raises:
        ValueError: If the split takes as many of each class and it does not divide, or if nothing is left to train on.
    """
    if split == "first_per_class" and val_size % classes:
        raise ValueError(f"val_size={val_size} does not divide evenly among {classes} classes.")
    if images is not None and val_size >= images:
        raise ValueError(f"val_size={val_size} leaves no image of {images} to train on: take fewer.")


def hold_out(labels: Tensor, val_size: int, split: Split, seed: int) -> tuple[Tensor, Tensor]:
    """Divide a training set into images to train on and images to validate on.

    Returns:
        Positions of the training and of the validation images, each in file order.

    Raises:
        ValueError: If nothing would be left to train on, or a class is too small for ``first_per_class``.

    Shape:
        labels: ``(N,)``;  returned: ``(N - val_size,)`` and ``(val_size,)`` int64.
    """
    check_val_size(val_size, split, 1, len(labels))
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[_RULES[split](labels, val_size, seed)] = True
    if int(held_out.sum()) != val_size:
        raise ValueError(f"split={split!r} finds {int(held_out.sum())} of val_size={val_size} images: take fewer.")
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()


def place_in_class(labels: Tensor) -> Tensor:
    """How many images of the same class come before each image.

    Shape:
        labels: ``(N,)``;  returned: ``(N,)`` int64.
    """
    by_class = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    place = torch.empty_like(labels)
    place[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    return place


def in_turns(labels: Tensor) -> Tensor:
    """Positions of all images: the first one of every class, then the second ones, and so on."""
    return torch.argsort(place_in_class(labels), stable=True)


def _random(labels: Tensor, val_size: int, seed: int) -> Tensor:
    return torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:val_size]


def _first(labels: Tensor, val_size: int, seed: int) -> Tensor:
    return torch.arange(val_size)


def _first_per_class(labels: Tensor, val_size: int, seed: int) -> Tensor:
    classes = len(torch.unique(labels))
    return torch.nonzero(place_in_class(labels) < val_size // classes).flatten()


def _permutation(size: int, seed: int) -> Tensor:
    # The legacy generator on purpose: after np.random.seed(seed), the authors' permutation (and their
    # shuffle of a range, which draws the same numbers) is this one.
    return torch.from_numpy(np.random.RandomState(seed).permutation(size))


def _permutation_first(labels: Tensor, val_size: int, seed: int) -> Tensor:
    return _permutation(len(labels), seed)[:val_size]


def _permutation_last(labels: Tensor, val_size: int, seed: int) -> Tensor:
    return _permutation(len(labels), seed)[len(labels) - val_size :]


def _stratified(labels: Tensor, val_size: int, seed: int) -> Tensor:
    order = _random(labels, len(labels), seed)
    # The n-th image of a class of N is placed at (n - 1/2) / N, and the first places are held out.
    share = (place_in_class(labels[order]) + 0.5) / torch.bincount(labels)[labels[order]]
    return order[torch.argsort(share, stable=True)[:val_size]]


_RULES: dict[Split, Callable[[Tensor, int, int], Tensor]] = {
    "random": _random,
    "first": _first,
    "first_per_class": _first_per_class,
    "permutation_first": _permutation_first,
    "permutation_last": _permutation_last,
    "stratified": _stratified,
}
