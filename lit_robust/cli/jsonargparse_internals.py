"""Everything we use of jsonargparse that is not public API, as of jsonargparse 4.53; ``parser.py`` overrides methods.

Each function says what breaks without it. If jsonargparse no longer has what a function uses, calling the function
raises an ImportError of one sentence; importing this file does not need jsonargparse.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any

#: Makes a function that replaces the given one.
Wrap = Callable[[Any], Any]


def internal(module: str, name: str) -> Any:
    """A private part of jsonargparse.

    Raises:
        ImportError: If it is gone, with the tested versions.
    """
    try:
        return getattr(import_module(f"jsonargparse.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"lit_robust relies on internals of jsonargparse 4.53 that jsonargparse {version('jsonargparse')} has "
            f'changed ({module}.{name}): pip install "jsonargparse[signatures]>=4.53,<4.54".'
        ) from error


@contextmanager
def _replaced(module: str, name: str, wrap: Wrap) -> Iterator[None]:
    accepted = internal(module, name)
    home: Any = import_module(f"jsonargparse.{module}")
    setattr(home, name, wrap(accepted))
    try:
        yield
    finally:
        setattr(home, name, accepted)


def names_resolved_by(wrap: Wrap) -> AbstractContextManager[None]:
    """Replace how a short name becomes a path. Without it, names that several classes have would be refused."""
    return _replaced("_typehints", "resolve_class_path_by_name", wrap)


def arguments_discarded_by(wrap: Wrap) -> AbstractContextManager[None]:
    """Replace which arguments another class keeps. Without it, ``--model.optimizer Adam`` would keep SGD's lr."""
    return _replaced("_typehints", "discard_init_args_on_class_path_change", wrap)


def values_adapted_by(wrap: Wrap) -> AbstractContextManager[None]:
    """Replace how a value is read as a type. Without it, entries of dictionaries would mix with earlier ones."""
    return _replaced("_typehints", "adapt_typehints", wrap)


def constructors_called_by(wrap: Wrap) -> AbstractContextManager[None]:
    """Replace how constructors are called. Without it, their errors would be hidden by those of other types."""
    return _replaced("_instantiation", "call_without_instantiate_context", wrap)


def subclasses_listed_by(wrap: Wrap) -> AbstractContextManager[None]:
    """Replace which classes a help lists. Without it, that of ``--net`` would name every module of torch."""
    return _replaced("_typehints", "get_all_subclass_paths", wrap)


def is_nested(value: Any) -> bool:
    """Whether a value is one argument inside an earlier value, for which the other arguments stay."""
    return isinstance(value, internal("_typehints", "NestedArg"))


def is_container(typehint: Any, of_names: bool) -> bool:
    """Whether a type is one of dictionaries, or else of lists, whose entries would mix with earlier ones."""
    kind = internal("_typehints", "get_typehint_origin")(typehint) or typehint
    return bool(kind in internal("_typehints", "mapping_origin_types" if of_names else "sequence_origin_types"))


def yaml_loader() -> Any:
    """The class by which YAML is parsed. Without it, our loader would read numbers and dates differently."""
    return internal("_loaders_dumpers", "get_yaml_default_loader")()


@contextmanager
def yaml_read_by(loader: Any, read: Callable[[Any], str]) -> Iterator[None]:
    """Replace the class that parses YAML and the function that reads files. Without it, neither would have limits."""
    path = internal("_paths", "Path")
    accepted = path.read_text
    with _replaced("_loaders_dumpers", "yaml_default_loader", lambda _: loader):
        path.read_text = read
        try:
            yield
        finally:
            path.read_text = accepted
