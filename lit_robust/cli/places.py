"""Keys of a configuration that stand in the wrong place, and parts that are null."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from inspect import Parameter, isclass, signature
from types import NoneType
from typing import Any, get_args, get_type_hints

from jsonargparse import Namespace

from lit_robust.cli.classes import arguments_of, find_class
from lit_robust.cli.plain_yaml import NotPlainError, parse
from lit_robust.shown import shown

#: What may stand beside a ``class_path``.
BESIDE = ("init_args", "dict_kwargs")

#: Arguments that are lists of parts, and those that hold parts by name.
PARTS, NAMED_PARTS = ("callbacks", "logger", "plugins"), ("test_attacks", "attacks")

#: Options that name files of weights.
WEIGHTS = ("weights", "ckpt_path")

#: The sections that must not be empty.
SECTIONS = ("trainer", "model", "data")


def check_places(tree: Any, where: str = "") -> None:
    """Refuse arguments beside a ``class_path`` instead of below ``init_args``, and sections that are not mappings.

    jsonargparse would try the other types that the argument may have, and say why these do not fit. A scalar in place
    of a mapping would replace what earlier files have set.

    Args:
        tree: A configuration, or the part of it that stands at ``where``.
        where: Its path, without ``init_args``.

    Raises:
        ValueError: At the first such key.
    """
    if isinstance(tree, list):
        for place, one in enumerate(tree):
            _check_item(one, f"{where}[{place}]", where.rpartition(".")[2].removesuffix("+") in PARTS)
            check_places(one, where)
    if not isinstance(tree, Mapping):
        return
    if where.rpartition(".")[2] in NAMED_PARTS and "class_path" not in tree:
        for key, one in tree.items():
            _check_item(one, f"{where}.{key}", is_part=True)
    if not where:
        for section in SECTIONS:
            if section in tree:
                check_section(section, tree[section])
                _check_kind(section, tree[section], (Mapping, Namespace) if section == "trainer" else (Mapping, str))
    _check_part(tree, where)
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


def _check_part(tree: Mapping[Any, Any], where: str) -> None:
    """Refuse a part whose class is not a name, whose arguments are not a mapping, or with options without a name."""
    given = [tree[key] for key in BESIDE if isinstance(tree.get(key), Mapping)]
    named = [tree, *given] if where in ("", *SECTIONS) or "class_path" in tree else given
    for key in (key for options in named for key in options if not isinstance(key, str)):
        raise ValueError(
            f"{where or 'the configuration'}: {shown(key)} is not an option's name: give options by name, as "
            "name: value."
        )
    if not isinstance(tree.get("class_path", ""), str | None):
        raise ValueError(f"{where}: class_path={shown(tree['class_path'])} must be the name of a class, as text.")
    for key, remedy in (("class_path", "name a class"), ("init_args", "write its arguments, or leave it out")):
        if key in tree and tree[key] is None:
            raise ValueError(f"{where}: {key} is null: {remedy}.")
    for key in BESIDE:
        if tree.get(key) is not None:
            _check_kind(f"{where}.{key}".strip("."), tree[key], (Mapping,))


def _check_kind(where: str, value: Any, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds):
        raise ValueError(f"{where}={shown(value)} must be a mapping: write its options below it, indented.")


def check_flags(words: Sequence[str]) -> None:
    """Apply ``check_places`` to the values of flags, and refuse a flag of a whole section or a file that gives nothing.

    Raises:
        ValueError: At the first one.
    """
    for word, following in zip(words, [*words, "--"][1:], strict=True):
        option, is_given, value = word.partition("=")
        value = value if is_given else following
        if not option.startswith("--") or value.startswith("--"):
            continue
        if (where := option[2:].replace(".init_args", "")) in SECTIONS:
            check_section(where, value)
        if option.endswith((".init_args", ".dict_kwargs")) and not value.lstrip().startswith("{"):
            _check_kind(option[2:], value, (Mapping,))
        tree = None
        if value.startswith(("[", "{")):
            try:
                tree = parse(value, option)
            except ValueError as error:  # what is not YAML may be a text; the parser reports it
                if isinstance(error.__cause__, NotPlainError):
                    raise
        check_places(tree, where.rstrip("+"))


def check_weights(config: Any, flags: Sequence[str]) -> None:
    """Refuse two files of weights on the command line, and empty names of files.

    A file may give ``weights`` beside a checkpoint: the configuration of a run that began with ``--weights`` does so
    when that run is resumed.

    Args:
        config: The parsed configuration.
        flags: The options on the command line.

    Raises:
        ValueError: If both are given, or one is empty.
    """
    files = {name: config.get(name) for name in WEIGHTS}
    if files["ckpt_path"] is not None and not files["ckpt_path"].strip():  # as of a shell's variable that is not set
        raise ValueError("--ckpt_path is empty: name a file, a folder, best or last, or leave it out.")
    if files["weights"] is not None and not files["weights"].strip():
        raise ValueError("--weights is empty: name a file, or leave it out.")
    if all(files.values()) and "--weights" in flags:
        raise ValueError(
            f"--weights {files['weights']} would be replaced by the weights of --ckpt_path {files['ckpt_path']}: give "
            "one of the two."
        )


def of_another_type(value: Any, wanted: str) -> str | None:
    """The first ``class_path`` of a part, or of a list of parts, that names something else than a ``wanted`` class."""
    for one in value if isinstance(value, list) else [value]:
        path = one.get("class_path") if isinstance(one, Mapping) else None
        part = find_class(path) if isinstance(path, str) else None
        if part is not None and wanted not in [cls.__name__ for cls in getattr(part, "__mro__", ())]:
            return path
    return None


def check_section(name: str, value: Any) -> None:
    """Refuse a section without content, of a file or as the value of a flag.

    Raises:
        ValueError: If it is null, in any of the ways to write that.
    """
    if value is None or (isinstance(value, str) and value.strip() in ("", "null", "~", "None")):
        raise ValueError(f"{name}=null gives nothing: write its options below it, indented, or leave it out.")


def _check_item(one: Any, where: str, is_part: bool) -> None:
    """Refuse an item that names no class; jsonargparse would take it for the base class, or report that."""
    if is_part and (one is None or one == {}):
        raise ValueError(f"{where} is empty: name a class, or remove it.")
    if isinstance(one, Mapping) and "init_args" in one and "class_path" not in one:
        raise ValueError(f"{where} has init_args but no class_path: name the class that takes these arguments.")


def check_nulls(config: Any, where: str = "") -> None:
    """Refuse null for an argument that must have a value; jsonargparse (4.53) takes it for any argument.

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
    for name, value in arguments_of(config).items():
        if value is None and (default := _needed(part, name)) is not None:
            raise ValueError(f"{where}.{name}=null has no meaning: leave it out for its default, {default}.")


#: Packages whose annotations say where null may stand.
_ANNOTATED = ("lit_robust.", "torch.optim.", "lightning.pytorch.")


def _needed(part: Any, name: str) -> str | None:
    """The default of an argument if it must not be null, as text; else None."""
    makers = [vars(cls).get("__init__") for cls in part.__mro__] if isclass(part) else []
    for maker in makers:
        parameter = signature(maker).parameters.get(name) if callable(maker) else None
        if parameter is None:
            continue
        if not str(maker.__module__).startswith(_ANNOTATED) or parameter.default in (None, Parameter.empty):
            return None
        hint = parameter.annotation
        with suppress(NameError):  # some of torch's name what is imported for type checkers only
            hint = get_type_hints(maker).get(name, hint)
        allows = hint in (Any, NoneType) or NoneType in get_args(hint) or (isinstance(hint, str) and "None" in hint)
        shown = str(parameter).partition(" = ")[2] or str(parameter.default)
        return None if allows else shown.replace("None", "null")
    return None
