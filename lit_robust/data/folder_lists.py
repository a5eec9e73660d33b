"""The images of class folders, with their labels."""

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_robust.data.image_files import Findings, class_folders
from lit_robust.data.image_names import is_hidden


def list_images(folder: Path, classes: list[str], known: list[str], findings: Findings) -> list[tuple[str, int]]:
    """Path and label of every image of ``classes`` in the class folders of ``folder``.

    Args:
        folder: The folder with the class folders.
        classes: The classes, in the order of their labels.
        known: The class folders of the training set.
        findings: Collects unused files and faults.

    Raises:
        FileNotFoundError: If one of the classes has no folder or no image.
        ValueError: If there is a folder that is not among ``known``.
    """
    if len(classes) == 1:
        rank_zero_info(
            f"{folder} has one class, {classes[0]}, so there is nothing to learn: add the folder of another class."
        )
    found = set(class_folders(folder))
    if unknown := sorted(found - set(known)):
        raise ValueError(
            f"{folder} has classes that train lacks, {unknown[0]} among them: add their images to train, or remove "
            "these folders."
        )
    if missing := sorted(set(classes) - found):
        raise FileNotFoundError(
            f"{folder} has no folder for {len(missing)} of the {len(classes)} classes, {missing[0]} among them: "
            "add their images."
        )
    findings.unused += [str(entry) for entry in folder.iterdir() if not is_hidden(entry.name) and not entry.is_dir()]
    images: list[tuple[str, int]] = []
    without = []
    for label, name in enumerate(classes):
        faults = len(findings.faults)
        of_class = findings.images(folder / name)
        if not of_class and len(findings.faults) == faults:
            without.append(name)
        images += [(path, label) for path in of_class]
    if shared := findings.shared():
        link, owner = shared[0]
        others = f" ({len(shared)} such links)" if len(shared) > 1 else ""
        rank_zero_warn(f"{link} leads to the images of {owner}, which get both labels{others}: remove the link.")
    if without:
        raise FileNotFoundError(
            f"{folder} has classes without images, {without[0]} among them: add images, or remove these folders."
        )
    return images
