"""ImageNet-100, Imagenette and the user's own folders."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_robust import require
from lit_robust.data.folder_lists import list_images
from lit_robust.data.folders import FolderDataModule
from lit_robust.data.image_files import Findings, class_folders
from lit_robust.data.splits import hold_out
from lit_robust.data.torchvision_sets import data_root
from lit_robust.whole_files import path_of

#: Names of the folders of a split, besides ``train``: a tree that has one without ``train`` is not a plain tree.
_PARTS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


class ImageFolderDataModule(FolderDataModule):
    """The user's own images in ``root/train/<class>/`` and ``root/val/<class>/``, labelled alphabetically.

    A ``root`` without ``train`` is a plain tree, ``root/<class>/``, whose images are split by ``split_seed``: first the
    test images, in proportion to the classes, and then, as always, those to validate on.

    Args:
        root: The folder with ``train``, and with ``val``, ``test`` or both; or with the class folders themselves.
        test_size: For budgets: test on the first ``test_size`` images only; None for all. Of a plain tree, the number
            of images held out for the test; a fifth by default.
        **kwargs: Arguments of :class:`~lit_robust.data.folders.FolderDataModule` and
            :class:`~lit_robust.data.ImageDataModule`.

    Raises:
        FileNotFoundError: If a folder is missing or a class has no images.
        OSError: If there are images that cannot be read, with their number and the first paths.
        ValueError: If the folders have different classes, or too few images for the sizes.
    """

    def __init__(self, root: str, *, test_size: int | None = None, **kwargs: Any) -> None:
        super().__init__(path_of("root", root, "a folder"), test_size=test_size, **kwargs)
        self.setup()

    @property
    def num_classes(self) -> int:
        """The number of class folders."""
        return len(self._classes())

    @property
    def _is_plain(self) -> bool:
        return self.base.is_dir() and not (self.base / "train").is_dir()

    def _classes(self) -> list[str]:
        if not self._is_plain:
            return super()._classes()
        names = class_folders(self.base)
        if parts := [name for name in names if name.lower() in _PARTS]:
            raise FileNotFoundError(
                f"{self.base} has a folder {parts[0]} but no folder train: rename the training images' folder to "
                f"train, and others to val and test (or, if {parts[0]} is a class, rename that)."
            )
        return names

    def _read(self) -> tuple[Tensor, Tensor]:
        if not self._is_plain:
            return super()._read()
        classes, findings = self._classes(), Findings()
        files = list_images(self.base, classes, classes, findings)
        findings.check(self.base, [path for path, _ in files])
        labels = torch.tensor([label for _, label in files])
        size = math.ceil(len(files) / 5) if self.test_size is None else self.test_size
        if size >= len(files):
            raise ValueError(f"test_size={size} leaves no image of {len(files)} to train on: take fewer.")
        rest, test = hold_out(labels, size, "stratified", self.split_seed)
        self._in_val = 0
        self._files = {train: [files[i] for i in part.tolist()] for train, part in ((True, rest), (False, test))}
        return labels[rest], labels[test]

    def setup(self, stage: str | None = None) -> None:
        """Read the data, for any stage; say how a plain tree was split. Later calls do nothing."""
        new = self._selected is None
        super().setup(stage)
        if new and self._is_plain:
            rank_zero_info(
                f"{self.base} has no folder train, so its images are split by split_seed={self.split_seed}: "
                f"{len(self._train)} to train, {len(self._val)} to validate and {len(self._test)} to test on."
            )


class ImageNet100DataModule(FolderDataModule):
    """A hundred classes of ImageNet in ``<root>/<folder>/train/<wnid>/`` and so on, labelled by sorted wnid.

    GAT's authors (arXiv:2011.14969) list theirs in ``ImageNet -100/ImageNet100_classes.txt`` in the GitHub
    repository ``val-iisc/GAMA-GAT``, which can be given as ``class_list`` as it is.

    Args:
        root: The folder with the data sets; by default the environment's ``LIT_ROBUST_DATA``, else ``data``.
        folder: Where under ``root`` the images are; ``.`` for ``root`` itself.
        class_list: A file with one wnid per line: use these classes (any number) of a larger ImageNet. Without it, the
            folder must have exactly a hundred. The text after a wnid, up to a comma, is the class's name (as in
            ImageNet's ``LOC_synset_mapping.txt``); without one, the name is the wnid.
        **kwargs: Arguments of :class:`~lit_robust.data.folders.FolderDataModule` and
            :class:`~lit_robust.data.ImageDataModule`.

    Raises:
        FileNotFoundError: If the class list, or in ``setup`` a folder, is missing.
        ValueError: If the class list is empty or has duplicates, or in ``setup`` the folder does not have a hundred
            classes.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        folder: str = "imagenet100",
        class_list: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._listed = None if class_list is None else _names_by_wnid(path_of("class_list", class_list, "a file"))
        super().__init__(Path(data_root(root)) / path_of("folder", folder, "a folder under root"), **kwargs)

    @property
    def num_classes(self) -> int:
        """100, or the number of classes in the list."""
        return 100 if self._listed is None else len(self._listed)

    @property
    def class_names(self) -> Sequence[str]:
        """Those of the class list, or the names of the folders."""
        return self._classes() if self._listed is None else list(self._listed.values())

    def _classes(self) -> list[str]:
        if self._listed is not None:
            return list(self._listed)
        found = super()._classes()
        if len(found) != 100:
            raise ValueError(
                f"{self.base / 'train'} has {len(found)} classes, not 100: name those to take in class_list, a file "
                "with one wnid per line."
            )
        return found


class ImagenetteDataModule(FolderDataModule):
    """Imagenette: 9,469 + 3,925 images of ten easy classes of ImageNet.

    Args:
        root: The folder with torchvision's layout; by default the environment's ``LIT_ROBUST_DATA``, else
            ``data``.
        size: Which version: the short side of its files.
        image_size: Height and width of the images in a batch; 128 is what the 160 px files are made for.
        download: Whether to fetch what is missing.
        **kwargs: Arguments of :class:`~lit_robust.data.folders.FolderDataModule` and
            :class:`~lit_robust.data.ImageDataModule`.
    """

    num_classes = 10
    class_names = (
        "tench",
        "English springer",
        "cassette player",
        "chain saw",
        "church",
        "French horn",
        "garbage truck",
        "gas pump",
        "golf ball",
        "parachute",
    )

    def __init__(
        self,
        root: str | None = None,
        *,
        size: Literal["160px", "320px", "full"] = "160px",
        image_size: int = 128,
        download: bool = False,
        **kwargs: Any,
    ) -> None:
        require.one_of("size", size, tuple(_IMAGENETTE))
        self.root = data_root(root)
        self.size = size
        require.flags(download=download)
        self.download = download
        super().__init__(Path(self.root) / _IMAGENETTE[size], image_size=image_size, **kwargs)

    def prepare_data(self) -> None:
        """Download what is missing, if allowed; Lightning calls it in one process."""
        if self.download and not self.base.is_dir():
            from torchvision.datasets import Imagenette  # late, for the command line's start

            Imagenette(self.root, size=self.size, download=True)

    def _classes(self) -> list[str]:
        if not self.base.is_dir():
            raise FileNotFoundError(
                f"Imagenette is not in root={self.root!r} (no folder {self.base.name}): set download: "
                "true, or point root or the environment's LIT_ROBUST_DATA to a folder that has it."
            )
        return super()._classes()


_IMAGENETTE = {"160px": "imagenette2-160", "320px": "imagenette2-320", "full": "imagenette2"}


def _names_by_wnid(path: Path) -> dict[str, str]:
    try:
        lines = [line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise FileNotFoundError(
            f"class_list={str(path)!r} cannot be read: give a file with one wnid per line."
        ) from error
    names = {wnid: (rest[0] if rest else wnid).split(",")[0].strip() for wnid, *rest in sorted(lines)}
    if not names or len(names) != len(lines):
        raise ValueError(f"class_list={str(path)!r} must name at least one class, and each only once.")
    return names
