"""The baseline of every coreset: samples drawn at random."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_robust import require
from lit_robust.selection.embeddings import Embeddings, check_embeddings, device_of
from lit_robust.selection.selector import Scope, Selector


def random_subset(
    embeddings: Embeddings, budget: int, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw samples without replacement, each with weight 1; only the number of embeddings matters.

    Args:
        embeddings: One row per sample, ``(N, D)`` or ``Outer``.
        budget: The number of samples to draw, at most ``N``.
        generator: Where to draw from; a CPU generator.

    Returns:
        Indices ``(budget,)``, ascending, and weights ``(budget,)`` of 1, on the embeddings' device.

    Raises:
        TypeError: If the embeddings are neither a tensor nor ``Outer``.
        ValueError: If ``budget`` is out of range.
    """
    budget = check_embeddings(embeddings, budget)
    drawn = torch.randperm(len(embeddings), generator=generator)[:budget].sort().values
    return drawn.to(device_of(embeddings)), torch.ones(budget, device=device_of(embeddings))


@dataclass(frozen=True, kw_only=True)
class Random(Selector):
    """``random_subset``: the baseline, without gradients and with weights 1.

    Args:
        scope: ``all`` by default; ``class`` keeps the proportions of the classes.
        block: For ``scope="batch"``: how many consecutive samples are chosen together.
        redraw: Whether each reselection draws again. The released code draws once (false). If the fraction grows, the
            samples drawn once stay and others join them (by class, from one sample per class on).
        report_error: Whether the gradients of all samples are computed at each selection, only to report how far those
            drawn are from them, as other selectors do. It takes as long as theirs, and is no part of the cost.

    Raises:
        ValueError: If an argument is out of range.
    """

    scope: Scope = "all"
    redraw: bool = True
    report_error: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require.flags(redraw=self.redraw, report_error=self.report_error)

    @property
    def draws_anew(self) -> bool:
        """As ``redraw`` says."""
        return self.redraw

    @property
    def reads(self) -> Literal["bias", "weight", "nothing"]:
        """Nothing, or the whole layer's gradient for the report."""
        return "weight" if self.report_error else "nothing"

    @property
    def chooses_by_gradients(self) -> bool:
        """Never."""
        return False

    def choose(
        self, embeddings: Embeddings, budget: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Samples at random, none of which fills up what was chosen otherwise."""
        indices, weights = random_subset(embeddings, budget, generator=generator)
        return indices, weights, indices[:0]
