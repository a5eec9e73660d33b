"""Data sets too big for the device: one folder a class, decoded and augmented by worker processes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import suggested_max_num_workers
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader, find_classes, make_dataset
from torchvision.transforms import v2

from lit_robust import require
from lit_robust.batch import Batch
from lit_robust.data.base import ImageDataModule
from lit_robust.data.loaders import EpochLoader, Samples
from lit_robust.data.splits import Split, in_turns
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


class Inbox:
    """Where worker processes, which outlive an epoch, find its requests."""

    requests: Iterator[list[Request]]

    def __iter__(self) -> Iterator[list[Request]]:
        return self.requests


class Workers:
    """Processes that decode images and stay for the next epoch. They keep no state: a request holds its seed.

    Args:
        images: What they decode.
        count: How many there are; with 0 this process decodes.
        pin_memory: Whether batches are put where a GPU fetches them from.
    """

    def __init__(self, images: FolderImages, count: int, pin_memory: bool) -> None:
        self.images = images
        self.count = count
        self.pin_memory = pin_memory
        self._idle: tuple[Inbox, DataLoader[Batch]] | None = None

    def decode(self, requests: Iterator[list[Request]]) -> Iterator[Batch]:
        """Answer requests, a batch each, in order."""
        inbox, loader = mine = self._idle or self._start()
        self._idle = None  # who comes before these are done gets others
        inbox.requests = requests
        try:
            yield from loader
        finally:
            self._idle = mine

    def _start(self) -> tuple[Inbox, DataLoader[Batch]]:
        inbox = Inbox()
        return inbox, DataLoader(
            self.images,
            batch_sampler=inbox,
            num_workers=self.count,
            persistent_workers=self.count > 0,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # so that no number is drawn from the global one
        )


class FolderLoader(EpochLoader):
    """Batches from worker processes. An image's augmentation depends on seed, epoch and index alone.

    Args:
        samples: What to go through, as positions in the workers' images.
        workers: Who decodes them.
        device: Where batches go.
        **walk: Arguments of :class:`EpochLoader`.
    """

    def __init__(self, samples: Samples, workers: Workers, *, device: torch.device, **walk: Any) -> None:
        super().__init__(samples, **walk)
        self.workers = workers
        self.device = device

    def _batches(self, share: Samples, numbers: range) -> Iterator[Batch]:
        for batch in self.workers.decode(self._requests(share, numbers)):
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
    """Images in one folder a class, in ``train/<class>/``, ``val/<class>/`` and perhaps ``test/<class>/``.

    The test set is ``test``, and validation images are those in ``val``. If there is only one of the two, it is
    the test set, and validation images are held out of ``train``; so they are wherever ``val_size`` is given.

    Training images are random crops (of 8 % to 100 % of the area) scaled to ``image_size`` and mirrored; the
    others, and all without ``augment``, are scaled so that the short side is 8/7 of it (256 for 224) and
    cropped in the middle. Classes take turns in what is not shuffled, and in ``train_size`` and ``test_size``,
    because the files are sorted by class.

    Args:
        base: The folder that holds ``train``.
        image_size: Height and width of the images in a batch.
        num_workers: Processes that decode, per rank and set; by default one a core, at most 8. They stay from
            epoch to epoch.
        augment: Whether training images are cropped and mirrored at random.
        split: Which images are held out.
        **kwargs: Arguments of :class:`~lit_robust.data.ImageDataModule`.
    """

    def __init__(
        self,
        base: Path,
        *,
        image_size: int = 224,
        num_workers: int | None = None,
        augment: bool = True,
        split: Split = "stratified",
        **kwargs: Any,
    ) -> None:
        self.base = base
        super().__init__(augment=augment, split=split, **kwargs)
        require.integer("image_size", image_size, least=1)
        if num_workers is not None:
            require.integer("num_workers", num_workers, least=0)
        self.image_size = image_size
        self.num_workers = min(8, suggested_max_num_workers(1)) if num_workers is None else num_workers
        self._workers: dict[tuple[bool, bool, bool], Workers] = {}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Three channels of ``image_size`` x ``image_size``."""
        return 3, self.image_size, self.image_size

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the folders."""
        return self._classes()

    def _classes(self) -> list[str]:
        """The class folders, in the order of their labels."""
        return class_folders(self.base / "train")

    def _read(self) -> tuple[Tensor, Tensor]:
        train, val, test = (self.base / part for part in ("train", "val", "test"))
        classes, known = self._classes(), class_folders(train)
        tested = test if test.is_dir() else val
        of_train, of_test = (list_images(folder, classes, known) for folder in (train, tested))
        validates = self.val_size is None and test.is_dir() and val.is_dir()
        of_val = list_images(val, classes, known) if validates else []
        self._in_val = len(of_val)
        self._files = {True: of_train + of_val, False: of_test}
        labels = {key: torch.tensor([label for _, label in files]) for key, files in self._files.items()}
        return labels[True], labels[False]

    def _hold_out(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not self._in_val:
            return super()._hold_out(labels)
        in_train = len(labels) - self._in_val
        return torch.arange(in_train), torch.arange(in_train, len(labels))

    def _order(self, labels: Tensor) -> Tensor:
        return in_turns(labels)

    def _loader(self, samples: Samples, *, train: bool, augment: bool, **walk: Any) -> EpochLoader:
        pin = self._device.type == "cuda"
        images = FolderImages(self._files[train], _transform(self.image_size, augment))
        workers = self._workers.setdefault((train, augment, pin), Workers(images, self.num_workers, pin))
        return FolderLoader(samples, workers, device=self._device, **walk)


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


def list_images(folder: Path, classes: list[str], known: list[str]) -> list[tuple[str, int]]:
    """Path and label of every image in the class folders of ``folder`` that ``classes`` names.

    Raises:
        FileNotFoundError: If one of the classes has no folder or no image.
        ValueError: If there is a folder besides the ``known`` ones, those of the training set.
    """
    found = set(class_folders(folder))
    if unknown := sorted(found - set(known)):
        raise ValueError(f"{folder} has classes that train lacks, {unknown[0]} among them.")
    if missing := sorted(set(classes) - found):
        raise FileNotFoundError(
            f"{folder} has no folder for {len(missing)} of the {len(classes)} classes, {missing[0]} among them."
        )
    labels = {name: label for label, name in enumerate(classes)}
    try:
        files: list[tuple[str, int]] = make_dataset(folder, labels, extensions=IMG_EXTENSIONS)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder} has classes without images: {str(error).split('. ')[0]}.") from error
    return files
