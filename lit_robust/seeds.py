"""Seeds with which a resumed run draws the same random numbers.

A resumed run equals an uninterrupted one only if no random number depends on what was drawn before the stop. So the
generators are seeded before every use, from values that a checkpoint keeps: the run's seed, the epoch, the batch index
and the rank.
"""

import hashlib
import os
import random
import sys
from typing import Any

import torch


def run_seed() -> int:
    """The seed that ``lightning.seed_everything`` was given, 0 without one; the same on every rank."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any mix of names and integers; different parts give unrelated seeds.

    >>> derive_seed(0, "train", 3) == derive_seed(0, "train", 3)
    True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed(device: torch.device, *parts: int | str) -> None:
    """Seed the generators of Python, NumPy, the CPU and this device from the run's seed and these parts.

    ``torch.manual_seed`` also tries every other kind of accelerator, and records a stack trace for each that is
    missing, which costs milliseconds per batch.
    """
    number = derive_seed(run_seed(), *parts)
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(number)
    random.seed(number)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(number % 2**32)  # it takes no more bits
