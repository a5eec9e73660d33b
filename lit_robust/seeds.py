"""Random numbers that a resumed run draws again.

A run that is stopped and resumed equals one that was not only if no random number depends on what was drawn
before the stop. So whoever draws seeds first, from values that a checkpoint keeps: the run's seed, the epoch, the
batch index and the rank.
"""

import hashlib
import os

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
    """Seed the random numbers of the CPU and of this device by the run's seed and these parts.

    ``torch.manual_seed`` would reach for every kind of accelerator there is, and write down a stack trace for each that
    is missing: milliseconds that every batch would pay.
    """
    number = derive_seed(run_seed(), *parts)
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(number)
