"""Merging of configurations: ``extends``, several ``-c``, and classes that replace others.

- Mappings merge key by key. Any other value is replaced by the later one, and so is a dictionary of attacks
  (``test_attacks``, ``attacks``) as a whole. A dictionary or list given by a flag replaces the earlier one, too.
- The same ``class_path`` merges. Another one, compared after import, replaces its node whole, so that the new class
  starts from its own defaults; what belongs to the run rather than to the class stays (``classes.KEPT``).
- All ``callbacks+`` are appended to the last ``callbacks``, in any order of the files.
- Flags beat files, wherever they stand on the command line.
- ``extends: [paths]`` at the top of a file names the files that it overrides; paths are relative to the file.
- A logger's name of ``"{folder}_{file}"`` becomes that of the file given by ``-c``, also if another file contains it.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from typing import Any

import yaml
from jsonargparse.typing import path_type

from lit_robust.cli.classes import find_class, kept_arguments, same_class
from lit_robust.cli.places import check_places
from lit_robust.cli.plain_yaml import parse, read

#: A file that can be read, here or wherever fsspec reaches.
File = path_type("fsr")

#: The largest number of files that one ``-c`` may read.
MOST_FILES = 100

# Reading.


def load(source: str) -> dict[str, Any]:
    """Read a configuration and all that it extends.

    Args:
        source: A file, or YAML in place of one.

    Returns:
        The configuration; ``merged`` appends its ``callbacks+``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If something is not YAML, not a configuration, or extends itself.
    """
    try:
        file = File(source)
    except TypeError as error:
        if os.path.isdir(source):
            raise IsADirectoryError(f"-c {source} is a folder: give a YAML file.") from error
        if os.path.exists(source):
            why = "cannot be read" if os.path.isfile(source) else "is not a regular file"
            raise FileNotFoundError(f"-c {source} {why}: give a YAML file that can be read.") from error
        if isinstance(parse(source, "-c"), dict):
            return _named(_extended(source, "-c", (), []), "run")
        raise FileNotFoundError(f"-c {source[:200]}: there is no such file.") from error
    folder, name = os.path.split(os.path.abspath(str(file)))
    return _named(_read(file, (), []), f"{os.path.basename(folder)}_{os.path.splitext(name)[0]}")


def _named(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """Fill in the name of the run, so that each recipe has its own folder."""
    node: Any = tree
    for key in ("trainer", "logger", "init_args"):
        node = node.get(key) if isinstance(node, Mapping) else None
    if isinstance(node, dict) and node.get("name") == "{folder}_{file}":
        node["name"] = name
    return tree


def _read(file: Any, trail: tuple[str, ...], opened: list[str], where: str = "") -> dict[str, Any]:
    place = os.path.realpath(file)
    opened.append(place)
    if len(opened) > MOST_FILES:  # a chain of 30 files that each extend the next one twice would read 2^30 files
        raise ValueError(f"{file} is file number {len(opened)} of one configuration: let its files extend fewer.")
    return _extended(read(file), str(file), (*trail, place), opened, where)


def _extended(text: str, name: str, trail: tuple[str, ...], opened: list[str], where: str = "") -> dict[str, Any]:
    """The configuration of a text and all files that it names.

    Args:
        text: The content of the trail's last file.
        name: Its name in messages.
        trail: The files that lead to it, and itself.
        opened: All files that were read.
        where: The option that it is the value of, if any.
    """

    def other(path: str, does: str, where: str = where) -> dict[str, Any]:
        line = f"{name}, line {_line(text, path)}: {does} {path}"
        place = os.path.join(os.path.dirname(name), os.path.expanduser(path))
        try:
            file = File(place)
        except TypeError as error:
            if os.path.exists(place):
                raise FileNotFoundError(f"{line}, which is not a regular file, or may not be read.") from error
            raise FileNotFoundError(f"{line}, but there is no such file (paths are relative to this one).") from error
        if os.path.realpath(file) in trail:
            raise ValueError(f"{line}, which comes back to this file: remove one of the two.")
        return _read(file, trail, opened, where)

    tree = parse(text, name)
    if not isinstance(tree, dict):
        raise ValueError(f"{name} is {text[:50]!r}: it must consist of options such as model: and data:.")
    paths = tree.pop("extends", [])
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError(f"{name}: extends={paths!r} must be a list of paths.")
    for key, value in tree.items():
        if isinstance(value, str) and value.endswith((".yaml", ".yml", ".json")):  # a part in a file of its own
            tree[key] = other(value, f"{key} is", key)
    check_places(tree, where)  # before a later file hides what is wrong
    return reduce(_laid_over, [*(other(path, "extends") for path in paths), tree])


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
    if not isinstance(base, Mapping) or not isinstance(over, Mapping) or key in ("test_attacks", "attacks"):
        return over
    if "class_path" in base and "class_path" in over and not same_class(base["class_path"], over["class_path"]):
        names, arguments = kept_arguments(over["class_path"]), base.get("init_args") or {}
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
    return (
        {"class_path": value} if isinstance(other, Mapping) and isinstance(value, str) and find_class(value) else value
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _appended(tree: Any) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    result = {key: _appended(value) for key, value in tree.items()}
    # Without a base list, the parser appends.
    for key in [key for key in result if _appends(key) and key[:-1] in result]:
        result[key[:-1]] = _listed(result[key[:-1]]) + result.pop(key)
    return result


# The command line.


def gathered(args: Sequence[str], commands: Collection[str]) -> list[str]:
    """Merge all files of a command into one, and put it before the flags.

    Args:
        args: The arguments of the command line.
        commands: The subcommands; files and flags after one of them are for its parser.

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
    tree = merged(*map(load, files))
    check_places(tree)
    text = yaml.safe_dump(tree, default_style='"', default_flow_style=True, sort_keys=False)
    return ["-c", text]
