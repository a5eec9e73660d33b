"""Rebuilds a method from a checkpoint's arguments, which are untrusted: only known parts are built."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lit_robust import losses
from lit_robust.checkpoint_files import read_checkpoint
from lit_robust.nets.rebuild import plain
from lit_robust.runs import rebuild_net
from lit_robust.training.checkpoint_checks import check_weights_fit


def published(path: str, kinds: Iterable[type]) -> type | None:
    """The class of ours that a path in ``lit_robust`` names: one of ``kinds`` or a subclass; None if there is none.

    Its name decides, because rooms re-export classes, and modules have moved since older checkpoints were written. Only
    classes that are imported already are looked at: nothing is imported for the sake of a file.
    """
    package, name = path.split(".")[0], path.split(".")[-1]
    known = [one for kind in kinds for one in (kind, *subclasses(kind)) if one.__module__.startswith("lit_robust.")]
    return next((one for one in known if package == "lit_robust" and one.__name__ == name), None)


def known_part(path: str, kinds: Iterable[type]) -> Callable[..., Any] | None:
    """The part that a checkpoint may name by the path under which it is saved; None if there is none.

    Optimizers and torch's schedulers are factories, because they need parameters or the optimizer.
    """
    if (known := published(path, kinds)) is not None and not inspect.isabstract(known):
        return known
    room, _, name = path.rpartition(".")
    for package, kind in (
        (torch.optim, torch.optim.Optimizer),
        (torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler),
    ):
        part = vars(package).get(name) if room == package.__name__ else None
        if inspect.isclass(part) and issubclass(part, kind) and part is not kind:
            return partial(partial, part)
    return None


def rebuild_argument(name: str, value: Any, kinds: Iterable[type]) -> Any:
    """Rebuild a method's argument from what a checkpoint holds: plain values, and known parts.

    Args:
        name: The argument's name.
        value: What the checkpoint holds.
        kinds: The base classes of parts that it may name, see ``Loadable.checkpoint_parts``.

    Raises:
        ValueError: If it names anything else.
    """
    if isinstance(value, Mapping) and "class_path" in value:
        build = known_part(str(value["class_path"]), kinds)
        arguments = {} if value.get("init_args") is None else value["init_args"]
        if build is None or not isinstance(arguments, Mapping):
            raise ValueError(
                f"{name} is a {str(value['class_path'])[:100]}, which is not built from a file: give {name}=..."
            )
        return build(**{str(key): rebuild_argument(str(key), one, kinds) for key, one in arguments.items()})
    if isinstance(value, Mapping):
        return {str(key): rebuild_argument(f"{name}.{key}", one, kinds) for key, one in value.items()}
    if isinstance(value, str) and value.startswith(f"{losses.__name__}."):
        found = getattr(losses, value.removeprefix(f"{losses.__name__}."), None)
        if inspect.isfunction(found) and found.__module__ == losses.__name__:
            return found
    return plain(name, value)


def subclasses(kind: type) -> list[type]:
    """All imported subclasses of a class, direct and indirect."""
    found: list[type] = []
    child: type
    for child in kind.__subclasses__():
        found += [child, *subclasses(child)]
    return found


def build_method(cls: type, checkpoint: Mapping[str, Any], path: str | Path, given: Mapping[str, Any]) -> Any:
    """Build the method that a checkpoint names if it is ``cls`` or one of our subclasses of it, else ``cls``.

    Args:
        cls: The class that was asked for.
        checkpoint: Its ``hyper_parameters`` are the arguments.
        path: The checkpoint's path, for the error.
        given: Arguments that replace the file's.

    Raises:
        ValueError: If an argument must be given.
    """
    saved = checkpoint.get("hyper_parameters", {})
    method: Any = published(str(saved.get("_class_path")), (cls,)) or cls
    arguments = dict(given)
    try:
        for name in inspect.signature(method).parameters.keys() - given.keys():
            if name == "net":
                arguments[name] = rebuild_net(checkpoint)
            elif name in saved:
                arguments[name] = rebuild_argument(name, saved[name], method.checkpoint_parts)
        return method(**arguments)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{path} does not build a {method.__name__}: {reason}.") from error


def load_method(cls: type, path: str | Path, given: Mapping[str, Any], strict: bool) -> Any:
    """Build the method of a checkpoint by ``build_method``, with its weights.

    Args:
        cls: The class that was asked for.
        path: A .ckpt file.
        given: Arguments that replace the file's.
        strict: Whether all weights must fit.

    Raises:
        ValueError: If the file cannot be used, or an argument must be given.
    """
    checkpoint = read_checkpoint(path)
    module = build_method(cls, checkpoint, path, given)
    if strict:
        check_weights_fit(module.state_dict(), checkpoint["state_dict"])
    module.load_state_dict(checkpoint["state_dict"], strict=strict)
    return module
