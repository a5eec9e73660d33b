"""Builds a method again from a checkpoint's arguments, which are data from outside: only parts that are known here."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lit_robust import attacks, losses, schedules
from lit_robust.attacks.difficulty import Difficulty
from lit_robust.nets.rebuild import plain
from lit_robust.runs import rebuild_net
from lit_robust.training.alerts import Trigger
from lit_robust.training.weight_perturbation import AWP


def known_parts() -> dict[str, Callable[..., Any]]:
    """What a checkpoint may name, by the path that it is saved under.

    Optimizers and torch's schedulers are made later, from parameters or the optimizer.
    """
    ours: list[type] = [getattr(room, name) for room in (attacks, schedules) for name in room.__all__]
    ours += [*subclasses(Difficulty), *subclasses(Trigger), AWP]
    found: dict[str, Callable[..., Any]] = {}
    for part in ours:
        if inspect.isclass(part) and not inspect.isabstract(part) and part.__module__.startswith("lit_robust."):
            paths = {f"{part.__module__}.{part.__name__}", f"{part.__module__.rpartition('.')[0]}.{part.__name__}"}
            found |= dict.fromkeys(paths, part)
    found["lit_robust.defenses.AWP"] = AWP
    found |= {f"lit_robust.defenses.hybrid.{part.__name__}": part for part in subclasses(Trigger)}
    for room, kind in (
        (torch.optim, torch.optim.Optimizer),
        (torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler),
    ):
        for name, part in vars(room).items():
            if inspect.isclass(part) and issubclass(part, kind) and part is not kind:
                found[f"{room.__name__}.{name}"] = partial(partial, part)
    return found


def rebuild_argument(name: str, value: Any) -> Any:
    """What a checkpoint gives for an argument of a method: plain values, and parts that are known here.

    Args:
        name: The argument's name.
        value: What the checkpoint holds.

    Raises:
        ValueError: If it names anything else.
    """
    if isinstance(value, Mapping) and "class_path" in value:
        build = known_parts().get(str(value["class_path"]))
        arguments = {} if value.get("init_args") is None else value["init_args"]
        if build is None or not isinstance(arguments, Mapping):
            raise ValueError(
                f"{name} is a {str(value['class_path'])[:100]}, which no file may ask for: give {name}=..."
            )
        return build(**{str(key): rebuild_argument(str(key), one) for key, one in arguments.items()})
    if isinstance(value, Mapping):
        return {str(key): rebuild_argument(f"{name}.{key}", one) for key, one in value.items()}
    if isinstance(value, str) and value.startswith(f"{losses.__name__}."):
        found = getattr(losses, value.removeprefix(f"{losses.__name__}."), None)
        if inspect.isfunction(found) and found.__module__ == losses.__name__:
            return found
    return plain(name, value)


def subclasses(kind: type) -> list[type]:
    """All classes below one, as far as they are imported."""
    found: list[type] = []
    child: type
    for child in kind.__subclasses__():
        found += [child, *subclasses(child)]
    return found


def build_method(cls: type, checkpoint: Mapping[str, Any], path: str | Path, given: Mapping[str, Any]) -> Any:
    """Build the method that a checkpoint names, if it is ``cls`` or a method of ours below it, else ``cls``.

    Args:
        cls: The class that was asked for.
        checkpoint: Its ``hyper_parameters`` are the arguments.
        path: Where it lies, for the error.
        given: Arguments that replace the file's.

    Raises:
        ValueError: If an argument must be given.
    """
    saved = checkpoint.get("hyper_parameters", {})
    named = {f"lit_robust.defenses.{method.__name__}": method for method in (cls, *subclasses(cls))}
    method = named.get(str(saved.get("_class_path")), cls)
    arguments = dict(given)
    try:
        for name in inspect.signature(method).parameters.keys() - given.keys():
            if name == "net":
                arguments[name] = rebuild_net(checkpoint)
            elif name in saved:
                arguments[name] = rebuild_argument(name, saved[name])
        return method(**arguments)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{path} does not build a {method.__name__}: {reason}.") from error
