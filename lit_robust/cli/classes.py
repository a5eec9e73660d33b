"""Classes by name: finding one, the arguments kept when one replaces another, and checks of what factories make."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from inspect import isclass, isfunction
from typing import Any, get_origin, get_type_hints

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, loggers
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy

from lit_robust import attacks, callbacks, data, defenses, nets, schedules
from lit_robust.cli.jsonargparse_internals import arguments_discarded_by, constructors_called_by, names_resolved_by
from lit_robust.defenses import Defense
from lit_robust.keywords import keywords_of
from lit_robust.schedules import Schedule


@contextmanager
def importable_folder() -> Iterator[None]:
    """Let modules of the current folder be imported, as ``python -m`` does and an installed script does not."""
    folder = os.getcwd()
    added = not sys.flags.safe_path and not {"", folder} & {*sys.path}
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)


#: Packages whose classes YAML can name without a path, because importing the package registers them.
ROOMS = (
    *(attacks, callbacks, data, defenses, nets, schedules),
    *(lightning_callbacks, loggers, torch.optim, torch.optim.lr_scheduler),
)
NAMES = [name for room in ROOMS for name in room.__all__ if isclass(getattr(room, name))]
#: Functions need their whole path.
NAMES += [f"{nets.__name__}.{name}" for name in nets.__all__ if isfunction(getattr(nets, name))]

#: Short names of several classes, and what each means: the class that the arguments' types name.
AMBIGUOUS: dict[Any, type] = {"ReduceLROnPlateau": ReduceLROnPlateau}

#: Errors of a constructor whose text is a sentence.
READABLE_ERRORS = (ValueError, TypeError, OSError, ImportError, MisconfigurationException, torch.OutOfMemoryError)

#: The arguments that are kept when another class of the same kind is named.
KEPT: dict[type, str] = {
    Defense: "net attack val_attack test_attacks optimizer lr_scheduler lr_interval momentum gradient_clip_val "
    "channels_last compile fold_batchnorm",
    loggers.Logger: "name save_dir",
}


def find_class(class_path: Any) -> Any:
    """The class or function with this name or path, or None."""
    room, _, name = str(class_path).rpartition(".")
    if class_path in AMBIGUOUS:
        return AMBIGUOUS[class_path]
    try:
        rooms = [import_module(room)] if room else [room for room in ROOMS if name in room.__all__]
    except Exception:  # a user's module may raise anything; the parser imports it, too, and reports it
        return None
    return getattr(rooms[0], name, None) if rooms else None


def arguments_of(part: Any) -> dict[str, Any]:
    """The arguments in a parsed configuration of a class; it changes with them."""
    arguments = part.get("init_args") if isinstance(part, Namespace) else None
    return vars(arguments) if isinstance(arguments, Namespace) else {}


def same_class(one: str, other: str) -> bool:
    """Whether two names mean the same class."""
    return one == other or (find_class(one) is not None and find_class(one) is find_class(other))


def kept_arguments(class_path: str) -> set[str]:
    """The arguments that are kept when this class replaces another of its kind, if it takes them."""
    cls = find_class(class_path)
    if not isclass(cls):
        return set()
    names = {name for kind, names in KEPT.items() if issubclass(cls, kind) for name in names.split()}
    return names & keywords_of(cls)


#: What the factory given for each argument must make.
MADE: dict[str, tuple[type, ...]] = {
    "optimizer": (torch.optim.Optimizer,),
    "lr_scheduler": (torch.optim.lr_scheduler.LRScheduler, torch.optim.lr_scheduler.ReduceLROnPlateau, Schedule),
}


def check_makers(arguments: Mapping[str, Any]) -> None:
    """Refuse, before it is called, a factory that does not make an optimizer or scheduler.

    jsonargparse calls any function that a ``class_path`` names.

    Args:
        arguments: The method's arguments, as they are parsed.

    Raises:
        ValueError: If one is neither a class of such things nor a function that is annotated to return one.
    """
    for name, kinds in MADE.items():
        maker = arguments.get(name)
        path = getattr(maker, "class_path", None)
        part = maker if path is None else find_class(path)
        made = part if isclass(part) else _returned(part)
        if path is not None and isfunction(part) and isclass(made) and issubclass(made, kinds):
            raise ValueError(
                f"model.{name}: {path} is a function, which would be called without its first argument: name it alone, "
                f"as {name}: {path}."
            )
        if maker is not None and not (isclass(made) and issubclass(made, kinds)):
            raise ValueError(
                f"model.{name}: {path or part} makes no {kinds[0].__name__}: name a class of them, or a function that "
                f"is annotated to return one (def f(...) -> {kinds[0].__name__})."
            )


#: What a function that a ``class_path`` names may return, besides what can be called.
PARTS = (*MADE["optimizer"], *MADE["lr_scheduler"], Callback, loggers.Logger, LightningDataModule, Profiler, Strategy)


def check_maker(function: Any) -> None:
    """Refuse, before it is called, a function that is not annotated to return a part of a run, or something to call.

    jsonargparse calls any function that a ``class_path`` names where a function is expected, as for an attack's loss.

    Raises:
        ValueError: If it is not.
    """
    made = _returned(function)
    is_called = isclass(made) and any("__call__" in vars(base) for base in made.__mro__)
    if is_called or get_origin(made) is Callable or (isclass(made) and issubclass(made, PARTS)):
        return
    path = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)}"
    raise ValueError(
        f"{path} was not called: as a class_path, a function must be annotated to return what is needed (def f(...) -> "
        "Callable[..., Tensor]); to use the function itself, give its path alone."
    )


def _returned(function: Any) -> Any:
    try:
        return get_type_hints(function).get("return")
    except (TypeError, NameError):
        return None


@contextmanager
def short_names_are_found() -> Iterator[None]:
    """Resolve a short name that several classes have by ``find_class``, where jsonargparse (4.53) refuses it.

    Torch and Lightning both have a ``ReduceLROnPlateau``; other packages have their own ``Adafactor``.
    """

    def also_ours(accepted: Any) -> Any:
        def resolve(cls: Any, name: str) -> str:
            try:
                path: str = accepted(cls, name)
            except ValueError:
                part = find_class(name)
                if not isclass(part):
                    raise
                path = f"{part.__module__}.{part.__qualname__}"
            return path

        return resolve

    with names_resolved_by(also_ours):
        yield


@contextmanager
def classes_start_afresh() -> Iterator[None]:
    """Make the parser keep only the arguments in ``KEPT`` when a flag, or a file over a default, names another class.

    jsonargparse (4.53) decides in one function which arguments to keep. It keeps all that the new class takes:
    ``--model.optimizer Adam`` would keep SGD's lr.
    """

    def more(accepted: Any) -> Any:
        def discard(parser: Any, old: Any, new: Any) -> None:
            init_args = old.get("init_args") if old else None
            accepted(parser, old, new)
            if isinstance(init_args, Namespace) and not same_class(old["class_path"], new["class_path"]):
                for name in vars(init_args).keys() - kept_arguments(new["class_path"]):
                    init_args.pop(name)

        return discard

    with arguments_discarded_by(more):
        yield


def expand_homes(configured: Any) -> None:
    """Replace a leading ``~`` in the loggers' ``save_dir``; Lightning would make a folder of that name.

    Args:
        configured: The configuration of one logger, of several, or none; changed in place.
    """
    for logger in configured if isinstance(configured, list) else [configured]:
        arguments = getattr(logger, "init_args", None) or {}
        if str(arguments.get("save_dir")).startswith("~"):
            arguments["save_dir"] = os.path.expanduser(arguments["save_dir"])


@contextmanager
def raise_constructor_errors() -> Iterator[None]:
    """Raise the error of the constructor that failed instead of jsonargparse's.

    If an argument's type is a union, jsonargparse (4.53) tries the other types after a constructor has failed, and may
    report only the errors of those. It calls all constructors by one function, which is wrapped here.

    Raises:
        ValueError: If a constructor fails with an error whose text is not a sentence, such as a KeyError; it names the
            class.
    """
    failed: list[Exception] = []

    def remembering(call: Any) -> Any:
        def speak(construct: Any, made: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                if not isclass(made):
                    check_maker(made)
                return call(construct, made, *args, **kwargs)
            except Exception as error:
                if not isinstance(error, READABLE_ERRORS):
                    name, what = getattr(made, "__qualname__", made), f"{type(error).__name__}: {error}"
                    failed.append(ValueError(f"{made.__module__}.{name} cannot be built ({what})."))
                    raise failed[-1] from error
                failed.append(error)
                raise

        return speak

    try:
        with constructors_called_by(remembering):
            yield
    except Exception as error:
        if failed and error is not failed[-1]:
            raise failed[-1] from error
        raise
