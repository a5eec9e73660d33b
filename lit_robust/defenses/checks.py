"""What a net and its images must be for a robust accuracy to mean anything."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_robust.attacks.base import Attack, check_attack, network_mode
from lit_robust.attacks.evaluation import CLEAN, WORST
from lit_robust.batch import Batch


def check_first_batch(net: nn.Module, batch: Batch, num_classes: int) -> None:
    """Refuse, before anything is trained or reported, what would make every later number wrong.

    It costs one forward of two images and one synchronisation with the device, once a run.

    Raises:
        ValueError: If pixels leave [0, 1], labels do not fit ``num_classes``, or the net cannot read the images, has
            another number of outputs, or returns probabilities.
    """
    low, high = batch.x.min().item(), batch.x.max().item()
    if not (low >= 0 and high <= 1):  # also true of NaN
        remedy = "divide them by 255" if low >= 0 else "give the images as they are and normalise inside the net"
        raise ValueError(
            f"pixels run from {low:.4g} to {high:.4g}, but every eps here is in units of [0, 1]: {remedy}."
        )
    labels = int(batch.y.min()), int(batch.y.max())
    if labels[0] < 0 or labels[1] >= num_classes:
        raise ValueError(
            f"labels run from {labels[0]} to {labels[1]}, but num_classes={num_classes}: set it to the data's classes."
        )
    _check_logits(_try_net(net, batch.x[:2]), num_classes)


def check_attacks(attacks: Mapping[str, Attack], test_attacks: Mapping[str, Attack]) -> None:
    """Refuse attacks that would not measure what their row says.

    Raises:
        TypeError: As ``check_attack``.
        ValueError: As ``check_attack``, or if a test attack has the name of a row that every table has.
    """
    for name in test_attacks:
        if name in (CLEAN, WORST):
            raise ValueError(f'test_attacks names an attack "{name}", as a row of every table is called: rename it.')
    for name, attack in {**attacks, **test_attacks}.items():
        check_attack(name, attack)


def check_monitors(trainer: Any, logged: Collection[str]) -> None:
    """Refuse callbacks that wait for a metric of the validation that never comes; Lightning says so an epoch later.

    Args:
        trainer: Whose callbacks are asked.
        logged: The keys that one validation logs; none where there is no validation.

    Raises:
        ValueError: If a callback's ``monitor`` is another ``val/`` key.
    """
    for callback in trainer.callbacks:
        monitor = str(getattr(callback, "monitor", None))
        if monitor.startswith("val/") and monitor not in logged:
            known = ", ".join(key for key in sorted(logged) if key.startswith("val/"))
            raise ValueError(
                f"{type(callback).__name__} monitors {monitor}, "
                + (f"but validation logs {known}: correct the name." if known else _NO_VALIDATION)
            )


_NO_VALIDATION = (
    "but there is no validation: hold images out (data.init_args.val_size), or remove the monitor to keep the last "
    "checkpoint alone."
)


def _try_net(net: nn.Module, x: Tensor) -> Tensor:
    try:
        with network_mode(net, "eval"), torch.no_grad():
            logits: Tensor = net(x)
    except (RuntimeError, ValueError) as error:
        shape = "x".join(map(str, x.shape[1:]))
        raise ValueError(
            f"the net ({type(net).__name__}) cannot read images of shape {shape}: choose a net for this data set "
            f"({error})."
        ) from error
    return logits


def _check_logits(logits: Tensor, num_classes: int) -> None:
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        raise ValueError(
            f"the net returns a tensor of shape {tuple(logits.shape)} for 2 images, but num_classes={num_classes}: "
            f"give the net num_classes={num_classes} (--model.net.num_classes {num_classes})."
        )
    logits = logits.float()
    if not bool(logits.isfinite().all()):
        raise ValueError(
            "the net returns NaN or infinite logits, whose accuracy would be that of guessing: its weights or its "
            "normalisation are broken, take an earlier checkpoint."
        )
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(dim=1), torch.ones(len(logits), device=logits.device)):
        raise ValueError(
            "the net returns probabilities, but losses and attacks need logits: remove its softmax, or every attack "
            "looks weaker than it is."
        )
