"""Selectors as values, for callbacks and YAML: which gradients are compared, and in which part of the data."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lit_robust import require
from lit_robust.selection.budgets import shares
from lit_robust.selection.checks import check_classes
from lit_robust.selection.embeddings import Embeddings, Outer, check_embeddings, of_batches, own_class, rows
from lit_robust.selection.facility_location import facility_location
from lit_robust.selection.matching_pursuit import Fill, filled_up, gradient_match

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
        scope: In which part of the data to choose; ``class`` shares the budget out in proportion to the classes' sizes.
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
    ) -> tuple[Tensor, Tensor, int]:
        """Indices and weights ``(S,)`` chosen in one part, and how many of them were drawn to fill its budget."""

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
            ValueError: If a number is not finite, the classes do not fit, or the budget is not between 1 and ``N``.
        """
        budget = check_embeddings(embeddings, budget)
        check_classes(y, len(embeddings))
        all_indices, all_weights, all_filled = [], [], 0
        for members, part, share in self._parts(embeddings, y, budget):
            indices, weights, filled = self.choose(part, share, generator)
            all_indices.append(members[indices])
            all_weights.append(weights)
            all_filled += filled * (self.block if self.scope == "batch" else 1)
        indices, weights = torch.cat(all_indices), torch.cat(all_weights)
        if self.scope == "batch":
            blocks = torch.split(torch.arange(len(y), device=y.device), self.block)
            weights = torch.cat([weights[i].expand(len(blocks[j])) for i, j in enumerate(indices.tolist())])
            indices = torch.cat([blocks[j] for j in indices.tolist()])
        indices, order = indices.sort()
        return Coreset(indices.cpu(), weights[order].float().cpu(), all_filled)

    def _parts(self, embeddings: Embeddings, y: Tensor, budget: int) -> Iterator[tuple[Tensor, Embeddings, int]]:
        """Positions, embeddings and budget of each part."""
        everything = torch.arange(len(y), device=y.device)
        if self.scope == "batch":
            blocks = of_batches(embeddings, self.block)
            yield everything[: len(blocks)], blocks, -(-budget // self.block)
        elif self.scope == "all":
            yield everything, embeddings, budget
        else:
            for label, share in enumerate(shares(torch.bincount(y), budget)):
                if share:
                    members = (y == label).nonzero()[:, 0]
                    yield members, self.within_class(rows(embeddings, members), y[members]), share


@dataclass(frozen=True, kw_only=True)
class CRAIG(Selector):
    """``facility_location`` on the gradients of the last layer's bias.

    As in Adversarial Coreset Selection (Dolatabadi et al., ECCV 2022, arXiv:2112.00378), whose code computes all
    distances of a class at once.

    Args:
        scope: In which part of the data to choose.
        block: For ``scope="batch"``: how many consecutive samples are chosen together.
        greedy: As in ``facility_location``.
        epsilon: As in ``facility_location``.

    Raises:
        ValueError: If an argument is out of range.
    """

    greedy: Literal["lazy", "stochastic"] = "lazy"
    epsilon: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require.one_of("greedy", self.greedy, ("lazy", "stochastic"))
        require.number("epsilon", self.epsilon, above=0, below=1)

    @property
    def reads(self) -> Literal["bias", "weight", "nothing"]:
        """The bias's gradient."""
        return "bias"

    def choose(
        self, embeddings: Embeddings, budget: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, int]:
        """Cluster centres, weighted by the size of their clusters."""
        indices, weights = facility_location(
            embeddings, budget, greedy=self.greedy, epsilon=self.epsilon, generator=generator
        )
        return indices, weights, 0


@dataclass(frozen=True, kw_only=True)
class GradMatch(Selector):
    """``gradient_match`` on the gradients of the last layer.

    Args:
        scope: In which part of the data to choose.
        block: For ``scope="batch"``: how many consecutive samples are chosen together.
        gradient: What is matched: the gradient of the whole layer (``weight``), of its ``bias``, or as in the released
            code, which needs ``scope="class"``, that of the bias and the row of weights of a sample's own class
            (``own_class``). The whole gradient's relative error was 0.38 / 0.18 with the last, 0.013 / 0.009 with the
            first, 0.06 / 0.04 with CRAIG and 0.30 / 0.89 at random (adversarial gradients of 2,000 images of MNIST /
            CIFAR-10, one net each, 30 % chosen), so the default is ``weight``.
        lam: As in ``matching_pursuit``.
        tol: As in ``matching_pursuit``.
        fill: As in ``gradient_match``.

    Raises:
        ValueError: If an argument is out of range.
    """

    gradient: Literal["weight", "own_class", "bias"] = "weight"
    lam: float = 0.01
    tol: float = 0.0
    fill: Fill = "one"

    def __post_init__(self) -> None:
        super().__post_init__()
        require.one_of("gradient", self.gradient, ("weight", "own_class", "bias"))
        if self.gradient == "own_class" and self.scope != "class":
            raise ValueError(
                f'gradient="own_class" compares samples of one class, but scope="{self.scope}" mixes classes: '
                'set gradient="weight".'
            )
        require.number("lam", self.lam, least=0)
        require.number("tol", self.tol, least=0)
        require.one_of("fill", self.fill, ("one", "mean", "none"))

    @property
    def reads(self) -> Literal["bias", "weight", "nothing"]:
        """The bias's gradient, or the whole layer's."""
        return "bias" if self.gradient == "bias" else "weight"

    def within_class(self, embeddings: Embeddings, y: Tensor) -> Embeddings:
        """The gradient of the samples' own class only, with ``gradient="own_class"``."""
        if self.gradient == "own_class" and isinstance(embeddings, Outer):
            return own_class(embeddings, y)
        return embeddings

    def choose(
        self, embeddings: Embeddings, budget: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, int]:
        """Samples whose weighted gradients add up to that of all."""
        indices, weights = gradient_match(embeddings, budget, lam=self.lam, tol=self.tol, fill="none")
        missing = 0 if self.fill == "none" else budget - len(indices)
        if missing:
            indices, weights = filled_up(indices, weights, len(embeddings), budget, self.fill, generator)
        return indices, weights, missing
