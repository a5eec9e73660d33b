"""Do large targeted perturbations make images look like the class that a net then sees in them?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_robust import require
from lit_robust.analysis.start import begin
from lit_robust.analysis.subjects import Images, Subject, adversarial_images
from lit_robust.analysis.trained_threat import trained_threat
from lit_robust.attacks import PGD, Attack
from lit_robust.batch import Batch
from lit_robust.data import ImageDataModule
from lit_robust.measures.accuracy import describe
from lit_robust.measures.attacked_examples import spread
from lit_robust.measures.pictures import BLACK, RED, Column, class_name, grid

#: The pictures' eps, as a multiple of the training's.
TIMES = 3.0


def targets(
    checkpoints: list[str],
    data: ImageDataModule,
    attack: Attack | None = None,
    target: int | None = None,
    images: int = 6,
    limit: int = 500,
    device: str = "auto",
    out: Path = Path("analysis"),
    wandb_project: str | None = None,
    net: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Draw what nets take for another class: test images under a targeted attack with a large eps.

    Such images of a robust net look like the class that they adopt, and those of a natural net look like noise
    (Tsipras et al., ICLR 2019, arXiv:1805.12152, section 3; the Free-vs-Fast report shows it for Free). Give a natural
    net beside the robust ones. A row of the picture is an image, a column is a net. Eps and steps are ours.

    Args:
        checkpoints: .ckpt files, folders of runs, whose last checkpoint is taken, or files of weights; name=path names
            a net.
        data: Its test images are attacked.
        attack: A targeted one; by default PGD at 3 times the eps that all nets were trained with, else 24/255, with 100
            steps of 2.5 eps / 100.
        target: The class to reach, whose own images are left out; by default the class after each image's own.
        images: The number of images, from as many classes as possible.
        limit: Choose among the first ``limit`` test images.
        device: auto, cpu or cuda.
        out: The folder of targets.csv and .png.
        wandb_project: The project of Weights & Biases to which table and picture are also logged.
        net: The net of files that do not name one of lit_robust.nets, such as a plain state_dict; on the command line
            its path, such as torchvision.models.resnet18.

    Returns:
        The rows of the table: for each net and image the clean and the adversarial prediction, with its confidence.

    Raises:
        ValueError: If an argument is out of range, or the attack is not targeted; besides what ``start.begin`` raises.
    """
    if attack is not None and not getattr(attack, "targeted", False):
        raise ValueError(f"attack={describe(attack)} must be targeted: add targeted: true.")
    require.integer("images", images, least=1)
    if target is not None and not (0 <= require.integer("target", target, least=0) < data.num_classes):
        raise ValueError(f"target={target} must be below {data.num_classes}, the number of the data's classes.")
    study = begin(checkpoints, data, limit, device, out, net, wandb_project)
    attack = attack or large_attack(study.subjects)
    x, y = (torch.cat([batch[field] for batch in study.images.batches]) for field in (0, 1))
    x, y = (x, y) if target is None else (x[y != target], y[y != target])
    if not len(y):
        raise ValueError(f"target={target} is the class of all images: choose another one, or a larger limit.")
    chosen = spread(y, images)
    x, y = x[chosen], y[chosen]
    aims = (y + 1) % data.num_classes if target is None else torch.full_like(y, target)
    batch = Images([Batch(x, aims, torch.arange(len(y), device=y.device), torch.ones(len(y), device=y.device))], "")
    names = [*data.class_names]
    rows, columns = [], [Column("clean", x.cpu(), None)]
    for subject in study.subjects:
        (x_adv,) = adversarial_images(subject.net, attack, batch)
        (was, trust), (became, confidence) = (_prediction(subject.net, points) for points in (x, x_adv))
        captions = [
            (f"{class_name(label, names)}  {share:.0%}", RED if label == aim else BLACK)
            for label, share, aim in zip(became, confidence, aims.tolist(), strict=True)
        ]
        columns.append(Column(subject.name, x_adv.cpu(), captions))
        for number, (label, aim) in enumerate(zip(y.tolist(), aims.tolist(), strict=True)):
            rows.append(
                {
                    "net": subject.name,
                    "image": number,
                    "class": _name(label, names),
                    "target": _name(aim, names),
                    "clean prediction": _name(was[number], names),
                    "clean confidence": trust[number],
                    "prediction": _name(became[number], names),
                    "confidence": confidence[number],
                    "attack": describe(attack),
                }
            )
    ends = [[class_name(label, names) for label in labels] for labels in (y.tolist(), aims.tolist())]
    wanted = [f"{a} → {b}" if len(a + b) < 10 else f"{a}\n→ {b}" for a, b in zip(*ends, strict=True)]
    below = "below each image: the net's prediction and its confidence; red: the target"
    figure = grid(describe(attack), below, "class → target", wanted, columns)
    study.write("targets", rows, figure, wandb_project)
    return rows


def large_attack(subjects: Sequence[Subject]) -> PGD:
    """A targeted PGD with an eps that is large for these nets: a robust one resists up to the eps of its training."""
    eps, norm = trained_threat(subjects)
    large = TIMES * eps if norm == "l2" else min(TIMES * eps, 1.0)
    return PGD(eps=large, steps=100, norm=norm, init="zero", targeted=True)


def _name(label: int, names: Sequence[str]) -> str:
    """The whole name of a class; a net may have more classes than the data."""
    return str(names[label]) if label < len(names) else str(label)


@torch.no_grad()
def _prediction(net: nn.Module, x: Tensor) -> tuple[list[int], list[float]]:
    """The predicted classes and their probabilities."""
    confidence, label = net(x).float().softmax(dim=1).max(dim=1)
    return label.tolist(), confidence.tolist()
