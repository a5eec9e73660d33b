"""Plot the clean cross-entropy of a NuAT-H run, its triggers, and which batches got a second step.

    python scripts/plot_hybrid.py runs/nuat_h/version_0/metrics.csv hybrid.png

A trigger is marked where second steps begin. Once the budget is spent, the detector may still fire without effect, and
this is not marked. Needs matplotlib (``pip install "lit-robust[plot]"``).
"""

import argparse
import csv
from pathlib import Path


def read(path: Path, key: str) -> list[tuple[int, str, float]]:
    """Step, epoch and value of each row that has this metric.

    Raises:
        SystemExit: If the file has no such metric.
    """
    with path.open() as file:
        rows = [(int(row["step"]), row["epoch"], float(row[key])) for row in csv.DictReader(file) if row.get(key)]
    if not rows:
        raise SystemExit(f"{path} has no {key}: only NuAT with two_step logs it.")
    return rows


def plot(metrics: Path, picture: Path) -> None:
    """Plot the mean cross-entropy per epoch with a line per trigger, and the second steps below."""
    from matplotlib import pyplot as plt

    # The last row of an epoch is its mean and replaces the earlier ones.
    epochs = {epoch: (step, value) for step, epoch, value in read(metrics, "train/ce/clean")}
    changes, _, alert = zip(*read(metrics, "train/alert"), strict=True)
    triggers = [step for step, on in zip(changes, alert, strict=True) if on]
    steps, clean = zip(*epochs.values(), strict=True)
    figure, (above, below) = plt.subplots(2, sharex=True, height_ratios=[4, 1], figsize=(8, 5), layout="constrained")
    above.plot(steps, clean, marker=".")
    for step in triggers:
        above.axvline(step, color="tab:red", linewidth=0.8)
    above.set(ylabel="clean cross-entropy, mean per epoch", title=f"{len(triggers)} triggers (red)")
    below.fill_between([*changes, steps[-1] + 1], [*alert, alert[-1]], step="post", color="tab:red", linewidth=0)
    below.set(ylabel="second steps", xlabel="updates", ylim=(0, 1), yticks=[])
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics", type=Path, help="metrics.csv of a run")
    parser.add_argument("picture", type=Path, help="the PNG or PDF to write")
    arguments = parser.parse_args()
    plot(arguments.metrics, arguments.picture)
