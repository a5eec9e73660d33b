"""What all selectors share: in which part of the data they choose, and how much."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lit_robust import require
from lit_robust.selection.budgets import shares
from lit_robust.selection.checks import check_classes
from lit_robust.selection.embeddings import Embeddings, check_embeddings, of_batches, rows

#: Select in each class by itself, from all samples, or whole blocks of consecutive samples by their mean gradient.
Scope: TypeAlias = Literal["class", "all", "batch"]


class Coreset(NamedTuple):
    """A weighted subset of samples.

    Shape:
        indices: ``(S,)`` int64, ascending;  weights: ``(S,)`` float32, above 0; both on the CPU.
    """

    indices: Tensor
    weights: Tensor
    #: How many were drawn at random because the selection ended before its budget.
    filled: int


@dataclass(frozen=True, kw_only=True)
class Selector(ABC):
    """Chooses a weighted subset of samples by their gradients.

    Args:
        scope: In which part of the data to choose; ``class`` shares the budget out in proportion to the classes' sizes,
            and leaves out the smallest if the budget is smaller than their number.
        block: For ``scope="batch"``: how many consecutive samples are chosen together.

    Raises:
        ValueError: If an argument is out of range.
    """

    scope: Scope = "class"
    block: int = 128

    def __post_init__(self) -> None:
        require.one_of("scope", self.scope, ("class", "all", "batch"))
        require.integer("block", self.block, least=1)

    @property
    @abstractmethod
    def reads(self) -> Literal["bias", "weight", "nothing"]:
        """The gradients it compares or reports: of the last layer's bias, of its bias and weight, or none."""

    @property
    def chooses_by_gradients(self) -> bool:
        """Whether its choice depends on what it reads, which is then a part of what the selection costs."""
        return self.reads != "nothing"

    @property
    def draws_anew(self) -> bool:
        """Whether random choices differ from one selection of a training to the next."""
        return True

    @abstractmethod
    def choose(
        self, embeddings: Embeddings, budget: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Indices ``(S,)`` and weights chosen in one part, and those indices that were drawn to fill its budget."""

    def choose_blocks(
        self, sums: Tensor, sizes: Tensor, budget: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``choose``, among blocks, given what ``of_batches`` returns; a weight is that of each sample of a block.

        ``sizes`` holds each block's number of samples in units of a whole block's: 1, or less for the last one.
        """
        return self.choose(sums, budget, generator)

    def within_class(self, embeddings: Embeddings, y: Tensor) -> Embeddings:
        """What is compared among samples of one class."""
        return embeddings

    def __call__(
        self, embeddings: Embeddings, y: Tensor, budget: int, generator: torch.Generator | None = None
    ) -> Coreset:
        """Choose samples.

        Args:
            embeddings: One row per sample, ``(N, D)`` or ``Outer``.
            y: The samples' classes, ``(N,)``, on the same device.
            budget: The number of samples to choose; whole blocks may exceed it.
            generator: Where random choices are drawn from; a CPU generator.

        Raises:
            TypeError: If the embeddings or the classes are not tensors.
            ValueError: If a number is not finite, the classes do not fit, the budget is not between 1 and ``N``, or
                no sample is chosen.
        """
        budget = check_embeddings(embeddings, budget)
        check_classes(y, len(embeddings))
        if self.scope == "batch":
            indices, weights, drawn = self._in_blocks(embeddings, budget, generator)
        else:
            found = []
            for members, part, share in self._parts(embeddings, y, budget):
                indices, weights, drawn = self.choose(part, share, generator)
                found.append((members[indices], weights, members[drawn]))
            indices, weights, drawn = map(torch.cat, zip(*found, strict=True))
        if len(indices) == 0:
            raise ValueError(
                f"{type(self).__name__} chose no sample, because the gradients that it compares add up to 0: "
                'set fill="one", which fills the budget at random.'
            )
        indices, order = indices.sort()
        return Coreset(indices.cpu(), weights[order].float().cpu(), len(drawn))

    def _in_blocks(
        self, embeddings: Embeddings, budget: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Samples, weights, and the samples that were drawn to fill the budget, all of them in whole blocks."""
        sums = of_batches(embeddings, self.block)
        owner = torch.arange(len(embeddings), device=sums.device) // self.block
        sizes = torch.bincount(owner)
        state = None if generator is None else generator.get_state()
        least = -(-budget // self.block)
        for count in (least, least + 1):  # one more where the last, shorter block leaves a part of the budget
            if generator is not None and state is not None:
                generator.set_state(state)
            chosen, weights, drawn = self.choose_blocks(sums, (sizes / self.block).to(sums), count, generator)
            if len(chosen) < count or int(sizes[chosen].sum()) >= budget:
                break
        members = torch.isin(owner, chosen).nonzero()[:, 0]
        by_block = weights.new_zeros(len(sums)).index_put((chosen,), weights)
        return members, by_block[owner[members]], torch.isin(owner, drawn).nonzero()[:, 0]

    def _parts(self, embeddings: Embeddings, y: Tensor, budget: int) -> Iterator[tuple[Tensor, Embeddings, int]]:
        """Positions, embeddings and budget of each part."""
        if self.scope == "all":
            yield torch.arange(len(y), device=y.device), embeddings, budget
            return
        for label, share in enumerate(shares(torch.bincount(y), budget)):
            if share:
                members = (y == label).nonzero()[:, 0]
                yield members, self.within_class(rows(embeddings, members), y[members]), share
