"""What ``CoresetSelection`` says of a training and of each selection."""

import math
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_robust.callbacks.coreset_checks import Epochs
from lit_robust.callbacks.coreset_data import Embedded
from lit_robust.callbacks.coreset_plan import Plan
from lit_robust.callbacks.needs import is_trial
from lit_robust.selection import Coreset, Selector


def tell_of_joining(epoch: int) -> None:
    """Say when coresets begin in a run that is resumed from a checkpoint without one."""
    rank_zero_info(
        f"the checkpoint has no coreset: epoch {epoch} is trained on all images, and CoresetSelection begins with the "
        "next one."
    )


def tell_of_limits(trainer: Any, selector: Selector, epochs: Epochs) -> None:
    """Say that a selection looks at all images where a limit leaves training fewer steps than they have batches."""
    number = math.ceil(epochs.images / trainer.world_size / epochs.batch_size)
    given = {"limit_train_batches": trainer.limit_train_batches, "max_steps": trainer.max_steps}
    short = [f"{name}={n}" for name, n in given.items() if isinstance(n, int) and 0 < n < number]
    if short and selector.reads != "nothing" and not is_trial(trainer):
        rank_zero_info(
            f"each selection looks at all {epochs.images} images, {number} batches, although training is limited to "
            f"{' and '.join(short)}: for a short trial give the data fewer images, or set fast_dev_run."
        )


def tell_of_skips(plan: Plan, first: int, end: int) -> None:
    """Say once which epochs a warm start skips, ``first`` to ``end - 1``, and why."""
    skipped = f"epoch {first} is" if end - first == 1 else f"epochs {first} to {end - 1} are"
    rank_zero_info(
        f"{skipped} skipped: the warm start trains on all images for {first} of {end} epochs, as many as "
        f"{plan.name(end)}={plan.share(end):g} pays for, and schedules advance over the others."
    )


def tell_of_absent_classes(plan: Plan, epoch: int, embedded: Embedded, coreset: Coreset) -> None:
    """Warn if there are more classes than images in the coreset of an epoch; the first rank knows the classes."""
    present, size = int(torch.bincount(embedded.y).count_nonzero()), len(coreset.indices)
    if size < present:
        inside = torch.isin(embedded.index, coreset.indices.to(embedded.index.device))
        absent = present - int(torch.bincount(embedded.y[inside]).count_nonzero())
        rank_zero_warn(
            f"{plan.name(epoch)}={plan.share(epoch):g} leaves {size} of {len(embedded.y)} images, so {absent} of "
            f"{present} classes have none in the coreset: raise the fraction."
        )


def in_words(
    coreset: Coreset, selector: Selector, of: int, epoch: int, seconds: float, error: float | None, natural: bool
) -> str:
    """A sentence on a selection from ``of`` samples, which were not attacked if training was ``natural``."""
    low, high = (float(value) for value in coreset.weights.aminmax())
    filled = f"; {coreset.filled} of them drawn at random to fill the budget" if coreset.filled else ""
    if error is None:
        gradient = ""
    elif math.isfinite(error):
        gradient = f"; their weighted gradient is off by {error:.2%}"
        length = of / float(coreset.weights.sum())
        if selector.chooses_by_gradients and abs(length - 1) > 0.01:
            gradient += f" before the loss divides by the sum of weights, which multiplies its length by {length:.2f}"
    else:
        gradient = f"; their gradient cannot be compared ({error}), as that of all images is 0 or too large"
    attacked = ", not attacked," if natural else ""
    return (
        f"epoch {epoch}: {type(selector).__name__} chose {len(coreset.indices)} of {of} images{attacked} in "
        f"{seconds:.1f} s, with weights from {low:.3g} to {high:.3g}{filled}{gradient}."
    )
