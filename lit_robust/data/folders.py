"""Data sets too big for the device: one folder a class, decoded and augmented by worker processes."""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import suggested_max_num_workers
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader, find_classes, make_dataset
from torchvision.transforms import v2

from lit_robust.batch import Batch
from lit_robust.data.base import ImageDataModule
from lit_robust.data.loaders import EpochLoader, Samples
from lit_robust.data.splits import first_of_each_class
from lit_robust.seeds import derive_seed

#: What a worker is asked for: the image's position, its weight, and the seed of its augmentation.
Request = tuple[int, float, int]


class FolderImages(Dataset[Batch]):
    """Decodes single images.

    Args:
        files: Path and label of every image.
        transform: From a PIL image to a uint8 image.

    Raises:
        OSError: If an image cannot be decoded; it names the file.
    """

    def __init__(self, files: list[tuple[str, int]], transform: v2.Transform) -> None:
        self.files = files
        self.transform = transform

    def __getitem__(self, request: Request) -> Batch:
        index, weight, seed = request
        path, label = self.files[index]
        try:
            image = default_loader(path)
        except Exception as error:  # Pillow raises many kinds for a broken file
            raise OSError(f"{path} is not a readable image ({error}): repair or remove it.") from error
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reach for the accelerator, in a worker too.
            torch.default_generator.manual_seed(seed)
            x = self.transform(image)
        return Batch(x, torch.tensor(label), torch.tensor(index), torch.tensor(weight))


class FolderLoader(EpochLoader):
    """Batches from worker processes. An image's augmentation depends on seed, epoch and index alone.

    Args:
        samples: What to go through, as positions in ``images``.
        images: The data set.
        num_workers: Processes that decode; 0 decodes in this one.
        device: Where batches go.
        **walk: Arguments of :class:`EpochLoader`.
    """

    def __init__(
        self, samples: Samples, images: FolderImages, *, num_workers: int, device: torch.device, **walk: Any
    ) -> None:
        super().__init__(samples, **walk)
        self.images = images
        self.num_workers = num_workers
        self.device = device

    def _batches(self, share: Samples, numbers: range) -> Iterator[Batch]:
        decoded: DataLoader[Batch] = DataLoader(
            self.images,
            batch_sampler=self._requests(share, numbers),
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # so that no number is drawn from the global one
        )
        for batch in decoded:
            moved = Batch(*(part.to(self.device, non_blocking=True) for part in batch))
            # bytes travel from the workers, a quarter of what floats would be
            yield moved._replace(x=moved.x.to(torch.float32) / 255)

    def _requests(self, share: Samples, numbers: range) -> Iterator[list[Request]]:
        for number in numbers:
            here = self._slice(number)
            yield [
                (index, weight, derive_seed(self.seed, "data", self.epoch, index))
                for index, weight in zip(share.indices[here].tolist(), share.weights[here].tolist(), strict=True)
            ]


class FolderDataModule(ImageDataModule):
    """Images in one folder a class; a subclass says where they are.

    Training images are random crops (of 8 % to 100 % of the area) scaled to ``image_size`` and mirrored; the
    others, and all without ``augment``, are scaled so that the short side is 8/7 of it (256 for 224) and
    cropped in the middle. ``train_size`` and ``test_size`` take from every class in turn, because the files
    are sorted by class.

    Args:
        image_size: Height and width of the images in a batch.
        num_workers: Processes that decode, per rank; by default one a core, at most 8.
        augment: Whether training images are cropped and mirrored at random.
        **kwargs: Arguments of :class:`~lit_robust.data.ImageDataModule`.
    """

    def __init__(
        self, *, image_size: int = 224, num_workers: int | None = None, augment: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(augment=augment, **kwargs)
        if image_size < 1:
            raise ValueError(f"image_size={image_size} must be at least 1.")
        if num_workers is not None and num_workers < 0:
            raise ValueError(f"num_workers={num_workers} must be at least 0.")
        self.image_size = image_size
        self.num_workers = min(8, suggested_max_num_workers(1)) if num_workers is None else num_workers

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Three channels of ``image_size`` x ``image_size``."""
        return 3, self.image_size, self.image_size

    @abstractmethod
    def _folders(self) -> tuple[Path, Path]:
        """The folders of the training and of the test set."""

    @abstractmethod
    def _classes(self) -> list[str]:
        """The class folders, in the order of their labels."""

    def _read(self) -> tuple[Tensor, Tensor]:
        classes = self._classes()
        self._files = dict(zip((True, False), (list_images(f, classes) for f in self._folders()), strict=True))
        train, test = (torch.tensor([label for _, label in self._files[key]]) for key in (True, False))
        return train, test

    def _first(self, labels: Tensor, size: int) -> Tensor:
        return first_of_each_class(labels, size)

    def _loader(self, samples: Samples, *, train: bool, augment: bool, **walk: Any) -> EpochLoader:
        images = FolderImages(self._files[train], _transform(self.image_size, augment))
        return FolderLoader(samples, images, num_workers=self.num_workers, device=self._device, **walk)


def _transform(size: int, augment: bool) -> v2.Transform:
    if augment:
        steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
    else:
        steps = [v2.Resize(round(size * 8 / 7)), v2.CenterCrop(size)]
    return v2.Compose([*steps, v2.ToImage(), v2.ToPureTensor()])


def class_folders(folder: Path) -> list[str]:
    """The names of a folder's folders, sorted.

    Raises:
        FileNotFoundError: If there are none.
    """
    try:
        classes: list[str] = find_classes(folder)[0]
    except OSError as error:
        raise FileNotFoundError(
            f"{folder} has no class folders: it must hold one folder of images for each class."
        ) from error
    return classes


def list_images(folder: Path, classes: list[str]) -> list[tuple[str, int]]:
    """Path and label of every image below the class folders of ``folder``.

    Raises:
        FileNotFoundError: If a class has no folder or no image.
    """
    missing = sorted(set(classes) - set(class_folders(folder)))
    if missing:
        raise FileNotFoundError(f"{folder} has no folder for {len(missing)} of the classes, {missing[0]} among them.")
    labels = {name: label for label, name in enumerate(classes)}
    try:
        files: list[tuple[str, int]] = make_dataset(folder, labels, extensions=IMG_EXTENSIONS)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder} has classes without images: {str(error).split('. ')[0]}.") from error
    return files
