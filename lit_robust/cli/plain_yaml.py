"""Reads YAML in bounded time and memory, and names file and line of what is not plain.

jsonargparse and PyYAML follow aliases without limit: nine lines can stand for a billion values, and a value can contain
itself. Recursion also ends Python at a few hundred levels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from stat import S_ISREG
from typing import Any

import yaml
from jsonargparse import get_loader

from lit_robust.cli.jsonargparse_internals import yaml_loader, yaml_read_by

#: The longest file, in bytes: the largest configuration of a run has about 20,000.
LONGEST = 10**6

#: The longest number, in characters.
LONGEST_NUMBER = 100

#: The most values, with each alias written out.
MOST = 20_000

#: The most levels of nesting.
DEEPEST = 40

#: Pipes that a shell has opened for the process, as in ``-c <(command)``, are read like files.
_OPENED = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")

_KINDS = ("str", "int", "float", "bool", "null", "seq", "map", "merge", "timestamp", "value")
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in _KINDS}


class NotPlainError(yaml.YAMLError):  # type: ignore[misc]  # PyYAML has no types
    """The text is YAML, but not a plain tree of values; the message begins with the line."""


@cache
def _plain_loader() -> type:
    """Derive a loader from jsonargparse that refuses what is not plain after composing nodes, before building."""

    class PlainLoader(yaml_loader()):  # type: ignore[misc]  # a class made by a function
        def get_single_node(self) -> Any:
            """Compose the only document, and check it."""
            root = super().get_single_node()
            if root is not None:
                _size(root, (), {})
            return root

    return PlainLoader


@contextmanager
def plain_yaml() -> Iterator[None]:
    """Let jsonargparse (4.53) read and parse all YAML by the functions here while this lasts."""
    with yaml_read_by(_plain_loader(), _read_and_check):
        yield


def read(path: Any) -> str:
    """Read a local or remote file, which jsonargparse has found readable.

    Raises:
        ValueError: If it is not a regular file, too long or not UTF-8.
    """
    local = not (path.is_url or path.is_fsspec or str(path) == "-")
    if local and not S_ISREG(Path(path).stat().st_mode) and not path.absolute.startswith(_OPENED):
        raise ValueError(f"{path} is not a regular file, and reading it might never end: give a YAML file.")
    with path.open("rb" if local or path.is_fsspec else "r") as file:
        content = file.read(LONGEST + 1)
    if len(content) > LONGEST:
        raise ValueError(f"{path} is longer than {LONGEST:,} bytes, so it is not a configuration: give a YAML file.")
    try:
        return content if isinstance(content, str) else content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8 (byte {error.start}): give a YAML file.") from error


def _read_and_check(path: Any) -> str:
    text = read(path)
    parse(text, str(path))
    return text


def parse(text: str, name: str) -> Any:
    """Parse YAML.

    Args:
        text: The YAML.
        name: Where it comes from, for the message.

    Raises:
        ValueError: If it is not YAML, or not plain.
    """
    try:
        with plain_yaml():
            return get_loader("yaml")(text)
    except NotPlainError as error:
        raise ValueError(f"{name}, {error}") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError if a number has thousands of digits
        why = " ".join(str(error).replace('"<unicode string>", ', "").split())
        raise ValueError(f"{name} is not valid YAML: {why}.") from error
    except TypeError as error:  # jsonargparse appends a colon to the only key
        why = "the only key is not an option's name: give options by name, as name: value"
        raise ValueError(f"{name}: {why}.") from error


def _size(node: yaml.Node, within: Sequence[int], sizes: dict[int, int]) -> int:
    """Count the values that a node stands for, with each alias written out.

    Raises:
        NotPlainError: If it contains itself, has too many values or levels, a key twice, or a tag.
    """
    line = f"line {node.start_mark.line + 1}: "
    if id(node) in within:
        raise NotPlainError(f"{line}a value contains itself by an alias: write out what the alias stands for.")
    if id(node) in sizes:
        return sizes[id(node)]
    if len(within) >= DEEPEST:
        raise NotPlainError(f"{line}there are more than {DEEPEST} levels of nesting: make it flatter.")
    if node.tag not in _PLAIN:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise NotPlainError(f"{line}the tag {tag[:100]} is refused: write a plain value.")
    if node.tag.endswith((":int", ":float")) and len(node.value) > LONGEST_NUMBER:  # base 60 would take minutes
        raise NotPlainError(f"{line}a number has {len(node.value):,} characters: shorten it, or quote it as text.")
    size, inner = 1, (*within, id(node))
    if isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise NotPlainError(
                    f"line {key.start_mark.line + 1}: the key {key.value[:100]!r} is repeated: keep one."
                )
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else None)
            size += _size(key, inner, sizes) + _size(value, inner, sizes)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_size(value, inner, sizes) for value in node.value)
    if size > MOST:
        raise NotPlainError(f"{line}there are more than {MOST:,} values with each alias written out: shorten it.")
    sizes[id(node)] = size
    return size
