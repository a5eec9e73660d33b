"""Checks that the states of an optimizer and a scheduler in a checkpoint are of the ones that this training uses."""

from collections.abc import Mapping, Sequence
from inspect import Parameter, isclass, signature
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, ReduceLROnPlateau

from lit_robust import require
from lit_robust.checkpoint_sections import is_count
from lit_robust.checkpoint_states import broken
from lit_robust.measures.directions import right_mode
from lit_robust.nets.image_shapes import name_of
from lit_robust.training.checkpoint_checks import check_like

#: Options that change how torch computes a step, not the step.
IMPLEMENTATION = {"foreach", "fused", "capturable", "differentiable"}

#: What torch's optimizers keep of each weight in its own shape.
_SHAPED = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "sum")

#: The options of each of torch's optimizers.
_OPTIONS: dict[str, set[str]] = {
    name: set(signature(kind).parameters) - {"params"} - IMPLEMENTATION
    for name, kind in vars(torch.optim).items()
    if isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer
}

#: Options that not all of them have: they tell one kind from another.
_OF_ALL = {"lr", "maximize", "weight_decay", "decoupled_weight_decay"}  # some lack them in older versions of torch
OF_ONE_KIND = {key for options in _OPTIONS.values() for key in options} - _OF_ALL

#: What the periods of torch's schedulers are.
PERIOD = "it is a number of the scheduler's steps"

_REMEDY = (
    "resume with the optimizer of the config.yaml beside the checkpoint's folder, or start a new run with load_net."
)


def check_any_parameters(weights: Sequence[nn.Parameter]) -> None:
    """Refuse a net without parameters.

    Raises:
        ValueError: If there are none.
    """
    if not weights:
        raise ValueError("the net has no parameters, so there is nothing to train: give a net that has some.")


def check_any_trainable(net: nn.Module) -> None:
    """Refuse, in the first batch, a net whose parameters are all frozen; until then a callback may unfreeze some.

    Raises:
        ValueError: If no parameter requires a gradient.
    """
    if not any(weight.requires_grad for weight in net.parameters()):
        raise ValueError(
            f"all parameters of the net ({name_of(net)}) are frozen, so there is nothing to train: call "
            "requires_grad_(True) on the net, or on the part that is to be trained."
        )


def tell_of_no_rate(own: Optimizer) -> None:
    """Warn if all learning rates are 0: nothing is trained, whatever the Schedule."""
    if all(float(group["lr"]) == 0 for group in own.param_groups):
        rank_zero_warn(f"lr=0 of {type(own).__name__} trains nothing: set another lr.")


def check_steps(own: Optimizer) -> None:
    """Refuse an optimizer that cannot take a Defense's steps.

    Raises:
        ValueError: If it reads sparse gradients, or evaluates the loss itself.
    """
    kind = type(own).__name__
    if isinstance(own, torch.optim.SparseAdam):
        raise ValueError(f"the optimizer {kind} reads sparse gradients, but those of a net are dense: use Adam.")
    closure = signature(type(own).step).parameters.get("closure")
    if closure is not None and closure.default is Parameter.empty:
        raise ValueError(
            f"the optimizer {kind} evaluates the loss several times per step, but a batch is attacked once and has one "
            "gradient: use SGD or Adam."
        )


def check_optimizer(own: Optimizer, states: Sequence[Any], name: str | None, kept: Sequence[str] = ()) -> None:
    """Refuse the state of another optimizer or of other weights; torch would restore it and fail later, or never.

    How a step is computed is written into the states as this training chooses it, because torch would take the choice
    of the checkpoint, which may come from another device. It is done before the states are restored, so that torch
    puts the counts of steps where that implementation reads them.

    Args:
        own: The new optimizer.
        states: The ``optimizer_states`` of a checkpoint.
        name: The class that the checkpoint names; older ones name none.
        kept: Options that the training sets again after torch has restored the state.

    Raises:
        ValueError: At the first difference.
    """
    where = "optimizer_states"
    if len(states) != 1:
        raise broken(where, states, "a list of one optimizer's state")
    (state,) = states
    check_like(where, {"state": {}, "param_groups": []}, state)
    groups = state["param_groups"][: len(own.param_groups)]  # a callback may add the others before they are restored
    for mine, theirs in zip(own.param_groups, groups, strict=False):
        if isinstance(theirs, dict):
            _check_kind(own, mine, theirs, name, kept)
    for place, theirs in enumerate(state["param_groups"]):
        mine = own.param_groups[place] if place < len(own.param_groups) else own.defaults  # as of an added group
        if isinstance(theirs, dict):
            theirs.update({key: mine[key] for key in IMPLEMENTATION & mine.keys()})
    check_like(f"{where}.param_groups", [{**group, "params": []} for group in own.param_groups], groups)
    weights = [weight for group in own.param_groups for weight in group["params"]]
    places = [place for group in groups for place in group["params"]]
    if not all(map(is_count, places)) or len({*places}) < len(places):
        raise broken(f"{where}.param_groups.params", places, "the number of each weight, once")
    needed: dict[int, set[str]] = {}
    for place, values in state["state"].items():
        check_like(f"{where}.state", {}, values)
        weight = weights[places.index(place)] if place in places[: len(weights)] else None
        for key, value in values.items():
            if key in _SHAPED and value is not None:
                check_like(f"{where}.state.{key}", weight, value)
            elif not isinstance(value, Tensor | int | float | None):
                raise broken(f"{where}.state.{key}", value, "a tensor or a number")
            if value is not None and not bool(torch.as_tensor(value).isfinite().all()):
                raise broken(f"{where}.state.{key}", value, "finite")
            if key == "step" and float(value) < 0:
                raise broken(f"{where}.state.{key}", value, "a count")
        if weight is not None and values:
            if weight.ndim not in needed:
                needed[weight.ndim] = _kept_of_a_weight(own, weight.ndim)
            if missing := sorted(needed[weight.ndim] - values.keys()):
                kind = type(own).__name__
                raise ValueError(
                    f"the checkpoint is broken or was trained with another optimizer than this {kind}, because it kept "
                    f"no {missing[0]} of a weight: {_REMEDY}"
                )


def _check_kind(own: Optimizer, mine: Mapping[str, Any], theirs: Mapping[str, Any], name: Any, kept: Any) -> None:
    kind = type(own).__name__
    if name is not None and name != kind:
        raise ValueError(
            f"the checkpoint was trained with the optimizer {name}, and this training has {kind}: resume with "
            f"model.optimizer {name}, or start a new run with load_net."
        )
    other = sorted(
        (OF_ONE_KIND & (mine.keys() ^ theirs.keys())) | (own.defaults.keys() - theirs.keys() - IMPLEMENTATION)
    )
    if name is None and other:
        likely = [one for one, keys in _OPTIONS.items() if keys & OF_ONE_KIND == theirs.keys() & OF_ONE_KIND]
        theirs_is = f" ({' or '.join(likely)})" if likely else ""
        raise ValueError(
            f"the checkpoint was trained with another optimizer{theirs_is} than {kind} (one of them has "
            f"{', '.join(other)}): {_REMEDY}"
        )
    for key, value in own.defaults.items():
        there = theirs.get(key)
        are_flags = isinstance(value, bool) and isinstance(there, bool) and key not in IMPLEMENTATION | {*kept}
        if are_flags and mine[key] != there:
            raise ValueError(
                f"the checkpoint was trained with another optimizer than this {kind} ({key}={there} became "
                f"{mine[key]}): {_REMEDY}"
            )


def _kept_of_a_weight(own: Optimizer, ndim: int) -> set[str]:
    """What a class of optimizers keeps of each weight after its first step; empty if a trial does not tell."""
    if isinstance(own, torch.optim.SGD):  # may begin with its momentum at any step
        return set()
    try:
        weight = nn.Parameter(torch.zeros((1,) * ndim))
        weight.grad = torch.zeros_like(weight)
        options = {key: own.param_groups[0][key] for key in signature(type(own)).parameters if key in own.defaults}
        trial = type(own)([weight], **options)
        trial.step()
        return {str(key) for key in trial.state[weight]}
    except Exception:  # some need a closure, sparse gradients or other arguments
        return set()


def monitored_by(scheduler: ReduceLROnPlateau) -> str:
    """The metric that a plateau scheduler monitors: Lightning's class names it, torch's gets the robust accuracy."""
    return str(getattr(scheduler, "monitor", "val/acc/robust"))


def check_plateau(scheduler: ReduceLROnPlateau, interval: str) -> None:
    """Refuse a plateau scheduler that would lower the rate while the net gets better.

    Raises:
        ValueError: If its mode contradicts its metric, or it would step after each batch, which has no metric.
    """
    monitor = monitored_by(scheduler)
    right = right_mode(monitor)
    if right is not None and scheduler.mode != right:
        raise ValueError(
            f'mode="{scheduler.mode}" of the scheduler lowers the rate while {monitor} gets better: set mode="{right}".'
        )
    if interval != "epoch":
        raise ValueError(f'lr_interval="{interval}" gives a ReduceLROnPlateau no metric: set it to "epoch".')


def check_periods(own: Any) -> None:
    """Refuse a torch scheduler whose period is not a positive time, which torch does not check.

    Raises:
        ValueError: If ``step_size`` is not an integer above 0, or ``T_max`` is not above 0.
    """
    if hasattr(own, "step_size") and not isinstance(own, CyclicLR):
        require.integer("lr_scheduler.step_size", own.step_size, least=1, hint=PERIOD)
    if hasattr(own, "T_max"):
        require.number("lr_scheduler.T_max", own.T_max, above=0, hint=PERIOD)


def check_scheduler(own: Any, states: Sequence[Any], name: str | None) -> None:
    """Refuse the state of another torch scheduler, and drop unknown keys, which would become attributes.

    Args:
        own: The new scheduler; None if there is none; the checkpoint's scheduler is then ignored.
        states: The ``lr_schedulers`` of a checkpoint.
        name: The class that the checkpoint names; older ones name none.

    Raises:
        ValueError: At the first difference.
    """
    where = "lr_schedulers"
    if len(states) > 1 or not all(isinstance(state, dict) for state in states):
        raise broken(where, states, "a list of at most one scheduler's state")
    if own is None:
        return
    kind = type(own).__name__
    if not states or (name is not None and name != kind):
        raise ValueError(
            f"the checkpoint was trained with {name or 'no torch scheduler'}, and this training has {kind}, which "
            "would start from its first step: resume with the lr_scheduler of the config.yaml beside the checkpoint's "
            "folder, or start a new run with load_net."
        )
    state = own.state_dict()
    if missing := sorted(state.keys() - states[0].keys()):
        raise ValueError(
            f"the checkpoint is broken or was trained with another scheduler than {kind}: {where} has no "
            f"{missing[0]}; resume with its own, or use an earlier one."
        )
    check_like(where, state, states[0])
    for key in states[0].keys() - state.keys():
        del states[0][key]
