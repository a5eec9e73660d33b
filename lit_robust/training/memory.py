"""What a method remembers between batches: reset, saved, gathered over ranks and loaded in one place."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_robust.training.ranks import gather_over_ranks, world_size

#: The tensors of one rank by name.
Tensors = dict[str, Tensor]


class Memory:
    """Per-rank tensors and shared plain values that outlive a batch.

    A fit begins with the declared values. A checkpoint holds the values and the tensors of every rank, and a resumed
    fit continues with them. They are not part of the weights: neither averages of weights nor ``load_net`` see them.

    ``tensors`` are this rank's, by name, and empty at first; ``values`` are numbers, lists of numbers, bools or None,
    which the method must keep equal on all ranks.
    """

    def __init__(self) -> None:
        self.tensors: Tensors = {}
        self.values: dict[str, Any] = {}
        self._initial: dict[str, Any] = {}
        self._merge: Callable[[Sequence[Tensors]], Tensors] | None = None

    def declare(self, merge: Callable[[Sequence[Tensors]], Tensors] | None = None, **initial: Any) -> None:
        """Declare the values that a fit begins with.

        Args:
            merge: Makes one rank's tensors from those of all saved ranks, for a run that is resumed on another number
                of ranks. Without it they are forgotten then, with a warning.
            **initial: The initial values by name.
        """
        self._merge = merge or self._merge
        self._initial |= initial
        self.values |= deepcopy(initial)

    def forget(self) -> None:
        """Reset to the declared values."""
        self.tensors, self.values = {}, deepcopy(self._initial)

    def to(self, device: torch.device) -> None:
        """Move the tensors to the training's device."""
        self.tensors = {name: value.to(device) for name, value in self.tensors.items()}

    def merge_ranks(self, device: torch.device) -> None:
        """Replace every rank's tensors by the merged ones of all ranks; every rank must call it."""
        assert self._merge is not None, "merge_ranks needs a merge function: declare(merge=...)"
        self.tensors = self._merge(gather_over_ranks(self.tensors))
        self.to(device)

    def state_dict(self) -> dict[str, Any]:
        """The tensors of all ranks and the values, for a checkpoint; every rank must call it."""
        return {"tensors": gather_over_ranks(self.tensors), "values": deepcopy(self.values)}

    def load_state_dict(self, state: Mapping[str, Any], rank: int) -> None:
        """Restore what a checkpoint holds."""
        ranks: Sequence[Tensors] = state.get("tensors", [])
        if len(ranks) == world_size():
            self.tensors = dict(ranks[rank])
        elif self._merge is not None and all(ranks):
            self.tensors = self._merge(ranks) if ranks else {}
        elif any(ranks):
            names = sorted({name for tensors in ranks for name in tensors})
            rank_zero_warn(
                f"the checkpoint holds {', '.join(names)} of {len(ranks)} ranks, and this training has {world_size()}: "
                f"they start anew; resume on {len(ranks)} ranks to go on exactly."
            )
        self.values |= {
            name: value for name, value in deepcopy(dict(state.get("values", {}))).items() if name in self.values
        }


def shared_out(ranks: Sequence[Tensors]) -> Tensors:
    """Equal shares of the sum over another number of ranks, for tensors that are summed over ranks."""
    names = {name for tensors in ranks for name in tensors}
    sums = {name: torch.stack([tensors[name] for tensors in ranks if name in tensors]).sum(dim=0) for name in names}
    return {name: total / world_size() for name, total in sums.items()}


def of_older_versions(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The memory in a checkpoint of version 0.1, which saved tensors, NuAT-H's and CurriculumAT's values separately."""
    return {"tensors": saved.get("ranks", []), "values": {**saved.get("hybrid", {}), **saved.get("curriculum", {})}}
