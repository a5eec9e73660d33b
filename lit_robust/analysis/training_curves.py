"""Training curves of several runs: loss, accuracy, DAT's switch, rate drops, NuAT-H's second steps."""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lit_robust.analysis.output import check_folder, check_packages, new_figure, plain_text, whole_epochs, write
from lit_robust.analysis.stale import epochs_of
from lit_robust.analysis.start import begin, default_attack
from lit_robust.analysis.subjects import cells, load_subjects, named
from lit_robust.attacks import PGD, Attack
from lit_robust.data import ImageDataModule
from lit_robust.runs import run_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The columns of a metrics file that are drawn; an epoch's last value of a training metric is the mean over the epoch.
COLUMNS = {
    "loss": "train/loss",
    "val clean": "val/acc/clean",
    "val robust": "val/acc/robust",
    "adversarial": "train/adversarial",
    "rate": "train/lr",
    "clean ce": "train/ce/clean",
    "second steps": "train/two_step",
}


def curves(
    checkpoints: list[str],
    data: ImageDataModule | None = None,
    attack: Attack | None = None,
    limit: int | None = None,
    device: str = "auto",
    out: Path = Path("analysis"),
    wandb_project: str | None = None,
    net: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Plot the training loss and the accuracy of several runs over their epochs.

    As in the DAT slides (CVPRW 2020, arXiv:2002.04237), which show a higher training loss and a higher test accuracy
    with a delayed start. DAT's switch and each epoch whose learning rate is at most half of the previous one's are
    marked by vertical lines. Accuracy is that of the test images where data is given and the run kept checkpoints of
    its epochs (-c configs/callback/keep_epochs.yaml), and of the validation images otherwise; the legend says which.
    Runs of NuAT-H add their clean cross-entropy, with the epochs that got second steps shaded, as in the NuAT slides.

    Args:
        checkpoints: Folders of runs, which have a metrics.csv, folders above them, in which the newest run is taken,
            or a checkpoint of each run. The files of a resumed run are joined; name=path names a run.
        data: Its test images are attacked, if there are checkpoints to test.
        attack: The attack of that test; by default PGD at the eps that all these runs were trained with, else 8/255,
            with 20 steps of eps/8.
        limit: Use only the first ``limit`` test images; by default all.
        device: auto, cpu or cuda.
        out: The folder of curves.csv and .png, and of the journal that lets a stopped run continue.
        wandb_project: The project of Weights & Biases to which table and picture are also logged.
        net: The net of files that do not name one of lit_robust.nets, such as a plain state_dict; on the command line
            its path, such as torchvision.models.resnet18.

    Returns:
        The rows of the table, one per run and epoch.

    Raises:
        FileNotFoundError: If a folder has no metrics.
        ImportError: If matplotlib is missing, or wandb where the results are to be logged.
        ValueError: If an argument is out of range, a file is broken, or a checkpoint cannot be used.
    """
    check_packages(wandb_project)
    check_folder(out)
    runs = named_runs(checkpoints)
    metrics = {name: epochs_of_metrics(folder) for name, folder in runs.items()}
    for name, epochs in metrics.items():
        if not epochs:
            raise ValueError(f"{runs[name]}: its metrics.csv has no finished epoch: leave this run out.")
    tested = _test(runs, data, attack, limit, device, Path(out), net) if data is not None else {}
    rows = [
        {
            "run": name,
            "epoch": epoch,
            **values,
            **tested.get(name, {}).get(epoch, {"test clean": "", "test robust": ""}),
        }
        for name, epochs in metrics.items()
        for epoch, values in epochs.items()
    ]
    write(Path(out), "curves", rows, draw(rows), wandb_project)
    return rows


def epochs_of_metrics(folder: Path) -> dict[int, dict[str, float | str]]:
    """The metrics of a run by the number of finished epochs, joined over its resumes.

    A later file begins where the run was resumed, or repeats the run from its first epoch on. What an earlier file
    holds from there on was abandoned, and is left out.

    Raises:
        FileNotFoundError: If there is no metrics file.
        ValueError: If a file is not a metrics file.
    """
    files = sorted(folder.glob("metrics_*.csv"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.stem)])
    files += [path for path in (folder / "metrics.csv",) if path.exists()]
    if not files:
        raise FileNotFoundError(
            f"there is no metrics.csv in {folder}: give the folder of a run, such as runs/run/version_0."
        )
    epochs: dict[int, dict[str, float | str]] = {}
    for path in files:
        later = _epochs_in(path)
        begin = min(later, default=math.inf)
        epochs = {epoch: values for epoch, values in epochs.items() if epoch < begin} | later
    return dict(sorted(epochs.items()))


def _epochs_in(path: Path) -> dict[int, dict[str, float | str]]:
    """The last values of each epoch in a metrics file."""
    epochs: dict[int, dict[str, float | str]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if not row.get("epoch", "none"):  # what is logged outside of an epoch's summary
                continue
            try:
                epoch = int(row["epoch"]) + 1
                values = {name: float(row[key]) for name, key in COLUMNS.items() if row.get(key)}
            except (KeyError, ValueError, TypeError) as error:
                raise ValueError(f"{path} is not a metrics file of a run ({error}): leave it out.") from error
            epochs.setdefault(epoch, dict.fromkeys(COLUMNS, "")).update(values)
    return epochs


def named_runs(checkpoints: Sequence[str]) -> dict[str, Path]:
    """The folders of runs by name, as ``load_subjects`` names nets.

    Raises:
        ValueError: If there is none, or two have one name.
    """
    if isinstance(checkpoints, str) or not checkpoints:
        raise ValueError(f"checkpoints={checkpoints!r} must be a list of folders of runs: give at least one.")
    found = [(name, _newest_run(path)) for name, path in map(named, checkpoints)]
    for short in (True, False):
        names = [name or (f"{run.absolute().parent.name}/{run.name}" if short else str(run)) for name, run in found]
        if len(set(names)) == len(names):
            return dict(zip(names, (run for _, run in found), strict=True))
    raise ValueError(f"checkpoints={list(checkpoints)} names a run twice: write name=path with different names.")


def _newest_run(path: Path) -> Path:
    """The run of a checkpoint, or the one with the newest metrics at or below a folder."""
    if path.is_file():
        return run_of(path.absolute()) or path.parent
    if any(path.glob("metrics*.csv")):
        return path
    return max(path.glob("**/metrics*.csv"), key=lambda file: file.stat().st_mtime_ns, default=path / "none").parent


def _test(
    runs: Mapping[str, Path],
    data: ImageDataModule,
    attack: Attack | None,
    limit: int | None,
    device: str,
    out: Path,
    net: nn.Module | None,
) -> dict[str, dict[int, dict[str, Any]]]:
    """Test accuracies of the kept checkpoints by run and epoch; none of a run that kept fewer than two."""
    kept = {}
    for name, folder in runs.items():
        with suppress(ValueError, FileNotFoundError):  # its validation accuracy is drawn instead
            kept[name] = epochs_of(str(folder))
    if not kept:
        return {}
    last = [[*epochs.values()][-1] for epochs in kept.values()]
    study = begin([f"{number}={path}" for number, path in enumerate(last)], data, limit, device, out, net)
    attacks = {"test clean": PGD(steps=0, init="zero"), "test robust": attack or default_attack(study.subjects, 20)}
    tested: dict[str, dict[int, dict[str, Any]]] = {}
    for name, epochs in kept.items():
        tested[name] = {}
        for epoch, path in epochs.items():
            (then,) = load_subjects([str(path)], study.device, net)
            tested[name][epoch] = {what: cells(study.survivors(then, one))["accuracy"] for what, one in attacks.items()}
    return tested


def draw(rows: Sequence[dict[str, Any]]) -> "Figure":
    """Draw loss above accuracy, and NuAT-H's clean cross-entropy below if a run has one."""
    hybrid = any(row["second steps"] for row in rows)
    figure, axes = new_figure(width=8.0, height=5.5 + 2 * hybrid, rows=2 + hybrid)
    marks: dict[str, str] = {}
    for number, run in enumerate(dict.fromkeys(row["run"] for row in rows)):
        colour, mine = f"C{number % 10}", [row for row in rows if row["run"] == run]
        _line(axes[0], mine, "loss", color=colour, label=plain_text(run))
        split = "test" if any(row["test robust"] != "" for row in mine) else "val"
        said = {"test": "test", "val": "validation"}[split]
        _line(
            axes[1], mine, f"{split} clean", 100, color=colour, linestyle="--", label=f"{plain_text(run)}, clean {said}"
        )
        _line(
            axes[1], mine, f"{split} robust", 100, color=colour, marker=".", label=f"{plain_text(run)}, robust {said}"
        )
        for before, after in pairwise(mine):
            if before["adversarial"] == 0 and after["adversarial"] == 1:
                marks["-."] = "dash-dotted: the attack begins"
                axes[0].axvline(before["epoch"], color=colour, linestyle="-.", linewidth=0.8)
            if before["rate"] != "" and after["rate"] != "" and after["rate"] <= before["rate"] / 2:
                marks[":"] = "dotted: the rate drops"
                axes[0].axvline(before["epoch"], color=colour, linestyle=":", linewidth=0.8)
        if hybrid:
            _line(axes[2], mine, "clean ce", color=colour, marker=".", label=plain_text(run))
            for row in mine:
                if row["second steps"]:
                    axes[2].axvspan(row["epoch"] - 0.5, row["epoch"] + 0.5, color=colour, alpha=0.15, linewidth=0)
    axes[0].set(ylabel="training loss", title="; ".join(marks[style] for style in sorted(marks)))
    axes[0].title.set_fontsize(8)
    axes[1].set(ylabel="accuracy (%)", ylim=(-2, 102))
    if hybrid:
        axes[2].set(ylabel="clean cross-entropy", title="shaded: epochs with second steps (NuAT-H)")
        axes[2].title.set_fontsize(8)
    axes[-1].set_xlabel("epoch")
    for place in axes:
        whole_epochs(place)
        place.set_xlim(axes[0].get_xlim())
        if place.lines:  # a run may have had no validation
            place.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))  # beside it: no point is covered
    return figure


def _line(axes: "Axes", rows: Sequence[dict[str, Any]], column: str, factor: float = 1, **style: Any) -> None:
    points = [(row["epoch"], factor * row[column]) for row in rows if row[column] != ""]
    if points:
        axes.plot(*zip(*points, strict=True), linewidth=1.3, **style)
