"""Training without an adversary: the baseline of every table."""

from typing import Any

from torch import Tensor

from lit_robust.batch import Batch
from lit_robust.training.defense import Defense


class Natural(Defense):
    """Ordinary training: cross-entropy on clean images.

        min_theta  E  CE(f(x), y)

    ``attack`` is not used for training; its eps and norm are those of the default validation and test attacks.
    """

    #: Callbacks that would act on attacks in training refuse it.
    is_natural = True
    counted = ("acc/clean",)

    def perturb(self, batch: Batch) -> Any:
        """Return the clean images."""
        return batch.x

    def loss(self, batch: Batch, x_adv: Any) -> Tensor:
        """Cross-entropy on clean images."""
        return self.natural_loss(batch)
