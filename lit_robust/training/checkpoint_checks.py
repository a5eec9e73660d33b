"""Checks of a checkpoint's weights and data, before it is written and after it is read."""

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_robust.checkpoint_files import check_sections
from lit_robust.checkpoint_sections import LARGEST
from lit_robust.checkpoint_states import broken, missing
from lit_robust.lightning_internals import LOOPS
from lit_robust.lightning_resume_internals import loader_states, loops_to_restore
from lit_robust.nets.rebuild import check_fit
from lit_robust.ranks import world_size
from lit_robust.torch_internals import plain_names
from lit_robust.training.memory import Memory, of_older_versions, shared_out


def check_states(checkpoint: Mapping[str, Any], trainer: Any, memory: Memory) -> None:
    """Refuse a checkpoint whose states have other keys or types than this training's, before any is restored.

    Args:
        checkpoint: The content of the file.
        trainer: Its loops and callbacks are compared with those of the file.
        memory: What the method remembers.

    Raises:
        ValueError: At the first one that is missing, of another type or out of range.
    """
    check_sections(checkpoint)
    if LOOPS in checkpoint:
        check_like(LOOPS, loops_to_restore(trainer), checkpoint[LOOPS], least=0)
        place, loaders = loader_states(checkpoint)
        if not isinstance(loaders, list) or len(loaders) > 1 or not all(isinstance(state, dict) for state in loaders):
            raise broken(place, loaders, "a list of one loader's state")
    saved = checkpoint.get("lit_robust", {})
    memory.check(saved.get("memory") or of_older_versions(saved))
    if trainer.state.fn != "fit":
        return
    for section in ("optimizer_states", "lr_schedulers"):
        if section not in checkpoint:
            raise ValueError(
                f"the checkpoint holds only weights, without {section}, so no training can go on from it: start a new "
                "run with load_net, or save whole ones (ModelCheckpoint without save_weights_only)."
            )
    states = checkpoint.get("callbacks", {})
    for callback in trainer.callbacks:
        if callback.state_key in states:
            check_like(f"callbacks[{callback.state_key}]", callback.state_dict(), states[callback.state_key])


def check_like(name: str, own: Any, other: Any, least: float = -LARGEST) -> None:
    """Refuse a state of a checkpoint whose keys or types differ from those of an existing state.

    Args:
        name: The place in the checkpoint, for the message.
        own: The existing state, such as that of a new trainer; its numbers do not matter, and None allows anything.
        other: The checkpoint's.
        least: The smallest allowed number.

    Raises:
        ValueError: At the first value that is missing, of another type or out of range.
    """
    if isinstance(own, dict):
        if not isinstance(other, dict):
            raise broken(name, other, "a mapping")
        for key, value in own.items():
            if key not in other:
                raise missing(name, key)
            check_like(f"{name}.{key}", value, other[key], least)
    elif isinstance(own, bool | str | list | tuple) and not isinstance(other, type(own)):
        raise broken(name, other, f"of type {type(own).__name__}")
    elif isinstance(own, Tensor) and not (isinstance(other, Tensor) and other.shape == own.shape):
        raise broken(name, other, f"a tensor of shape {tuple(own.shape)}")
    elif isinstance(own, list | tuple) and own:
        if len(other) < len(own):
            raise broken(name, other, f"of length {len(own)}")
        for place, theirs in enumerate(other):  # longer if parameter groups were added during the training
            check_like(name, own[min(place, len(own) - 1)], theirs, least)
    elif isinstance(own, int | float) and not isinstance(own, bool):
        is_number = isinstance(other, int if least == 0 else int | float) and not isinstance(other, bool)
        if not is_number or not (least <= other <= LARGEST or abs(other) == math.inf):
            raise broken(name, other, "a count" if least == 0 else "a number")


def check_weights_finite(weights: Mapping[str, Tensor]) -> None:
    """Refuse to save weights from which training cannot continue.

    Raises:
        FloatingPointError: At the first tensor with NaN or infinity.
    """
    for key, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise FloatingPointError(
                f"{key} is no longer finite, so no checkpoint was written and the one before is intact: resume from it "
                "with a lower learning rate or clipped gradients (gradient_clip_val)."
            )


def check_weights_fit(own: Mapping[str, Tensor], other: Mapping[str, Any]) -> None:
    """Compare names and shapes of weights.

    Raises:
        ValueError: At the first tensor that is missing, unknown or of another shape.
    """
    remedy = "; build the net that was trained (its configuration is saved beside the checkpoint's folder)."
    check_fit(own, other, "the checkpoint", remedy)


def name_plainly(checkpoint: dict[str, Any]) -> None:
    """Rename weights that an older version has saved by the names of compiled parts, in place."""
    averages = checkpoint.get("extra_averages")
    for sections in (checkpoint, averages if isinstance(averages, dict) else {}):
        for name, weights in sections.items():
            if isinstance(weights, dict) and (sections is averages or name in ("state_dict", "current_model_state")):
                sections[name] = plain_names(weights)


def sums_so_far(saved: Mapping[str, Any], rank: int, trainer: Any) -> dict[str, Tensor]:
    """This rank's sums of the metrics so far in an interrupted epoch, redistributed if the number of ranks changed.

    Args:
        saved: Our section of the checkpoint.
        rank: The rank of this process.
        trainer: The trainer; a training warns if it resumes on another number of ranks.
    """
    ranks: Any = saved.get("metrics", saved.get("tally", []))  # the key of older versions
    if len(ranks) == world_size():
        return dict(ranks[rank])
    if any(ranks) and trainer.state.fn == "fit":
        rank_zero_warn(
            f"the checkpoint was written within an epoch by {len(ranks)} ranks, and this training has {world_size()}: "
            "the rest of this epoch is batched differently: some images are seen twice, others not at all; resume "
            f"on {len(ranks)} ranks to go on exactly."
        )
    return shared_out(ranks)


def fingerprint_of(trainer: Any) -> dict[str, Any]:
    """What identifies the training images, if the data are a module of ours."""
    found: dict[str, Any] = getattr(getattr(trainer, "datamodule", None), "fingerprint", {})
    return found


def warn_of_other_data(own: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Warn if training resumes on other data, which is known only if both sides have a fingerprint."""
    pairs = {key: (repr(other.get(key)), repr(value)) for key, value in own.items()}  # a broken file may hold anything
    changes = [f"{key}={before[:50]} became {now}" for key, (before, now) in pairs.items() if before != now]
    if own and other and changes:
        rank_zero_warn(
            f"this training continues with other data than the checkpoint's ({', '.join(changes)}): unless "
            "that is intended, give the data of the config.yaml that is saved beside the checkpoint's folder."
        )


def warn_of_averages(checkpoint: Mapping[str, Any], trainer: Any) -> None:
    """Warn that training continues from averaged weights, because no callback restores the live ones."""
    averages = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)
    if "current_model_state" in checkpoint and trainer.state.fn == "fit" and not averages:
        rank_zero_warn(
            "the checkpoint holds averaged weights, and this training keeps no average, so it continues from them, "
            "not from the live ones: add the EMAWeights that the checkpoint was written with."
        )
