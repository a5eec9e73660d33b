"""Coreset selection: gradient embeddings in, indices and weights out."""

from lit_robust.keywords import answer_keywords
from lit_robust.selection.embeddings import (
    Embeddings,
    Outer,
    concatenated,
    gradient_error,
    of_batches,
    own_class,
)
from lit_robust.selection.facility_location import facility_location
from lit_robust.selection.gradients import last_layer_gradients
from lit_robust.selection.matching_pursuit import gradient_match, matching_pursuit
from lit_robust.selection.random_subset import Random, random_subset
from lit_robust.selection.sampler import CoresetSampler, resampled
from lit_robust.selection.selector import Coreset, Selector
from lit_robust.selection.selectors import CRAIG, GradMatch

__all__ = [
    "CRAIG",
    "Coreset",
    "CoresetSampler",
    "Embeddings",
    "GradMatch",
    "Outer",
    "Random",
    "Selector",
    "concatenated",
    "facility_location",
    "gradient_error",
    "gradient_match",
    "last_layer_gradients",
    "matching_pursuit",
    "of_batches",
    "own_class",
    "random_subset",
    "resampled",
]

answer_keywords([globals()[name] for name in __all__ if name != "Embeddings"])
