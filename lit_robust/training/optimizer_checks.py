"""Checks that the states of an optimizer and a scheduler in a checkpoint are of the ones that this training uses."""

from collections.abc import Mapping, Sequence
from inspect import isclass, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_robust.training.checkpoint_checks import broken, check_like

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

_REMEDY = "resume with the optimizer of the config.yaml beside the checkpoint's folder, or begin anew with load_net."


def check_optimizer(own: Optimizer, states: Sequence[Any], name: str | None, kept: Sequence[str] = ()) -> None:
    """Refuse the state of another optimizer or of other weights; torch would restore it and fail later, or never.

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
    check_like(f"{where}.param_groups", [{**group, "params": []} for group in own.param_groups], groups)
    weights = [weight for group in own.param_groups for weight in group["params"]]
    places = [place for group in groups for place in group["params"]]
    needed: dict[int, set[str]] = {}
    for place, values in state["state"].items():
        check_like(f"{where}.state", {}, values)
        weight = weights[places.index(place)] if place in places[: len(weights)] else None
        for key, value in values.items():
            if key in _SHAPED and value is not None:
                check_like(f"{where}.state.{key}", weight, value)
            elif not isinstance(value, Tensor | int | float | None):
                raise broken(f"{where}.state.{key}", value, "a tensor or a number")
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
            f"model.optimizer {name}, or begin anew with load_net."
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


def check_scheduler(own: Any, states: Sequence[Any], name: str | None) -> None:
    """Refuse the state of another torch scheduler, and drop unknown keys, which would become attributes.

    Args:
        own: The new scheduler; None if there is none, and whatever the checkpoint's was has no effect then.
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
            "would begin anew: resume with the lr_scheduler of the config.yaml beside the checkpoint's folder, or "
            "begin anew with load_net."
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
