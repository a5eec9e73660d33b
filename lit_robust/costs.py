"""What a training has cost, as its checkpoint says: seconds, passes through the net, hardware and precision."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

#: The key of the cost in a checkpoint's section ``lit_robust``.
KEY = "cost"


class Cost(NamedTuple):
    """The cost of a training up to a checkpoint, over all ranks and across resumes.

    It covers training batches and the selections of coresets, without validation. Work that was lost because a run was
    killed after its last checkpoint is not part of it.
    """

    #: Wall-clock seconds of the slowest rank.
    seconds: float = 0.0
    #: CPU seconds of all threads of all ranks, without the processes of data loaders.
    cpu_seconds: float = 0.0
    #: Forward passes, counted in images: a batch of 128 images counts as 128.
    forwards: int = 0
    #: Backward passes, counted in images, whenever a gradient reaches the logits and goes on into the net.
    backwards: int = 0
    #: The devices, in the order of their use; several if a run was resumed on another one.
    hardware: Sequence[str] = ()
    #: The trainer's precisions, in the order of their use.
    precision: Sequence[str] = ()
    #: What selections of coresets have taken of the above; 0 for older versions, which did not count them.
    selection_seconds: float = 0.0
    selection_cpu_seconds: float = 0.0
    selection_forwards: int = 0
    selection_backwards: int = 0

    @property
    def passes(self) -> int:
        """Forward and backward passes, counted in images."""
        return self.forwards + self.backwards

    @property
    def selection_passes(self) -> int:
        """The passes of selections."""
        return self.selection_forwards + self.selection_backwards

    @property
    def where(self) -> str:
        """The hardware in words."""
        return ", then ".join(self.hardware)


def cost_of(checkpoint: Mapping[str, Any]) -> Cost | None:
    """The cost that a checkpoint holds; None if an older version wrote it, or resumed a run of an older version.

    Raises:
        ValueError: If the section is broken.
    """
    found = checkpoint.get("lit_robust", {}).get(KEY)
    if found is None:
        return None
    numbers, words = ("seconds", "cpu_seconds", "forwards", "backwards"), ("hardware", "precision")
    of_selections = tuple(f"selection_{name}" for name in numbers)
    if isinstance(found, dict):
        found = dict.fromkeys(of_selections, 0) | found
    if not isinstance(found, dict) or not (
        all(_is_amount(found.get(name)) for name in (*numbers, *of_selections))
        and all(_are_words(found.get(name)) for name in words)
    ):
        raise ValueError(f"the checkpoint is broken: lit_robust.{KEY} does not hold a cost; use an earlier one.")
    return Cost(**{name: found[name] for name in (*numbers, *words, *of_selections)})


def _is_amount(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= 2**63


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 100 and all(isinstance(one, str) for one in value)
