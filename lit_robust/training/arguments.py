"""The arguments that every method shares, and one signature for editors, ``help()`` and the command line."""

import inspect
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, get_args, get_origin

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from lit_robust.attacks import Attack
from lit_robust.guards import BNMode
from lit_robust.keywords import check_keywords
from lit_robust.magnitudes import read_by_jsonargparse
from lit_robust.schedules import Schedule
from lit_robust.training.rates import sgd
from lit_robust.training.weight_perturbation import AWP

BNForwards = Literal["needed", "authors"]

read_by_jsonargparse()

#: ``rates.sgd`` as a configuration.
SGD: dict[str, Any] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}}


class SGDByDefault(inspect.Parameter):
    """The optimizer in a signature: its default is a configuration for the command line; ``help()`` shows a call."""

    __slots__ = ()

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value}" for name, value in SGD["init_args"].items())
        return super().__str__().replace(repr(SGD), f"SGD({arguments})")


class EvaluatedArguments(TypedDict, total=False):
    """The arguments of ``Evaluated``, besides net, num_classes and attack."""

    val_attack: Attack | None
    test_attacks: dict[str, Attack] | None
    alarm_images: int
    alarm_sources: Sequence[str | Path | nn.Module] | None
    channels_last: bool
    compile: bool
    fold_batchnorm: bool


class TrainedArguments(EvaluatedArguments, total=False):
    """Those that ``Trained`` adds."""

    optimizer: OptimizerCallable
    lr_scheduler: Schedule | LRSchedulerCallable | None
    lr_interval: Literal["epoch", "step"]
    momentum: Schedule | None
    gradient_clip_val: float | None


class TrainingArguments(TrainedArguments, total=False):
    """What a method with its own ``attack_bn_mode`` passes on to ``Defense``."""

    weight_perturbation: AWP | None


class DefenseArguments(TrainingArguments, total=False):
    """What a method passes on to ``Defense`` unchanged."""

    attack_bn_mode: BNMode


def compose_signature(cls: type) -> None:
    """Give a class's ``__init__`` a signature and a docstring with all arguments, inherited ones included.

    A method declares its own arguments, and ``**kwargs: Unpack[...]`` for those that it passes on. The signature that
    ``inspect``, and so ``help()`` and jsonargparse, sees lists all of them, with the defaults and documentation of the
    class that declares them. Without ``Unpack`` (in a user's own method) all arguments of the base are passed on.
    """
    if "__init__" not in vars(cls):
        return
    init: Any = vars(cls)["__init__"]
    base = next(parent for parent in cls.__mro__[1:] if "__init__" in vars(parent))
    own = inspect.signature(init)
    parameters = list(own.parameters.values())
    starred = {parameter.kind: parameter for parameter in parameters}
    explicit = [parameter for parameter in parameters if parameter.kind not in (_ARGS, _KWARGS)]
    inherited = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
    if _ARGS in starred:
        taken = {parameter.name for parameter in explicit}
        positional = [one for one in inherited if one.kind == _POSITIONAL and one.name not in taken]
        explicit[1:1] = positional
    if _KWARGS in starred:
        taken = {parameter.name for parameter in explicit}
        handed_on = _handed_on(starred[_KWARGS].annotation)
        explicit += [
            one.replace(kind=_KEYWORD)
            for one in inherited
            if one.name not in taken and (handed_on is None or one.name in handed_on)
        ]
    # On the command line the default is a configuration, so that flags can change its arguments one by one.
    explicit = [_with_configuration(one) if one.default is sgd else one for one in explicit]
    init.__signature__ = own.replace(parameters=explicit)
    init.__doc__ = _documentation(cls, [parameter.name for parameter in explicit[1:]])


def check_arguments(cls: type, left: Iterable[str]) -> None:
    """Refuse arguments that no class takes; Python would name only the last class that was called.

    Args:
        cls: What is built.
        left: The names of the arguments that are left for ``Evaluated``.

    Raises:
        TypeError: At the first one, with what was probably meant.
    """
    if others := set(left) - EvaluatedArguments.__annotations__.keys():
        check_keywords(cls.__name__, others, inspect.signature(cls).parameters)


def _with_configuration(optimizer: inspect.Parameter) -> inspect.Parameter:
    return SGDByDefault(optimizer.name, optimizer.kind, default=SGD, annotation=optimizer.annotation)


_ARGS, _KWARGS = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
_POSITIONAL, _KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY


def _handed_on(annotation: Any) -> set[str] | None:
    """The names in ``Unpack[SomeTypedDict]``; None where there is no such annotation."""
    if get_origin(annotation) is not Unpack:
        return None
    return set(get_args(annotation)[0].__annotations__)


def _documentation(cls: type, names: list[str]) -> str:
    """An Args section: each argument as the nearest class documents it."""
    known: dict[str, str] = {}
    for parent in reversed(cls.__mro__):
        known |= _arguments(inspect.cleandoc(parent.__doc__ or ""))
    lines = [f"    {name}: {known[name]}" for name in names if name in known]
    return "\n".join([f"Build {cls.__name__}.", "", "Args:", *lines])


def _arguments(doc: str) -> dict[str, str]:
    section = re.search(r"^Args:\n((?:    .*\n?|\n)*)", doc, re.MULTILINE)
    if section is None:
        return {}
    entries = re.findall(r"^    (\w+): ((?:.*)(?:\n {8}.*)*)", section[1], re.MULTILINE)
    return {name: text.rstrip() for name, text in entries if not text.startswith("See ``")}
