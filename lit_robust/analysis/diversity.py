"""Over how many classes does an attack spread its errors? Nuclear norm against Frobenius norm."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_robust import require
from lit_robust.analysis.output import new_figure, plain_text
from lit_robust.analysis.start import begin, check_images
from lit_robust.analysis.subjects import Images, Subject, adversarial_images
from lit_robust.analysis.trained_threat import trained_threat
from lit_robust.attacks import Attack, FrobeniusNorm, NuclearNorm
from lit_robust.data import ImageDataModule
from lit_robust.magnitudes import Magnitude
from lit_robust.measures.accuracy import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def diversity(
    checkpoints: list[str],
    data: ImageDataModule,
    eps: float | str | None = None,
    attacks: dict[str, Attack] | None = None,
    limit: int | None = None,
    device: str = "auto",
    out: Path = Path("analysis"),
    wandb_project: str | None = None,
    net: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Compare the classes into which two attacks drive a net, by confusion matrices and an entropy.

    The NuAT slides (NeurIPS 2021) show such matrices of a naturally trained net under attacks that maximise the
    nuclear or the Frobenius norm of the logits' change alone; they give neither steps nor a number. Ours: one step of
    eps from a start at plus or minus eps/2, and as score the mean, over the classes with errors, of the entropy of the
    wrong predictions divided by log(C - 1): 1 if errors are spread evenly, 0 if each class has one wrong prediction.

    Args:
        checkpoints: .ckpt files, folders of runs, whose last checkpoint is taken, or files of weights; name=path names
            a net.
        data: Its test images are attacked.
        eps: The bound of the two default attacks; by default the L-infinity eps that all nets were trained
            with, else 8/255.
        attacks: Attacks by name, in place of the default ones.
        limit: Use only the first ``limit`` test images; by default all.
        device: auto, cpu or cuda.
        out: The folder of diversity.csv and .png, and of the journal that lets a stopped run continue.
        wandb_project: The project of Weights & Biases to which table and picture are also logged.
        net: The net of files that do not name one of lit_robust.nets, such as a plain state_dict; on the command line
            its path, such as torchvision.models.resnet18.

    Returns:
        The rows of the table: a net, an attack, a class, and how often each class was predicted for its images.

    Raises:
        ValueError: If an argument is out of range; besides what ``start.begin`` raises.
    """
    if eps is not None:
        require.pixels("eps", eps)
    if data.num_classes < 3:
        raise ValueError(f"data={type(data).__name__} must have at least 3 classes: errors cannot spread over one.")
    study = begin(checkpoints, data, limit, device, out, net, wandb_project)
    check_images(study.subjects, study.images, exactly=data.num_classes)
    attacks = attacks or default_attacks(study.subjects, eps)
    rows, matrices = [], {}
    for subject in study.subjects:
        for name, attack in attacks.items():
            measure = partial(_confusion, subject.net, attack, study.images, data.num_classes)
            counts = matrices[subject.name, name] = torch.tensor(study.measured("confusion", subject, attack, measure))
            both = {"net": subject.name, "attack": name, "entropy": entropy_score(counts)}
            for label, predicted in enumerate(counts.tolist()):
                rows.append({**both, "class": label} | {f"as {other}": n for other, n in enumerate(predicted)})
    figure = draw(matrices, [describe(attack) for attack in attacks.values()], study.images.n)
    study.write("diversity", rows, figure, wandb_project)
    return rows


def default_attacks(subjects: Sequence[Subject], eps: float | str | None) -> dict[str, Attack]:
    """The two norms alone, in the bound ``eps``, or in that of the training."""
    bound = Magnitude(trained_threat(subjects, "--eps", norms=("linf",))[0] if eps is None else eps)
    return {"nuclear": NuclearNorm(bound, loss=None), "Frobenius": FrobeniusNorm(bound, loss=None)}


def _confusion(net: nn.Module, attack: Attack, images: Images, classes: int) -> list[list[int]]:
    counts = torch.zeros(classes, classes, dtype=torch.int64, device=images.batches[0].x.device)
    for x_adv, batch in zip(adversarial_images(net, attack, images), images.batches, strict=True):
        with torch.no_grad():
            predicted = net(x_adv).argmax(dim=1)
        counts += torch.bincount(batch.y * classes + predicted, minlength=classes**2).view(classes, classes)
    return counts.tolist()


def entropy_score(counts: Tensor) -> float:
    """The mean entropy of the wrong predictions, as a share of its largest value; NaN without errors.

    Args:
        counts: The confusion matrix, a row per true class.

    Shape:
        counts: ``(C, C)``, with C above 2.
    """
    wrong = counts.double() * (1 - torch.eye(len(counts), dtype=torch.float64))
    wrong = wrong[wrong.sum(dim=1) > 0]
    share = wrong / wrong.sum(dim=1, keepdim=True)
    return float(torch.special.entr(share).sum(dim=1).mean()) / math.log(len(counts) - 1)


def draw(matrices: Mapping[tuple[str, str], Tensor], attacks: Sequence[str], n: int) -> "Figure":
    """Draw the matrices, a row per net and a column per attack, each row of a matrix as shares of its class."""
    nets, names = (list(dict.fromkeys(key[i] for key in matrices)) for i in (0, 1))
    figure, axes = new_figure(
        width=1.2 + 3.0 * len(names), height=0.8 + 3.2 * len(nets), columns=len(names), rows=len(nets)
    )
    for place, ((net, name), counts) in zip(axes, matrices.items(), strict=True):
        share = counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
        shown = place.imshow((100 * share).numpy(), vmin=0, vmax=100, cmap="viridis")
        place.grid(visible=False)
        score = entropy_score(counts)
        entropy = "no errors" if math.isnan(score) else f"entropy {score:.2f}"
        spread = f"{name}: {entropy}, {int((counts.sum(dim=0) > 0).sum())} classes predicted"
        place.set_title(f"{plain_text(net)}\n{spread}", fontsize=8)
        place.set_xlabel("predicted class", fontsize=8)
        place.set_ylabel("true class", fontsize=8)
        place.tick_params(labelsize=7)
    figure.colorbar(shown, ax=axes, label="share of the class (%)", shrink=0.8)
    figure.suptitle("\n".join([*attacks, f"{n} test images"]), fontsize=7)
    return figure
