"""Checks of arguments; each error is one sentence with the argument, its value and what it must be.

Most functions return the value, so that a constructor can check and store it in one line.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Real
from operator import index
from typing import Any, TypeVar

import torch
from torch import Tensor

from lit_robust.magnitudes import Magnitude, magnitude
from lit_robust.shown import shown, without_addresses
from lit_robust.threats import Norm

T = TypeVar("T")

#: Half a grey level: what rounding may do to pixels that were normalised.
TOLERANCE = 0.5 / 255
#: The remedy for labels outside the classes, such as -100.
BY_WEIGHT = "give samples that must not count weight 0 instead of another label"


def number(
    name: str,
    value: float,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float | None = None,
    below: float | None = None,
    finite: bool = True,
    hint: str = "",
) -> float:
    """Require a number within bounds.

    Args:
        name: The argument's name.
        value: The argument's value.
        least: The smallest allowed value.
        most: The largest allowed value.
        above: A bound that it must exceed, if any.
        below: A bound that it must be under, if any.
        finite: Whether to refuse infinity, which stands for no limit.
        hint: What the number means or what to choose; follows a colon in the message.

    Raises:
        ValueError: If it is out of bounds, NaN or not a number, as True and False are not.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool) and (math.isfinite(value) or not finite)
    if is_number and least <= value <= most and (above is None or value > above) and (below is None or value < below):
        return value
    bounds = {"at least": least, "above": above, "at most": most, "below": below}
    needed = " and ".join(f"{words} {n:g}" for words, n in bounds.items() if n is not None and math.isfinite(n))
    kind = "a finite number" if finite else "a number"
    raise ValueError(_sentence(name, value, f"{kind}, {needed}".rstrip(", "), hint))


def integer(name: str, value: int, least: int, hint: str = "") -> int:
    """Require an integer of at least ``least``.

    Raises:
        ValueError: If it is smaller, or not an integer.
    """
    try:
        valid = index(value) >= least and not isinstance(value, bool)
    except TypeError:
        valid = False
    if not valid:
        raise ValueError(_sentence(name, value, f"an integer, at least {least}", hint))
    return value


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """Require one of a few words.

    Raises:
        ValueError: If it is none of them.
    """
    if value not in choices:
        known = " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))
        raise ValueError(f'{name}="{without_addresses(str(value))}" is unknown: choose {known}.')
    return value


def instance(name: str, value: Any, kind: type[T] | tuple[type[T], ...], remedy: str) -> T:
    """Require an instance of a class.

    Args:
        name: The argument's name.
        value: The argument's value.
        kind: The class, or several.
        remedy: What to give instead.

    Raises:
        TypeError: If it is not.
    """
    if isinstance(value, kind):
        return value
    names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
    raise TypeError(f"{name}={shown(value)} must be of type {names}: {remedy}.")


def function(name: str, value: Any, remedy: str) -> Any:
    """Require what can be called.

    Raises:
        TypeError: If it cannot be called.
    """
    if not callable(value):
        raise TypeError(f"{name}={shown(value)} is not a function: {remedy}.")
    return value


def text(name: str, value: Any, remedy: str) -> str:
    """Require a string that is not empty, such as a name.

    Raises:
        TypeError: If it is not a string.
        ValueError: If it is empty.
    """
    if not instance(name, value, str, remedy).strip():
        raise ValueError(f'{name}="{value}" is empty: {remedy}.')
    return str(value)


def flags(**values: Any) -> None:
    """Require True or False of each argument.

    Raises:
        TypeError: If one is anything else, such as "no", which counts as true.
    """
    for name, value in values.items():
        instance(name, value, bool, "give True or False")


def factory(name: str, value: Any, made: type, example: str) -> Any:
    """Require a function or class that makes something later.

    Args:
        name: The argument's name.
        value: The argument's value.
        made: What it makes.
        example: What to give instead.

    Raises:
        TypeError: If it is already what it should make, or cannot be called.
    """
    if isinstance(value, made):
        found = f"one {type(value).__name__}, already built"
    elif callable(value):
        return value
    else:
        found = shown(value)
    raise TypeError(f"{name} is {found}, but it must be what builds one: give {example}.")


def pixels(name: str, value: float | str, norm: Norm = "linf") -> float:
    """Require a distance between images; in L-infinity at most 1, the distance from black to white.

    Raises:
        ValueError: If it is larger, or not a magnitude.
    """
    magnitude(value, name)  # refused by its name
    distance = Magnitude(value)
    if norm == "linf" and distance > 1:
        raise ValueError(f"{name}={distance} is above 1, but pixels are in [0, 1]: did you mean {distance:g}/255?")
    return distance


def increasing(name: str, times: Sequence[float]) -> Sequence[float]:
    """Require at least one time, each later than the one before.

    Raises:
        ValueError: If there is none, or one is not later than the one before.
    """
    if not times or any(later <= earlier for earlier, later in pairwise(times)):
        raise ValueError(f"{name}={list(times)} must hold at least one time, each later than the one before.")
    return times


def fine_precision(precision: str) -> None:
    """Refuse a trainer's precision without float32: 16-bit floats round pixels to steps as coarse as an eps.

    Raises:
        ValueError: If it is ``16-true`` or ``bf16-true``.
    """
    if precision in ("16-true", "bf16-true"):
        raise ValueError(
            f"trainer.precision={precision} rounds images to steps as coarse as an eps: use "
            f"{precision.replace('true', 'mixed')}."
        )


def images(x: Tensor, remedy: str) -> None:
    """Refuse images ``(N, C, H, W)`` outside [0, 1]; rounding may add half a grey level.

    Raises:
        ValueError: If a pixel lies outside or is NaN, with what to do about it; or if they are integers.
    """
    floating(x)
    low, high = range_of(x)
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # also true of NaN
        raise ValueError(f"pixels run from {low:.4g} to {high:.4g}, but every eps is in units of [0, 1]: {remedy}.")


def floating(x: Tensor, found: str = "there are images") -> None:
    """Refuse images that attacks cannot move.

    Raises:
        ValueError: If they are integers, with where they were found.
    """
    if not x.is_floating_point():
        raise ValueError(
            f"{found} of {x.dtype}, but attacks move floating-point pixels in [0, 1]: convert them and divide by 255."
        )


def statistics(mean: Any, std: Any, counts: Sequence[int] = (), where: str = "") -> None:
    """Check the mean and the standard deviation of a normalisation.

    Args:
        mean: Subtracted from the pixels: a number, one number per channel, or None.
        std: Divides the pixels: as ``mean``.
        counts: The allowed lengths; any by default.
        where: What has the channels, for the message.

    Raises:
        TypeError: If one is neither a number nor a list of numbers.
        ValueError: If only one is given, a length is not allowed, or a std is not finite and above 0.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"mean={mean} and std={std} go together: give both, or neither.")
    for name, given in (("mean", mean), ("std", std)):
        in_turn = isinstance(given, Sequence) and not isinstance(given, str)
        values = given if in_turn else () if given is None else (given,)
        if not all(isinstance(value, Real) and not isinstance(value, bool) for value in values):
            raise TypeError(_sentence(name, given, "a number, or a list of one for each channel", ""))
        if given is not None and counts and len(values) not in counts:
            raise ValueError(
                f"{name}={given} has {len(values)} numbers for {where}: give one for each channel, or neither mean nor "
                "std for pixels as they are."
            )
        if name == "std" and not all(math.isfinite(value) and value > 0 for value in values):
            raise ValueError(_sentence(name, given, "finite and above 0", "it is what images are divided by"))


def range_of(x: Tensor) -> tuple[float, float]:
    """The smallest and the largest value."""
    low, high = torch.stack(torch.aminmax(x)).tolist()
    return low, high


def _sentence(name: str, value: Any, needed: str, hint: str) -> str:
    return f"{name}={shown(value)} must be {needed}{hint and f': {hint}'}."
