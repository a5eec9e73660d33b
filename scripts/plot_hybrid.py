"""Plot what NuAT-H watched over training, its triggers, and when it took second steps.

    python scripts/plot_hybrid.py runs/nuat_h/version_0/metrics.csv hybrid.png

The watched number is the smoothed clean cross-entropy (CleanLossDrop) or the gain of a second step (SecondStepGain).
Needs matplotlib (``pip install "lit-robust[plot]"``).
"""

import argparse
import csv
from pathlib import Path


def read(path: Path, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric.

    Raises:
        SystemExit: If the file has no such metric.
    """
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row.get(key)]
    if not rows:
        raise SystemExit(f"{path} has no {key}: it is logged by NuAT with a detector as two_step.")
    return [int(row["step"]) for row in rows], [float(row[key]) for row in rows]


def plot(metrics: Path, picture: Path) -> None:
    """Draw the curve, a line for each trigger, and the share of second steps below."""
    from matplotlib import pyplot as plt

    steps, watched = read(metrics, "train/watched")
    _, triggers = read(metrics, "train/triggers")
    fired = [step for step, now, before in zip(steps, triggers, [0.0, *triggers], strict=False) if now > before]
    figure, (above, below) = plt.subplots(2, sharex=True, height_ratios=[3, 1], figsize=(8, 5), layout="constrained")
    above.plot(steps, watched)
    for step in fired:
        above.axvline(step, color="tab:red", linewidth=0.8)
    above.set(ylabel="watched by the detector", title=f"{len(fired)} triggers (red)")
    below.step(*read(metrics, "train/two_step"), where="pre", color="tab:red")
    below.set(ylabel="two steps", xlabel="updates", ylim=(-0.05, 1.05))
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics", type=Path, help="metrics.csv of a run")
    parser.add_argument("picture", type=Path, help="the PNG or PDF to write")
    arguments = parser.parse_args()
    plot(arguments.metrics, arguments.picture)
