"""Data sets too big for the device: one folder per class, decoded and augmented by worker processes."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import suggested_max_num_workers
from lightning.pytorch.utilities import rank_zero_info
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_robust import require
from lit_robust.batch import Batch
from lit_robust.data.base import ImageDataModule
from lit_robust.data.folder_lists import list_images
from lit_robust.data.image_files import Findings, class_folders, decode
from lit_robust.data.loaders import EpochLoader, Samples, ignore_interrupts
from lit_robust.data.splits import Split, in_turns
from lit_robust.seeds import derive_seed

#: Random crops to 8 % of the area leave less than 9 x 9 pixels of smaller images.
SMALL = 32

#: A request to a worker: the image's position, its weight, and the seed of its augmentation.
Request = tuple[int, float, int]


class FolderImages(Dataset[Batch]):
    """Decodes single images.

    Args:
        files: Path and label of every image.
        transform: Turns a PIL image into a uint8 tensor.

    Raises:
        OSError: If an image cannot be decoded; it names the file.
    """

    def __init__(self, files: list[tuple[str, int]], transform: Callable[[Image], Tensor]) -> None:
        self.files = files
        self.transform = transform

    def __getitem__(self, request: Request) -> Batch:
        index, weight, seed = request
        path, label = self.files[index]
        image = decode(path)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed the accelerator, even in a worker.
            torch.default_generator.manual_seed(seed)
            x = self.transform(image)
        return Batch(x, torch.tensor(label), torch.tensor(index), torch.tensor(weight))


class Inbox:
    """The batch sampler of worker processes that outlive an epoch; ``requests`` are set for each."""

    requests: Iterator[list[Request]]

    def __iter__(self) -> Iterator[list[Request]]:
        return self.requests


class Workers:
    """Processes that decode images and stay alive between epochs. They keep no state: a request holds its seed.

    Args:
        images: The images to decode.
        count: The number of processes; with 0 the calling process decodes.
        pin_memory: Whether to put batches into pinned memory, which a GPU copies from faster.
    """

    def __init__(self, images: FolderImages, count: int, pin_memory: bool) -> None:
        self.images = images
        self.count = count
        self.pin_memory = pin_memory
        self._idle: tuple[Inbox, DataLoader[Batch]] | None = None

    def decode(self, requests: Iterator[list[Request]]) -> Iterator[Batch]:
        """Yield a batch for each request, in order."""
        inbox, loader = mine = self._idle or self._start()
        self._idle = None  # an iteration that begins before this one ends starts its own
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
            generator=torch.Generator(),  # so that the global one is not advanced
            worker_init_fn=ignore_interrupts,
        )


class FolderLoader(EpochLoader):
    """Batches from worker processes. An image's augmentation depends only on seed, epoch and index.

    Args:
        samples: The samples to iterate over, as positions in the workers' images.
        workers: The processes that decode them.
        device: Where batches go.
        **epoch: Arguments of :class:`EpochLoader`.
    """

    def __init__(self, samples: Samples, workers: Workers, *, device: torch.device, **epoch: Any) -> None:
        super().__init__(samples, **epoch)
        self.workers = workers
        self.device = device

    def _batches(self, share: Samples, numbers: range) -> Iterator[Batch]:
        for batch in self.workers.decode(self._requests(share, numbers)):
            moved = Batch(*(part.to(self.device, non_blocking=True) for part in batch))
            # workers send bytes, a quarter of the size of floats
            yield moved._replace(x=moved.x.to(torch.float32) / 255)

    def _requests(self, share: Samples, numbers: range) -> Iterator[list[Request]]:
        for number in numbers:
            here = self._slice(number)
            yield [
                (index, weight, derive_seed(self.seed, "data", self.epoch, index))
                for index, weight in zip(share.indices[here].tolist(), share.weights[here].tolist(), strict=True)
            ]


class FolderDataModule(ImageDataModule):
    """Images in one folder per class: ``train/<class>/``, ``val/<class>/`` and perhaps ``test/<class>/``.

    The test set is ``test``, and the validation images are those in ``val``. If there is only one of the two, it is the
    test set, and validation images are held out of ``train``. They are also held out of ``train`` if ``val_size`` is
    given.

    Training images are random crops (of 8 % to 100 % of the area), scaled to ``image_size`` and mirrored at random;
    other images, and all without ``augment``, are scaled to a short side of 8/7 ``image_size`` (256 for 224) and
    cropped at the centre. Files are sorted by class, so unshuffled images, and those of ``train_size`` and
    ``test_size``, alternate between the classes.

    Images are BMP, GIF, JPEG, PNG, PPM, TIFF and WebP files, turned upright by their EXIF orientation; grey levels of
    16 bits and floats in [0, 1] are rounded to 8 bits. Names that begin with a point, and what tools leave behind
    (``__MACOSX``, ``@eaDir``), are passed over. ``setup`` reads the header of every image, and decodes all of up to
    20,000, so that faults are found before training.

    Args:
        base: The folder that holds ``train``.
        image_size: Height and width of the images in a batch.
        num_workers: Decoding processes per rank and set; by default the cores divided by the machine's ranks, less one
            for the rank itself, but 1 at least and 8 at most. They stay alive between epochs.
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
        if augment and image_size < SMALL:
            side = round(image_size * 0.08**0.5)
            rank_zero_info(
                f"augment=True crops images at random to as little as 8 % of their area, of which "
                f"image_size={image_size} leaves {side} x {side} pixels: set augment to false, unless that is meant."
            )
        self.image_size = image_size
        self.num_workers = num_workers
        #: By the set, its augmentation, pinned memory and ``image_size``, which may change between epochs.
        self._workers: dict[tuple[bool, bool, bool, int], Workers] = {}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Three channels of ``image_size`` x ``image_size``."""
        return 3, self.image_size, self.image_size

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the folders."""
        return self._classes()

    @property
    def test_files(self) -> Sequence[str]:
        """Paths relative to the folder that holds ``train``."""
        self.setup()
        return [os.path.relpath(path, self.base) for path, _ in self._files[False]]

    def _classes(self) -> list[str]:
        """The class folders, in the order of their labels."""
        return class_folders(self.base / "train")

    def _read(self) -> tuple[Tensor, Tensor]:
        train, val, test = (self.base / part for part in ("train", "val", "test"))
        classes, known = self._classes(), class_folders(train)
        tested = test if test.is_dir() else val
        findings = Findings()
        of_train, of_test = (list_images(folder, classes, known, findings) for folder in (train, tested))
        validates = self.val_size is None and test.is_dir() and val.is_dir()
        of_val = list_images(val, classes, known, findings) if validates else []
        findings.check(self.base, [path for path, _ in (*of_train, *of_test, *of_val)])
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

    def _loader(self, samples: Samples, *, train: bool, augment: bool, **epoch: Any) -> EpochLoader:
        pin = self._device.type == "cuda"
        images = FolderImages(self._files[train], _transform(self.image_size, augment))
        self._workers = {key: idle for key, idle in self._workers.items() if key[-1] == self.image_size}
        key = (train, augment, pin, self.image_size)
        ranks = getattr(self.trainer, "num_devices", 1)
        count = min(8, suggested_max_num_workers(ranks)) if self.num_workers is None else self.num_workers
        workers = self._workers.setdefault(key, Workers(images, count, pin))
        return FolderLoader(samples, workers, device=self._device, **epoch)


def _transform(size: int, augment: bool) -> Callable[[Image], Tensor]:
    from torchvision.transforms import v2  # late, for the command line's start

    if augment:
        steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
    else:
        steps = [v2.Resize(round(size * 8 / 7)), v2.CenterCrop(size)]
    composed: Callable[[Image], Tensor] = v2.Compose([*steps, v2.ToImage(), v2.ToPureTensor()])
    return composed
