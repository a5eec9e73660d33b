"""Black-box robustness: adversarial images of one net, shown to another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lit_robust.analysis.output import new_figure, plain_text, wrapped
from lit_robust.analysis.start import begin, check_images, default_attack
from lit_robust.analysis.subjects import cells, load_subjects
from lit_robust.attacks import Attack
from lit_robust.data import ImageDataModule
from lit_robust.measures.accuracy import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def transfer(
    checkpoints: list[str],
    data: ImageDataModule,
    sources: list[str] | None = None,
    attack: Attack | None = None,
    limit: int | None = None,
    device: str = "auto",
    out: Path = Path("analysis"),
    wandb_project: str | None = None,
    net: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Show every net the adversarial images that were crafted on every other one.

    The black-box table of the DAT slides (CVPRW 2020, arXiv:2002.04237), where the sources are trained independently:
    other seeds of a natural, a fully adversarial and a delayed training. If images crafted on another net lower the
    accuracy of a net more than its own do, it masks its gradients.

    Args:
        checkpoints: The nets to attack: .ckpt files, folders of runs, whose last checkpoint is taken, or files of
            weights; name=path names a net.
        data: Its test images are attacked.
        sources: The nets to craft on, in the same form; by default the attacked nets.
        attack: By default PGD at the eps that all attacked nets were trained with, else 8/255, with 10 steps of eps/4.
        limit: Use only the first ``limit`` test images; by default all.
        device: auto, cpu or cuda.
        out: The folder of transfer.csv and .png, and of the journal that lets a stopped run continue.
        wandb_project: The project of Weights & Biases to which table and picture are also logged.
        net: The net of files that do not name one of lit_robust.nets, such as a plain state_dict; on the command line
            its path, such as torchvision.models.resnet18.

    Returns:
        The rows of the table; source and target are the same in the rows of the white-box attack.

    Raises:
        ValueError: If an argument is out of range; besides what ``start.begin`` raises.
    """
    study = begin(checkpoints, data, limit, device, out, net, wandb_project)
    attack = attack or default_attack(study.subjects, steps=10)
    origins = study.subjects if sources is None else load_subjects(sources, study.device, net)
    check_images(origins, study.images)
    rows = []
    for origin in origins:
        for target in study.subjects:
            row = {"target": target.name, "source": origin.name, **cells(study.survivors(target, attack, origin))}
            rows.append({**row, "white_box": origin.key == target.key, "attack": describe(attack)})
    study.write("transfer", rows, draw(rows, f"{describe(attack)}, {study.images.n} test images"), wandb_project)
    return rows


def draw(rows: Sequence[Mapping[str, Any]], title: str) -> "Figure":
    """Draw a table of colours: a row per attacked net, a column per source; white-box numbers are bold."""
    targets, origins = (list(dict.fromkeys(row[name] for row in rows)) for name in ("target", "source"))
    figure, (axes,) = new_figure(width=3.2 + 0.9 * len(origins), height=1.8 + 0.5 * len(targets))
    cell = {(row["target"], row["source"]): row for row in rows}
    values = [[100 * cell[target, origin]["accuracy"] for origin in origins] for target in targets]
    shown = axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    for (target, origin), row in cell.items():
        x, y, value = origins.index(origin), targets.index(target), 100 * row["accuracy"]
        weight = "bold" if row["white_box"] else "normal"
        axes.text(
            x, y, f"{value:.1f}", ha="center", va="center", color="black" if value > 55 else "white", weight=weight
        )
    axes.grid(visible=False)
    axes.set_xticks(range(len(origins)), [plain_text(name) for name in origins], rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(targets)), [plain_text(name) for name in targets], fontsize=8)
    axes.set(xlabel="crafted on (bold: the attacked net itself)", ylabel="attacked net")
    axes.set_title(wrapped(title), fontsize=9)
    figure.colorbar(shown, ax=axes, label="accuracy (%)")
    return figure
