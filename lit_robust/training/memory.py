"""What a method remembers from one batch to the next: forgotten, saved, gathered and loaded in one place."""

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

    A fit begins with what was declared, a checkpoint holds the tensors of every rank and the values, and a resumed fit
    goes on with them. It is no part of the weights: neither averages of them nor ``load_net`` see it.

    ``tensors`` are this rank's, by name, and empty at first; ``values`` are numbers, lists of numbers, bools or None,
    and the method sees to it that they are the same on every rank.
    """

    def __init__(self) -> None:
        self.tensors: Tensors = {}
        self.values: dict[str, Any] = {}
        self._initial: dict[str, Any] = {}
        self._merge: Callable[[Sequence[Tensors]], Tensors] | None = None

    def declare(self, merge: Callable[[Sequence[Tensors]], Tensors] | None = None, **initial: Any) -> None:
        """State what a fit begins with.

        Args:
            merge: Makes one rank's tensors out of those of another number of ranks. Without it they are forgotten
                when a run is resumed on another number, which is told.
            **initial: The values by name.
        """
        self._merge = merge or self._merge
        self._initial |= initial
        self.values |= deepcopy(initial)

    def forget(self) -> None:
        """Begin a fit."""
        self.tensors, self.values = {}, deepcopy(self._initial)

    def to(self, device: torch.device) -> None:
        """Move the tensors to where the training runs."""
        self.tensors = {name: value.to(device) for name, value in self.tensors.items()}

    def merge_ranks(self, device: torch.device) -> None:
        """Give every rank what all of them know; every rank must ask."""
        assert self._merge is not None, "the memory of this method says nothing of other ranks"
        self.tensors = self._merge(gather_over_ranks(self.tensors))
        self.to(device)

    def state_dict(self) -> dict[str, Any]:
        """The tensors of all ranks and the values, for a checkpoint; every rank must ask."""
        return {"tensors": gather_over_ranks(self.tensors), "values": deepcopy(self.values)}

    def load_state_dict(self, state: Mapping[str, Any], rank: int) -> None:
        """Go on where a checkpoint stands."""
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


def of_older_versions(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The memory in a checkpoint of version 0.1, which kept tensors, NuAT-H's and CurriculumAT's values apart."""
    return {"tensors": saved.get("ranks", []), "values": {**saved.get("hybrid", {}), **saved.get("curriculum", {})}}
