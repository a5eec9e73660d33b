"""How an analysis starts: what is refused before anything is measured, and the attack that it takes by default."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from lit_robust.analysis.journal import Journal
from lit_robust.analysis.output import check_folder, check_packages
from lit_robust.analysis.study import Study
from lit_robust.analysis.subjects import (
    Images,
    Subject,
    device_of,
    load_subjects,
    read_test_images,
)
from lit_robust.analysis.trained_threat import trained_threat
from lit_robust.attacks import PGD
from lit_robust.data import ImageDataModule
from lit_robust.measures.image_blocks import Blocks


def begin(
    checkpoints: Sequence[str],
    data: ImageDataModule,
    limit: int | None,
    device: str,
    out: Path,
    net: nn.Module | None = None,
    wandb_project: str | None = None,
) -> Study:
    """Load nets and images, and check beforehand that the results can be written, then that each net fits the images.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ImportError: If matplotlib is missing, or wandb where the results are to be logged.
        ValueError: If ``out`` cannot be written, there is no such device, ``limit`` is below 1, a checkpoint cannot be
            used, or a net and the images do not fit.
    """
    check_folder(out)
    check_packages(wandb_project)
    place, folder = device_of(device), Path(out)
    subjects, images = load_subjects(checkpoints, place, net), read_test_images(data, limit, place)
    check_images(subjects, images)
    journal = Journal(folder / "journal.jsonl", place)
    return Study(subjects, images, place, folder, journal, Blocks(folder / "blocks"))


@torch.no_grad()
def check_images(subjects: Sequence[Subject], images: Images, exactly: int | None = None) -> None:
    """Refuse nets that cannot classify these images.

    Args:
        subjects: The nets.
        images: The images.
        exactly: The number of classes that each net must have; by default it may have more than the labels need.

    Raises:
        ValueError: If a net does not take images of this shape, or has too few classes.
    """
    x, classes = images.batches[0].x[:1], 1 + max(int(batch.y.max()) for batch in images.batches)
    for subject in subjects:
        remedy = "give the data that it was trained with"
        try:
            found = subject.net(x).shape[1]
        except RuntimeError as error:
            shape = " x ".join(map(str, x.shape[1:]))
            raise ValueError(
                f"{subject.path}: its net does not take the data's images of {shape}: {remedy}."
            ) from error
        if found < classes or exactly not in (None, found):
            raise ValueError(
                f"{subject.path}: its net has {found} classes, and the data {exactly or classes}: {remedy}."
            )


def default_attack(subjects: Sequence[Subject], steps: int, fixed_step: bool = False) -> PGD:
    """PGD with the bound and norm that all these nets were trained with, else at 8/255 in L-infinity; then it says so.

    Args:
        subjects: The nets.
        steps: The number of steps of ``2.5 eps / steps``.
        fixed_step: Whether its steps are eps / 4 instead, and stay so where eps is varied.
    """
    eps, norm = trained_threat(subjects)
    return PGD(eps=eps, step_size=eps / 4 if fixed_step else None, steps=steps, norm=norm)
