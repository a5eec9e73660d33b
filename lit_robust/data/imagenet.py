"""ImageNet-100, Imagenette and the user's own folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torchvision.datasets import Imagenette

from lit_robust import require
from lit_robust.data.folders import FolderDataModule
from lit_robust.data.torchvision_sets import data_root


class ImageFolderDataModule(FolderDataModule):
    """The user's own images in ``root/train/<class>/`` and ``root/val/<class>/``, labelled alphabetically.

    Args:
        root: The folder with ``train``, and with ``val``, ``test`` or both.
        **kwargs: Arguments of :class:`~lit_robust.data.folders.FolderDataModule` and
            :class:`~lit_robust.data.ImageDataModule`.

    Raises:
        FileNotFoundError: If a folder is missing or a class has no images.
        OSError: If there are images that cannot be read, with their number and the first paths.
        ValueError: If the folders have different classes, or too few images for the sizes.
    """

    def __init__(self, root: str, **kwargs: Any) -> None:
        super().__init__(Path(root).expanduser(), **kwargs)
        self.setup()

    @property
    def num_classes(self) -> int:
        """The number of folders in ``train``."""
        return len(self._classes())


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
        self._listed = None if class_list is None else _names_by_wnid(Path(class_list))
        super().__init__(Path(data_root(root)) / folder, **kwargs)

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
        self.download = download
        super().__init__(Path(self.root) / _IMAGENETTE[size], image_size=image_size, **kwargs)

    def prepare_data(self) -> None:
        """Download what is missing, if allowed; Lightning calls it in one process."""
        if self.download and not self.base.is_dir():
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
