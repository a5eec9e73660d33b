"""Finished measurements of a long analysis, so that a killed one goes on where it stopped."""

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any


class Journal:
    """Results by what they depend on, one line of JSON each.

    Each result is appended at once; a last line that a kill has truncated is measured again.

    Args:
        path: The file; it is created with its first result.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
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
        name = " | ".join((version("lit-robust"), *key))
        if name not in self._found:
            self._found[name] = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            cut = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
            with self.path.open("a") as file:
                file.write("\n" * cut + json.dumps([name, self._found[name]]) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return self._found[name]
