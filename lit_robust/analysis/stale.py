"""Do the adversarial images of earlier epochs still fool the final net?"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_robust.analysis.journal import Journal
from lit_robust.analysis.output import check_plotting, device_of, draw_line, new_figure, write
from lit_robust.analysis.subjects import cells, crafted_survivors, load_subjects, test_images
from lit_robust.attacks import PGD, Attack
from lit_robust.checkpoint_files import read_checkpoint
from lit_robust.data import ImageDataModule
from lit_robust.measures.accuracy import describe
from lit_robust.runs import checkpoints_of
from lit_robust.seeds import run_seed

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
) -> list[dict[str, Any]]:
    """Show a run's final net the adversarial images that were crafted on its earlier epochs.

    The stale-adversary test of the DAT slides (ICASSP 2022): images crafted in early epochs hardly fool the final net,
    so attacking from the first epoch on is partly wasted. The run must have kept its epochs: train with
    -c configs/callback/keep_epochs.yaml. The slides' curves are not recoverable, only their shape.

    Args:
        checkpoints: Folders of runs, each with several epochs' checkpoints; name=path names a run.
        data: Its test images are attacked.
        attack: By default PGD at eps 8/255 with 10 steps of 2/255; take the one of the training.
        limit: The number of test images, the first ones; by default all.
        device: auto, cpu or cuda.
        out: The folder of stale.csv and .png, and of the journal from which a stopped run goes on.
        wandb_project: The project of Weights & Biases that gets table and picture, too.

    Returns:
        The rows of the table: for each kept epoch the final net's accuracy on that epoch's adversarial images.

    Raises:
        FileNotFoundError: If there is no such run.
        ImportError: If matplotlib is missing.
        ValueError: If a run kept fewer than two epochs, an argument is out of range, or a checkpoint cannot be used.
    """
    check_plotting()
    attack, place = attack or PGD(steps=10), device_of(device)
    runs = {run: epochs_of(run) for run in checkpoints}
    images = test_images(data, limit, place)
    journal = Journal(Path(out) / "journal.jsonl")
    rows = []
    for run, epochs in runs.items():
        (final,) = load_subjects([run], place)
        for epoch, path in epochs.items():
            (origin,) = load_subjects([str(path)], place)
            key = (final.key, images.key, repr(attack), origin.key, str(run_seed()))
            survived = journal.get(key, partial(crafted_survivors, origin.net, final.net, attack, images))
            rows.append({"run": final.name, "epoch": epoch, **cells(survived), "attack": describe(attack)})
    write(Path(out), "stale", rows, draw(rows), wandb_project)
    return rows


def epochs_of(run: str) -> dict[int, Path]:
    """The checkpoints of a run by the number of finished epochs, in order; of each epoch one.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If there are fewer than two epochs.
    """
    folder = Path(run.rpartition("=")[2]).expanduser()
    named = checkpoints_of(folder)
    if not named:
        raise FileNotFoundError(f"there is no last.ckpt or best.ckpt below {folder}: give the folder of a run.")
    beside = next(iter(named.values())).parent
    epochs = {int(read_checkpoint(path).get("epoch", -1)) + 1: path for path in sorted(beside.glob("*.ckpt"))}
    if len(epochs) < 2:
        raise ValueError(
            f"checkpoints={run} kept {len(epochs)} epoch: train with -c configs/callback/keep_epochs.yaml, which keeps "
            "several."
        )
    return dict(sorted(epochs.items()))


def draw(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Plot the final nets' accuracies over the epoch in which the images were crafted."""
    figure, (axes,) = new_figure()
    for number, run in enumerate(dict.fromkeys(row["run"] for row in rows)):
        draw_line(axes, [row for row in rows if row["run"] == run], "epoch", run, f"C{number % 10}")
    axes.set(xlabel="crafted on the net after epoch", ylabel="accuracy of the final net (%)", ylim=(-2, 102))
    axes.set_title(f"{rows[0]['attack']}, {rows[0]['n']} test images, band: 95 % interval", fontsize=8)
    axes.legend(fontsize=8)
    return figure
