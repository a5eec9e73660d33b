"""What several configurations come to: ``extends``, several ``-c``, and classes that are named anew.

- Mappings merge key by key; anything else is replaced by what comes later, and so is ``test_attacks``, the list of
  what a test reports.
- The same ``class_path`` merges. Another one, compared after import, replaces its node whole, so that the new class
  starts from its own defaults; what belongs to the run rather than to the class stays (``KEPT``).
- All ``callbacks+`` are appended to the last ``callbacks``, whatever the order of the files.
- Flags beat files, wherever they stand on the command line.
- ``extends: [paths]`` at the top of a file names what it is laid over; paths are relative to the file.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from importlib import import_module
from inspect import isclass, isfunction, signature
from typing import Any, get_type_hints

import torch
import yaml
from jsonargparse import Namespace, _typehints, get_loader
from jsonargparse.typing import path_type
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch import loggers

from lit_robust import attacks, callbacks, data, defenses, nets, schedules
from lit_robust.defenses import Defense
from lit_robust.schedules import Schedule

#: What YAML may call by its short name, because importing a room is what makes it known.
ROOMS = (
    *(attacks, callbacks, data, defenses, nets, schedules),
    *(lightning_callbacks, loggers, torch.optim, torch.optim.lr_scheduler),
)
NAMES = [name for room in ROOMS for name in room.__all__]

#: The arguments that stay when another class of a kind is named.
KEPT: dict[type, str] = {
    Defense: "net attack val_attack test_attacks optimizer lr_scheduler lr_interval momentum gradient_clip_val "
    "channels_last compile",
    loggers.Logger: "name save_dir",
}

#: A file that can be read, here or wherever fsspec reaches.
File = path_type("fsr")

# Reading.


def load(source: str) -> dict[str, Any]:
    """Read a configuration and all that it extends.

    Args:
        source: A file, or YAML in place of one.

    Returns:
        The configuration; ``merged`` appends its ``callbacks+``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If something is no YAML, no configuration, or extends itself.
    """
    try:
        file = File(source)
    except TypeError as error:
        if isinstance(_parsed(source, "-c"), dict):
            return _extended(source, "-c", ())
        raise FileNotFoundError(f"-c {source}: there is no such file.") from error
    return _read(file, ())


def _read(file: Any, trail: tuple[str, ...]) -> dict[str, Any]:
    with file.open() as opened:
        return _extended(opened.read(), str(file), (*trail, os.path.realpath(file)))


def _extended(text: str, name: str, trail: tuple[str, ...]) -> dict[str, Any]:
    """The configuration that a text and all that it names come to; it is that of the trail's last file."""

    def other(path: str, does: str) -> dict[str, Any]:
        where = f"{name}, line {_line(text, path)}: {does} {path}"
        try:
            file = File(os.path.join(os.path.dirname(name), os.path.expanduser(path)))
        except TypeError as error:
            raise FileNotFoundError(f"{where}, but there is no such file (paths are relative to this one).") from error
        if os.path.realpath(file) in trail:
            raise ValueError(f"{where}, which comes back to this file: remove one of the two.")
        return _read(file, trail)

    tree = _parsed(text, name)
    if not isinstance(tree, dict):
        raise ValueError(f"{name} is {text[:50]!r}: it must consist of options such as model: and data:.")
    paths = tree.pop("extends", [])
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError(f"{name}: extends={paths!r} must be a list of paths.")
    for key, value in tree.items():
        if isinstance(value, str) and value.endswith((".yaml", ".yml", ".json")):  # a part in a file of its own
            tree[key] = other(value, f"{key} is")
    return reduce(_laid_over, [*(other(path, "extends") for path in paths), tree])


def _parsed(text: str, name: str) -> Any:
    try:
        return get_loader("yaml")(text)
    except yaml.YAMLError as error:
        why = " ".join(str(error).replace('"<unicode string>", ', "").split())
        raise ValueError(f"{name} is no valid YAML: {why}.") from error


def _line(text: str, value: str) -> int:
    tokens = (token for token in yaml.scan(text) if isinstance(token, yaml.ScalarToken) and token.value == value)
    return int(next(tokens).start_mark.line) + 1


# Merging.


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Lay configurations over one another, later ones over earlier ones, and append their ``callbacks+``."""
    result: dict[str, Any] = _appended(reduce(_laid_over, trees))
    return result


def _laid_over(base: Any, over: Any, key: str = "") -> Any:
    base, over = _spelt_out(base, over), _spelt_out(over, base)
    if not isinstance(base, Mapping) or not isinstance(over, Mapping) or key == "test_attacks":
        return over
    if "class_path" in base and "class_path" in over and not same(base["class_path"], over["class_path"]):
        names, arguments = kept(over["class_path"]), base.get("init_args") or {}
        stay = {name: value for name, value in arguments.items() if name in names}
        base = {"class_path": over["class_path"]} | ({"init_args": stay} if stay else {})
    result = dict(base)
    for name, value in over.items():
        before = base.get(name)
        result[name] = _listed(before) + _listed(value) if _appends(name) else _laid_over(before, value, name)
    return result


def _appends(key: Any) -> bool:
    return isinstance(key, str) and key.endswith("+")


def _spelt_out(value: Any, other: Any) -> Any:
    """``Adam`` beside a class with arguments is ``{class_path: Adam}``."""
    return {"class_path": value} if isinstance(other, Mapping) and isinstance(value, str) and found(value) else value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _appended(tree: Any) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    result = {key: _appended(value) for key, value in tree.items()}
    for key in [key for key in result if _appends(key) and key[:-1] in result]:  # else the list is the parser's
        result[key[:-1]] = _listed(result[key[:-1]]) + result.pop(key)
    return result


# Classes by their names.


def found(class_path: Any) -> Any:
    """The class or function that is called so, None if there is none."""
    room, _, name = str(class_path).rpartition(".")
    try:
        rooms = [import_module(room)] if room else [room for room in ROOMS if name in room.__all__]
    except Exception:  # whatever a module of the user's raises: the parser imports it, too, and says it
        return None
    return getattr(rooms[0], name, None) if rooms else None


def same(one: str, other: str) -> bool:
    """Whether two names are those of one class."""
    return one == other or (found(one) is not None and found(one) is found(other))


def kept(class_path: str) -> set[str]:
    """The arguments that stay when this class is named over another one of its kind, and that it takes."""
    cls = found(class_path)
    if not isclass(cls):
        return set()
    names = {name for kind, names in KEPT.items() if issubclass(cls, kind) for name in names.split()}
    return names & {name for parent in cls.__mro__ for name in signature(parent.__init__).parameters}  # type: ignore[misc]


#: What the maker of each callable argument of a method must make.
MADE: dict[str, tuple[type, ...]] = {
    "optimizer": (torch.optim.Optimizer,),
    "lr_scheduler": (torch.optim.lr_scheduler.LRScheduler, torch.optim.lr_scheduler.ReduceLROnPlateau, Schedule),
}


def check_makers(arguments: Mapping[str, Any]) -> None:
    """Refuse, by its name and before it is called, whatever makes no optimizer or scheduler.

    jsonargparse calls any function that a ``class_path`` names.

    Args:
        arguments: The method's arguments, as they are parsed.

    Raises:
        ValueError: If one is neither a class of such things nor a function that is annotated to return one.
    """
    for name, kinds in MADE.items():
        maker = arguments.get(name)
        path = getattr(maker, "class_path", None)
        part = maker if path is None else found(path)
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


def _returned(function: Any) -> Any:
    try:
        return get_type_hints(function).get("return")
    except (TypeError, NameError):
        return None


# The command line.


def gathered(args: Sequence[str], commands: Collection[str]) -> list[str]:
    """Put what all files of a command come to before its flags.

    Args:
        args: The arguments of the command line.
        commands: Words behind which files and flags are another parser's.

    Returns:
        Arguments with one ``-c``, whose value is YAML.
    """
    files: list[str] = []
    flags: list[str] = []
    words = [*args]
    while words:
        word = words.pop(0)
        option, is_given, value = word.partition("=")
        if word in commands:
            return [*_as_one(files), *flags, word, *gathered(words, ())]
        if option in ("-c", "--config") and (is_given or words):
            files.append(value if is_given else words.pop(0))
        else:
            flags.append(word)
    return [*_as_one(files), *flags]


def _as_one(files: Sequence[str]) -> list[str]:
    if not files:
        return []
    # Strings are quoted, so that no loader takes one for a number.
    text = yaml.safe_dump(merged(*map(load, files)), default_style='"', default_flow_style=True, sort_keys=False)
    return ["-c", text]


@contextmanager
def classes_start_afresh() -> Iterator[None]:
    """Let the parser keep no more than ``KEPT`` while it lasts, when a flag, or a file over a default, names a class.

    jsonargparse (4.52 and 4.53) asks one function which arguments stay. Its own answer is all that the new class takes,
    too: ``--model.optimizer Adam`` would keep SGD's lr.
    """
    accepted: Any = _typehints.discard_init_args_on_class_path_change

    def discard(parser: Any, old: Any, new: Any) -> None:
        init_args = old.get("init_args") if old else None
        accepted(parser, old, new)
        if isinstance(init_args, Namespace) and not same(old["class_path"], new["class_path"]):
            for name in vars(init_args).keys() - kept(new["class_path"]):
                init_args.pop(name)

    _typehints.discard_init_args_on_class_path_change = discard
    try:
        yield
    finally:
        _typehints.discard_init_args_on_class_path_change = accepted
