"""The methods of a comparison: their results over seeds and images, their ranks, and the rows of their table."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from torch import Tensor

from lit_robust.analysis.subjects import Subject, checkpoint_of
from lit_robust.costs import Cost
from lit_robust.measures.accuracy import wilson

#: Methods with fewer seeds are not ranked: their spread between runs is unknown.
SEEDS = 3


class Method(NamedTuple):
    """The results of one method by attack: each image's mean over the seeds, each run's accuracy; alarms and costs."""

    name: str
    images: dict[str, Tensor]
    runs: dict[str, list[float]]
    alarms: Sequence[str] = ()
    costs: Sequence[Cost | None] = ()

    def mean(self, attack: str) -> float:
        """The mean accuracy over the seeds."""
        return sum(self.runs[attack]) / len(self.runs[attack])

    @property
    def known_costs(self) -> list[Cost]:
        """The cost of each run; empty if any run's cost is unknown."""
        known = [cost for cost in self.costs if cost is not None]
        return known if len(known) == len(self.costs) else []


def by_method(subjects: Sequence[Subject]) -> dict[str, list[Subject]]:
    """Group runs by the part of their name before ``@``; those of a group count as seeds of one method.

    Raises:
        ValueError: If two of a group have the same weights, or their checkpoints name different classes.
    """
    methods: dict[str, list[Subject]] = {}
    for subject in subjects:
        # A whole path, shown because short names clash, may hold the sign in a folder above the runs.
        method = subject.name if subject.name == str(subject.path) else subject.name.partition("@")[0]
        methods.setdefault(method, []).append(subject)
    for name, runs in methods.items():
        for one, other in combinations(runs, 2):
            if one.key == other.key:
                raise ValueError(
                    f"{one.name}={one.path} and {other.name}={other.path} have the same weights and are not two seeds "
                    f"of {name}: give a checkpoint of each seed."
                )
        classes = {class_path: run for run in reversed(runs) if (class_path := _class_of(run))}
        if len(classes) > 1:
            (second, other), (first, one) = [*classes.items()][-2:]
            raise ValueError(
                f"{one.name} was trained by {first}, {other.name} by {second}, and they are not two seeds of {name}: "
                "give each method a name of its own."
            )
    return methods


def _class_of(run: Subject) -> str | None:
    """The name of the class that a checkpoint says it was trained by; its module may have moved since."""
    said = checkpoint_of(run).get("hyper_parameters", {}).get("_class_path")
    return said.rpartition(".")[2] if isinstance(said, str) else None


def differ(one: Method, other: Method, attack: str) -> bool:
    """Whether two methods differ by more than the spread over seeds and over images."""
    between = abs(one.mean(attack) - other.mean(attack))
    seeds = sum(max(method.runs[attack]) - min(method.runs[attack]) for method in (one, other)) / 2
    paired = one.images[attack] - other.images[attack]
    images = 1.96 * float(paired.std()) / math.sqrt(len(paired))
    return between > seeds and between > images


def ranked(methods: Sequence[Method], attack: str) -> list[tuple[int | None, Method]]:
    """Sort methods by accuracy. The rank is 1 plus the number of clearly better methods.

    The rank is None for a method with too few seeds or an alarm.
    """
    enough = [method for method in methods if len(method.runs[attack]) >= SEEDS and not method.alarms]
    ranks = {
        method.name: 1
        + sum(differ(method, other, attack) and other.mean(attack) > method.mean(attack) for other in enough)
        for method in enough
    }
    order = sorted(methods, key=lambda method: -method.mean(attack))
    return [(ranks.get(method.name), method) for method in order]


def table(
    methods: Sequence[tuple[int | None, Method]],
    attacks: Sequence[str],
    gap_under: str | None,
    reference: str | None = None,
) -> list[dict[str, Any]]:
    """The rows: rank, method, number of seeds, accuracies with intervals and ranges, generalisation gap, and cost."""
    where = {cost.where for _, method in methods for cost in method.costs if cost is not None}
    differs = len(where) > 1 or any(", then " in one for one in where)
    rows = []
    for rank, method in methods:
        row: dict[str, Any] = {"rank": rank, "method": method.name, "seeds": len(method.runs[attacks[0]])}
        for attack in attacks:
            low, high = wilson(method.mean(attack), len(method.images[attack]))
            row |= {attack: method.mean(attack), f"{attack} low": low, f"{attack} high": high}
            row |= {f"{attack} min": min(method.runs[attack]), f"{attack} max": max(method.runs[attack])}
        row["n"] = len(method.images[attacks[0]])
        if gap_under is not None:
            row |= {"gap": method.mean("gap") - method.mean(gap_under), "gap under": gap_under}
            row["gap n"] = len(method.images["gap"])
        rows.append({**row, **_cost(method.known_costs), "hardware differs": differs})
        rows[-1]["alarms"] = " ".join(method.alarms)
    if reference is not None:
        unit = unit_of_cost(rows) or "seconds"
        column = {"seconds": "time saved", "cpu seconds": "CPU time saved", "passes": "passes saved"}[unit]
        base = next(row[unit] for row in rows if row["method"] == reference)
        for row in rows:
            row |= {column: 1 - row[unit] / base if base and row[unit] is not None else None, "reference": reference}
    return rows


def _cost(costs: Sequence[Cost]) -> dict[str, Any]:
    """The columns of the cost; None where it is unknown."""
    row: dict[str, Any] = {}
    for name, column in (("seconds", "seconds"), ("cpu_seconds", "cpu seconds"), ("passes", "passes")):
        values = [getattr(cost, name) for cost in costs]
        row[column] = sum(values) / len(values) if values else None
        row |= {f"{column} {which}": of(values) if values else None for which, of in (("min", min), ("max", max))}
    row["hardware"] = "; ".join(dict.fromkeys(cost.where for cost in costs))
    row["precision"] = ", ".join(dict.fromkeys(one for cost in costs for one in cost.precision))
    return row


def unit_of_cost(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The column of the cost that can be compared: where others use the same processor, wall-clock time is noise."""
    if not any(row["passes"] for row in rows):
        return None
    if rows[0]["hardware differs"]:
        return "passes"
    known = [row["hardware"] for row in rows if row["hardware"]]
    return "cpu seconds" if all(one.endswith(("thread", "threads")) for one in known) else "seconds"
