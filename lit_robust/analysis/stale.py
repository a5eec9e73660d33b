"""Do the adversarial images of earlier epochs still fool the final net?"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lit_robust.analysis.output import draw_line, new_figure, whole_epochs, wrapped
from lit_robust.analysis.start import begin, default_attack
from lit_robust.analysis.subjects import cells, load_subjects, named
from lit_robust.attacks import Attack
from lit_robust.checkpoint_files import read_checkpoint
from lit_robust.data import ImageDataModule
from lit_robust.lightning_internals import is_within_epoch
from lit_robust.measures.accuracy import describe
from lit_robust.runs import checkpoints_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def stale(
    checkpoints: list[str],
    data: ImageDataModule,
    attack: Attack | None = None,
    limit: int | None = None,
    device: str = "auto",
    out: Path = Path("analysis"),
    wandb_project: str | None = None,
    net: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Show a run's final net the adversarial images that were crafted on its earlier epochs.

    The stale-adversary test of the DAT slides (CVPRW 2020, arXiv:2002.04237): images crafted in early epochs hardly
    fool the final net, so attacking from the first epoch on is partly wasted. The run must have kept its epochs: train
    with -c configs/callback/keep_epochs.yaml. The slides' curves are not recoverable, only their shape.

    Args:
        checkpoints: Folders of runs, each with several epochs' checkpoints; name=path names a run.
        data: Its test images are attacked.
        attack: By default PGD at the eps that all runs were trained with, else 8/255, with 10 steps of eps/4.
        limit: Use only the first ``limit`` test images; by default all.
        device: auto, cpu or cuda.
        out: The folder of stale.csv and .png, and of the journal that lets a stopped run continue.
        wandb_project: The project of Weights & Biases to which table and picture are also logged.
        net: The net of files that do not name one of lit_robust.nets, such as a plain state_dict; on the command line
            its path, such as torchvision.models.resnet18.

    Returns:
        The rows of the table: for each kept epoch the final net's accuracy on that epoch's adversarial images.

    Raises:
        ValueError: If a run kept fewer than two epochs; besides what ``start.begin`` raises.
    """
    runs = [epochs_of(run) for run in checkpoints]
    study = begin(checkpoints, data, limit, device, out, net, wandb_project)
    attack = attack or default_attack(study.subjects, steps=10)
    rows = []
    for final, epochs in zip(study.subjects, runs, strict=True):
        for epoch, path in epochs.items():
            (origin,) = load_subjects([str(path)], study.device, net)
            row = {"run": final.name, "epoch": epoch, **cells(study.survivors(final, attack, origin))}
            rows.append({**row, "attack": describe(attack)})
    study.write("stale", rows, draw(rows), wandb_project)
    return rows


def epochs_of(run: str) -> dict[int, Path]:
    """The checkpoints of a run by the number of finished epochs, in order; one per epoch.

    ``best.ckpt`` is none of them: its epoch is kept for its accuracy, not as a part of the run's course; nor is a file
    that was saved before its epoch's last batch. Where a run was resumed from an earlier epoch, the newest file of an
    epoch counts, and none beyond the last checkpoint.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If there are fewer than two epochs.
    """
    _, folder = named(run)
    found = checkpoints_of(folder)
    if not found:
        raise FileNotFoundError(f"there is no last.ckpt or best.ckpt below {folder}: give the folder of a run.")
    last = next(iter(found.values()))
    files = sorted(last.parent.glob("*.ckpt"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    at, reached = {path: _place_of(path) for path in files}, _place_of(last)[0]
    in_course = [path for path in files if not re.fullmatch(r"best(-v\d+)?", path.stem)]
    epochs = {at[path][0]: path for path in in_course if at[path][0] <= reached and not at[path][1]}
    if len(epochs) < 2:
        raise ValueError(
            f"checkpoints={run} kept {len(epochs)} epoch besides the best: train with "
            "-c configs/callback/keep_epochs.yaml, which keeps several."
        )
    return dict(sorted(epochs.items()))


def _place_of(path: Path) -> tuple[int, bool]:
    """The number of epochs whose batches a checkpoint has all seen, and whether it has seen some of the next one."""
    checkpoint = read_checkpoint(path)
    within = is_within_epoch(checkpoint)
    return int(checkpoint.get("epoch", -1)) + 1 - within, within


def draw(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Plot the final nets' accuracies over the epoch in which the images were crafted."""
    figure, (axes,) = new_figure()
    for number, run in enumerate(dict.fromkeys(row["run"] for row in rows)):
        draw_line(axes, [row for row in rows if row["run"] == run], "epoch", run, f"C{number % 10}")
    whole_epochs(axes)
    axes.set(xlabel="crafted on the net after epoch", ylabel="accuracy of the final net (%)", ylim=(-2, 102))
    axes.set_title(wrapped(f"{rows[0]['attack']}, {rows[0]['n']} test images, band: 95 % interval"), fontsize=8)
    axes.legend(fontsize=8)
    return figure
