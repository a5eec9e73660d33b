"""Checks of a state in a checkpoint, of a callback or a method, before anything of it is restored."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_robust.checkpoint_sections import LARGEST, TENSORS_OF_RANKS, is_count
from lit_robust.ranks import world_size
from lit_robust.shown import shown

#: Whether a value can be used, and what it must be.
Rule = tuple[Callable[[Any], bool], str]

#: A tensor's dtype and shape; None for any size.
Kind = tuple[torch.dtype, Sequence[int | None]]


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number that a training can have counted or measured."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def are_finite(values: Any) -> bool:
    """Whether a value is a list of such numbers."""
    return isinstance(values, list) and all(map(is_finite, values))


def are_finite_by_name(values: Any) -> bool:
    """Whether a value is a mapping of names to such numbers, or to NaN, the mean of nothing."""
    return isinstance(values, dict) and all(
        isinstance(name, str) and (is_finite(value) or (isinstance(value, float) and math.isnan(value)))
        for name, value in values.items()
    )


COUNT_OR_NONE: Rule = (lambda value: value is None or is_count(value), "a count or null")
NUMBERS: Rule = (are_finite, "a list of finite numbers")


def check_entries(where: str, state: Any, rules: Mapping[str, Rule]) -> None:
    """Refuse a state in which an entry is missing or cannot be used.

    Args:
        where: The place in the checkpoint, for the message.
        state: What the checkpoint holds.
        rules: What each entry must be, by name; other entries are ignored.

    Raises:
        ValueError: At the first such entry.
    """
    if not isinstance(state, Mapping):
        raise broken(where, state, "a mapping")
    for name, (is_right, needed) in rules.items():
        if name not in state:
            raise missing(where, name)
        if not is_right(state[name]):
            raise broken(f"{where}.{name}", state[name], needed)


def check_tensor(where: str, found: Any, kind: Kind) -> None:
    """Refuse anything but a finite tensor of this dtype and shape; any floating-point precision is accepted.

    Args:
        where: The place in the checkpoint, for the message.
        found: What the checkpoint holds.
        kind: What it must be.

    Raises:
        ValueError: If it has another dtype or shape, holds NaN or infinity, or is not a tensor.
    """
    dtype, sizes = kind
    fits = isinstance(found, Tensor) and len(found.shape) == len(sizes)
    fits = fits and all(size in (None, there) for size, there in zip(sizes, found.shape, strict=True))
    fits = fits and (dtype == found.dtype or (dtype.is_floating_point and found.is_floating_point()))
    if not fits or not bool(found.isfinite().all()):
        shape = ", ".join("any" if size is None else str(size) for size in sizes)
        name = "finite numbers" if dtype.is_floating_point else str(dtype)
        raise broken(where, found, f"a tensor of shape ({shape}) of {name}")


def check_tensors(where: str, found: Any, own: Mapping[str, Tensor]) -> None:
    """Refuse tensors by name that are not finite or differ in names, shapes or kinds from existing ones.

    Args:
        where: The place in the checkpoint, for the message.
        found: What the checkpoint holds.
        own: The existing ones, such as a net's ``state_dict``.

    Raises:
        ValueError: At the first difference.
    """
    if not isinstance(found, Mapping):
        raise broken(where, found, "tensors by name")
    for name, tensor in own.items():
        if name not in found:
            raise missing(where, name)
        check_tensor(f"{where}.{name}", found[name], (tensor.dtype, tensor.shape))
    for name in found.keys() - own.keys():
        raise broken(f"{where}.{shown(name)}", found[name], "absent, because this net has nothing of that name")


def of_rank(where: str, ranks: Any, rank: int, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One rank's tensors of those that a checkpoint holds for each rank; none if there are more ranks now, or fewer.

    Args:
        where: The place in the checkpoint, for the message.
        ranks: What the checkpoint holds.
        rank: Which rank's are returned; those of the others are checked, too, so that all ranks refuse a checkpoint.
        own: The tensors that they are for; names that are on one side only are left out.

    Raises:
        ValueError: If they are not a list of tensors by name, or one is not finite or of another shape or kind.
    """
    is_right, needed = TENSORS_OF_RANKS
    if not is_right(ranks):
        raise broken(where, ranks, needed)
    if len(ranks) != world_size():
        return {}
    for place, tensors in enumerate(ranks):
        for name in tensors.keys() & own.keys():
            check_tensor(f"{where}[{place}].{name}", tensors[name], (own[name].dtype, own[name].shape))
    return {name: tensor for name, tensor in ranks[rank].items() if name in own}


def broken(where: str, found: Any, needed: str) -> ValueError:
    """The error of a value in a checkpoint, with what it must be instead."""
    what = f"a {type(found).__name__}" if isinstance(found, Tensor | Mapping | list | tuple) else shown(found)
    if isinstance(found, Tensor):
        what += f" of shape {tuple(found.shape)}" + ("" if bool(found.isfinite().all()) else " that is not finite")
    return broken_as(f"{where} is {what}, but it must be {needed}")


def missing(where: str, name: str) -> ValueError:
    """The error of a state in which an entry is missing."""
    return broken_as(f"{where} has no {name}")


def broken_as(reason: str) -> ValueError:
    """The error of a checkpoint that cannot be used."""
    return ValueError(f"the checkpoint is broken: {reason}; use an earlier one.")
