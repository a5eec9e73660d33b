"""What each part of our own section of a checkpoint must be."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lit_robust.whole_files import csv_cell

#: The largest count, rate or time that a checkpoint may hold.
LARGEST = 2**53


def is_count(value: Any) -> bool:
    """Whether a value is an integer from 0 to ``LARGEST``."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= LARGEST)


def _are_plain(values: Any) -> bool:
    """Whether it holds only numbers, bools, None and lists of numbers by name."""
    lists = [one if isinstance(one, list) else [one] for one in values.values()] if isinstance(values, dict) else []
    return isinstance(values, dict) and all(one is None or _is_number(one) for each in lists for one in each)


def _are_metrics(values: Any) -> bool:
    """Whether it holds numbers, with names that no spreadsheet takes for formulas."""
    if not isinstance(values, dict) or not all(map(_is_number, values.values())):
        return False
    return all(isinstance(name, str) and csv_cell(name) == name for name in values)


def _are_unlogged(parts: Any) -> bool:
    if not isinstance(parts, dict) or not all(_are_metrics(parts.get(name, {})) for name in ("row", "epoch")):
        return False
    return all(isinstance(parts.get("row", {}).get(name, 0), int) for name in ("epoch", "step"))


def are_tensors(ranks: Any) -> bool:
    """Whether it is a list with each rank's tensors by name."""
    if not isinstance(ranks, list) or not all(isinstance(tensors, dict) for tensors in ranks):
        return False
    return all(isinstance(key, str) and isinstance(one, Tensor) for tensors in ranks for key, one in tensors.items())


def _are_scalars(values: Any) -> bool:
    return are_tensors([values]) and all(one.shape == () and not one.is_complex() for one in values.values())


def _are_rates(values: Any) -> bool:
    return isinstance(values, list) and all(_is_number(rate) and 0 <= rate <= LARGEST for rate in values)


def _are_sums(ranks: Any) -> bool:
    return are_tensors(ranks) and all(entry.shape == (2,) for sums in ranks for entry in sums.values())


def _is_memory(parts: Any) -> bool:
    return isinstance(parts, dict) and are_tensors(parts.get("tensors", [])) and _are_plain(parts.get("values", {}))


def _of(kind: Any) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


#: Each rank's tensors.
TENSORS_OF_RANKS = (are_tensors, "tensors by name for each rank")
_SUMS = (_are_sums, "two numbers by name for each rank")
_PLAIN = (_are_plain, "plain values by name")

#: Whether a value can be used, and what it must be; with the parts that older versions wrote.
PARTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rows": (lambda value: isinstance(value, list) and all(map(is_count, value)), "a list of counts"),
    "callback_metrics": (_are_scalars, "tensors of one number by name"),
    "unlogged": (_are_unlogged, "numbers by name below row and epoch"),
    **dict.fromkeys(("metrics", "tally"), _SUMS),
    "memory": (_is_memory, "tensors by name for each rank, and plain values by name"),
    **dict.fromkeys(("buffers", "ranks"), TENSORS_OF_RANKS),
    **dict.fromkeys(("hybrid", "curriculum"), _PLAIN),
    "data": (_of(dict), "values by name"),
    **dict.fromkeys(("optimizer", "lr_scheduler"), (_of(str | None), "the name of a class")),
    "base_rates": (_are_rates, "a list of learning rates"),
    **dict.fromkeys(("validation_is_due", "epoch_step_is_due"), (_of(bool), "true or false")),
}


def check_reading(hparams_file: Any, weights_only: bool | None) -> None:
    """Refuse arguments that would make a checkpoint more than data.

    Raises:
        ValueError: If ``weights_only`` is False, or there is a file of arguments.
    """
    if weights_only is False:
        raise ValueError("weights_only=False would run the code that a file holds: leave it out, or give True.")
    if hparams_file is not None:
        raise ValueError(f"hparams_file={str(hparams_file)!r} is not read: give its arguments by name.")
