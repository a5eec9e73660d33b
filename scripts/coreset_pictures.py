"""Draw the robust error of the budget's rows on coresets against their speed-up, from the files of results.

python scripts/coreset_pictures.py   # scripts/results/coreset*.png, of the sets that have results
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from cpu_budget_coresets import speed_up
from cpu_budget_results import by_row

from lit_robust.analysis.output import new_figure

RESULTS = Path(__file__).parent / "results"

#: The sets, each with its attack, and the set that has its rows on all images.
SETS = {
    "coreset": ("autoattack", "coreset"),
    "coreset_cold": ("autoattack", "coreset"),
    "coreset_cifar": ("gama", "coreset_cifar"),
}

Records = Sequence[Mapping[str, Any]]


def records_of(name: str) -> dict[str, Records]:
    """The records of a set by row, one for each seed."""
    return dict(by_row(RESULTS / f"cpu_{name}.json"))


def everything_beside(name: str) -> Records:
    """All records of a set, and those on all images that it is compared with."""
    sets = dict.fromkeys((name, SETS[name][1]))
    return [record for one in sets for records in records_of(one).values() for record in records]


def points(name: str) -> dict[str, tuple[list[float], list[float]]]:
    """The speed-up and the robust error in percent of each seed, by row, where both are known.

    Rows on all images are among them, even those of another set.
    """
    (attack, other), among, own = SETS[name], everything_beside(name), records_of(name)
    methods = {row.partition("_")[0] for row in own}
    on_all_images = {row: records for row, records in records_of(other).items() if row in methods}
    found = {}
    for row, records in (on_all_images | own).items():
        pairs = [(speed_up(one, among), one["last"].get(attack)) for one in records]
        known = [(faster, 100 - tested[0]) for faster, tested in pairs if faster is not None and tested is not None]
        if known:
            speed_ups, errors = zip(*known, strict=True)
            found[row] = [*speed_ups], [*errors]
    return found


def curves(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows that differ in their fraction only, under their common name, by fraction; empty for all images."""
    by_name: dict[str, dict[str, Any]] = {}
    for row, point in found.items():
        name, zero, digits = row.partition("_0.")
        by_name.setdefault(name, {})[zero[1:] + digits] = point
    return by_name


def draw(name: str) -> Path | None:
    """Draw a set, with bars from the smallest to the largest of its seeds; returns the file, None without results."""
    found = points(name)
    if not found:
        return None
    figure, (axes,) = new_figure(width=7.5, height=4.4)
    for place, (label, rows) in enumerate(curves(found).items()):
        look = {"color": f"C{place % 10}", "marker": "os^vDPX*<>"[(place + place // 10) % 10]}
        means = [(mean(speed_ups), mean(errors)) for speed_ups, errors in rows.values()]
        axes.plot(*zip(*means, strict=True), **look, linewidth=1, markersize=5, label=label)
        for (fraction, (speed_ups, errors)), (x, y) in zip(rows.items(), means, strict=True):
            axes.plot([min(speed_ups), max(speed_ups)], [y, y], color=look["color"], linewidth=0.8)
            axes.plot([x, x], [min(errors), max(errors)], color=look["color"], linewidth=0.8)
            axes.annotate(fraction, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=6, color=look["color"])
    axes.set(xlabel="speed-up in CPU time, with selections", ylabel=f"error under {SETS[name][0]} (%)")
    axes.set_title(f"{name}: mean over seeds, by fraction; bars: their range", fontsize=8)
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    file = RESULTS / f"{name}.png"
    figure.savefig(file, metadata={"Software": None})
    return file


def main(args: list[str] | None = None) -> None:
    """Draw all sets."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(args)
    for drawn in map(draw, SETS):
        if drawn is not None:
            print(drawn)


if __name__ == "__main__":
    main()
