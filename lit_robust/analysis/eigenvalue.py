"""How sharp is the loss in a net's weights, over its training and against eps?"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn

from lit_robust import require
from lit_robust.analysis.output import new_figure, plain_text, whole_epochs, wrapped
from lit_robust.analysis.stale import epochs_of
from lit_robust.analysis.start import begin, default_attack
from lit_robust.analysis.subjects import Images, Subject, adversarial_images, load_subjects
from lit_robust.analysis.sweep import LABELS, about, check_values, mark_eps, strengths
from lit_robust.analysis.trained_threat import NORMS
from lit_robust.attacks import Attack
from lit_robust.attacks.hessian import top_eigenvalue
from lit_robust.data import ImageDataModule
from lit_robust.measures.accuracy import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Over = Literal["epoch", "eps"]


def eigenvalue(
    checkpoints: list[str],
    data: ImageDataModule,
    attack: Attack | None = None,
    over: Over = "epoch",
    values: list[float] | None = None,
    limit: int = 200,
    device: str = "auto",
    out: Path = Path("analysis"),
    wandb_project: str | None = None,
    net: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Plot the top eigenvalue of the Hessian of the adversarial loss in the weights, over epochs or over eps.

    The SAT slides say that a larger eps makes the loss less smooth, and that a curriculum keeps it smooth. The
    eigenvalue is found by power iteration to 1 % or at most 50 iterations; where these were too few, the point is
    drawn hollow. BatchNorm is in eval mode, and all nets see the same images.

    Args:
        checkpoints: Folders of runs that kept several epochs (-c configs/callback/keep_epochs.yaml); with over=eps
            .ckpt files, folders of runs, whose last checkpoint is taken, or files of weights; name=path names a net.
        data: Its test images are attacked.
        attack: By default PGD at the eps that all nets were trained with, else 8/255, with 10 steps of eps/4.
        over: What is varied: the epoch of the net, or eps, with which the step size is scaled.
        values: With over=eps, its values; by default 0 to 4 times the attack's eps.
        limit: Use only the first ``limit`` test images; an iteration costs about 10 forwards on all of them.
        device: auto, cpu or cuda.
        out: The folder of eigenvalue_<over>.csv and .png, and of the journal that lets a stopped run continue.
        wandb_project: The project of Weights & Biases to which table and picture are also logged.
        net: The net of files that do not name one of lit_robust.nets, such as a plain state_dict; on the command line
            its path, such as torchvision.models.resnet18.

    Returns:
        The rows of the table: a net, an epoch or eps, the eigenvalue there, and whether it settled.

    Raises:
        TypeError: If over=eps and the attack has no eps.
        ValueError: If an argument is out of range, or a run kept fewer than two epochs; besides what ``start.begin``
            raises.
    """
    require.one_of("over", over, get_args(Over))
    if over == "epoch" and values is not None:
        raise ValueError(f"values={values} are those of eps, and the epochs are those that the run kept: leave it out.")
    check_values("eps", values)
    runs = {run: epochs_of(run) for run in checkpoints} if over == "epoch" else {}
    study = begin(checkpoints, data, limit, device, out, net, wandb_project)
    attack = attack or default_attack(study.subjects, steps=10)
    variants = strengths(attack, "eps", values, scaled=True) if over == "eps" else {}
    rows = []

    def measure(name: str, value: float, subject: Subject, variant: Attack) -> None:
        find = partial(sharpness, subject.net, variant, study.images)
        found, settled = study.measured("eigenvalue", subject, variant, find)
        row = {"net": name, over: value, "eigenvalue": found, "settled": settled, "n": study.images.n}
        rows.append({**row, "attack": describe(variant)})

    for number, subject in enumerate(study.subjects):
        for eps, variant in variants.items():
            measure(subject.name, eps, subject, variant)
        for epoch, path in (runs[checkpoints[number]] if runs else {}).items():
            (then,) = load_subjects([str(path)], study.device, net)
            measure(subject.name, epoch, then, attack)
    study.write(f"eigenvalue_{over}", rows, draw(rows, over, attack), wandb_project)
    return rows


def sharpness(net: nn.Module, attack: Attack, images: Images) -> tuple[float, bool]:
    """The top eigenvalue of the Hessian of the adversarial loss in the weights, and whether it settled."""
    crafted = adversarial_images(net, attack, images)
    return top_eigenvalue(net, [(x_adv, batch.y) for x_adv, batch in zip(crafted, images.batches, strict=True)])


def draw(rows: Sequence[Mapping[str, Any]], over: Over, attack: Attack) -> "Figure":
    """Plot a line for each net, on a logarithmic scale if all eigenvalues are positive; unsettled ones are hollow."""
    from matplotlib.ticker import LogFormatter

    figure, (axes,) = new_figure()
    for number, net in enumerate(dict.fromkeys(row["net"] for row in rows)):
        mine, colour = [row for row in rows if row["net"] == net], f"C{number % 10}"
        x, y = [row[over] for row in mine], [row["eigenvalue"] for row in mine]
        axes.plot(x, y, color=colour, linewidth=1.5)
        faces = [colour if row["settled"] else "white" for row in mine]
        axes.scatter(x, y, s=24, c=faces, edgecolors=colour, zorder=3)
        axes.plot([], [], "o-", color=colour, label=plain_text(net))
    if not all(row["settled"] for row in rows):
        axes.plot([], [], "o", color="gray", markerfacecolor="white", label="not within 1 % after 50 iterations")
    if min(row["eigenvalue"] for row in rows) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter(labelOnlyBase=False))
        axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))  # labels within a decade only
    if over == "epoch":
        whole_epochs(axes)
    else:
        mark_eps(axes, attack, [row[over] for row in rows])
    norm = NORMS.get(getattr(attack, "norm", "linf"), "")
    axes.set(
        xlabel="epochs of training" if over == "epoch" else LABELS["eps"].format(norm=norm),
        ylabel="top Hessian eigenvalue of the adversarial loss",
    )
    said = about(attack, "eps", scaled=True) if over == "eps" else describe(attack)
    axes.set_title(wrapped(f"{said}, {rows[0]['n']} test images"), fontsize=8)
    axes.legend(fontsize=8)
    return figure
