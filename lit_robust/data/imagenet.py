"""ImageNet-100, Imagenette and the user's own folders."""

from pathlib import Path
from typing import Any, Literal

from torchvision.datasets import Imagenette

from lit_robust.data.folders import FolderDataModule, class_folders
from lit_robust.data.small import data_root


class ImageFolderDataModule(FolderDataModule):
    """The user's own images in ``root/train/<class>/`` and ``root/val/<class>/``, labelled alphabetically.

    ``val`` is the test set, unless there is a folder ``test``; validation images are held out of ``train``.

    Args:
        root: The folder with ``train`` and ``val`` or ``test``.
        val_size: Training images held out for validation.
        **kwargs: Arguments of :class:`~lit_robust.data.folders.FolderDataModule` and
            :class:`~lit_robust.data.ImageDataModule`.

    Raises:
        FileNotFoundError: If a folder is missing or a class has no images.
        ValueError: If training and test folder have different classes, or too few images for the sizes.
    """

    def __init__(self, root: str, *, val_size: int = 0, **kwargs: Any) -> None:
        self.root = root
        self._names = class_folders(Path(root) / "train")
        super().__init__(val_size=val_size, **kwargs)
        unknown = sorted(set(class_folders(self._folders()[1])) - set(self._names))
        if unknown:
            raise ValueError(f"{self._folders()[1]} has classes that train lacks, {unknown[0]} among them.")
        self.setup()

    @property
    def num_classes(self) -> int:
        """The number of folders in ``train``."""
        return len(self._names)

    def _classes(self) -> list[str]:
        return self._names

    def _folders(self) -> tuple[Path, Path]:
        return train_and_test(Path(self.root))


class ImageNet100DataModule(FolderDataModule):
    """A hundred classes of ImageNet, labelled by sorted wnid.

    The images lie in ``<root>/<folder>/train/<wnid>/`` and ``<root>/<folder>/val/<wnid>/``.

    ``val`` is the test set, unless there is a folder ``test``; validation images are held out of ``train``.

    Args:
        root: The folder with the data sets; by default the environment's ``LIT_ROBUST_DATA``, else ``data``.
        folder: Where under ``root`` the images are; ``.`` for ``root`` itself.
        class_list: A file with one wnid a line: take these classes (however many) from a larger ImageNet,
            such as the hundred of GAT's authors; without it, the folder must have exactly a hundred.
        val_size: Training images held out for validation.
        **kwargs: Arguments of :class:`~lit_robust.data.folders.FolderDataModule` and
            :class:`~lit_robust.data.ImageDataModule`.

    Raises:
        FileNotFoundError: If the class list, or in ``setup`` a folder, is missing.
        ValueError: If the class list is empty or repeats itself, or in ``setup`` the folder has not a
            hundred classes.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        folder: str = "imagenet100",
        class_list: str | None = None,
        val_size: int = 1000,
        **kwargs: Any,
    ) -> None:
        self._listed = None if class_list is None else _wnids(Path(class_list))
        super().__init__(val_size=val_size, **kwargs)
        self.root = data_root(root)
        self.folder = folder

    @property
    def num_classes(self) -> int:
        """100, or what the class list has."""
        return 100 if self._listed is None else len(self._listed)

    def _classes(self) -> list[str]:
        if self._listed is not None:
            return self._listed
        train = self._folders()[0]
        found = class_folders(train)
        if len(found) != self.num_classes:
            raise ValueError(f"{train} has {len(found)} classes, not {self.num_classes}: name them in class_list.")
        return found

    def _folders(self) -> tuple[Path, Path]:
        return train_and_test(Path(self.root) / self.folder)


class ImagenetteDataModule(FolderDataModule):
    """Imagenette: 9,469 + 3,925 images of ten easy classes of ImageNet.

    Args:
        root: The folder with torchvision's layout; by default the environment's ``LIT_ROBUST_DATA``, else
            ``data``.
        size: Which version: the short side of its files.
        image_size: Height and width of the images in a batch; 128 is what the 160 px files are made for.
        val_size: Training images held out for validation.
        download: Whether to fetch what is missing.
        **kwargs: Arguments of :class:`~lit_robust.data.folders.FolderDataModule` and
            :class:`~lit_robust.data.ImageDataModule`.
    """

    num_classes = 10

    def __init__(
        self,
        root: str | None = None,
        *,
        size: Literal["160px", "320px", "full"] = "160px",
        image_size: int = 128,
        val_size: int = 500,
        download: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_size=image_size, val_size=val_size, **kwargs)
        if size not in _IMAGENETTE:
            raise ValueError(f"size={size!r} is not one of {', '.join(_IMAGENETTE)}.")
        self.root = data_root(root)
        self.size = size
        self.download = download

    def prepare_data(self) -> None:
        """Download what is missing, if that is allowed; one process does it."""
        if self.download and not self._base.is_dir():
            Imagenette(self.root, size=self.size, download=True)

    @property
    def _base(self) -> Path:
        return Path(self.root) / _IMAGENETTE[self.size]

    def _classes(self) -> list[str]:
        if not self._base.is_dir():
            raise FileNotFoundError(
                f"Imagenette is not in root={self.root!r} (no folder {self._base.name}): set download: "
                "true, or point root or the environment's LIT_ROBUST_DATA to a folder that has it."
            )
        return class_folders(self._base / "train")

    def _folders(self) -> tuple[Path, Path]:
        return self._base / "train", self._base / "val"


_IMAGENETTE = {"160px": "imagenette2-160", "320px": "imagenette2-320", "full": "imagenette2"}


def train_and_test(base: Path) -> tuple[Path, Path]:
    """The folder ``train``, and ``test`` or in its place ``val``."""
    return base / "train", base / ("test" if (base / "test").is_dir() else "val")


def _wnids(path: Path) -> list[str]:
    try:
        wnids = path.read_text().split()
    except OSError as error:
        raise FileNotFoundError(
            f"class_list={str(path)!r} cannot be read: give a file with one wnid a line."
        ) from error
    if not wnids or len(set(wnids)) != len(wnids):
        raise ValueError(f"class_list={str(path)!r} must name at least one class, and each only once.")
    return sorted(wnids)
