"""Keys of a configuration that stand in the wrong place, and parts that are null."""

from collections.abc import Mapping
from difflib import get_close_matches
from inspect import Parameter, isclass, signature
from types import NoneType
from typing import Any, get_args, get_type_hints

from jsonargparse import Namespace

from lit_robust.cli.classes import find_class

#: What may stand beside a ``class_path``.
BESIDE = ("init_args", "dict_kwargs")

#: The sections that must not be empty.
SECTIONS = ("trainer", "model", "data")


def check_places(tree: Any, where: str = "") -> None:
    """Refuse arguments beside a ``class_path`` instead of below ``init_args``, and empty sections.

    jsonargparse would try the other types that the argument may have, and say why these do not fit.

    Args:
        tree: A configuration, or the part of it that stands at ``where``.
        where: Its path, without ``init_args``.

    Raises:
        ValueError: At the first such key.
    """
    if isinstance(tree, list):
        for one in tree:
            check_places(one, where)
    if not isinstance(tree, Mapping):
        return
    if not where and (empty := [name for name in SECTIONS if name in tree and tree[name] is None]):
        raise ValueError(f"{empty[0]}=null gives nothing: write its options below it, indented, or leave it out.")
    name = tree.get("class_path")
    others = [str(key) for key in tree if key not in ("class_path", *BESIDE)] if isinstance(name, str) else []
    for key in others:
        if near := get_close_matches(key, ("class_path", *BESIDE), 1, 0.8):
            raise ValueError(f"{where}: {name} has no {key!r} beside it: did you mean {near[0]}?")
    if others:
        raise ValueError(f"{where}: the arguments of {name} belong below init_args: indent {', '.join(others)}.")
    for key, value in tree.items():
        below = where if key in BESIDE else f"{where}.{key}".strip(".+")
        check_places(value, below)


def check_nulls(config: Any, where: str = "") -> None:
    """Refuse null for an argument of ours that must have a value; jsonargparse (4.53) takes it for any argument.

    Args:
        config: The parsed configuration, or the part of it that stands at ``where``.
        where: Its path, without ``init_args``.

    Raises:
        ValueError: At the first such argument, with its default.
    """
    if isinstance(config, list):
        for one in config:
            check_nulls(one, where)
    if isinstance(config, dict):
        for key, value in config.items():
            check_nulls(value, f"{where}.{key}")
    if not isinstance(config, Namespace):
        return
    part = find_class(config.get("class_path"))
    for name, value in vars(config).items():
        check_nulls(value, where if name in BESIDE else f"{where}.{name}".strip("."))
    for name, value in _arguments(config).items():
        if value is None and (default := _needed(part, name)) is not None:
            raise ValueError(f"{where}.{name}=null has no meaning: leave it out for its default, {default}.")


def _arguments(config: Namespace) -> dict[str, Any]:
    arguments = config.get("init_args")
    return vars(arguments) if isinstance(arguments, Namespace) else {}


def _needed(part: Any, name: str) -> str | None:
    """The default of an argument of ours if it must not be null, as text; else None."""
    makers = [vars(cls).get("__init__") for cls in part.__mro__] if isclass(part) else []
    for maker in makers:
        parameter = signature(maker).parameters.get(name) if callable(maker) else None
        if parameter is None:
            continue
        if not str(maker.__module__).startswith("lit_robust.") or parameter.default in (None, Parameter.empty):
            return None
        hint = get_type_hints(maker).get(name, parameter.annotation)
        allows = hint is Any or hint is NoneType or NoneType in get_args(hint)
        return None if allows else str(parameter).partition(" = ")[2] or str(parameter.default)
    return None
