"""Selectors as values, for callbacks and YAML: which gradients are compared, and in which part of the data."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_robust import require
from lit_robust.selection.embeddings import Embeddings, Outer, own_class
from lit_robust.selection.facility_location import facility_location
from lit_robust.selection.matching_pursuit import Fill, filled_up, gradient_match
from lit_robust.selection.selector import Selector


@dataclass(frozen=True, kw_only=True)
class CRAIG(Selector):
    """``facility_location`` on the gradients of the last layer's bias.

    As in Adversarial Coreset Selection (Dolatabadi et al., ECCV 2022, arXiv:2112.00378), whose code computes all
    distances of a class at once. A sample that is chosen although it duplicates another one keeps a weight of at least
    1, because a sample of weight 0 would be read and attacked in each epoch and train nothing.

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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cluster centres, weighted by the size of their clusters."""
        indices, weights = facility_location(
            embeddings, budget, greedy=self.greedy, epsilon=self.epsilon, generator=generator
        )
        return indices, weights, indices[:0]

    def choose_blocks(
        self, sums: Tensor, sizes: Tensor, budget: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same among the blocks' means, counted in samples."""
        indices, weights = facility_location(
            sums / sizes[:, None], budget, greedy=self.greedy, epsilon=self.epsilon, generator=generator, sizes=sizes
        )
        return indices, weights / sizes[indices], indices[:0]


@dataclass(frozen=True, kw_only=True)
class GradMatch(Selector):
    """``gradient_match`` on the gradients of the last layer.

    The weights need not add up to the number of images, as CRAIG's do; with the ridge they add up to less (to 0.8 of it
    for 30 % of 2,000 images of MNIST). A loss that divides by their sum makes updates longer than the gradient of all.

    Args:
        scope: In which part of the data to choose.
        block: For ``scope="batch"``: how many consecutive samples are chosen together.
        gradient: What is matched: the gradient of the whole layer (``weight``), of its ``bias``, or as in the released
            code, which needs ``scope="class"``, that of the bias and the row of weights of a sample's own class
            (``own_class``). The relative error of the weighted sum of whole gradients was 0.31 / 0.03 with the last,
            0.02 / 0.01 with the first, 0.10 / 0.06 with CRAIG and 0.40 / 0.42 at random (adversarial gradients of 2,000
            images of MNIST / CIFAR-10, 30 % chosen, means of 3 seeds). On MNIST the last is hardly better than random,
            so the default is ``weight``; on CIFAR-10 both are near enough.
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Samples whose weighted gradients add up to that of all."""
        matched, weights = gradient_match(embeddings, budget, lam=self.lam, tol=self.tol, fill="none")
        if self.fill == "none" or len(matched) == budget:
            return matched, weights, matched[:0]
        indices, weights = filled_up(matched, weights, len(embeddings), budget, self.fill, generator)
        return indices, weights, indices[~torch.isin(indices, matched)]
