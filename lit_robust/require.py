"""Refusals of a number, a word or a type: one sentence with the argument, its value and the remedy."""

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Real
from operator import index

from lit_robust.magnitudes import magnitude
from lit_robust.threats import Norm


def pixel_magnitude(value: float | str, name: str, norm: Norm) -> float:
    """Read a bound or step of an attack; in L-infinity it cannot exceed 1, the distance from black to white.

    Raises:
        ValueError: If it does, or is no magnitude at all.
    """
    number = magnitude(value, name)
    if norm == "linf" and number > 1:
        raise ValueError(f"{name}={number} is above 1, but pixels are in [0, 1]: did you mean {number:g}/255?")
    return number


def check_count(value: int, name: str, least: int) -> None:
    """Check how often something is done.

    Raises:
        ValueError: If it is not an integer, or below ``least``.
    """
    try:
        valid = index(value) >= least
    except TypeError:
        valid = False
    if not valid:
        raise ValueError(f"{name}={value!r} must be an integer, at least {least}.")


def check_not_negative(**arguments: float) -> None:
    """Check weights and bounds, of which 0 switches something off.

    Raises:
        ValueError: If one is below 0, infinite or no number.
    """
    for name, value in arguments.items():
        if not isinstance(value, Real) or not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r} must be 0 or above, and finite.")


def check_positive(**arguments: float) -> None:
    """Refuse numbers that are not above 0."""
    for name, value in arguments.items():
        if not value > 0:
            raise ValueError(f"{name}={value} must be above 0.")


def check_increasing(name: str, times: Sequence[float]) -> None:
    """Refuse times that do not follow each other."""
    if not times or any(later <= earlier for earlier, later in pairwise(times)):
        raise ValueError(f"{name}={list(times)} must be at least one time, each later than the one before.")


def check_choice(value: str, name: str, choices: tuple[str, ...]) -> None:
    """Check an argument that is one of a few words.

    Raises:
        ValueError: If it is another.
    """
    if value not in choices:
        raise ValueError(f'{name}="{value}" is unknown: choose {", ".join(choices[:-1])} or {choices[-1]}.')


def check_precision(precision: str) -> None:
    """Refuse a trainer's precision that rounds pixels to steps as coarse as an eps.

    Raises:
        ValueError: If it is one of bfloat16's or float16's that leave no float32.
    """
    if precision in ("16-true", "bf16-true"):
        raise ValueError(
            f"trainer.precision={precision} rounds images to steps as coarse as an eps: use "
            f"{precision.replace('true', 'mixed')}."
        )
