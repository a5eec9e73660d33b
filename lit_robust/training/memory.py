"""What a method remembers between batches: reset, saved, gathered over ranks and loaded in one place."""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_robust.checkpoint_sections import TENSORS_OF_RANKS
from lit_robust.checkpoint_states import NUMBERS, Kind, Rule, broken, broken_as, check_entries, check_tensor, is_finite
from lit_robust.ranks import gather_over_ranks, sum_over_ranks, weighted_sum, world_size

#: The tensors of one rank by name.
Tensors = dict[str, Tensor]


class Memory:
    """Per-rank tensors and shared plain values that outlive a batch.

    A fit begins with the declared values. A checkpoint holds the values and the tensors of every rank, and a resumed
    fit continues with them. They are not part of the weights: neither averages of weights nor ``load_net`` see them.

    ``tensors`` are this rank's, by name, and empty at first; ``values`` are numbers, lists of numbers, bools or None,
    which the method must keep equal on all ranks. What a checkpoint holds of a tensor is compared with its declared
    kind, and a value with its initial one: if that is at least 0, the checkpoint's may not be negative.
    """

    def __init__(self) -> None:
        self.tensors: Tensors = {}
        self.values: dict[str, Any] = {}
        self._initial: dict[str, Any] = {}
        self._merge: Callable[[Sequence[Tensors]], Tensors] | None = None
        self._kinds: dict[str, Kind] = {}
        self._check: Callable[[Mapping[str, Any]], None] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Memory":
        """Do not copy ``_check`` unless its module is copied: as a bound method it would drag the module along."""
        memo[id(self)] = new = copy(self)
        for name, value in vars(self).items():
            if name != "_check" or id(getattr(value, "__self__", None)) in memo:
                vars(new)[name] = deepcopy(value, memo)
        return new

    def declare(
        self,
        merge: Callable[[Sequence[Tensors]], Tensors] | None = None,
        kinds: Mapping[str, Kind] | None = None,
        check: Callable[[Mapping[str, Any]], None] | None = None,
        means: Sequence[str] = (),
        **initial: Any,
    ) -> None:
        """Declare the values that a fit begins with.

        Args:
            merge: Builds one rank's tensors, all that the method has, from those of all saved ranks, for a run that is
                resumed on another number of ranks. Without it they are forgotten then, with a warning.
            kinds: The dtype and shape of each tensor, by name.
            check: Refuses values that a checkpoint holds and this method cannot use; called with all of them.
            means: The names of numbers for ``leave``, ``collect`` and ``mean``; ``shared_out`` merges their sums.
            **initial: The initial values by name.
        """
        self._merge = merge or self._merge or (shared_out if means else None)
        self._kinds |= kinds or {}
        self._kinds |= {key: (torch.float32, (2,)) for name in means for key in (name, f"last_{name}")}
        self._check = check or self._check
        self._initial |= initial
        self.values |= deepcopy(initial)

    def forget(self) -> None:
        """Reset to the declared values."""
        self.tensors, self.values = {}, deepcopy(self._initial)

    def to(self, device: torch.device) -> None:
        """Move the tensors to the training's device."""
        self.tensors = {name: value.to(device) for name, value in self.tensors.items()}

    # A number's weighted mean over batches, from its sum and that of the weights.

    def leave(self, name: str, values: Tensor, weight: Tensor) -> None:
        """Leave the ``(N,)`` values of a batch for ``collect``.

        Again in the same batch, they replace the first ones: a weight perturbation computes the loss twice per batch.
        """
        self.tensors[f"last_{name}"] = weighted_sum(values, weight)

    def collect(self, name: str) -> None:
        """Add what the last batch left to the sum since the last ``mean``."""
        if (last := self.tensors.pop(f"last_{name}", None)) is not None:
            self.tensors[name] = self.tensors[name] + last if name in self.tensors else last

    def mean(self, name: str) -> float | None:
        """The mean of what was collected since the last call, over all ranks; None if there is nothing.

        Every rank must call it.
        """
        if (sums := self.tensors.pop(name, None)) is None:
            return None
        total, weight = sum_over_ranks(sums).tolist()
        return float(total / weight) if weight else None

    def merge_ranks(self, device: torch.device) -> None:
        """Replace every rank's tensors by the merged ones of all ranks; every rank must call it."""
        assert self._merge is not None, "merge_ranks needs a merge function: declare(merge=...)"
        self.tensors = self._merge(gather_over_ranks(self.tensors))
        self.to(device)

    def state_dict(self) -> dict[str, Any]:
        """The tensors of all ranks and the values, for a checkpoint; every rank must call it."""
        return {"tensors": gather_over_ranks(self.tensors), "values": deepcopy(self.values)}

    def check(self, state: Any) -> None:
        """Refuse what a checkpoint holds if it cannot be restored; nothing changes.

        Raises:
            ValueError: At the first tensor or value that is of another kind, not finite or out of range.
        """
        state = {"tensors": [], "values": {}} | state if isinstance(state, dict) else state
        check_entries("memory", state, {"tensors": TENSORS_OF_RANKS, "values": _VALUES})
        for tensors in state["tensors"]:
            for name, tensor in tensors.items():
                check_tensor(f"memory.tensors.{name}", tensor, self._kinds.get(name, (tensor.dtype, tensor.shape)))
        for name in self._initial.keys() & state["values"].keys():
            begins, value = self._initial[name], state["values"][name]
            is_right, needed = _like(begins)
            if not is_right(value):
                raise broken(f"memory.values.{name}", value, needed)

    def load_state_dict(self, state: Mapping[str, Any], rank: int, resumes: bool = True) -> None:
        """Restore what a checkpoint holds.

        Args:
            state: What it holds.
            rank: The rank of this process.
            resumes: Whether a training goes on with it, for which other ranks than the checkpoint's matter.

        Raises:
            ValueError: If it cannot be used; then nothing is restored.
        """
        self.check(state)
        values = {name: value for name, value in state.get("values", {}).items() if name in self.values}
        if self._check is not None:
            self._check(self.values | values)
        ranks: Sequence[Tensors] = state.get("tensors", [])
        if len(ranks) == world_size():
            self.tensors = dict(ranks[rank])
        elif self._merge is not None and all(ranks):
            self.tensors = _merged(self._merge, ranks) if ranks else {}
        elif any(ranks) and resumes:
            names = sorted({name for tensors in ranks for name in tensors})
            rank_zero_warn(
                f"the checkpoint holds {', '.join(names)} of {len(ranks)} ranks, and this training has {world_size()}: "
                f"they are reset; resume on {len(ranks)} ranks to go on exactly."
            )
        self.values |= deepcopy(values)


_VALUES: Rule = (lambda values: isinstance(values, dict), "values by name")


def _like(begins: Any) -> Rule:
    """The rule by which a value is loaded, from its initial one."""
    if isinstance(begins, list):
        return NUMBERS
    if begins is None or isinstance(begins, bool):
        allowed = (True, False) if begins is not None else (True, False, None)
        return (lambda value: any(value is one for one in allowed), "true or false, or null if it begins so")
    if begins < 0 or not math.isfinite(begins):
        return (lambda value: is_finite(value) or (isinstance(value, float) and value == begins), "a finite number")
    return (lambda value: is_finite(value) and value >= 0, "a finite number, at least 0")


def _merged(merge: Callable[[Sequence[Tensors]], Tensors], ranks: Sequence[Tensors]) -> Tensors:
    """The merged tensors of a checkpoint, which may lack some or hold them in different sizes.

    Raises:
        ValueError: If they cannot be merged.
    """
    try:
        return merge(ranks)
    except (LookupError, RuntimeError) as error:
        what = " ".join(str(error).split())[:100]
        raise broken_as(f"memory.tensors of {len(ranks)} ranks do not belong together ({what})") from error


def of_any_rank(ranks: Sequence[Tensors]) -> Tensors:
    """The first rank's tensors, for those that are equal on all ranks."""
    return dict(ranks[0])


def shared_out(ranks: Sequence[Tensors]) -> Tensors:
    """Equal shares of the sum over another number of ranks, for tensors that are summed over ranks."""
    names = {name for tensors in ranks for name in tensors}
    sums = {name: torch.stack([tensors[name] for tensors in ranks if name in tensors]).sum(dim=0) for name in names}
    return {name: total / world_size() for name, total in sums.items()}


def of_older_versions(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The memory in a checkpoint written before the key ``memory`` existed, which has three sections instead."""
    return {"tensors": saved.get("ranks", []), "values": {**saved.get("hybrid", {}), **saved.get("curriculum", {})}}
