"""Finished measurements of a long analysis, so that a killed one goes on where it stopped."""

import hashlib
import json
import os
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

#: The package, and its folders whose code no result depends on: they train, or read what the user writes.
PACKAGE, UNUSED = Path(__file__).parents[1], {"callbacks", "cli", "defenses", "schedules", "selection", "training"}


class Journal:
    """Results by what they depend on, one line of JSON each.

    Each result is appended at once; a last line that a kill has truncated is measured again. A result is used only
    under the same code of lit_robust, version of torch, kind of device and precision.

    Args:
        path: The file; it is created with its first result.
        device: Where the measuring is done.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path = path
        dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
        self._setting = (
            f"lit-robust {version('lit-robust')} {code_of(PACKAGE)}",
            f"torch {torch.__version__} {device.type} {dtype} {precision}",
        )
        self._found: dict[str, Any] = {}
        if path.is_file():
            for line in path.read_text(errors="replace").splitlines():
                try:
                    self._found.update([json.loads(line)])
                except (ValueError, TypeError):  # cut, or not ours
                    continue

    def get(self, key: tuple[str, ...], measure: Callable[[], Any]) -> Any:
        """The result of an earlier call with this key, or else of ``measure``, which is kept.

        Args:
            key: All that the result depends on: digests of weights and images, the attack, the seed.
            measure: Returns numbers, strings, lists and dictionaries of them.
        """
        name = " | ".join((*self._setting, *key))
        if name not in self._found:
            self._found[name] = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            cut = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
            with self.path.open("a") as file:
                file.write("\n" * cut + json.dumps([name, self._found[name]]) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return self._found[name]


@cache
def code_of(package: Path) -> str:
    """A digest of the Python files in a folder, without those in its folders ``UNUSED``."""
    sha = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package)
        if place.parts[0] not in UNUSED:
            sha.update(f"{place.as_posix()} {path.stat().st_size} ".encode() + path.read_bytes())
    return sha.hexdigest()[:16]
