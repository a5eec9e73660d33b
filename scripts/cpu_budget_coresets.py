"""What the rows of ``cpu_budget.py`` on coresets cost: training and selections apart, and against all images."""

from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

#: What a diary has of the selections before each epoch, with the fields of a checkpoint's cost.
OF_SELECTIONS = ("selection_seconds", "selection_cpu_seconds", "selection_forwards", "selection_backwards")

#: Of a training with the processor to itself, wall-clock time is less than this times its CPU time.
WAITED = 1.2

Record = Mapping[str, Any]


def has_coreset(record: Record) -> bool:
    """Whether a row is trained on coresets."""
    return any(one["class_path"] == "CoresetSelection" for one in record["config"]["trainer"]["callbacks"])


def total(record: Record, name: str) -> float:
    """The sum of a diary's numbers; 0 for an older record, which does not have them."""
    return float(sum(number or 0 for number in record["diary"].get(name, [])))


def with_selections(record: Record, clock: str = "cpu_seconds") -> float:
    """The seconds of training and of selections."""
    return total(record, clock) + total(record, f"selection_{clock}")


def image_passes(record: Record) -> float:
    """Forward and backward passes of training and selections, in images."""
    diary, everything = record["diary"], record["config"]["data"]["init_args"]["train_size"]
    sizes = diary.get("train/coreset/size", [None] * len(diary["forwards"]))
    parts = zip(diary["forwards"], diary["backwards"], sizes, strict=True)
    training = sum((forwards + backwards) * (size or everything) for forwards, backwards, size in parts)
    return float(training + total(record, "selection_forwards") + total(record, "selection_backwards"))


def on_all_images(record: Record, among: Iterable[Record]) -> Record | None:
    """The same method, data and seed without coresets; None if there is none."""

    def setting(one: Record) -> Any:
        config = one["config"]
        return config["model"]["class_path"], config["seed_everything"], config["data"]

    return next((one for one in among if not has_coreset(one) and setting(one) == setting(record)), None)


def speed_up(record: Record, among: Iterable[Record], clock: str = "cpu_seconds") -> float | None:
    """How many times as long training on all images takes; None without such a row.

    By the wall clock (``seconds``) also None where one of both has waited for the processor.
    """
    whole, own = on_all_images(record, among), with_selections(record, clock)
    if whole is None or own == 0 or (clock == "seconds" and (has_waited(whole) or has_waited(record))):
        return None
    return with_selections(whole, clock) / own


def has_waited(record: Record) -> bool:
    """Whether training took much longer than its CPU time, so that its wall-clock time tells nothing."""
    return with_selections(record, "seconds") > WAITED * with_selections(record) / record["hardware"]["threads"]


def mean_speed_up(records: Iterable[Record], among: Iterable[Record], clock: str = "cpu_seconds") -> float | None:
    """The mean over the seeds that have a row on all images; None without one."""
    found = [speed_up(record, among, clock) for record in records]
    known = [value for value in found if value is not None]
    return mean(known) if known else None


def times(value: float | None) -> str:
    """A speed-up in words; empty if it is unknown."""
    return "" if value is None else f"{value:.2f}x"
