"""Measure how many images a core decodes, crops and resizes per second, as the loaders of folders do it.

    python scripts/decoding_speed.py     # writes scripts/results/decoding_speed.json

The images are JPEGs of random colours with noise, of ImageNet's average size and of a photograph's. Ours is Pillow's
decoder with torchvision's transforms; beside it stand torchvision's own decoder with the same transforms on tensors
(deprecated since torchvision 0.29, so it is not used), and decoding alone. Seconds are CPU seconds of one thread,
medians of repeats in turns. The file is written after each size; what it has of the same settings and code stays.
"""

import argparse
import io
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from cpu_budget_results import code_of
from measured import Table, about
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from lit_robust.data.folders import FolderImages, _transform
from lit_robust.data.image_files import decode

RESULT = Path(__file__).parent / "results/decoding_speed.json"
SIZES = ((500, 375), (2000, 1500))
IMAGES, REPEATS, SIZE = 12, 7, 224


def photo(width: int, height: int, random: np.random.Generator) -> bytes:
    """A JPEG with large patches of colour and noise."""
    patches = random.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = (smooth + random.integers(-12, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measure(files: list[str]) -> dict[str, float]:
    """Images per second and core."""
    ours = FolderImages([(file, 0) for file in files], _transform(SIZE, augment=True))
    on_tensors = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip()])
    ways: dict[str, Callable[[int], Any]] = {
        "ours": lambda i: ours[i, 1.0, i],
        "decoding alone": lambda i: decode(files[i]),
        "torchvision's decoder": lambda i: on_tensors(decode_jpeg(read_file(files[i]), mode=ImageReadMode.RGB)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            begin = time.process_time()
            for i in range(len(files)):
                way(i)
            seconds[name].append(time.process_time() - begin)
    return {name: round(len(files) / median(of)) for name, of in seconds.items()}


def main(args: list[str] | None = None) -> None:
    """Measure all sizes."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(args)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sizes = {f"{width} x {height}": (width, height) for width, height in SIZES}
    settings = {"image_size": SIZE, "repeats": REPEATS, "images": IMAGES, **about(torch.device("cpu"))}
    code = code_of(FolderImages([], _transform(SIZE, augment=True)))
    table = Table(RESULT, settings, dict.fromkeys(sizes, code), rows="images_per_second")
    for name in table.left(sizes):
        random = np.random.default_rng(0)
        with TemporaryDirectory() as folder:
            files = [f"{folder}/{i}.jpg" for i in range(IMAGES)]
            for file in files:
                Path(file).write_bytes(photo(*sizes[name], random))
            found = measure(files)
        table.put(name, found)
        print(name, found, flush=True)


if __name__ == "__main__":
    main()
